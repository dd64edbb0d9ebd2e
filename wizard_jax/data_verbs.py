"""The verbs that make data, from evolve to export-data, and the simulated model to try them with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from data_gen.generate import Preview

Verb = Callable[[argparse.Namespace], int | None]
"""Returns an exit code, or None for 0."""


class Add(Protocol):
    """Adds a verb to the command line."""

    def __call__(self, name: str, verb: Verb, text: str) -> argparse.ArgumentParser: ...


def add_data_verbs(add: Add, add_stage: Add, *, local: Callable[[str], Path]) -> None:
    """`add_stage` adds a verb with a config file and a folder to write; `local` reads a place that must be local."""
    evolve = add_stage("evolve", _evolve, "rewrite seed instructions into harder ones and answer them")
    evolve.add_argument("--preview", type=int, metavar="N", help="only the first N seeds, shown with their cost")
    evolve.add_argument("--shard", metavar="I/N", help="part I of N of the seeds, from 0; wizard merge joins them")
    _add_evolve_beam(
        add_stage("evolve-beam", _evolve_beam, "evolve as an Apache Beam pipeline, on more than one machine"),
        local=local,
    )
    add_stage("answer", _answer, "answer a data set again, with another model or in another style")
    merge = add("merge", _merge, "join the folders of wizard evolve --shard into one data set")
    merge.add_argument("shards", type=Path, nargs="+", metavar="FOLDER")
    merge.add_argument("--out", type=local, required=True, help="the folder to write")
    show = add("show", _show, "show what became of one seed, round by round")
    show.add_argument("seed", help="its number, as in 000042")
    show.add_argument("--folder", type=Path, required=True, help="of wizard evolve, answer or merge, finished or not")
    show.add_argument("--whole", action="store_const", const="whole", default="short", help="long texts are not cut")
    export = add("export-data", _export_data, "write a data set as JSONL or Parquet, for datasets and axolotl")
    export.add_argument("dataset", type=Path, help="the folder of wizard evolve")
    export.add_argument("--file-format", choices=("jsonl", "parquet"), default="jsonl")
    export.add_argument("--layout", choices=("messages", "sharegpt", "alpaca"), default="messages")
    export.add_argument("--out", type=local, required=True, help="the folder to write")
    _add_simulate_llm(
        add("simulate-llm", _simulate_llm, "serve the simulated model, to clients of OpenAI and of Gemini")
    )


def _add_evolve_beam(parser: argparse.ArgumentParser, *, local: Callable[[str], Path]) -> None:
    parser.add_argument(
        "--shards", type=int, required=True, metavar="N", help="parts of the seeds, with a journal each"
    )
    parser.add_argument("--work", type=local, required=True, help="a folder for the parts, on a disk of all workers")
    parser.add_argument("--order", choices=("seeds", "shuffled"), default="seeds", help="of the records")
    parser.add_argument(
        "--beam", action="append", default=[], metavar="OPTION", help="of Beam, as in --beam=--runner=DataflowRunner"
    )


def _add_simulate_llm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0, help="of the faults on the wire, and of the latency")
    parser.add_argument(
        "--judges",
        choices=("well", "first", "longer"),
        default="well",
        help="as a judge of wizard eval: what it prefers",
    )
    parser.add_argument("--requests-per-second", type=float, metavar="R", help="permitted; above it, 429")
    parser.add_argument("--tokens-per-minute", type=float, metavar="T", help="permitted, in and out; above it, 429")
    parser.add_argument("--latency-seconds", type=float, default=0.01, metavar="S", help="median (default: 0.01)")
    parser.add_argument(
        "--latency-spread", type=float, default=0.0, metavar="X", help="its log-normal sigma (default: 0)"
    )
    forms = ("seconds", "date", "garbage", "negative", "huge", "none")
    parser.add_argument("--retry-after", choices=forms, default="seconds", help="how a 429 says when to come again")
    jobs = parser.add_argument_group("batch jobs, in which results always come shuffled")
    jobs.add_argument("--batch-looks", type=int, default=1, metavar="N", help="looks at a job that find it unfinished")
    jobs.add_argument("--batch-missing", type=float, default=0.0, metavar="SHARE", help="of a job's lines, left out")
    jobs.add_argument("--batch-duplicated", type=float, default=0.0, metavar="SHARE", help="of its lines, there twice")
    jobs.add_argument(
        "--batch-swapped", type=float, default=0.0, metavar="SHARE", help="with one another's keys (Vertex AI)"
    )
    jobs.add_argument(
        "--batch-creates",
        choices=("503 before", "503 after"),
        action="append",
        default=[],
        help="what becomes of the next creation; 'after': the job exists all the same",
    )
    jobs.add_argument(
        "--batch-endings",
        choices=("complete", "cut short", "failed"),
        action="append",
        default=[],
        help="how the next job ends; those that nothing is said of end complete",
    )
    jobs.add_argument("--batch-broken-downloads", type=int, default=0, metavar="N", help="that are dropped")
    parser.add_argument("settings", nargs="*", metavar="fault=share", help="as in rate_limited=0.1 malformed=0.02")


def _evolve(arguments: argparse.Namespace) -> None:
    from configs.loader import load
    from data_gen.config import EvolveConfig
    from data_gen.generate import generate, preview
    from wizard_jax.progress import say, show_progress

    settings = [*arguments.settings, *_shard_settings(arguments.shard)]
    config = load(EvolveConfig, [arguments.config], settings)
    if arguments.preview is not None:
        with show_progress("preview") as progress:
            shown = preview(config, arguments.out, arguments.preview, progress=progress, say=say)
        _show_preview(shown)
        return
    with show_progress("evolve") as progress:
        summary = generate(config, arguments.out, progress=progress, say=say)
    say(_ending(summary, arguments.out))


def _evolve_beam(arguments: argparse.Namespace) -> None:
    import logging

    from configs.loader import load
    from data_gen.config import EvolveConfig
    from wizard_jax.progress import say, show_progress

    logging.disable(logging.WARNING)  # as it is imported, Beam warns of Google's libraries that it does not find
    from data_gen.beam.pipeline import evolve_on_beam

    logging.disable(logging.NOTSET)
    config = load(EvolveConfig, [arguments.config], arguments.settings)
    with show_progress("shards") as progress:
        summary = evolve_on_beam(
            config,
            arguments.out,
            work=arguments.work,
            shards=arguments.shards,
            options=arguments.beam,
            order=arguments.order,
            progress=progress,
            say=say,
        )
    say(_ending(summary, arguments.out))


def _shard_settings(shard: str | None) -> list[str]:
    """`--shard 1/4` as settings."""
    from configs.errors import UserError

    if shard is None:
        return []
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise UserError(f"--shard {shard}: write I/N, such as 0/4 for the first of four parts")
    return [f"shard.index={index}", f"shard.count={count}"]


def _show_preview(shown: Preview) -> None:
    """Every step of the lineages with its verdict and cost, and what the whole run would come to."""
    from data_gen.lineage_view import Found, print_lineage
    from data_gen.llm.pricing import dollars
    from wizard_jax.progress import say

    for lineage, costs in zip(shown.lineages, shown.costs, strict=True):
        print_lineage(Found(lineage, costs, "finished"))
    spent = sum(cost.usd for by_round in shown.costs for cost in by_round.values())
    calls = sum(cost.calls for by_round in shown.costs for cost in by_round.values())
    say(f"{len(shown.lineages)} of {shown.total:,} seeds took {calls:,} requests and {dollars(spent)}; they are kept.")
    if shown.stopped:
        say(shown.stopped)
    if shown.forecast is None:
        say("Too few to extrapolate: ask for at least 5.")
    else:
        say(f"All {shown.total:,} would cost about {shown.forecast}, nine times in ten. Nothing more was spent.")


def _answer(arguments: argparse.Namespace) -> None:
    from configs.loader import load
    from data_gen.answer import answer
    from data_gen.config import AnswerConfig
    from wizard_jax.progress import say, show_progress

    config = load(AnswerConfig, [arguments.config], arguments.settings)
    with show_progress("answer") as progress:
        summary = answer(config, arguments.out, progress=progress, say=say)
    say(_ending(summary, arguments.out))


def _merge(arguments: argparse.Namespace) -> None:
    from data_gen.merge import merge
    from wizard_jax.progress import say

    say(_ending(merge(arguments.shards, arguments.out, say=say), arguments.out))


def _show(arguments: argparse.Namespace) -> None:
    from data_gen.lineage_view import show_lineage

    show_lineage(arguments.folder, arguments.seed, texts=arguments.whole)


def _export_data(arguments: argparse.Namespace) -> None:
    from data_gen.export_data import export_data
    from wizard_jax.progress import say, show_progress

    with show_progress("export-data") as progress:
        file = export_data(
            arguments.dataset,
            arguments.out,
            file_format=arguments.file_format,
            layout=arguments.layout,
            progress=progress,
        )
    say(f"the records are in {file}, and {file.parent / 'README.md'} says what they are")


def _simulate_llm(arguments: argparse.Namespace) -> None:
    from configs.loader import load
    from data_gen.config import Faults, Simulated
    from data_gen.llm.server import run_server
    from data_gen.llm.server.batch_faults import BatchFaults
    from data_gen.llm.server.service import Conduct
    from wizard_jax.progress import say

    names = ("seed", "requests_per_second", "tokens_per_minute", "latency_seconds", "latency_spread", "retry_after")
    of_jobs = ("looks", "missing", "duplicated", "swapped", "creates", "endings", "broken_downloads")
    batch = BatchFaults(seed=arguments.seed, **{name: getattr(arguments, f"batch_{name}") for name in of_jobs})
    conduct = Conduct(**{name: getattr(arguments, name) for name in names}, batch=batch)
    config = Simulated(faults=load(Faults, [], arguments.settings), judges=arguments.judges)
    run_server(port=arguments.port, config=config, conduct=conduct, say=say)


def _ending(summary: dict[str, object], out: Path) -> str:
    """One line on what came out."""
    from data_gen.llm.pricing import dollars

    rules = summary["by_rule"]
    assert isinstance(rules, dict)
    most = f", most often by {max(rules, key=lambda rule: rules[rule])}" if rules else ""
    where, page = out / "dataset", out / "report.html"
    lacking = f"; not measured: {why}" if (why := summary.get("not_measured")) else ""
    spent = f" for {dollars(usd)}" if isinstance(usd := summary.get("usd"), float) and usd else ""
    return (
        f"{summary['records']:,} records in {where}{spent}; {summary['rejected']:,} dropped{most}{lacking}; see {page}"
    )
