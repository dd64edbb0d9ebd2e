"""The README.md of an exported model: what it is, what it was trained on and by which settings, and how it did."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.folder import IDENTITY, FolderError, load_config, read_complete, read_identity
from configs.loader import dump
from data_gen.config import AnswerConfig, EvolveConfig
from data_gen.llm import simulated
from wizard_jax.convert.hub import SCHEME
from wizard_jax.convert.imported import ImportConfig
from wizard_jax.data.audit import Audit
from wizard_jax.data.packing import AUDIT
from wizard_jax.model.lora import needs_qwix
from wizard_jax.runs import FoundModel
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.watching.provenance import ROOT, source_of
from wizard_jax.train.watching.summary import run_figures

_LICENSE = re.compile(r"\A---\n(?:(?!---\n).*\n)*?license: *[\"']?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `wizard eval` found out about a run."""

    task: str
    step: int | None
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    """By part of the items, such as those of one difficulty, and by the score's name."""


def model_card(
    model: FoundModel,
    *,
    step: int | None,
    dtype: str,
    chat_format: str,
    checks: Sequence[str] = (),
    peft_base: str = "",
    about: Sequence[str] = (),
    library: str = "transformers",
) -> str:
    """The card of a model at a checkpoint; with `peft_base`, that of its adapter alone, which goes beside that base.

    `about` are sentences on how the weights are written. `library` is what the hub says that they are loaded with; an
    adapter by peft.

    `checks` are sentences on how the folder was verified.
    """
    run, data = model.run, [Path(dataset) for dataset in model.trained_on]
    base = _base_of(model)
    evaluations = list(_evaluations(model.path))
    lines = [
        *_front_matter(
            model,
            base=peft_base or base,
            data=data,
            evaluations=[found for found in evaluations if found.step == step],
            library="peft" if peft_base else library,
        )
    ]
    lines += ["", f"# {model.path.name}", "", *_first(model, dtype=dtype, chat_format=chat_format, peft_base=peft_base)]
    lines += ["", *about] if about else []
    lines += _section("Checkpoint", [_trained_to(run, step=step)] if run is not None else [])
    lines += _section("Base", [_base_line(model, base=base)])
    trained = _trained_lines(model, run) if run is not None else []
    lines += _section("Data", [*trained, *(line for dataset in dict.fromkeys(data) for line in _data_lines(dataset))])
    lines += _section("Results", [*_losses(model), *_results(evaluations)])
    lines += _section("Checks", [f"- {check[0].upper()}{check[1:]}." for check in checks])
    lines += _section("Made with", _made_with(model))
    lines += _section("Settings", ["```", dump(run).rstrip(), "```"] if run is not None else [])
    return "\n".join(lines) + "\n"


