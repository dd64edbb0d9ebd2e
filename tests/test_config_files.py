"""Every shipped config file is read by the stage that it is for, and says what it is and how it is used."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import math
import operator
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_batch_openai import Provider
from test_generate import quiet

from configs.loader import ConfigError, load
from data_gen.config import (
    AnswerConfig,
    EvolveConfig,
    Gemini,
    Measure,
    OpenAIBatch,
    OpenAICompatible,
    Price,
    SimulatedSeeds,
)
from data_gen.generate import generate
from wizard_jax.data.config import ConversationsPerStep
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.model.lora import LoRA, targets_of
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.optimizer import AdamW

CONFIGS = Path(__file__).parents[1] / "configs"
ROOTS: dict[str, type] = {"evolve": EvolveConfig, "answer": AnswerConfig, "train": TrainConfig, "eval": EvalConfig}
"""Folder, which is also the verb -> what its files configure. Files of other folders are included by them."""

LEFT_OPEN = {
    "seeds.path": "seeds.jsonl",
    "data.dataset": "evolved",
    "dataset": "evolved",
    "llm.batch.bucket": "gs://bucket/folder",
    "tokenizer": "tokenizer.model",
    "model": "runs/evolved",
    "task.held_out_from": "('evolved',)",
    "task.path": "test.jsonl",
    "task.dataset": "evolved",
}
"""Where things lie is the user's to say; all else a file says itself."""

FILES = sorted(CONFIGS.rglob("*.gin"))


