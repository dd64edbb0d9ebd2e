"""A base that lacks ChatML's tokens is given them at its import, trained with them, and read by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file
from tiny_flow import Flow
from torch_steps import torch

from data_gen.records import Turn
from wizard_jax.chat import encode_prompt, get_format
from wizard_jax.cli import main
from wizard_jax.tokenizer import Tokenizer

ADDED = ("<|im_start|>", "<|im_end|>")
EMBED, HEAD, WEIGHTS = "model.embed_tokens.weight", "lm_head.weight", "model.safetensors"
TRAINING = """
include '{grown}/model.gin'

init = @FromCheckpoint
init.path = '{grown}'
tokenizer = '{grown}/tokenizer.model'
data.dataset = '{dataset}'
data.chat_format = 'chatml'
data.seq_len = 256
batch = @RowsPerStep
batch.rows = 8
optimizer = @AdamW
optimizer.peak_lr = 1e-2
optimizer.warmup_steps = 0
steps = 3
"""


def test_a_run_from_a_grown_import_trains_the_new_tokens_and_transformers_reads_it(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, grown, run, out = (tmp_path / name for name in ("base", "grown", "run", "hf"))
    config = tmp_path / "train.gin"
    config.write_text(TRAINING.format(grown=grown, dataset=flow.evolved))
    told = ["--add-tokens", *ADDED, "--pad-vocabulary-to", "64", "--chat-format", "chatml"]
    assert main(["export", str(flow.run), str(base), "--dtype", "float32", "--no-verify"]) == 0
    assert main(["import", str(base), str(grown), *told]) == 0
    assert main(["train", str(config), "--out", str(run)]) == 0
    assert main(["export", str(run), str(out), "--dtype", "float32"]) == 0
    assert "tokens by transformers" in capsys.readouterr().out

    known = Tokenizer(flow.tokenizer).vocab_size
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 448
    before, after = (load_file(folder / WEIGHTS) for folder in (grown, out))
    new = slice(known, known + len(ADDED))
    assert all(after[name].shape == (448, 16) for name in (EMBED, HEAD))
    assert all(np.abs(after[name][new] - before[name][new]).max(axis=1).min() > 1e-3 for name in (EMBED, HEAD))
    np.testing.assert_array_equal(after[EMBED][-1], after[EMBED][-2], "of rows that no token has, none is trained")

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids(list(ADDED)) == [known, known + 1]
    asked = [{"role": "user", "content": "Sort: plum fig"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    ours = Tokenizer(grown / "tokenizer.model")
    prompt = encode_prompt([Turn("user", "Sort: plum fig")], chat_format=get_format("chatml"), tokenizer=ours)
    assert ids == prompt.tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == [known + 1, tokenizer.convert_tokens_to_ids("</s>")]
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([ids])).logits).all()
    card = (out / "README.md").read_text()
    assert "the special tokens `<|im_start|>`, `<|im_end|>`. Its vocabulary grew from 400 to 448" in card
