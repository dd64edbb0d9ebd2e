"""What is exported is what `transformers` computes, and the other way about."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from data_gen.records import Turn
from wizard_jax.chat import CHAT_FORMATS, encode_conversation, encode_prompt, get_format
from wizard_jax.convert.export import export_hf
from wizard_jax.convert.importing import load_hf_params, read_model_config
from wizard_jax.generate.sampler import Sampling, generate
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer, train_tokenizer

torch = pytest.importorskip("torch", reason="PyTorch is installed beside the lock file, by `make`")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing, not of what is tested
    import transformers

TEXTS = [
    f"{word} the list [{a}, {b}, {c}] and then {other} the result. Why is the sky blue, {word}? No; it isn't!"
    for word, other in [("Sort", "reverse"), ("Filter", "count"), ("Join", "upper-case"), ("Add", "print")]
    for a, b, c in [(1, 22, 3), (45, 6, 7), (8, 9, 100)]
]
TIES = ["untied", "tied"]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(TEXTS, path, vocab_size=400)
    return path


@pytest.fixture(scope="module", params=TIES)
def torch_model(request: pytest.FixtureRequest, tokenizer_path: pathlib.Path) -> Any:
    """A random LLaMA of transformers with grouped-query attention, large enough in its weights to matter.

    It never says unk, bos or a byte that no piece covers: these are shown differently everywhere.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=640,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        tie_word_embeddings=request.param == "tied",
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1.0, 0.2)
        model.lm_head.weight[[0, 1, *range(3, 259)]] = 0
        model.lm_head.weight[Tokenizer(tokenizer_path).vocab_size :] = 0
    return model


@pytest.fixture(scope="module")
def torch_folder(torch_model: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("torch") / "model"
    torch_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(torch_folder: pathlib.Path) -> tuple[ModelConfig, decoder.Params]:
    config = read_model_config(torch_folder)
    return config, load_hf_params(torch_folder, config)


@pytest.fixture(scope="module")
def exported(
    ours: tuple[ModelConfig, decoder.Params],
    tokenizer_path: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    config, params = ours
    out = tmp_path_factory.mktemp("exported") / "hf"
    return export_hf(
        params,
        config,
        tokenizer_path,
        out,
        chat_format="vicuna",
        card="# Tiny",
        dtype="float32",
        max_shard_bytes=100_000,
    )


def columns(tokens_BxL: np.ndarray) -> dict[str, jax.Array]:
    positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    return {
        "tokens": jnp.asarray(tokens_BxL),
        "positions": positions_BxL,
        "segment_ids": jnp.ones(tokens_BxL.shape, jnp.int32),
    }


def all_logits(params: decoder.Params, tokens_BxL: np.ndarray, *, config: ModelConfig) -> jax.Array:
    hidden = decoder.hidden_states(params, **columns(tokens_BxL), config=config)
    return decoder.logits(params, hidden, config=config)


def test_logits_equal_those_of_transformers_on_512_tokens(torch_model: Any, ours: Any) -> None:
    config, params = ours
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 512)).astype(np.int32)
    with torch.no_grad():
        expected = torch_model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    found = all_logits(params, tokens, config=config)
    assert np.abs(expected).max() > 1  # else closeness would mean nothing
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_gradients_of_every_tensor_equal_those_of_transformers(
    torch_model: Any, ours: Any, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config, params = ours
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 33)).astype(np.int32)
    torch_model.zero_grad()
    scores = torch_model(torch.tensor(tokens, dtype=torch.long)).logits[:, :-1]
    labels = torch.tensor(tokens[:, 1:], dtype=torch.long)
    torch.nn.functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1)).backward()

    def loss(tree: decoder.Params) -> jax.Array:
        chances = jax.nn.log_softmax(all_logits(tree, tokens, config=config)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(chances, jnp.asarray(tokens)[:, 1:, None], axis=-1))

    gradients = jax.jit(jax.grad(loss))(params)
    out = export_hf(
        gradients, config, tokenizer_path, tmp_path / "grads", chat_format="alpaca", card="", dtype="float32"
    )
    found = load_file(out / "model.safetensors")
    expected = {name: weight.grad.numpy() for name, weight in torch_model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 0, name
        np.testing.assert_allclose(found[name], gradient, atol=1e-4 * np.abs(gradient).max(), rtol=0, err_msg=name)


def test_there_and_back_is_bit_identical(torch_folder: pathlib.Path, exported: pathlib.Path) -> None:
    expected = load_file(torch_folder / "model.safetensors")
    parts = [load_file(file) for file in sorted(exported.glob("*.safetensors"))]
    assert len(parts) > 1
    found = {name: array for part in parts for name, array in part.items()}
    assert sum(map(len, parts)) == len(found)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_transformers_generates_the_same_text_from_the_exported_folder(ours: Any, exported: pathlib.Path) -> None:
    config, params = ours
    tokenizer = Tokenizer(exported / "tokenizer.model")
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype="auto")
    assert hf_model.dtype == torch.float32
    questions = [f"{text[: 10 + 5 * index]}?" for index, text in enumerate((TEXTS * 2)[:20])]
    vicuna = get_format("vicuna")
    prompts = [
        encode_prompt([Turn(role="user", content=question)], chat_format=vicuna, tokenizer=tokenizer)
        for question in questions
    ]
    answers = generate(
        params,
        prompts,
        config=config,
        sampling=Sampling(max_new_tokens=24),
        eos_id=tokenizer.eos_id,
        batch_size=20,
    )
    chats = [[{"role": "user", "content": question}] for question in questions]
    inputs = hf_tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        outputs = hf_model.generate(**inputs, max_new_tokens=24)
    for row, mask, prompt in zip(inputs["input_ids"], inputs["attention_mask"], prompts, strict=True):
        np.testing.assert_array_equal(row[mask.bool()].numpy(), prompt)
    width = inputs["input_ids"].shape[1]
    expected = hf_tokenizer.batch_decode(outputs[:, width:], skip_special_tokens=True)
    assert [tokenizer.decode(answer).strip() for answer in answers] == [text.strip() for text in expected]
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("name", sorted(name for name in CHAT_FORMATS if not CHAT_FORMATS[name].special_tokens))
def test_the_exported_template_gives_the_ids_that_are_trained_on(
    ours: Any, tokenizer_path: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    config, params = ours
    out = export_hf(params, config, tokenizer_path, tmp_path / "hf", chat_format=name, card="")
    said = ["Sort\n  the list, [1,  22]!", "It isn't.", "Why é?", " and then", "No; print", "the result"]
    turns = [Turn(role="assistant" if index % 2 else "user", content=text) for index, text in enumerate(said)]
    encoded = encode_conversation(turns, chat_format=get_format(name), tokenizer=Tokenizer(tokenizer_path))
    found = transformers.AutoTokenizer.from_pretrained(out).apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns], return_dict=False
    )
    assert found == encoded.tokens.tolist()