def _section(heading: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {heading}", "", *lines] if any(lines) else []


def _front_matter(
    model: FoundModel, *, base: str, data: Sequence[Path], evaluations: Sequence[Evaluation], library: str
) -> list[str]:
    """What the hub reads: YAML, in which every JSON text is one."""
    licenses = {_license(dataset) for dataset in data}
    license_ = licenses.pop() if len(licenses) == 1 and not model.untraced else ""
    lines = ["---", f"library_name: {library}"]
    lines += [f"license: {license_}"] if license_ else ["# license: not stated; it depends on base, seeds and teacher"]
    hub_name = base.removeprefix(SCHEME).partition("@")[0] if base.startswith(SCHEME) else ""
    if hub_name or library == "peft":
        lines += [f"base_model: {json.dumps(hub_name or base)}"]
    lines += ["pipeline_tag: text-generation", "tags:", "- wizard_jax"]
    lines += ["- evol-instruct"] if any(_stage(dataset) == "evolve" for dataset in data) else []
    results = []
    for found in evaluations:
        measured = [
            {"type": name.replace(" ", "_"), "name": f"{name}, {part}", "value": round(row["share"], 4)}
            for part, scores in found.scores.items()
            for name, row in scores.items()
        ]
        dataset = {"name": found.task, "type": found.task}
        results.append({"task": {"type": "text-generation"}, "dataset": dataset, "metrics": measured})
    if results:
        lines += ["model-index:", f"- name: {json.dumps(model.path.name)}", f"  results: {json.dumps(results)}"]
    return [*lines, "---"]


def _first(model: FoundModel, *, dtype: str, chat_format: str, peft_base: str) -> list[str]:
    family = model.config.family
    adapter = model.run.adapter if model.run is not None else None
    if not peft_base:
        lines = [
            f"A model of the family {family} with {model.config.n_layers} layers, written in {dtype} by wizard_jax."
        ]
    else:
        assert adapter is not None
        lines = [f"A LoRA adapter of rank {adapter.rank} for `{peft_base}`, written in {dtype} by wizard_jax."]
    lines.append(f"It was trained with the chat format `{chat_format}`, which is the template of its tokenizer.")
    if peft_base and adapter is not None and needs_qwix(adapter):
        lines += ["", f"Its base was kept in {adapter.base} while it was trained: beside whole weights it answers a"]
        lines += ["little differently. The merged export of the same run is exactly what was trained."]
    return lines


def _trained_to(run: TrainConfig, *, step: int | None) -> str:
    length = f"{run.epochs:g} epochs" if run.steps is None else f"{run.steps} steps"
    return f"Checkpoint {step} of {length}."


def _base_of(model: FoundModel) -> str:
    """Where the imported weights came from that it goes back to; '' where it was trained from random ones."""
    if not model.untraced:
        return ""
    told = _imported(model)
    return model.untraced if told is None else told.source


def _base_line(model: FoundModel, *, base: str) -> str:
    if not base:
        return "It was trained from random weights."
    told = _imported(model)
    added = "" if told is None else _added_line(told)
    if model.run is None:
        return f"It was imported from {base}, and not trained since.{added}"
    return f"Its weights come from {base}, of whose training data nothing is known here.{added}"


def _imported(model: FoundModel) -> ImportConfig | None:
    """How the weights that it goes back to were imported; None where no import made them."""
    path = Path(model.untraced)
    is_import = model.untraced and (path / IDENTITY).exists() and read_identity(path).stage == "import"
    return load_config(ImportConfig, path) if is_import else None


def _added_line(told: ImportConfig) -> str:
    """What the vocabulary was given at the import; '' for nothing."""
    line = ""
    if told.added_tokens:
        named = ", ".join(f"`{token}`" for token in told.added_tokens)
        line += f" Its tokenizer was given the special tokens {named}."
    if told.grown_from:
        line += f" Its vocabulary grew from {told.grown_from:,} to {told.model.vocab_size:,}: each new row of the"
        line += " embedding, and of the unembedding, was at first the mean of the tokens that it came with."
    return line


def _trained_lines(model: FoundModel, run: TrainConfig) -> list[str]:
    """What a run took of its data sets, of which selections and held-out conversations leave a part."""
    own = [member.dataset for member in run.data.members]
    earlier = _names(model.trained_on[len(own) :])
    before = [f"Runs that its weights come from were trained on {earlier}.", ""] if earlier else []
    try:
        audit = Audit.from_json((model.path / AUDIT).read_bytes())
    except (OSError, ValueError, LookupError, TypeError):
        return [f"How much of {_names(own)} was trained on is not known: {AUDIT} is missing or damaged.", "", *before]
    rounds: Counter[int] = Counter()
    for group in audit.groups:
        rounds[group.round] += group.conversations
    told = ", ".join(f"round {number}: {rounds[number]:,}" for number in sorted(rounds))
    stats = audit.stats
    epoch = f"{stats.conversations:,} conversations ({told}) with {stats.trained_tokens:,} trained tokens"
    return [f"An epoch of its training had {epoch}, of {_names(own)}.", "", *before]


def _names(datasets: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(f"`{_data_folder(Path(dataset)).name}`" for dataset in datasets))


def _data_lines(dataset: Path) -> list[str]:
    """What is known of a data set: how many records, by which operations and models, under which license."""
    folder = _data_folder(dataset)
    stage = _stage(dataset)
    if stage not in ("evolve", "answer"):
        return [f"Conversations of {dataset}. License: not stated.", ""]
    summary = read_complete(folder)
    models = ", ".join(summary["models"])
    lines = [f"`{folder.name}`: {summary['records']:,} conversations"]
    if stage == "evolve":
        config = load_config(EvolveConfig, folder)
        lines[0] += f", evolved in up to {config.rounds} rounds."
        kept = [f"{name} {told['accepted']:,}" for name, told in summary.get("by_operation", {}).items()]
        rounds = [f"round {number}: {count:,}" for number, count in summary.get("by_round", {}).items()]
        lines += [f"Rounds: {', '.join(rounds)}. Operations: {', '.join(kept) or 'none'}."]
    else:
        load_config(AnswerConfig, folder)
        lines[0] += ", answered again."
    lines.append(f"Instructions were rewritten and answered by: {models}.")
    lines.append(f"License of the data: {_license(dataset) or 'not stated'}.")
    if simulated.NAME in models:
        lines += ["", "That model is a simulation: this checkpoint shows that the pipeline works, and nothing else."]
    return [*lines, ""]


def _data_folder(dataset: Path) -> Path:
    return dataset.parent if (dataset.parent / IDENTITY).exists() else dataset  # its shards were named


def _stage(dataset: Path) -> str:
    folder = _data_folder(dataset)
    return read_identity(folder).stage if (folder / IDENTITY).exists() else ""


def _license(dataset: Path) -> str:
    """What the front matter of the data set's card states; '' where it states none."""
    card = _data_folder(dataset) / "README.md"
    if not card.is_file():
        return ""
    stated = _LICENSE.match(card.read_text(encoding="utf-8", errors="replace"))
    return "" if stated is None else stated[1]


def _losses(model: FoundModel) -> list[str]:
    if model.run is None:
        return []
    figures = run_figures(model.path)
    told = []
    if figures["last_loss"] is not None:
        told.append(f"- Loss of the run's last step: {figures['last_loss']:.4f}")
    held_out = figures.get("held_out_last")
    if held_out and held_out["loss"] is not None:
        told.append(f"- Held-out loss at step {held_out['step']}: {held_out['loss']:.4f}")
    return told


def _results(evaluations: Sequence[Evaluation]) -> list[str]:
    return [
        f"- {found.task}, {part}, checkpoint {found.step}: {name} {row['share']:.3f} "
        f"({row['low']:.3f} to {row['high']:.3f}, n = {row['trials']:.0f})"
        for found in evaluations
        for part, scores in found.scores.items()
        for name, row in scores.items()
    ]


def _evaluations(run: Path) -> Iterator[Evaluation]:
    """Those that lie in the run's folder, or beside it, and are of it."""
    for mark in sorted([*run.glob(f"*/{IDENTITY}"), *run.parent.glob(f"*/{IDENTITY}")]):
        folder = mark.parent
        try:
            if read_identity(folder).stage != "eval":
                continue
            results = read_complete(folder)
        except FolderError:  # not finished, or damaged: no result
            continue
        for told in results["models"].values():
            if "step" in told and Path(told["model"]).resolve() == run.resolve():
                scores = told["bands"] or {"all items": told["scores"]}
                yield Evaluation(task=results["task"]["name"], step=told["step"], scores=scores)


def _made_with(model: FoundModel) -> list[str]:
    lines = [f"- Exported by wizard_jax {_revision(source_of(ROOT).told)}"]
    environment = model.path / "environment.json"
    if environment.is_file():
        try:
            lines.append(f"- Trained by wizard_jax {_revision(json.loads(environment.read_text())['source'])}")
        except (ValueError, LookupError, TypeError):
            lines.append("- Trained by a revision that is not known: environment.json is damaged")
    return lines


def _revision(told: Mapping[str, Any]) -> str:
    changed = ", with changes" if told.get("modified") else ""
    return f"{told['version']}, revision {told['revision']}{changed}" if "revision" in told else str(told["version"])