def by_name(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def header(file: Path) -> list[str]:
    """The comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]


def test_every_folder_has_its_stage() -> None:
    assert {file.parent.name for file in FILES} == {*ROOTS, "models", "recipes"}


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


@pytest.mark.parametrize(
    ("name", "conversations", "warmup_steps"),
    [("wizardlm_7b", 64, 2), ("wizardlm_13b", 384, 50), ("wizardcoder_15b", 512, 30)],
)
def test_training_is_the_published_one(name: str, conversations: int, warmup_steps: int) -> None:
    config = load(TrainConfig, [CONFIGS / "train" / f"{name}.gin"])
    assert config.batch == ConversationsPerStep(conversations=conversations)
    assert (config.epochs, config.data.seq_len) == (3.0, 2048)
    assert isinstance(config.optimizer, AdamW)
    assert (config.optimizer.peak_lr, config.optimizer.warmup_steps) == (2e-5, warmup_steps)
    assert (config.optimizer.b1, config.optimizer.b2, config.optimizer.eps) == (0.9, 0.999, 1e-8)
    assert config.optimizer.schedule == "cosine"
    assert (config.optimizer.weight_decay, config.optimizer.final_lr_fraction) == (0, 0)


@pytest.mark.parametrize(("name", "base"), [("wizardlm_7b_lora", "bfloat16"), ("wizardlm_7b_qlora", "nf4")])
def test_an_adapter_s_recipe_is_qlora_s_on_the_data_of_wizardlm(name: str, base: str) -> None:
    """Appendix B.2 of arXiv 2305.14314, for 7B and 13B."""
    config, whole = (load(TrainConfig, [CONFIGS / "train" / f"{one}.gin"]) for one in (name, "wizardlm_7b"))
    assert (config.data, config.model, config.epochs, config.init) == (whole.data, whole.model, 3.0, whole.init)
    assert config.adapter == LoRA(rank=64, alpha=16.0, base=base)
    assert targets_of(config.model, adapter=config.adapter) == ("down", "gate", "k", "o", "q", "up", "v")
    assert config.batch == ConversationsPerStep(conversations=16)
    optimizer = config.optimizer
    assert isinstance(optimizer, AdamW)
    assert (optimizer.peak_lr, optimizer.schedule, optimizer.warmup_steps) == (2e-4, "constant", 0)
    assert (optimizer.b2, optimizer.clip_norm, optimizer.weight_decay) == (0.999, 0.3, 0)


@pytest.mark.parametrize("name", ["wizardlm_7b", "wizardlm_13b"])
def test_a_recipe_s_header_says_how_many_steps_it_has(name: str) -> None:
    file = CONFIGS / "train" / f"{name}.gin"
    config = load(TrainConfig, [file])
    assert isinstance(config.batch, ConversationsPerStep)
    assert config.epochs is not None
    assert config.data.selection.examples is not None
    steps = math.ceil(config.epochs * config.data.selection.examples / config.batch.conversations)
    assert f" {steps:,} steps." in " ".join(header(file))


def evolving(name: str) -> tuple[EvolveConfig, str]:
    """A file of evolve/ with its header."""
    file = CONFIGS / "evolve" / name
    settings = [f"{path}={LEFT_OPEN[path]}" for path in left_open(EvolveConfig, file)]
    return load(EvolveConfig, [file], settings), " ".join(header(file)).replace(" # ", " ")


def test_the_published_settings_make_as_many_requests_and_records_as_their_file_says() -> None:
    config, told = evolving("wizardlm.gin")
    seeds = 52_000
    requests = seeds * (3 * config.rounds + (config.answer_seeds == "model"))
    assert f"{seeds:,} seeds make up to {requests:,} requests" in told
    assert f"at most {seeds * (config.rounds + 1):,} records" in told
    assert "no_gain" in config.eliminate, "the third request is the judge's"


def steps(config: EvolveConfig) -> int:
    """Of how many requests one after another the longest chain is, each of which needs what the one before brought."""
    return (config.answer_seeds == "model") + 3 * config.rounds + 2 * (config.measure.difficulty_lineages > 0)


@pytest.mark.parametrize("name", ["gemini_batch.gin", "openai_batch.gin"])
def test_a_run_by_batch_jobs_takes_as_many_as_its_file_says(name: str) -> None:
    config, told = evolving(name)
    assert isinstance(config.llm, Gemini | OpenAICompatible)
    assert config.llm.batch is not None
    assert f"That is {steps(config)} jobs one after another" in told
    assert f"where a step takes over {config.llm.batch.max_requests:,} requests" in told
    if config.measure.difficulty_lineages:
        assert f"the scores and the ranks of {config.measure.difficulty_lineages} lineages" in told


@pytest.mark.parametrize("judged", [0, 3])
def test_a_run_by_batch_jobs_sends_one_a_step(judged: int, tmp_path: Path) -> None:
    measure = Measure(difficulty_lineages=judged, diversity_sample=0)
    with served_in_jobs() as provider:
        llm = replace(provider.config, price=Price(input=0.0, output=0.0), batch=OpenAIBatch(poll_seconds=0.01))
        config = EvolveConfig(seeds=SimulatedSeeds(count=6), llm=llm, rounds=1, measure=measure)
        generate(config, tmp_path / "out", progress=quiet)
        assert len(provider.account.batches) == steps(config)


@contextlib.contextmanager
def served_in_jobs() -> Iterator[Provider]:
    """A server of batch jobs in a thread of its own."""
    begun, ended = threading.Event(), threading.Event()
    providers: list[Provider] = []

    async def serve() -> None:
        async with Provider() as provider:
            providers.append(provider)
            begun.set()
            await asyncio.to_thread(ended.wait)

    server = threading.Thread(target=asyncio.run, args=(serve(),))
    server.start()
    try:
        assert begun.wait(10)
        yield providers[0]
    finally:
        ended.set()
        server.join()


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
        found = operator.attrgetter(path)(config)
        assert type(found).__name__ == value[1:] if value.startswith("@") else found == ast.literal_eval(value)


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_a_file_says_what_it_is_and_how_it_is_used(file: Path) -> None:
    told = header(file)
    assert told
    assert len(told[0]) > len("# a name"), "the first line says what it is"
    if file.parent.name in ROOTS:
        assert f"wizard {file.parent.name} configs/{by_name(file)} --out " in "\n".join(told)
    assert all(len(line) <= 120 for line in file.read_text(encoding="utf-8").splitlines())


def test_a_setting_that_does_not_go_is_found_where_it_was_given_and_not_wherever_another_was() -> None:
    with pytest.raises(ConfigError) as raised:
        load(TrainConfig, [CONFIGS / "train" / "wizardlm_7b.gin"], ["slice=v5e-17"])
    (problem,) = raised.value.problems
    assert problem.startswith("command line: TrainConfig: there is no slice 'v5e-17'")
