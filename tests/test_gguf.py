"""A GGUF file holds every tensor, as the `gguf` package's own reader finds it, and what is not known is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tokenizers
from chat_tokenizers import like_llama, like_llama3, like_qwen, train_whole_lines
from gguf_models import LLAMA3, MODELS, SIZES, written
from tiny_flow import Flow

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

from wizard_jax.chat import ChatError, get_format  # noqa: E402
from wizard_jax.cli import main  # noqa: E402
from wizard_jax.convert.gguf import writing  # noqa: E402
from wizard_jax.convert.gguf.export import card_lines, check_exportable, write_folder  # noqa: E402
from wizard_jax.convert.gguf.network import check_known, tensors  # noqa: E402
from wizard_jax.convert.gguf.ollama import modelfile  # noqa: E402
from wizard_jax.convert.gguf.vocabulary import vocabulary  # noqa: E402
from wizard_jax.convert.gguf.writing import check_gguf, write_gguf  # noqa: E402
from wizard_jax.convert.tensors import ConversionError  # noqa: E402
from wizard_jax.convert.verify import VerificationError  # noqa: E402
from wizard_jax.model.config import ModelConfig  # noqa: E402
from wizard_jax.tokenizer import Tokenizer  # noqa: E402

WITHIN = {"F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 1.0 / 127}
"""Rounding relative to a value, or for Q8_0 to the largest of its block."""


def field(reader: Any, key: str) -> Any:
    return reader.get_field(key).contents()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantisation", WITHIN)
def test_every_tensor_is_read_back(name: str, quantisation: str, tmp_path: pathlib.Path) -> None:
    tiny = MODELS[name]
    reader = gguf.GGUFReader(written(tiny, tmp_path, quantisation))
    held = {tensor.name: tensor for tensor in reader.tensors}
    planned = tensors(tiny.config, tiny.read, quantisation=quantisation)
    assert held.keys() == {tensor.name for tensor in planned}
    for tensor in planned:
        expected, found = tensor.values(), held[tensor.name]
        values = gguf.dequantize(found.data, found.tensor_type).reshape(expected.shape)
        assert found.tensor_type == tensor.type
        if tensor.type == gguf.GGMLQuantizationType.F32:
            np.testing.assert_array_equal(values, expected)
        else:
            assert tensor.type.name == quantisation
            scale = np.abs(expected).max(-1, keepdims=True) if quantisation == "Q8_0" else np.abs(expected)
            assert (np.abs(values - expected) <= WITHIN[quantisation] * scale + 1e-7).all(), tensor.name


def test_queries_and_keys_are_paired_for_the_llama_architecture_alone() -> None:
    """Dimension i of a head and i + Dh / 2 stand side by side; Qwen's and the values stay as they are."""
    llama = {
        tensor.name: tensor.values()
        for tensor in tensors(MODELS["llama"].config, MODELS["llama"].read, quantisation="F16")
    }
    q = np.asarray(MODELS["llama"].params["layers"]["q"])[1]  # D, H, Dh
    heads = llama["blk.1.attn_q.weight"].reshape(4, 16, 64)
    np.testing.assert_array_equal(heads[:, 0::2], np.moveaxis(q[:, :, :8], 0, -1))
    np.testing.assert_array_equal(heads[:, 1::2], np.moveaxis(q[:, :, 8:], 0, -1))
    v = np.asarray(MODELS["llama"].params["layers"]["v"])[1]
    np.testing.assert_array_equal(llama["blk.1.attn_v.weight"], v.reshape(64, -1).T)
    qwen = {
        tensor.name: tensor.values()
        for tensor in tensors(MODELS["qwen2"].config, MODELS["qwen2"].read, quantisation="F16")
    }
    k = np.asarray(MODELS["qwen2"].params["layers"]["k"])[0]
    np.testing.assert_array_equal(qwen["blk.0.attn_k.weight"], k.reshape(64, -1).T)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "llama": {
            "general.architecture": "llama",
            "llama.context_length": 256,
            "llama.attention.head_count_kv": 2,
            "llama.rope.dimension_count": 16,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_space_prefix": True,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.chat_template": get_format("vicuna").template,
        },
        "linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        "yarn": {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.original_context_length": 64,
            "llama.rope.scaling.yarn_beta_fast": 16.0,
        },
        "mistral": {"general.architecture": "llama", "llama.context_length": 128},
        "qwen3": {
            "general.architecture": "qwen3",
            "qwen3.attention.key_length": 32,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.eos_token_id": 380,
            "tokenizer.ggml.eot_token_id": 382,
        },
        "llama 3.1": {"tokenizer.ggml.pre": "llama-bpe"},
        "starcoder": {"general.architecture": "starcoder", "tokenizer.ggml.pre": "starcoder"},
    }.items(),
)
def test_the_settings_are_those_of_the_model(name: str, expected: dict[str, Any], tmp_path: pathlib.Path) -> None:
    reader = gguf.GGUFReader(written(MODELS[name], tmp_path))
    assert {key: field(reader, key) for key in expected} == expected
    assert len(field(reader, "tokenizer.ggml.tokens")) == 424
    assert (reader.get_field("tokenizer.ggml.bos_token_id") is None) == name.startswith("qwen")


