"""Models of this project are measured themselves: the loss of answers held out, and lm_eval's tasks, without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_flow import Flow

from configs.folder import load_config, read_complete
from data_gen.records import Turn
from wizard_jax.chat import encode_conversation, get_format
from wizard_jax.cli import main
from wizard_jax.data.pipeline import Batch
from wizard_jax.evaluate.perplexity import batch_losses, perplexity, run_batches
from wizard_jax.generate.scheduler import Scheduler
from wizard_jax.generate.speaker import Speaker
from wizard_jax.runs import open_model
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.watching.metrics import read_held_out

ROOT = Path(__file__).parents[1]
LENGTH = 64
WITHOUT_TORCH = """
import json, sys
from wizard_jax.cli import main
for line in sys.stdin:
    assert main(json.loads(line)) == 0
assert "torch" not in sys.modules
"""


def measuring(out: Path, run: Path, task: str, *settings: str) -> list[str]:
    config = out.parent / f"{out.name}.gin"
    config.write_text(f"task = @{task}\nmodels.tiny = @Local\nmodels.tiny.path = {str(run)!r}\nmodels.tiny.rows = 8\n")
    return ["eval", str(config), "--out", str(out), *settings]


def measures(out: Path) -> dict[str, Any]:
    return {one["name"]: one for one in read_complete(out)["models"]["tiny"]["measures"]}


@pytest.fixture(scope="module")
def held_out_run(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("held_out") / "run"
    settings = ("data.held_out_share=0.3", "held_out=@HeldOut", "held_out.every=2")
    assert main(flow.train_command(run, *settings)) == 0
    return run


def test_the_loss_of_what_a_run_held_out_is_the_one_that_its_training_logged(
    held_out_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    assert main(measuring(out, held_out_run, "HeldOutLoss")) == 0
    found, logged = measures(out), read_held_out(held_out_run)[-1]["held_out"]
    assert found["loss"]["value"] == pytest.approx(logged["loss"], rel=1e-5)
    assert found["loss"]["tokens"] == logged["tokens"]
    for kind, told in (("source", logged["by_source"]), ("round", logged["by_round"])):
        of_kind = {name.removeprefix(f"loss, {kind} "): one for name, one in found.items() if f", {kind} " in name}
        assert {name: one["tokens"] for name, one in of_kind.items()} == {
            name: one["tokens"] for name, one in told.items()
        }
        for name, one in told.items():
            assert of_kind[name]["value"] == pytest.approx(one["loss"], rel=1e-5)
    whole = found["loss"]
    assert whole["low"] < whole["value"] < whole["high"]
    assert whole["n"] < whole["conversations"]
    assert f"over {whole['n']} lineages" in whole["interval"]


def test_of_a_data_set_it_is_that_of_all_its_answers_or_of_a_seeded_part(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert main(flow.evolve_command(other, "seeds.seed=5")) == 0
    out = tmp_path / "eval"
    assert main(measuring(out, flow.run, "HeldOutLoss", f"task.dataset={other}")) == 0
    model = open_model(flow.run)
    config = TrainConfig(**_run_settings(flow, other))
    expected = perplexity(
        model.params, model.config, run_batches(tmp_path / "run", config, model.tokenizer, part="train")
    )
    assert measures(out)["loss"]["tokens"] == expected.tokens
    assert np.exp(measures(out)["loss"]["value"]) == pytest.approx(expected.value, rel=1e-5)
    part = tmp_path / "part"
    assert main(measuring(part, flow.run, "HeldOutLoss", f"task.dataset={other}", "task.records=5")) == 0
    assert measures(part)["loss"]["conversations"] == 5
    capsys.readouterr()
    for name, settings, told in (
        ("its own", (f"task.dataset={flow.evolved}",), f"was trained on {flow.evolved}"),
        ("nothing", (), "was trained with data.held_out_share=0"),
        ("setting", (f"task.dataset={other}", "temperature=0.5"), "temperature has no effect"),
        ("hosted", (f"task.dataset={other}", "models.a=@Simulated"), "models.a is Simulated"),
        ("records", (f"task.dataset={other}", "task.records=-1"), "task.records is -1"),
        ("missing", ("task.dataset=nowhere",), "nowhere"),
    ):
        assert main(measuring(tmp_path / name, flow.run, "HeldOutLoss", *settings)) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def _run_settings(flow: Flow, dataset: Path) -> dict[str, Any]:
    run = load_config(TrainConfig, flow.run)
    told = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    return told | {"data": dataclasses.replace(run.data, dataset=str(dataset)), "pack_cache": ""}


def test_a_model_that_was_measured_is_not_measured_again(held_out_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    assert main(measuring(out, held_out_run, "HeldOutLoss")) == 0
    before = read_complete(out)
    (out / "complete.json").unlink()
    written = (out / "measured" / "tiny.json").stat().st_mtime_ns
    assert main(measuring(out, held_out_run, "HeldOutLoss", "models.tiny.label=another name")) == 0
    assert (out / "measured" / "tiny.json").stat().st_mtime_ns == written
    assert read_complete(out)["models"]["tiny"]["measures"] == before["models"]["tiny"]["measures"]


TASKS = {
    "fruit_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "fruit_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "fruit_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}:",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
DOCS = [
    {"q": "kiwi or plum", "choices": ["kiwi", "plum"], "gold": 0},
    {"q": "fig or olive", "choices": ["fig", "olive"], "gold": 1},
    {"q": "mint or jam", "choices": ["mint", "jam"], "gold": 1},
]


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}}}
    for name, task in TASKS.items():
        # JSON is YAML
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **task}))
    return folder


def test_tasks_of_lm_eval_run_on_our_sampler_and_scorer_without_torch(
    flow: Flow, task_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra [eval]")
    asked = {"plain": tuple(TASKS), "chat": ("fruit_choice", "fruit_answer")}
    commands = [
        measuring(
            tmp_path / prompts,
            flow.run,
            "Harness",
            f"task.tasks={tasks}",
            f"task.include={task_folder}",
            f"task.prompts={prompts}",
        )
        for prompts, tasks in asked.items()
    ]
    hf = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input="".join(json.dumps(command) + "\n" for command in commands),
        env={**os.environ, **hf, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for prompts, tasks in asked.items():
        found = measures(tmp_path / prompts)
        samples = {name: samples_of(tmp_path / prompts, name) for name in tasks}
        assert all(len(lines) == len(DOCS) for lines in samples.values())
        right = [
            float(np.argmax([pair[0] for pair in line["filtered_resps"]]) == line["doc"]["gold"])
            for line in samples["fruit_choice"]
        ]
        accuracy = found["fruit_choice acc"]
        assert accuracy["value"] == pytest.approx(np.mean(right))
        assert accuracy["stderr"] == pytest.approx(np.std(right, ddof=1) / np.sqrt(len(right)))
        assert (accuracy["n"], accuracy["of"]) == (3, "examples")
        assert found["fruit_answer exact_match"]["value"] == 0.0
        context = samples["fruit_choice"][0]["arguments"][0][0]
        assert context == ("kiwi or plum:\n\n### Response:\n" if prompts == "chat" else "kiwi or plum:")
    total = sum(line["filtered_resps"][0] for line in samples_of(tmp_path / "plain", "fruit_text"))
    words = sum(len(doc["q"].split()) for doc in DOCS)
    perplexity_of_words = measures(tmp_path / "plain")["fruit_text word_perplexity"]
    assert perplexity_of_words["value"] == pytest.approx(np.exp(-total / words), rel=1e-6)


def samples_of(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples" / "tiny" / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def speaker(flow: Flow) -> Speaker:
    model = open_model(flow.run)
    return Speaker(
        name="tiny",
        params=model.params,
        config=model.config,
        tokenizer=model.tokenizer,
        chat_format=get_format(model.chat_format),
    )


@pytest.fixture(scope="module")
def harness(speaker: Speaker) -> Iterator[Any]:
    module = pytest.importorskip("wizard_jax.evaluate.tasks.harness_model", reason="needs the extra [eval]")
    with Scheduler(speaker, rows=4, length=LENGTH, queue=1 << 20) as scheduler:
        yield module.HarnessModel(speaker, scheduler, length=LENGTH, seed=0, tell=lambda *_: None)


def request(*arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)


def log_chance(speaker: Speaker, ids: list[int], count: int) -> float:
    """Of the last so many ids, by the program that training is measured with."""
    columns = Batch(*(np.zeros((1, LENGTH), np.int32) for _ in Batch._fields))
    weights = np.zeros((1, LENGTH), np.float32)
    size = len(ids)
    columns.tokens[0, :size], columns.segment_ids[0, :size], columns.positions[0, :size] = ids, 1, np.arange(size)
    columns.targets[0, : size - 1] = ids[1:]
    weights[0, size - 1 - count : size - 1] = 1.0
    return -float(batch_losses(speaker.params, speaker.config, columns._replace(loss_weights=weights)).sum())


def test_the_chance_of_a_continuation_is_that_of_its_tokens_after_the_context(speaker: Speaker, harness: Any) -> None:
    pairs = [("Reverse the", " letters"), ("Sort", " these words"), ("", "kiwi"), ("Take ", "the first")]
    found = harness.loglikelihood([request(*pair) for pair in pairs])
    bos = speaker.tokenizer.bos_id
    for (context, continuation), (total, _) in zip(pairs, found, strict=True):
        whole = [bos, *speaker.tokenizer.encode(context + continuation)]
        before = [bos, *speaker.tokenizer.encode(context.rstrip())] if context else [bos]
        assert total == pytest.approx(log_chance(speaker, whole, len(whole) - len(before)), rel=1e-4)


def test_after_a_conversation_it_is_that_of_an_answer_as_it_is_trained(speaker: Speaker, harness: Any) -> None:
    history = [{"role": "user", "content": "Say one."}]
    text = harness.apply_chat_template(history)
    ((total, _),) = harness.loglikelihood([request(text, "one two")])
    turns = [Turn("user", "Say one."), Turn("assistant", "one two")]
    assert speaker.chat_format is not None
    tokens, trained = encode_conversation(turns, chat_format=speaker.chat_format, tokenizer=speaker.tokenizer)
    ids, count = tokens[:-1].tolist(), int(trained.sum()) - 1  # without the token that ends it
    assert total == pytest.approx(log_chance(speaker, ids, count), rel=1e-4)


def test_a_text_longer_than_the_model_is_scored_token_by_token_once(speaker: Speaker, harness: Any) -> None:
    short, long = "kiwi plum fig", "kiwi plum fig olive mint jam " * 12
    (of_short, of_long) = harness.loglikelihood_rolling([request(short), request(long)])
    bos = speaker.tokenizer.bos_id
    ids = speaker.tokenizer.encode(short)
    assert of_short == pytest.approx(log_chance(speaker, [bos, *ids], len(ids)), rel=1e-4)
    ids = speaker.tokenizer.encode(long)
    assert len(ids) > LENGTH
    first = log_chance(speaker, [bos, *ids[: LENGTH - 1]], LENGTH - 1)
    later = 0.0
    for start in range(LENGTH - 1, len(ids), LENGTH - 1):
        end = min(start + LENGTH - 1, len(ids))
        later += log_chance(speaker, ids[end - LENGTH : end], end - start)
    assert of_long == pytest.approx(first + later, rel=1e-4)


def test_an_answer_ends_before_the_first_stop_string_and_is_repeated(harness: Any) -> None:
    def answers(settings: dict[str, Any]) -> list[str]:
        return harness.generate_until([request(text, settings) for text in ("Sort these: b a", "kiwi", "fig" * 60)])

    settings = {"max_gen_toks": 12, "do_sample": False}
    whole = answers(settings)
    assert whole == answers(settings)
    assert whole[0]
    stop = whole[0][1:3]
    assert answers({**settings, "until": [stop]})[0] == whole[0][: whole[0].index(stop)]
    warm = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.5}
    assert answers(warm) == answers(warm) != whole
    assert harness.shortened.prompts >= 1
    with pytest.raises(ValueError, match="num_beams in its generation_kwargs"):
        answers({"num_beams": 4})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        # lm_eval reads 14,000 task files before it can say that a name is in none of them
        pytest.param(("task.tasks=('no_such_task',)",), "task.tasks names no_such_task", marks=pytest.mark.slow),
        (("task.tasks=()",), "task.tasks is empty"),
        (("task.tasks=('fruit_choice',)", "task.include=nowhere"), "which is no folder"),
        (("task.tasks=('fruit_choice',)", "task.examples=0"), "task.examples is 0"),
        (("task.tasks=('fruit_choice',)", "max_tokens=7"), "max_tokens has no effect"),
    ],
)
def test_what_lm_eval_can_not_run_is_refused(
    settings: tuple[str, ...],
    told: str,
    flow: Flow,
    task_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra [eval]")
    include = () if any("include" in one for one in settings) else (f"task.include={task_folder}",)
    assert main(measuring(tmp_path / "eval", flow.run, "Harness", *include, *settings)) == 2
    assert told in capsys.readouterr().err
