"""A run with Llama 3's kind of tokenizer and format, from packing to the exported folder; and no EOS is ever lost."""

from __future__ import annotations

import json
import pathlib
import shutil
import warnings

import numpy as np
import pytest
from chat_tokenizers import like_llama, like_llama3, name_ends
from tiny_flow import Flow

from configs.errors import UserError
from data_gen import shards
from data_gen.records import Record, Turn
from wizard_jax.chat import ChatError, encode_conversation, encode_prompt, end_id, get_format
from wizard_jax.cli import main
from wizard_jax.data.config import DataConfig
from wizard_jax.data.packing import pack
from wizard_jax.data.pipeline import held_out_batches
from wizard_jax.runs import open_model
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.transfer import export_model, import_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing, not of what is tested
    import transformers

SETTINGS = ("data.chat_format=llama3", "data.seq_len=256")
SPOKEN = (Turn("user", "Hi! <|eot_id|> </s>"), Turn("assistant", "Hello you!"))
SPOKEN += (Turn("user", "Sort: 3 2"), Turn("assistant", "2 3!"))


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("llama3")
    name_ends(folder, bos="<|begin_of_text|>", eos="<|end_of_text|>")
    return like_llama3(folder)


@pytest.fixture(scope="module")
def run(flow: Flow, llama3: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("runs") / "llama3"
    assert main(flow.train_command(out, f"tokenizer={llama3}", *SETTINGS)) == 0
    return out


def test_a_run_keeps_its_tokenizer_and_refuses_another(
    flow: Flow, run: pathlib.Path, llama3: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Tokenizer(run / "tokenizer.json").sha256 == Tokenizer(llama3).sha256
    assert open_model(run).tokenizer.sha256 == Tokenizer(llama3).sha256
    copied = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    kept = (llama3.parent / "tokenizer_config.json").read_bytes()
    for eos, code in [("<|end_of_text|>", 0), ("<|eot_id|>", 2)]:
        (copied / "complete.json").unlink()
        name_ends(llama3.parent, bos="<|begin_of_text|>", eos=eos)
        try:
            assert main(flow.train_command(copied, f"tokenizer={llama3}", *SETTINGS)) == code
        finally:
            (llama3.parent / "tokenizer_config.json").write_bytes(kept)
    assert "tokenizer_sha256" in capsys.readouterr().err


def test_what_is_exported_renders_and_stops_as_it_was_trained(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export_model(run, tmp_path / "hf", dtype="float32")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer, llama3 = Tokenizer(run / "tokenizer.json"), get_format("llama3")
    spoken = [Turn("system", " Be kind. "), *SPOKEN[2:], *SPOKEN[2:]]
    messages = [{"role": turn.role, "content": turn.content} for turn in spoken]
    whole = encode_conversation(spoken, chat_format=llama3, tokenizer=tokenizer)
    assert theirs.apply_chat_template(messages, return_dict=False) == whole.tokens.tolist()
    prompt = encode_prompt(spoken[:-1], chat_format=llama3, tokenizer=tokenizer)
    found = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert found == prompt.tolist()
    stop = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert stop == [tokenizer.special_id("<|eot_id|>"), tokenizer.special_id("<|end_of_text|>")]
    assert (theirs.bos_token, theirs.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == stop[0]


def test_what_is_exported_comes_back_and_is_evaluated(flow: Flow, run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export_model(run, tmp_path / "hf", dtype="float32")
    import_model(tmp_path / "hf", tmp_path / "imported")
    for folder in (tmp_path / "hf", tmp_path / "imported"):
        opened = open_model(folder)
        assert opened.chat_format == "llama3"
        assert opened.tokenizer.encode("Hi") == Tokenizer(run / "tokenizer.json").encode("Hi")
        assert end_id(get_format("llama3"), opened.tokenizer) == opened.tokenizer.eos_id
    assert main(flow.eval_command(tmp_path / "eval", f"models.tiny.path={run}")) == 0


def test_formats_of_the_same_text_come_back_under_their_own_names(flow: Flow, tmp_path: pathlib.Path) -> None:
    for name in ("vicuna", "wizardlm"):
        export_model(flow.run, tmp_path / name, chat_format=name)
        assert open_model(tmp_path / name).chat_format == name


def test_a_tokenizer_without_the_formats_tokens_is_refused_before_anything_is_made(
    flow: Flow, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, missing = tmp_path / "out", "needs the special tokens <|start_header_id|>, <|end_header_id|>, <|eot_id|>"
    tokenizer = ["tokenizer", str(flow.evolved), "--chat-format", "llama3", "--out", str(out)]
    for command in (flow.train_command(out, "data.chat_format=llama3"), tokenizer):
        assert main(command) == 2
        assert missing in capsys.readouterr().err
    with pytest.raises(ChatError, match="needs the special tokens"):
        export_model(flow.run, out, chat_format="llama3")
    export_model(flow.run, tmp_path / "hf")
    with pytest.raises(UserError, match="needs the special tokens"):
        import_model(tmp_path / "hf", out, chat_format="llama3")
    assert not out.exists()


def dataset(folder: pathlib.Path) -> pathlib.Path:
    records = [
        Record(id=f"s{number}/0", lineage=f"s{number}", turns=SPOKEN[: 2 + 2 * (number % 2)]) for number in range(20)
    ]
    shards.write_dataset(records, folder, name="d", count=len(records), records_per_shard=20, description="for a test")
    return folder


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sentencepiece", "vicuna"), ("sentencepiece", "llama2_chat"), ("json", "llama3"), ("json", "alpaca")],
)
def test_where_padding_is_eos_the_loss_still_has_every_eos_and_no_padding(
    tmp_path: pathlib.Path, llama3: pathlib.Path, kind: str, name: str
) -> None:
    if kind == "json" and name == "llama3":  # of an instruct model: its EOS, and so its padding, is <|eot_id|>
        llama3 = like_llama3(tmp_path)
        name_ends(tmp_path, bos="<|begin_of_text|>", eos="<|eot_id|>")
    tokenizer = Tokenizer(llama3 if kind == "json" else like_llama(tmp_path))
    end = end_id(get_format(name), tokenizer)
    assert tokenizer.pad_id == end
    config = DataConfig(dataset=str(dataset(tmp_path / "dataset")), chat_format=name, seq_len=300)
    packed = pack(config, tokenizer, cache_dir=tmp_path / "cache")
    (batch,) = (found.batch for found in held_out_batches(packed, batch_rows=64))  # all rows once, whatever the part
    weighted = batch.loss_weights == 1
    assert ((batch.loss_weights == 0) | weighted).all()
    assert int((weighted & (batch.targets == end)).sum()) == 30  # 10 conversations of one answer, 10 of two
    assert not batch.loss_weights[batch.segment_ids == 0].any()
    assert (batch.segment_ids == 0).any()
    # Token 0, which is "!" in Llama 3's vocabulary, is a token as any other.
    if kind == "json":
        assert tokenizer.piece(0) == "!"
        assert int((weighted & (batch.targets == 0)).sum()) >= 20
    said = encode_conversation(SPOKEN, chat_format=get_format(name), tokenizer=tokenizer)
    once = encode_conversation(SPOKEN[:2], chat_format=get_format(name), tokenizer=tokenizer)
    assert int(weighted.sum()) == 10 * int(said.trained.sum() + once.trained.sum())
    assert np.isin(batch.targets[weighted], said.tokens[said.trained]).all()
