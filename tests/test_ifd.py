"""IFD: the published formulas, on a model whose losses have a closed form, and on one that `transformers` computes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_tokenizers import like_llama, like_qwen

from configs.errors import UserError
from data_gen.records import Record, Turn
from wizard_jax.chat import encode_conversation, get_format
from wizard_jax.convert.importing import load_hf_params, read_model_config
from wizard_jax.evaluate.difficulty.ifd import Losses, ifd, mean_losses
from wizard_jax.evaluate.difficulty.sequences import (
    AloneAfter,
    RecordSequences,
    Refused,
    Scored,
    Sequencer,
    pack,
    row_lengths,
)
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer

LENGTH = 128


def ids(*tokens: int, first: int) -> Scored:
    return Scored(np.array(tokens, np.int32), first)


def record(*contents: str) -> Record:
    turns = tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(contents))
    return Record(id="s/0", lineage="s", turns=turns)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(like_llama(tmp_path_factory.mktemp("tokenizer")))


# --- the model with a closed form


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Probabilities of the next of 8 tokens (columns) after each of them (rows)."""
    drawn = np.random.default_rng(0).random((8, 8)) + 0.05
    return drawn / drawn.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def bigram(table: np.ndarray) -> tuple[decoder.Params, ModelConfig]:
    """A decoder that knows the last token only: its layers add nothing, and its logits are the logs of the table.

    An embedding that is a unit vector e comes out of the final norm as sqrt(8) e, whatever the tokens before it.
    """
    config = ModelConfig(
        vocab_size=8,
        d_model=8,
        n_layers=2,
        n_heads=1,
        n_kv_heads=1,
        head_dim=8,
        d_ff=8,
        norm_eps=1e-12,
        compute_dtype="float32",
    )
    params = decoder.init_params(config, key=jax.random.key(0))
    params["layers"] |= {name: jnp.zeros_like(params["layers"][name]) for name in ("o", "down")}
    params["embed"] = jnp.eye(8, dtype=jnp.float32)
    params["unembed"] = jnp.asarray(np.log(table) / np.sqrt(8), jnp.float32)
    return params, config


def test_losses_are_those_of_the_closed_form(bigram: tuple[decoder.Params, ModelConfig], table: np.ndarray) -> None:
    params, config = bigram
    sequences = [ids(1, 2, 3, 4, first=2), ids(1, 3, 4, first=1), ids(5, 6, 5, 6, 7, first=1)]
    expected = [
        -np.mean([math.log(table[2, 3]), math.log(table[3, 4])]),
        -np.mean([math.log(table[1, 3]), math.log(table[3, 4])]),
        -np.mean([math.log(table[a, b]) for a, b in ((5, 6), (6, 5), (5, 6), (6, 7))]),
    ]
    found = mean_losses(sequences, params=params, config=config, length=LENGTH)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    measures = ifd(Losses(*found))
    assert measures is not None
    assert measures.ifd_loss == pytest.approx(expected[0] / expected[1], rel=1e-5)
    assert measures.ifd_ppl == pytest.approx(math.exp(expected[0]) / math.exp(expected[1]), rel=1e-5)
    assert measures.ic_ifd == pytest.approx(expected[0] / (expected[1] * expected[2]), rel=1e-5)


def test_a_model_that_hears_no_instruction_has_an_ifd_of_1_after_the_answer_prefix_and_is_not_helped(
    bigram: tuple[decoder.Params, ModelConfig], table: np.ndarray
) -> None:
    """After BOS alone the first token of the answer is foreseen from another one, and only that."""
    params, config = bigram
    answer = (4, 2, 6)
    whole, alone = ids(1, 5, 7, 3, *answer, first=4), ids(1, 3, *answer, first=2)
    after_bos, instruction = ids(1, *answer, first=1), ids(1, 5, 7, first=1)
    losses = mean_losses([whole, alone, after_bos, instruction], params=params, config=config, length=LENGTH)
    measures = ifd(Losses(answer=losses[0], alone=losses[1], instruction=losses[3]))
    assert measures is not None
    assert (measures.ifd_loss, measures.ifd_ppl, measures.is_unhelped) == (1.0, 1.0, True)
    gained = math.log(table[1, 4]) - math.log(table[3, 4])
    assert losses[0] - losses[2] == pytest.approx(gained / 3, abs=1e-5)


def test_both_forms_are_at_least_1_together_and_rank_differently() -> None:
    first, second = ifd(Losses(2.0, 2.5, 1.0)), ifd(Losses(0.2, 0.5, 1.0))
    assert first is not None
    assert second is not None
    assert first.ifd_loss > second.ifd_loss
    assert first.ifd_ppl < second.ifd_ppl
    for losses in (Losses(1.0, 1.0, 1.0), Losses(1.1, 1.0, 1.0), Losses(0.9, 1.0, 1.0)):
        found = ifd(losses)
        assert found is not None
        assert found.is_unhelped == (found.ifd_loss >= 1) == (found.ifd_ppl >= 1)
    assert ifd(Losses(0.1, 0.0, 1.0)) is None
    assert ifd(Losses(0.1, 1.0, 0.0)) is None


# --- sequences


