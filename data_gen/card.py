"""A data set's card: the README.md that Hugging Face shows beside it, filled in from what the run knows."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from configs.loader import dump, identity
from data_gen.config import AnswerConfig, EvolveConfig, Provider, SeedFile, Simulated, SimulatedSeeds
from data_gen.figures import figures_of, said
from data_gen.llm import simulated
from data_gen.llm.pricing import dollars

Layout = Literal["messages", "sharegpt", "alpaca"]

_ROWS = 50  # of a table of measures; the report has more

_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))

FIELDS = MappingProxyType(
    {
        "id": "`<lineage>/<round>`, unique here",
        "lineage": "the seed that everything in this lineage goes back to",
        "parent": "the id of the record that this one was rewritten from; empty in round 0",
        "round": "rewriting rounds that the lineage has been through",
        "depth": "in-depth rewrites that were accepted on the way, at most `round`",
        "operation": "what rewrote the instruction; empty in round 0",
        "source": "where the seed came from",
        "model": "the model that wrote the answer, as its server named it; empty where the seed brought its own",
        "steps": "steps of a task of the simulated world; 0 for any other text",
        "evolver": "the model that wrote the instruction; empty in round 0",
        "propensity": "the probability with which the operation was drawn, so that another choice can be evaluated",
        "words_added": "words of the instruction beyond its parent's",
        "flags": "what a check after the run found, such as duplicate or contaminated, separated by commas",
    }
)
"""What the columns beside the conversation hold."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file that a card stands beside."""

    file: str
    file_format: Literal["jsonl", "parquet"]
    layout: Layout


def data_card(
    *,
    summary: Mapping[str, Any],
    config: EvolveConfig | AnswerConfig | None,
    measures: Mapping[str, Any] | None = None,
    exported: Exported | None = None,
) -> str:
    """The card of a data set.

    `summary` is what its run counted, `config` what the run was told (None where only the records are known), and
    `measures` as `data_gen.figures` reads it. `exported` is the file that the card is for; None is a TFDS
    data set in `dataset/`.
    """
    name = config.name if config else "evolved"
    sections = {
        "What is in it": _contents(summary),
        "How it was made": _made(summary, config),
        "What the pilot settled": _settled(summary),
        "What was dropped": _dropped(summary),
        "What it cost": _cost(summary),
        "Checks and measures": _measured(measures),
        "Fields": _fields(exported),
        "How to load it": _loading(exported, name=name),
        "License": [
            "Not stated, since the program that made this can not know it: it depends on the license of the seeds and "
            "on the terms of whoever serves the models named above. State it here, and as `license:` at the top of "
            "this file, before you publish the data."
        ],
        "Settings": _settings(config),
    }
    lines = [*_front_matter(summary, config, exported), "", f"# {name}", "", *_first(summary, config)]
    for heading, body in sections.items():
        if body:
            lines += ["", f"## {heading}", "", *body]
    return "\n".join(lines) + "\n"


def _front_matter(
    summary: Mapping[str, Any], config: EvolveConfig | AnswerConfig | None, exported: Exported | None
) -> list[str]:
    lines = ["---"]
    if exported:
        lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train"]
        lines += [f"    path: {json.dumps(exported.file)}"]
    language = config.seeds.language if isinstance(config, EvolveConfig) and isinstance(config.seeds, SeedFile) else ""
    if language:
        lines += ["language:", f"- {json.dumps(language)}"]
    else:
        lines.append("# language: not known; state it")
    lines.append("# license: not known; it depends on the seeds and on the models' terms, see below")
    size = next((label for label, limit in _SIZES if summary["records"] < limit), "n>10M")
    lines += ["size_categories:", f"- {size}", "task_categories:", "- text-generation"]
    return [*lines, "tags:", "- synthetic", "- instruction-tuning", "- evol-instruct", "---"]


def _first(summary: Mapping[str, Any], config: EvolveConfig | AnswerConfig | None) -> list[str]:
    models = _listed(summary.get("models", ()))
    lines = [
        f"{summary['records']:,} conversations, answered by {models or 'nobody: the seeds brought their answers'}."
    ]
    if isinstance(config, EvolveConfig):
        lines[0] += (
            f" Instructions were rewritten in up to {config.rounds} rounds with Evol-Instruct (arXiv 2304.12244), and "
            "what failed was eliminated."
        )
    if summary.get("unfinished"):
        lines += ["", f"**The run is not finished: {summary['unfinished']:,} seeds are left.**"]
    if simulated.NAME in {*summary.get("models", ()), *summary.get("evolvers", ())}:
        lines += [
            "",
            f"**`{simulated.NAME}` is a simulation.** It rewrites and answers tasks of a small world of lists, in "
            "which difficulty is the number of steps, and marks any other answer as a placeholder. This data shows "
            "that a pipeline works. It is no evidence about natural instructions, and nothing to train a model for "
            "use on.",
        ]
    return lines


