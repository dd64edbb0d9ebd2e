"""Every shipped config file is read by the stage that it is for, and says what it is and how it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.loader import ConfigError, load
from data_gen.config import AnswerConfig, EvolveConfig
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.train.config import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
ROOTS: dict[str, type] = {"evolve": EvolveConfig, "answer": AnswerConfig, "train": TrainConfig, "eval": EvalConfig}
"""Folder, which is also the verb -> what its files configure. Files of models/ are included by others."""

LEFT_OPEN = {
    "seeds.path": "seeds.jsonl",
    "data.dataset": "evolved",
    "dataset": "evolved",
    "llm.batch.bucket": "gs://bucket/folder",
    "tokenizer": "tokenizer.model",
    "model": "runs/evolved",
    "task.held_out_from": "('evolved',)",
}
"""Where things lie is the user's to say; all else a file says itself."""

FILES = sorted(CONFIGS.rglob("*.gin"))


def by_name(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def test_every_folder_has_its_stage() -> None:
    assert {file.parent.name for file in FILES} == {*ROOTS, "models"}


def left_open(root: type, file: Path) -> list[str]:
    """The settings that a file leaves to the command line, as the error of loading it lists them."""
    try:
        load(root, [file])
    except ConfigError as error:
        return [problem.partition(": required")[0] for problem in error.problems]
    return []


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name in ROOTS], ids=by_name)
def test_a_stage_s_file_loads_once_it_is_told_where_things_are(file: Path) -> None:
    root: type[Any] = ROOTS[file.parent.name]
    settings = [f"{path}={LEFT_OPEN[path]}" for path in left_open(root, file)]
    assert isinstance(load(root, [file], settings), root)


PUBLISHED = {
    "rounds": 4,
    "operations": (
        "add_constraints",
        "deepening",
        "concretizing",
        "increase_reasoning_steps",
        "complicate_input",
        "in_breadth",
    ),
    "answer_seeds": "model",
    "temperature": 1.0,
    "top_p": 0.9,
    "max_tokens": 2048,
}
"""Sections 3 and 4 of arXiv 2304.12244."""


@pytest.mark.parametrize("names", [(), ("wizardlm.gin",)], ids=["the defaults", "wizardlm.gin"])
def test_evol_instruct_is_the_published_one_unless_told_otherwise(names: tuple[str, ...]) -> None:
    files = [CONFIGS / "evolve" / name for name in names]
    told = ["seeds.path=seeds.jsonl"] if files else ["seeds=@SimulatedSeeds", "seeds.count=1", "llm=@Simulated"]
    config = load(EvolveConfig, files, told)
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED
    rules = ("no_gain", "refusal", "empty_answer", "copied_prompt")
    # Beyond the paper: what complicate_input adds must parse, and a paraphrase must ask the same.
    checked = () if files else ("invalid_input", "changed_meaning")
    assert config.eliminate == (*rules, *checked)


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name == "models"], ids=by_name)
def test_a_model_s_file_is_included_by_a_training_file_from_anywhere(file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.gin"
    rest = "data.seq_len = 128\ndata.chat_format = 'vicuna'\nbatch = @RowsPerStep\nbatch.rows = 8\n"
    rest += "init = @RandomInit\noptimizer = @AdamW\noptimizer.peak_lr = 1e-5\nsteps = 1\n"
    mine.write_text(f"include 'models/{file.name}'\n{rest}")
    config = load(TrainConfig, [mine], ["data.dataset=evolved", "tokenizer=tokenizer.model"])
    told = [line.partition(" = ") for line in file.read_text().splitlines() if line.startswith("model.")]
    assert told
    for path, _, value in told:
        assert getattr(config.model, path.removeprefix("model.")) == float(value)


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_a_file_says_what_it_is_and_how_it_is_used(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert header
    assert len(header[0]) > len("# a name"), "the first line says what it is"
    if file.parent.name in ROOTS:
        assert f"wizard {file.parent.name} configs/{by_name(file)} --out " in "\n".join(header)
    assert all(len(line) <= 120 for line in lines)