def test_special_added_and_unused_tokens_are_told_apart(tmp_path: pathlib.Path) -> None:
    found = vocabulary(Tokenizer(like_qwen(tmp_path)), size=390)
    types = {gguf.TokenType(kind).name: [] for kind in found.types}
    for token, kind in zip(found.tokens, found.types, strict=True):
        types[gguf.TokenType(kind).name].append(token)
    assert types["CONTROL"] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert types["USER_DEFINED"] == ["<think>"]
    assert types["UNUSED"] == [f"[PAD{token}]" for token in range(384, 390)]


def test_a_tokenizer_json_made_from_sentencepiece_is_the_same_vocabulary(tmp_path: pathlib.Path) -> None:
    """As transformers saves LLaMA's, and as folders without the tokenizer.model have it."""
    transformers = pytest.importorskip("transformers")
    like_llama(tmp_path)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "fast")
    original = vocabulary(Tokenizer(tmp_path / "tokenizer.model"), size=430)
    fast = vocabulary(Tokenizer(tmp_path / "fast" / "tokenizer.json"), size=430)
    assert (fast.model, fast.tokens) == ("llama", original.tokens)
    assert [*fast.types][1:] == [*original.types][1:]
    made = [token for token, score in enumerate(fast.scores) if score > -424]
    by_score = sorted(made, key=lambda token: -fast.scores[token])
    assert by_score == sorted(made, key=lambda token: -original.scores[token])
    raw = json.loads((tmp_path / "fast" / "tokenizer.json").read_text())
    raw["model"]["merges"].pop()
    assert_refused(raw, tmp_path, r"the merges of this tokenizer\.json follow no scores")


def assert_refused(raw: dict[str, Any], folder: pathlib.Path, message: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ConversionError, match=message):
        vocabulary(Tokenizer(folder / "tokenizer.json"), size=430)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no known name for.*known are gpt-2, llama-bpe"),
        ({"normalizer": {"type": "NFKC"}}, "does not normalise text as this tokenizer.json: .*NFKC"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_take_for_another_is_refused(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    raw = json.loads(like_llama3(tmp_path).read_text())
    assert_refused(raw | changes, tmp_path, message)


def test_another_kind_of_tokenizer_is_refused(tmp_path: pathlib.Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab={"<s>": 0, "</s>": 1, "x": 2}))
    words.add_special_tokens(["<s>", "</s>"])
    assert_refused(json.loads(words.to_str()), tmp_path, "reads byte-pair encodings, and this tokenizer.json is WordL")
    with pytest.raises(
        ConversionError, match=r"is of the kind 'unigram'.*removes repeated spaces|is of the kind 'unig"
    ):
        vocabulary(train_whole_lines(tmp_path, "unigram"), size=400)
    with pytest.raises(ConversionError, match=r"tokenizer has 420 tokens, the model only 419"):
        vocabulary(Tokenizer(like_llama(tmp_path)), size=419)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"family": "opt", "norm": "layer", "positions": "learned", "position_offset": 2, "mlp": "relu"}
            | {"biases": ("q", "k", "v", "o", "up", "down"), "tied_embeddings": True, "n_kv_heads": 4},
            "no network of the family 'opt': it can be written as GGUF from llama, mistral, qwen2, qwen3, gpt_bigcode",
        ),
        (
            {"family": "qwen2", "biases": ("q", "k", "v"), "rope_scaling": LLAMA3},
            "llama.cpp's qwen2 architecture does not compute rope_scaling of Llama 3",
        ),
        ({"family": "qwen2", "biases": ("q", "k", "v"), "head_dim": 32}, "not compute heads of 32, where .* = 16"),
        ({"family": "qwen3", "qk_norm": True, "biases": ("q", "k", "v", "o")}, "not compute biases of q, k, v, o"),
        (
            dataclasses.asdict(MODELS["starcoder"].config) | {"mlp": "gelu"},
            r"starcoder architecture does not compute mlp = 'gelu' \(its GELU",
        ),
        ({"norm": "layer"}, "no LlamaForCausalLM of Hugging Face computes what this model does: norm = 'layer'"),
    ],
)
def test_a_network_that_llama_cpp_does_not_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        check_known(ModelConfig(**SIZES | changes))