def _contents(summary: Mapping[str, Any]) -> list[str]:
    rounds = summary.get("by_round", {})
    lines = _table(("round", "conversations"), [(number, f"{count:,}") for number, count in rounds.items()])
    operations = summary.get("by_operation", {})
    if operations:
        rows = []
        for name, counted in operations.items():
            kept, dropped = counted["accepted"], counted["rejected"]
            rows.append((_code(name), f"{kept:,}", f"{dropped:,}", f"{dropped / max(kept + dropped, 1):.1%}"))
        lines += ["", *_table(("operation", "kept", "dropped", "share dropped"), rows)]
    return lines


def _made(summary: Mapping[str, Any], config: EvolveConfig | AnswerConfig | None) -> list[str]:
    if config is None:
        return []
    told: dict[str, str] = {}
    if isinstance(config, EvolveConfig):
        told["Seeds"] = _seeds(summary, config)
        told["Rounds"] = str(config.rounds)
        told["Operations"] = f"{_listed(config.operations)}, drawn by {config.choice} choice"
        rewriting = _listed(config.mixture.models) if config.mixture else _provider(config.llm)
        told["Rewritten by"] = rewriting
        told["Judged by"] = _provider(config.judge or config.llm)
        told["Answered by"] = _provider(config.answerer or config.llm)
    else:
        told["Instructions of"] = _code(config.dataset)
        told["Answered by"] = f"{_provider(config.llm)}, in the style {config.style}"
    reported = sorted({*summary.get("models", ()), *summary.get("evolvers", ())})
    told["Versions that the servers reported"] = _listed(reported) or "none"
    told["Sampling"] = (
        f"temperature {config.temperature:g}, top-p {config.top_p:g}, at most {config.max_tokens:,} tokens"
    )
    told["Rules of elimination that were on"] = _listed(config.eliminate) or "none"
    told["Seed of every random choice"] = str(config.seed)
    told["Hash of the settings"] = _code(identity(config))
    told["SHA-256 of the records"] = _code(summary.get("dataset_sha256", "not known"))
    told["Made with"] = f"wizard-jax {project_version()}"
    return [f"- {name}: {value}" for name, value in told.items() if value]


def _settled(summary: Mapping[str, Any]) -> list[str]:
    """On what grounds later lineages were drawn and ended otherwise than the pilot's."""
    settled = summary.get("settled")
    if not settled:
        return []
    lines = [f"The first {settled['lineages']:,} seeds evolved by equal chances through all rounds."]
    if "stop_after" in settled:
        lines[0] += (
            f" All others end after round {settled['stop_after']}, before the first one with a mean gain below "
            f"{settled['margin']:g}."
        )
    if "probabilities" in settled:
        lines[0] += " Operations of the others were drawn by what paid among them: see `propensity`."
    if gains := settled["gains"]:
        rows = [
            (
                str(gain["round"]),
                f"{gain['measured']:,}",
                f"{gain['mean']:+.2f}",
                "" if (error := gain["standard_error"]) is None else f"{error:.2f}",
            )
            for gain in gains
        ]
        lines += ["", *_table(("round", "rewrites measured", "mean gain, in points of 10", "standard error"), rows)]
    pooled = [row for row in settled.get("probabilities", ()) if not row["source"]]
    if pooled:
        names = [name for name in pooled[0] if name not in ("source", "round")]
        shares = [(str(row["round"]), *(f"{row[name]:.1%}" for name in names)) for row in pooled]
        lines += ["", "Probabilities for a source that the pilot did not see:", "", *_table(("round", *names), shares)]
    return lines


def _seeds(summary: Mapping[str, Any], config: EvolveConfig) -> str:
    count = f"{summary['seeds']:,} " if "seeds" in summary else ""
    if isinstance(config.seeds, SimulatedSeeds):
        return f"{count}tasks of the simulated world, drawn from seed {config.seeds.seed}"
    limited = f", the first {config.seeds.limit:,} rows" if config.seeds.limit else ""
    return f"{count}instructions of {_code(config.seeds.path)}{limited}"


def _provider(provider: Provider) -> str:
    return _code(simulated.NAME if isinstance(provider, Simulated) else provider.model)


