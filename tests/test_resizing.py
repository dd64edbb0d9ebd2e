"""A model that is given tokens at its import: it says what it said, new rows are the mean, and all readers agree."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import transformers
from chat_tokenizers import like_llama, like_llama3, like_opt, like_qwen, like_starcoder
from model_families import FAMILIES, VARIANTS
from safetensors.torch import load_file, save_file
from torch_steps import torch

from configs.errors import UserError
from configs.folder import load_config
from data_gen.records import Turn
from wizard_jax.chat import encode_prompt, end_id, get_format
from wizard_jax.cli import main
from wizard_jax.convert.gguf.vocabulary import vocabulary
from wizard_jax.convert.imported import ImportConfig
from wizard_jax.convert.inventory import INDEX
from wizard_jax.convert.resizing import rounded
from wizard_jax.convert.safetensors_file import PART
from wizard_jax.runs import find_model, open_model
from wizard_jax.tokenizer import Tokenizer, TokenizerError, tokenizer_file
from wizard_jax.train.config import FromCheckpoint
from wizard_jax.transfer import _imported_from, export_model, import_model

TOKENS = ("<|im_start|>", "<|im_end|>")
OTHERS = ("<|speaker_a|>", "<|speaker_b|>")
MULTIPLE = 64
UNUSED = 3  # rows that a model has and its tokenizer does not


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    make: Callable[..., Any]
    like: Callable[[Path], Path]
    grows: tuple[str, ...]
    tokens: tuple[str, ...] = TOKENS


CASES = {
    "llama 2": Case(make=FAMILIES["llama 2"], like=like_llama, grows=("model.embed_tokens.weight", "lm_head.weight")),
    "llama 3.2, tied": Case(make=FAMILIES["llama 3.2"], like=like_llama3, grows=("model.embed_tokens.weight",)),
    "qwen 2.5": Case(
        make=FAMILIES["qwen 2.5"], like=like_qwen, grows=("model.embed_tokens.weight", "lm_head.weight"), tokens=OTHERS
    ),
    "opt 350m": Case(make=FAMILIES["opt 350m"], like=like_opt, grows=("model.decoder.embed_tokens.weight",)),
    "opt with its own head": Case(
        make=VARIANTS["opt with its own head"],
        like=like_opt,
        grows=("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ),
    "starcoder": Case(make=FAMILIES["starcoder"], like=like_starcoder, grows=("transformer.wte.weight",)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    case: Case
    source: Path
    out: Path
    known: int
    """Tokens that the tokenizer had."""


def made(folder: Path, case: Case) -> int:
    """Writes a Hugging Face folder; returns how many tokens its tokenizer has."""
    folder.mkdir()
    known = Tokenizer(case.like(folder)).vocab_size
    case.make(vocabulary=known + UNUSED).save_pretrained(folder)
    return known


@pytest.fixture(scope="module", params=CASES)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("model")
    known = made(folder / "source", case)
    command = ["import", str(folder / "source"), str(folder / "out"), "--add-tokens", *case.tokens]
    assert main([*command, "--pad-vocabulary-to", str(MULTIPLE)]) == 0
    return Imported(case=case, source=folder / "source", out=folder / "out", known=known)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "source"
    made(folder, CASES["llama 2"])
    return folder


def next_multiple(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE


def by_transformers(folder: Path, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = transformers.AutoModelForCausalLM.from_pretrained(folder)(
            torch.tensor([ids])
        ).logits.numpy()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_every_tensor_is_as_it_was_and_new_rows_are_the_mean_of_the_tokenizers(imported: Imported) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (imported.source, imported.out))
    assert list(before) == list(after)
    old = imported.known + UNUSED
    for name, tensor in before.items():
        torch.testing.assert_close(after[name][: len(tensor)], tensor, rtol=0, atol=0)
        if name not in imported.case.grows:
            assert after[name].shape == tensor.shape
            continue
        mean = tensor[: imported.known].numpy().astype(np.float64).mean(axis=0).astype(np.float32)
        assert after[name].shape == (next_multiple(imported.known + len(TOKENS)), tensor.shape[1])
        np.testing.assert_array_max_ulp(after[name][old:].numpy(), np.broadcast_to(mean, after[name][old:].shape), 1)
    assert set(imported.case.grows) <= set(before)


def test_the_folder_says_the_new_size(imported: Imported) -> None:
    size = next_multiple(imported.known + len(TOKENS))
    config = load_config(ImportConfig, imported.out)
    assert json.loads((imported.out / "config.json").read_text())["vocab_size"] == config.model.vocab_size == size
    assert f"model.vocab_size = {size}\n" in (imported.out / "model.gin").read_text()
    assert (config.added_tokens, config.grown_from) == (imported.case.tokens, imported.known + UNUSED)


def test_logits_of_old_tokens_are_what_they_were(imported: Imported) -> None:
    ids = list(range(1, 30))
    before = by_transformers(imported.source, ids)
    np.testing.assert_allclose(
        by_transformers(imported.out, ids)[..., : before.shape[-1]], before, rtol=1e-6, atol=1e-6
    )


def test_the_tokens_have_the_next_ids_and_no_text_becomes_them(imported: Imported) -> None:
    before, after = (Tokenizer(tokenizer_file(folder)) for folder in (imported.source, imported.out))
    assert [after.special_id(token) for token in imported.case.tokens] == [imported.known, imported.known + 1]
    text = f"Hi {imported.case.tokens[0]}user\nSort: 3 2{imported.case.tokens[1]}"
    assert after.encode(text) == before.encode(text)
    assert after.encode_continuation(text) == before.encode_continuation(text)
    assert after.decode(after.encode(text)).strip() == text
    assert after.decode([imported.known, *after.encode("Hi there")]).strip() == "Hi there"
    assert (after.bos_id, after.eos_id) == (before.bos_id, before.eos_id)


def test_transformers_loads_the_export_with_the_same_vocabulary_and_ids(imported: Imported, tmp_path: Path) -> None:
    ours = find_model(imported.out)
    out = tmp_path / "hf"
    chat_format = "alpaca" if imported.case.tokens == OTHERS else "chatml"
    if ours.tokenizer.bos_id is None:
        chat_format = "chatml"
    export_model(imported.out, out, dtype="float32", chat_format=chat_format, verify="tensors")
    model, tokenizer = (
        kind.from_pretrained(out) for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    size = next_multiple(imported.known + len(TOKENS))
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == size
    assert tokenizer.convert_tokens_to_ids(list(imported.case.tokens)) == [imported.known, imported.known + 1]
    told = tokenizer(f"{imported.case.tokens[0]}Hi", add_special_tokens=False)["input_ids"]
    assert told == [imported.known, *ours.tokenizer.encode("Hi")]
    card = (out / "README.md").read_text()
    assert f"was given the special tokens `{imported.case.tokens[0]}`, `{imported.case.tokens[1]}`." in card
    assert f"grew from {imported.known + UNUSED} to {size}: each new row" in card


def test_llama_cpp_is_told_of_the_tokens(imported: Imported) -> None:
    if imported.case.like is like_opt:
        pytest.skip("llama.cpp has no OPT")
    found = find_model(imported.out)
    told = vocabulary(found.tokenizer, size=found.config.vocab_size)
    assert told.tokens[imported.known : imported.known + 2] == list(imported.case.tokens)
    assert set(told.types[imported.known : imported.known + 2]) == {int(gguf.TokenType.CONTROL)}


def test_a_llama_with_the_tokens_of_chatml_speaks_it(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs the special tokens <\|im_start\|>, <\|im_end\|>"):
        import_model(llama, tmp_path / "out", chat_format="chatml")
    import_model(llama, tmp_path / "out", chat_format="chatml", add_tokens=TOKENS)
    opened = open_model(tmp_path / "out")
    chatml, known = get_format("chatml"), Tokenizer(llama / "tokenizer.model").vocab_size
    assert opened.params["embed"].shape[0] == opened.config.vocab_size == known + UNUSED
    prompt = encode_prompt([Turn("user", "Hi")], chat_format=chatml, tokenizer=opened.tokenizer)
    assert [known, known + 1] == [prompt[0], end_id(chatml, opened.tokenizer)]
    export_model(tmp_path / "out", tmp_path / "hf", dtype="float32", verify="tensors")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = [{"role": "user", "content": "Hi"}]
    told = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert told == prompt.tolist()
    assert theirs.eos_token == "<|im_end|>"
    json_alone = Tokenizer(shutil.copy(tmp_path / "hf" / "tokenizer.json", tmp_path / "tokenizer.json"))
    assert json_alone.special_id("<|im_end|>") == known + 1
    import_model(tmp_path / "hf", tmp_path / "again")
    assert find_model(tmp_path / "again").chat_format == "chatml"


def test_padding_alone_keeps_the_tokenizer_and_no_padding_keeps_every_byte(llama: Path, tmp_path: Path) -> None:
    known = Tokenizer(llama / "tokenizer.model").vocab_size
    plain = import_model(llama, tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    padded = import_model(llama, tmp_path / "padded", pad_vocabulary_to=MULTIPLE)
    assert padded == dataclasses.replace(plain, vocab_size=next_multiple(known + UNUSED))
    assert files(tmp_path / "padded")["tokenizer.model"] == files(tmp_path / "plain")["tokenizer.model"]
    assert Tokenizer(tmp_path / "padded" / "tokenizer.model").vocab_size == known
    import_model(llama, tmp_path / "fits", pad_vocabulary_to=known + UNUSED)
    assert (tmp_path / "fits" / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()


def in_three_files(folder: Path, copy: Path) -> Path:
    """In dtypes of their own, with an index, and more than a part of them in memory."""
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.bfloat16)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(torch.float16)
    parts = {f"model-{number}.safetensors": sorted(tensors)[number::3] for number in range(3)}
    for name, members in parts.items():
        save_file({one: tensors[one] for one in members}, copy / name)
    listed = {one: name for name, members in parts.items() for one in members}
    (copy / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return copy


def test_several_files_of_several_dtypes_keep_them_and_the_index_tells_their_size(llama: Path, tmp_path: Path) -> None:
    source, out = in_three_files(llama, tmp_path / "source"), tmp_path / "out"
    import_model(source, out, add_tokens=TOKENS, pad_vocabulary_to=MULTIPLE)
    index, known = json.loads((out / INDEX).read_text()), Tokenizer(llama / "tokenizer.model").vocab_size
    after = {
        name: tensor for file in set(index["weight_map"].values()) for name, tensor in load_file(out / file).items()
    }
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    for name, dtype in (("lm_head.weight", ml_dtypes.bfloat16), ("model.embed_tokens.weight", np.float16)):
        old = load_file(source / index["weight_map"][name])[name]
        mean = rounded(old[:known].double().numpy().mean(axis=0), np.dtype(dtype)).astype(np.float32)
        assert after[name].dtype == old.dtype
        np.testing.assert_array_equal(
            after[name][known + UNUSED :].float(), np.broadcast_to(mean, (after[name].shape[0] - known - UNUSED, 32))
        )
    untouched = next(
        iter(
            {f"model-{i}.safetensors" for i in range(3)}
            - {index["weight_map"][name] for name in ("lm_head.weight", "model.embed_tokens.weight")}
        )
    )
    assert (out / untouched).read_bytes() == (source / untouched).read_bytes()


def test_stopped_at_any_part_it_does_not_load_and_started_again_it_is_the_same(llama: Path, tmp_path: Path) -> None:
    source, whole, out = in_three_files(llama, tmp_path / "source"), tmp_path / "whole", tmp_path / "out"
    settings: dict[str, Any] = {"add_tokens": TOKENS, "pad_vocabulary_to": MULTIPLE}
    told: list[tuple[int, int]] = []
    import_model(source, whole, **settings, progress=lambda done, total, _: told.append((done, total)))
    assert told[-1][0] == told[-1][1], "what is told to be done in the end is all"
    for moment in range(len(told)):
        calls = itertools.count()

        def stop(*_: object, calls: Any = calls, moment: int = moment) -> None:
            if next(calls) == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_model(source, out, **settings, progress=stop)
        assert not (out / "config.json").exists()
        with pytest.raises(UserError):
            find_model(out)
        import_model(source, out, **settings)
        assert {**files(out), "model.gin": b""} == {**files(whole), "model.gin": b""}  # which names its folder
        shutil.rmtree(out)
    with pytest.raises(UserError, match=r"made with other settings(.|\n)*added_tokens"):
        import_model(source, whole, add_tokens=OTHERS, pad_vocabulary_to=MULTIPLE)


def test_a_mean_over_more_than_is_in_memory_at_a_time(tmp_path: Path) -> None:
    case = Case(make=FAMILIES["llama 3.2"], like=like_llama3, grows=())
    source = tmp_path / "source"
    source.mkdir()
    known = Tokenizer(like_llama3(source)).vocab_size
    wide = 2 * PART // 4 // known // 8 * 8
    sizes = {"hidden_size": wide, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    case.make(vocabulary=known, intermediate_size=8, head_dim=8, **sizes).save_pretrained(source)
    import_model(source, tmp_path / "out", add_tokens=OTHERS)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    name = "model.embed_tokens.weight"
    mean = before[name].double().mean(dim=0).float()
    torch.testing.assert_close(after[name][known:], mean.expand(2, -1), rtol=3e-7, atol=0)
    torch.testing.assert_close(after[name][:known], before[name], rtol=0, atol=0)


def test_not_a_number_in_what_grows_is_named_and_nothing_is_left(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "source")
    tensors = load_file(llama / "model.safetensors")
    tensors["lm_head.weight"][5, 3] = float("nan")
    tensors["model.embed_tokens.weight"][6, 1] = float("inf")
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    with pytest.raises(
        UserError, match=r"2 tensor\(s\) hold NaN(.|\n)*lm_head\.weight\n  model\.embed_tokens\.weight$"
    ):
        import_model(tmp_path / "source", tmp_path / "out", add_tokens=TOKENS, pad_vocabulary_to=MULTIPLE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["llama 2", "starcoder"])
@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (("<a>", "<a>"), "'<a>' is given twice"),
        (("",), "'' is no text"),
        ((" ",), "' ' is no text"),
        (("\udcff",), r"'\\udcff' is no text"),
        (("Hi", ""), "is no text"),
    ],
)
def test_tokens_that_can_not_be_added_are_named(kind: str, tokens: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=says):
        Tokenizer(CASES[kind].like(tmp_path)).with_added(tokens)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--add-tokens", "<new>", "</s>"), "'</s>' is there already, with the id 2"),
        (("--add-tokens", "e"), "'e' is there already"),
        (("--pad-vocabulary-to", "0"), "--pad-vocabulary-to 0"),
        (("--pad-vocabulary-to", "-8"), "--pad-vocabulary-to -8"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    llama: Path, flags: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(llama), str(tmp_path / "out"), *flags]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_ids_with_gaps_are_refused(tmp_path: Path) -> None:
    file = like_llama3(tmp_path)
    raw = json.loads(file.read_text())
    raw["added_tokens"] = [one for one in raw["added_tokens"] if one["content"] == "<|begin_of_text|>"]
    last = max(raw["model"]["vocab"].values())
    raw["model"]["vocab"]["<|far|>"] = last + 40
    file.write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|begin_of_text|>"}))
    with pytest.raises(TokenizerError, match="ids that no token has"):
        Tokenizer(file).with_added(["<new>"])


def test_a_value_is_rounded_once_to_bfloat16() -> None:
    """By way of float32, 1 + 2^-8 + 2^-40 would become a tie, and then 1."""
    values = np.array([1 + 2.0**-8 + 2.0**-40, -(1 + 2.0**-8 + 2.0**-40), 1 + 2.0**-8, 1 + 3 * 2.0**-8 - 2.0**-40, 0.0])
    found = rounded(values, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    np.testing.assert_array_equal(found, [1 + 2.0**-7, -(1 + 2.0**-7), 1, 1 + 2.0**-7, 0])


def test_an_adapter_beside_it_does_not_name_a_base_without_its_tokens(imported: Imported) -> None:
    with pytest.raises(UserError, match=r"has tokens or rows that .* has not"):
        _imported_from(FromCheckpoint(path=str(imported.out)))
