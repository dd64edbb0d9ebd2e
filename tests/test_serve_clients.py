"""Programs that are not ours, and our own, use the server as they use any other."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from speaking import LIMITS, make_speaker, served_in_a_thread

from wizard_jax.cli import main
from wizard_jax.convert.export import export_hf
from wizard_jax.generate.engine import Engine
from wizard_jax.generate.speaker import Speaker
from wizard_jax.model import decoder
from wizard_jax.serve.app import Limits

_TASK = """
task: three_animals
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return make_speaker(tmp_path_factory.mktemp("speaker"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed here")
def test_a_task_of_lm_eval_gets_the_log_probabilities_of_the_model(speaker: Speaker, tmp_path: Path) -> None:
    """Multiple choice: the answer that lm_eval scores highest is the one that our own scores say."""
    rows = [
        {"question": "the owl and", "choices": ["the fox", "no", "say sort"], "answer": 0},
        {"question": "one two", "choices": ["three", "list words of"], "answer": 0},
        {"question": "reverse it then", "choices": ["count", "that owl", "fox"], "answer": 2},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stacked = decoder.init_params(speaker.config, key=jax.random.key(0))
    (tmp_path / "tokenizer.model").write_bytes(speaker.tokenizer.files["tokenizer.model"])
    folder = export_hf(
        stacked, speaker.config, tmp_path / "tokenizer.model", tmp_path / "hf", chat_format="wizardlm_7b", card=""
    )
    (tmp_path / "task.yaml").write_text(_TASK.format(data=data))
    with served_in_a_thread(speaker) as server:
        told = {
            "model": "tiny",
            "base_url": f"{server.address}/v1/completions",
            "tokenizer": folder,
            "num_concurrent": "1",
            "max_retries": "1",
        }
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "three_animals"]
        command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in told.items())]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1", "NO_PROXY": "*"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [
        json.loads(line)
        for file in (tmp_path / "out").rglob("samples_*.jsonl")
        for line in file.read_bytes().splitlines()
    ]
    engine = Engine(speaker.params, config=speaker.config, rows=1, length=LIMITS.length)
    assert len(samples) == len(rows)
    for sample, row in zip(sorted(samples, key=lambda one: one["doc_id"]), rows, strict=True):
        for choice, (found, _) in zip(row["choices"], sample["filtered_resps"], strict=True):
            question = str(row["question"])
            context, whole = (speaker.tokenizer.encode(text) for text in (question, f"{question} {choice}"))
            expected = engine.score(np.array(whole, np.int32)).chosen[len(context) :].sum()
            assert float(found) == pytest.approx(float(expected), abs=1e-3)


def test_our_own_evolve_runs_a_round_against_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model's rewrites are eliminated, each with a reason; no request of the run is refused or fails."""
    long = make_speaker(tmp_path, max_positions=1024)
    with served_in_a_thread(long, Limits(rows=4, length=1024, queue=64)) as server:
        settings = ["seeds=@SimulatedSeeds", "seeds.count=3", "rounds=1", f"llm.base_url={server.address}/v1"]
        settings += ["llm.model=tiny", "measure.diversity_sample=0", "measure.duplicates=off", "max_tokens=100"]
        code = main(["evolve", "configs/evolve/simulated_server.gin", "--out", str(tmp_path / "out"), *settings])
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()]
    assert code == (2 if "not one record survived" in capsys.readouterr().err else 0)
    assert rejected
    rules = {row["rule"] for row in rejected}
    assert not rules & {"refused_request", "gave_up", "unclear"}, rejected