def _dropped(summary: Mapping[str, Any]) -> list[str]:
    rules = summary.get("by_rule", {})
    total = summary["records"] + sum(rules.values())
    if not rules:
        return []
    rows = [(_code(rule), f"{count:,}", f"{count / total:.2%}") for rule, count in rules.items()]
    dropped = total - summary["records"]
    first = f"{dropped:,} of {total:,} candidates ({dropped / total:.1%}), each with a reason in `rejected.jsonl`:"
    return [first, "", *_table(("rule", "candidates", "of all"), rows)]


def _cost(summary: Mapping[str, Any]) -> list[str]:
    if "usd" not in summary:
        return []
    prices = f" at the prices of {summary['prices']}" if summary.get("prices") else ""
    tokens = f"{summary.get('input_tokens', 0):,} tokens in and {summary.get('output_tokens', 0):,} out"
    lines = [f"{dollars(summary['usd'])}{prices}, for {summary.get('calls', 0):,} replies: {tokens}."]
    twice = summary.get("possibly_paid_twice", 0)
    if twice:
        lines.append(f"Up to {twice:,} more replies may have been billed without having arrived.")
    return lines


def _measured(measures: Mapping[str, Any] | None) -> list[str]:
    """Every measure with its figures by round, and the others."""
    lines: list[str] = []
    for name, measured in (measures or {}).items():
        figures = figures_of(measured)
        lines += [f"### {_words(name).capitalize()}", ""]
        if figures.rounds:
            head = ("measure", *(f"round {number}" for number in figures.numbers))
            rows = [
                (_words(kind), *(said(of.get(number)) for number in figures.numbers))
                for kind, of in figures.rounds.items()
            ]
            lines += [*_table(head, rows), ""]
        for title, rows_of in figures.tables.items():
            columns = list(rows_of[0])
            cells = [[_plain(said(row.get(column))) for column in columns] for row in rows_of[:_ROWS]]
            lines += [*([f"{_words(title)}:", ""] if title else []), *_table(list(map(_words, columns)), cells), ""]
        lines += [f"- {_words(kind)}: {_plain(value)}" for kind, value in figures.others.items()]
        lines += [""] if figures.others else []
        if meanings := figures.meanings:
            lines += [*(f"- *{_words(kind)}*: {_plain(meaning)}" for kind, meaning in meanings), ""]
    return lines[:-1]


def _fields(exported: Exported | None) -> list[str]:
    conversation = {
        None: ("turns", "the conversation, as roles and contents"),
        "messages": ("messages", "the conversation: a list of `role` (system, user, assistant) and `content`"),
        "sharegpt": ("conversations", "the conversation: a list of `from` (system, human, gpt) and `value`"),
        "alpaca": ("instruction, input, output, system", "the single turn; `input` is always empty"),
    }[exported.layout if exported else None]
    return _table(("field", "holds"), [conversation, *FIELDS.items()])


def _loading(exported: Exported | None, *, name: str) -> list[str]:
    if exported is None:
        return [
            "```python",
            "import tensorflow_datasets as tfds",
            "",
            'builder = tfds.builder_from_directory("dataset")',
            'data = builder.as_dataset(split="train")  # TFRecord; as_data_source(split="train") for ArrayRecord',
            "```",
            "",
            f"For a file that Hugging Face datasets and axolotl read: `wizard export-data FOLDER --out {name}`.",
        ]
    python = [
        "```python",
        "from datasets import load_dataset",
        "",
        'data = load_dataset("FOLDER", split="train")',
        "```",
    ]
    kind = {"jsonl": "json", "parquet": "parquet"}[exported.file_format]
    axolotl = ["datasets:", f"  - path: FOLDER/{exported.file}", f"    ds_type: {kind}"]
    axolotl += {
        "messages": ["    type: chat_template"],
        "sharegpt": [
            "    type: chat_template",
            "    field_messages: conversations",
            "    message_property_mappings:",
            "      role: from",
            "      content: value",
        ],
        "alpaca": ["    type: alpaca  # leaves out what is under system; alpaca_w_system.load_instruct takes it in"],
    }[exported.layout]
    return [*python, "", "With axolotl:", "", "```yaml", *axolotl, "```"]


def _settings(config: EvolveConfig | AnswerConfig | None) -> list[str]:
    if config is None:
        return []
    text = dump(config).rstrip()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence, text, fence]


def project_version() -> str:
    """The version of this program, as it was installed."""
    try:
        return importlib.metadata.version("wizard-jax")
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version: it was not installed"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [[*head], ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _words(name: str) -> str:
    return _plain(name.replace("_", " "))


def _plain(text: str) -> str:
    """Text of one line that Markdown leaves as it is."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))