def test_nothing_is_read_and_nothing_left_where_it_is_refused(tmp_path: pathlib.Path) -> None:
    tiny = MODELS["llama"]
    tokenizer = tiny.tokenizer(tmp_path)

    def unread(place: Any) -> Any:
        raise AssertionError(place)

    settings: dict[str, Any] = {"name": "x", "quantisation": "F16", "chat_format": "chatml"}
    with pytest.raises(ChatError, match="the chatml format needs the special tokens"):
        write_folder(tmp_path, tiny.config, tokenizer, unread, **settings)
    smaller = dataclasses.replace(tiny.config, vocab_size=400)
    with pytest.raises(ConversionError, match="has 420 tokens, the model only 400"):
        check_exportable(smaller, tokenizer, chat_format="vicuna")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


@pytest.mark.parametrize(
    ("value", "quantisation", "message"),
    [
        (np.nan, "F16", "blk.1.ffn_up.weight: holds values that are not finite"),
        (1e5, "F16", "blk.1.ffn_up.weight: holds 100000, which is too large for F16: use --quantisation BF16"),
        (1e7, "Q8_0", "blk.1.ffn_up.weight: holds 1e.07, which is too large for Q8_0"),
    ],
)
def test_a_value_that_does_not_fit_is_named_and_leaves_no_folder(
    value: float, quantisation: Any, message: str, tmp_path: pathlib.Path
) -> None:
    tiny = MODELS["llama"]

    def read(place: Any) -> Any:
        array = tiny.read(place).copy()
        if (place.path, place.layer) == (("layers", "up"), 1):
            array[3, 5] = value
        return array

    with pytest.raises(ConversionError, match=message):
        written(tiny, tmp_path, quantisation, read=read)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_what_was_written_is_found(tmp_path: pathlib.Path) -> None:
    tiny, file = MODELS["llama"], tmp_path / "x.gguf"
    tokenizer = tiny.tokenizer(tmp_path)
    settings: dict[str, Any] = {"chat_format": get_format("vicuna"), "quantisation": "F16", "name": "x"}
    checksums = write_gguf(
        file, tiny.config, tokenizer, tiny.read, vocabulary=vocabulary(tokenizer, size=424), **settings
    )
    check_gguf(file, checksums)
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=r"another type, shape or bytes than were written, of: \S+$"):
        check_gguf(file, checksums)


def test_the_card_tells_of_windows_unblocked_rows_and_normalisation(tmp_path: pathlib.Path) -> None:
    mistral, narrow = MODELS["mistral"], dataclasses.replace(MODELS["llama"].config, d_ff=48)
    tokenizer = mistral.tokenizer(tmp_path)
    assert (
        "a context of 128 tokens, the model's sliding window"
        in card_lines(mistral.config, tokenizer, quantisation="F16")[1]
    )
    assert card_lines(narrow, tokenizer, quantisation="Q8_0")[1] == (
        "In F16, because their rows are no multiple of 32: blk.0.ffn_down.weight, blk.1.ffn_down.weight."
    )
    assert (
        "Unicode's NFC, and llama.cpp does not"
        in card_lines(MODELS["qwen2"].config, Tokenizer(like_qwen(tmp_path)), quantisation="BF16")[1]
    )