def test_the_answer_is_the_same_ids_in_both_and_stands_behind_what_is_stated(tokenizer: Tokenizer) -> None:
    asked = record("Sort: 3 2", "2 3 Sort: 3 2 2 3")  # repeats the question: what a search for the text would find
    chat_format = get_format("wizardlm_7b")
    tokens, trained = encode_conversation(asked.turns, chat_format=chat_format, tokenizer=tokenizer)
    prefixes: dict[AloneAfter, list[int]] = {
        "answer prefix": [tokenizer.bos_id or 0, *tokenizer.encode("\n\n### Response:\n")],
        "bos": [tokenizer.bos_id or 0],
    }
    for alone_after, prefix in prefixes.items():
        sequencer = Sequencer(tokenizer, chat_format, LENGTH, alone_after)
        found = sequencer.of(asked)
        assert isinstance(found, RecordSequences)
        answer = tokens[trained][:-1].tolist()
        assert found.whole.tokens.tolist() == tokens[:-1].tolist()
        assert found.whole.tokens[found.whole.first :].tolist() == answer
        assert found.alone.tokens.tolist() == [*prefix, *answer]
        assert found.alone.first == len(prefix)
        assert found.instruction.tokens.tolist() == [tokenizer.bos_id, *tokenizer.encode("Sort: 3 2")]


def test_of_several_turns_the_last_answer_is_scored_after_all_that_came_before(tokenizer: Tokenizer) -> None:
    several = record("Hi there", "Hello you!", "Sort: 3 2", "2 3")
    sequencer = Sequencer(tokenizer, get_format("vicuna"), LENGTH)
    found, single = sequencer.of(several), sequencer.of(record("Sort: 3 2", "2 3"))
    assert isinstance(found, RecordSequences)
    assert isinstance(single, RecordSequences)
    assert tokenizer.decode(found.whole.tokens[found.whole.first :].tolist()).strip() == "2 3"
    assert "Hello you!" in tokenizer.decode(found.whole.tokens[: found.whole.first].tolist())
    assert found.alone.tokens.tolist() == single.alone.tokens.tolist()


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (("Hi there", "Hello " * 200), "too long"),
        (("Hi there " * 200, "Hello"), "too long"),
        (("Hi there",), "no answer"),
        (("Hi there", " \n"), "no answer"),
        (("", "Hello"), "no instruction"),
    ],
)
def test_what_can_not_be_scored_whole_is_refused(tokenizer: Tokenizer, contents: tuple[str, ...], reason: str) -> None:
    found = Sequencer(tokenizer, get_format("wizardlm_7b"), LENGTH).of(record(*contents))
    assert isinstance(found, Refused)
    assert found.reason == reason


def test_a_system_turn_without_a_place_is_refused_and_no_crash(tokenizer: Tokenizer) -> None:
    turns = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello"))
    found = Sequencer(tokenizer, get_format("alpaca"), LENGTH).of(Record(id="s/0", lineage="s", turns=turns))
    assert isinstance(found, Refused)
    assert (found.reason, "no place for a system turn" in found.detail) == ("no place in the chat format", True)


def test_bos_is_refused_where_there_is_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer(like_qwen(tmp_path))
    assert tokenizer.bos_id is None
    with pytest.raises(UserError, match="has no BOS"):
        Sequencer(tokenizer, get_format("chatml"), LENGTH, "bos")
    found = Sequencer(tokenizer, get_format("chatml"), LENGTH).of(record("Hi there", "Hello"))
    assert isinstance(found, RecordSequences)
    assert found.alone.first > 0


# --- packing


def test_every_sequence_is_in_one_place_and_little_is_padding() -> None:
    random = np.random.default_rng(0)
    sequences = [
        Scored(random.integers(1, 99, n).astype(np.int32), int(random.integers(1, n)))
        for n in np.clip(random.lognormal(5, 0.7, 1500), 2, 1024).astype(int)
    ]
    seen: list[int] = []
    places = 0
    shapes = set()
    for packed in pack(sequences, length=1024, batch_tokens=8192):
        shapes.add(packed.batch.tokens.shape)
        places += packed.batch.tokens.size
        for n, row, start, end in zip(*packed[1:], strict=True):
            seen.append(int(n))
            assert packed.batch.tokens[row, start:end].tolist() == sequences[n].tokens.tolist()
            assert packed.batch.loss_weights[row, start:end].sum() == sequences[n].scored
            assert len(set(packed.batch.segment_ids[row, start:end].tolist())) == 1
    assert sorted(seen) == list(range(1500))
    assert shapes == {(16, 512), (8, 1024)}
    assert sum(len(one.tokens) for one in sequences) / places > 0.93
    assert row_lengths(2000) == (512, 1024, 2000)
    assert row_lengths(100) == (100,)


# --- against transformers


def test_the_losses_are_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Its own loss with labels, one sequence at a time, on a model whose attention matters."""
    torch = pytest.importorskip("torch", reason="PyTorch is installed beside the lock file, by `make`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of importing, not of what is tested
        import transformers

    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    sizes: dict[str, Any] = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, **settings, max_position_embeddings=LENGTH, tie_word_embeddings=False)
    ).eval()
    theirs.save_pretrained(tmp_path)
    config = read_model_config(tmp_path)
    params = load_hf_params(tmp_path, config)
    records = [record("Sort: 3 2", "2 3"), record("Hi there", "Hello you!", "Sort: 3 2 1", "1 2 3"), record("x", "y")]
    made = [Sequencer(tokenizer, get_format("alpaca"), LENGTH).of(one) for one in records]
    sequences = [one for found in made if isinstance(found, RecordSequences) for one in found]
    assert len(sequences) == 9
    expected = []
    with torch.inference_mode():
        for one in sequences:
            tokens = torch.tensor(one.tokens[None].astype(np.int64))
            labels = tokens.clone()
            labels[:, : one.first] = -100
            expected.append(float(theirs(input_ids=tokens, labels=labels).loss))
    found = mean_losses(sequences, params=params, config=config, length=LENGTH)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    by_itself = mean_losses(sequences[:1], params=params, config=config, length=LENGTH)
    np.testing.assert_allclose(by_itself, found[:1], rtol=1e-6)