def test_the_modelfile_has_the_template_the_stops_and_the_context(tmp_path: pathlib.Path) -> None:
    tiny = MODELS["llama 3.1"]
    text = modelfile("x.gguf", tiny.config, tiny.tokenizer(tmp_path), chat_format=get_format("llama3"))
    assert text.splitlines()[1] == "FROM ./x.gguf"
    assert (
        '{{- if $.System }}{{- "<|start_header_id|>" }}{{- "system" }}{{- "<|end_header_id|>" }}{{- "\\n\\n" }}'
        '{{- $.System }}{{- "<|eot_id|>" }}' in text
    )
    assert text.endswith('PARAMETER stop "<|eot_id|>"\nPARAMETER stop "<|end_of_text|>"\nPARAMETER num_ctx 256\n')
    assert "begin_of_text" not in text  # Ollama puts it there itself


def test_the_verb_writes_a_run_with_its_perplexity_before_and_after(
    flow: Flow, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data set holds lineages out, so the run of this test can be measured."""
    run, out = tmp_path / "run", tmp_path / "out"
    sizes = ("model.d_model=32", "model.head_dim=16", "model.d_ff=48")
    assert main(flow.train_command(run, "data.held_out_share=0.3", "held_out=@HeldOut", *sizes)) == 0
    command = ["export", str(run), "--format", "gguf", "--quantisation", "Q8_0", "--out", str(out)]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "README.md", "export.json", "run-Q8_0.gguf"]
    card = (out / "README.md").read_text()
    assert "In F16, because their rows are no multiple of 32: blk.0.ffn_down.weight." in card
    found = re.search(r"Perplexity on ([\d,]+) held-out tokens: ([\d.]+) as it was, ([\d.]+) with", card)
    assert found
    before, after = float(found[2]), float(found[3])
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line["held_out"]["loss"] for line in losses if line.get("held_out") and line["step"] == 2]
    assert before == pytest.approx(math.exp(last), rel=1e-4)
    assert before != after == pytest.approx(before, rel=0.01)
    written = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "read back from the disk by the gguf package and are what was written" in capsys.readouterr().out
    assert main(command) == 0
    assert f"{out} holds this export already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == written
    command[command.index("Q8_0")] = "F16"
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "gguf", "--dtype", "float32"], "--dtype and --base-model have no effect with --format gguf"),
        (["--format", "gguf", "--no-verify"], "--no-verify has no effect with --format gguf"),
        (["--quantisation", "Q8_0"], "--quantisation is the type of a GGUF file: it goes with --format gguf"),
        (["--format", "gguf", "--chat-format", "chatml"], "the chatml format needs the special tokens"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    flow: Flow, options: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(flow.run), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_import_is_written_as_it_was_read_and_as_it_grew(flow: Flow, tmp_path: pathlib.Path) -> None:
    assert main(["export", str(flow.run), "--dtype", "float32", "--no-verify", "--out", str(tmp_path / "hf")]) == 0
    grown = ["--add-tokens=<new>", "--pad-vocabulary-to", "64"]
    for name, options in (("imported", []), ("grown", grown)):
        assert main(["import", str(tmp_path / "hf"), str(tmp_path / name), *options]) == 0
    readers = {}
    for run in (flow.run, tmp_path / "imported", tmp_path / "grown"):
        assert main(["export", str(run), "--format", "gguf", "--out", str(tmp_path / "out" / run.name)]) == 0
        readers[run.name] = gguf.GGUFReader(tmp_path / "out" / run.name / f"{run.name}-F16.gguf")
    held = {name: {one.name: one.data for one in reader.tensors} for name, reader in readers.items()}
    for name, data in held["run"].items():
        assert held["imported"][name].tobytes() == data.tobytes()
        assert held["grown"][name][: len(data)].tobytes() == data.tobytes()
    assert (len(held["run"]["output.weight"]), len(held["grown"]["output.weight"])) == (400, 448)
    assert field(readers["grown"], "tokenizer.ggml.tokens")[400] == "<new>"
    assert field(readers["grown"], "tokenizer.ggml.token_type")[400:402] == [3, 5]  # control, unused
    card = (tmp_path / "out" / "grown" / "README.md").read_text()
    assert "Perplexity was not measured: nothing is held out" in card
    assert "given the special tokens `<new>`" in card


def test_a_folder_that_differs_never_gets_its_name(
    flow: Flow, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(file: pathlib.Path) -> None:  # what a disk does
        content = bytearray(file.read_bytes())
        content[-40] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(writing, "drop_cached", broken)
    assert main(["export", str(flow.run), "--format", "gguf", "--out", str(tmp_path / "out")]) == 1
    assert re.search(r"out: not written, as it would not be \S+: the disk holds another", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
