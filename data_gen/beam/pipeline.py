"""`wizard evolve` as Apache Beam pipelines: hash ranges of the seeds are mapped to shards, then checked and merged.

    evolve_on_beam(config, out, work=Path("/mnt/all/evolved"), shards=64, options=["--runner=DataflowRunner", ...], ...)

Three pipelines run one after another: every shard is evolved (`evolving.py`), near-duplicates and test items are
searched for among all records (`checks.py`), and the data set is written (`writing.py`). Between them, and for the
page and the card, this process reads the shards' journals one lineage at a time, as `wizard merge` does. Whatever
ends, the same command goes on, and asks nothing that is answered in a journal.

`work` and `out` must be folders on a disk that this process and every worker mount under the same path (NFS,
Filestore): a journal is an SQLite file, and lies in no bucket. Workers need this package, a runner other than the
direct one absolute paths in the config. Concurrency and rates hold for each shard; a budget holds
for all together: what is left of it is divided evenly among unfinished shards at each start, and what those leave of it
is for the judge of what all have made.

The records, their flags and what was dropped are those of one process, whatever the number of shards; in the order of
the seeds the shards' files are byte for byte the same too.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from configs.folder import COMPLETE, open_stage, read_complete, replacing, write_atomically
from configs.interrupt import EXIT_CODES, Interrupted, StopFlag, stop_flag
from data_gen import finish, shards, sources
from data_gen.beam import checks, evolving, writing
from data_gen.beam.evolving import BeamError, evolve_shard, read_lineages, shard_folder, unfinished
from data_gen.beam.kept import keep, kept
from data_gen.config import EvolveConfig, Provider, SeedFile, Shard
from data_gen.evolve import Lineage
from data_gen.forecast import SAMPLED_SEEDS, expected
from data_gen.llm.pricing import Prices, dollars
from data_gen.measure.duplicates import Duplicates
from data_gen.measure.measure import Check, Found
from data_gen.merge import merge
from data_gen.records import Record
from data_gen.run import Progress
from data_gen.settings import check, check_count
from data_gen.shards import DataFile, Manifest
from data_gen.side_by_side import BudgetReached

STAGE = "evolve-beam"
_POLL_SECONDS = 0.2
_TOLD_SECONDS = 2.0
_LOCAL_RUNNERS = ("directrunner", "direct", "switchingdirectrunner", "fnapirunner")
_BUCKET = re.compile(r"[a-z][a-z0-9+.-]+:/")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is to be made, where, and by whom."""

    config: EvolveConfig
    work: Path
    count: int
    """Shards."""
    options: tuple[str, ...]
    """Beam's."""
    order: writing.Order

    @property
    def folders(self) -> list[Path]:
        return [shard_folder(self.work, index=index, count=self.count) for index in range(self.count)]


def evolve_on_beam(
    config: EvolveConfig,
    out: Path,
    *,
    work: Path,
    shards: int,
    options: Sequence[str] = (),
    order: writing.Order = "seeds",
    progress: Progress,
    say: Callable[[str], None] = print,
    stop: StopFlag | None = None,
) -> dict[str, Any]:
    """Evolves all seeds as `shards` parts under `work`, merges them into `out`, and returns the summary.

    `options` are Beam's, such as --runner=DataflowRunner or --direct_num_workers=4
    --direct_running_mode=multi_threading; without a runner all happens in this process. `order` is that of the
    records; "shuffled" goes by their ids and config.seed. `say` is told what to expect, `progress` of finished shards
    and of what all have spent. Without a `stop` of the caller's it must be called in the main thread, which gets the
    signals.

    Raises:
      UserError: settings that no pipeline could use, seeds or folders as in `generate`, or shards that could not be
        finished, and why.
      BudgetReached: in one of the shards; all of them hold what their part of the budget was enough for.
      Interrupted: SIGTERM or Ctrl-C came, and the shards have stopped.
    """
    if (out / COMPLETE).exists():
        with open_stage(out, config, stage="evolve"):
            return read_complete(out)
    plan = _Plan(config=config, work=work.resolve(), count=shards, options=tuple(options), order=order)
    _check(plan, work, out)
    in_parts = replace(config, shard=Shard(index=0, count=shards))
    told = stop_flag() if stop is None else contextlib.nullcontext(stop)
    with open_stage(plan.work, in_parts, stage=STAGE), told as flag:
        open_stage(out, config, stage="evolve").close()  # refused before anything is paid, and not when all is
        evolving.forget_stops(plan.work, count=shards)
        if unfinished(plan.work, count=shards):
            _tell(plan, say=say)
        with _watched(plan, flag, progress=progress):
            _evolve(plan, flag)
            elsewhere = finish.Elsewhere(found=_find(plan), write=partial(_write, plan))
            return merge(plan.folders, out.resolve(), whole=config, say=say, stop=flag, elsewhere=elsewhere)


def _check(plan: _Plan, work: Path, out: Path) -> None:
    """Raises UserError for what no pipeline could do."""
    config = plan.config
    if config.shard != Shard():
        raise BeamError("shard: a pipeline makes all parts of the seeds; leave the setting out")
    if plan.count < 2:
        raise BeamError(f"{plan.count} shards: a pipeline needs at least 2; wizard evolve does without")
    for place in (work, out):
        if _BUCKET.match(str(place)):
            raise BeamError(
                f"{place} is no folder: journals are SQLite files, so name one on a disk that this machine and every "
                "worker mount under the same path"
            )
    if out.resolve() == plan.work:
        raise BeamError(f"--work and --out are both {plan.work}: the parts need a folder of their own")
    check(replace(config, shard=Shard(index=0, count=plan.count)))
    seeds = (config.seeds.path,) if isinstance(config.seeds, SeedFile) else ()
    relative = [path for path in (*seeds, *config.measure.contamination_files) if not Path(path).is_absolute()]
    if relative and _runner(plan.options) is None:
        raise BeamError(f"{relative[0]} means another file on every worker: write an absolute path")
    _pipeline(plan)


def _tell(plan: _Plan, *, say: Callable[[str], None]) -> None:
    """What was found among the seeds, and what all of them are expected to take."""
    config = plan.config
    found = sources.check_seeds(config.seeds)
    for line in found.told():
        say(line)
    check_count(replace(config, shard=Shard(index=0, count=plan.count)), seeds=found.count)
    seeds = islice(sources.iter_seeds(config.seeds), SAMPLED_SEEDS)
    for line in expected(config, seeds=seeds, total=found.count, prices=_prices(config)).told():
        say(line)


def _prices(config: EvolveConfig) -> Mapping[Provider, Prices]:
    """Of everybody who is asked; workers have the keys."""
    prices: dict[Provider, Prices] = {}
    for path in ("llm", "answerer", "judge"):
        provider = getattr(config, path)
        if provider is not None and provider not in prices:
            models = config.mixture.models if config.mixture and path == "llm" else ()
            prices[provider] = Prices(provider, models=models, setting=path)
    return prices


# --- the pipelines


def _evolve(plan: _Plan, stop: StopFlag) -> None:
    """Finishes all shards, or says why not."""
    if not unfinished(plan.work, count=plan.count):
        return
    evolving.divide(plan.config.budget, work=plan.work, count=plan.count)
    try:
        _run(plan, lambda pipeline: _each_shard(pipeline, plan, evolve_shard))
    except Exception as error:
        stop.raise_if_set()
        if any(unfinished(plan.work, count=plan.count).values()):
            _raise_for(plan, cause=error)
        raise
    stop.raise_if_set()
    _raise_for(plan)


def _raise_for(plan: _Plan, cause: Exception | None = None) -> None:
    left = unfinished(plan.work, count=plan.count)
    if not left:
        return
    told = [f"shard {index}/{plan.count}: {one.why}" for index, one in left.items() if one] or ["nobody said why"]
    text = f"{len(left)} of {plan.count} shards are not finished; " + "\n".join(dict.fromkeys(told))
    kinds = {one.kind for one in left.values() if one}
    if "mistake" in kinds or not kinds:
        raise BeamError(text) from cause
    if "budget" in kinds:
        raise BudgetReached(text) from cause
    raise Interrupted(min(EXIT_CODES.values())) from cause


def _find(plan: _Plan) -> Found:
    """Near-duplicates and test items among the records of all shards, as far as the config asks for them."""
    measure = plan.config.measure
    of_duplicates, of_items = plan.work / "duplicates.jsonl", plan.work / "findings.jsonl"
    for file in (of_duplicates, of_items):
        file.unlink(missing_ok=True)

    def build(pipeline: beam.Pipeline) -> None:
        records = _each_shard(pipeline, plan, read_lineages) | "records" >> beam.FlatMap(_compared)
        if measure.duplicates != "off":
            alike = checks.near_duplicates(records, threshold=measure.duplicate_threshold)
            keep(alike, of_duplicates, name="duplicates")
        if measure.contamination_files:
            tests = checks.test_sets(pipeline, measure.contamination_files, ngram=measure.contamination_ngram)
            items = checks.contaminated(records, tests, similarity=measure.contamination_similarity)
            keep(items, of_items, name="findings")

    if measure.duplicates == "off" and not measure.contamination_files:
        return Found(Duplicates(0, (), {}), ())
    _run(plan, build)
    records = sum(read_complete(folder)["records"] for folder in plan.folders)
    return Found(checks.kept_duplicates(of_duplicates, records=records), checks.kept_findings(of_items))


def _write(plan: _Plan, out: Path, found: Mapping[str, Sequence[Check]], description: str) -> Manifest:
    """The data set in `out`, complete or not at all, of all records with what was found of them."""
    config, made_of = plan.config, plan.work / "shards.jsonl"
    shards.check_replaceable(out)
    partial_ = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial_, ignore_errors=True)
    partial_.mkdir(parents=True)
    with replacing(plan.work / "checks.jsonl") as lines:
        lines.writelines(f"{json.dumps([record, some])}\n" for record, some in found.items())

    def build(pipeline: beam.Pipeline) -> None:
        lineages = _each_shard(pipeline, plan, read_lineages) | "by name" >> beam.FlatMap(_named)
        of_lineages = (
            pipeline
            | "file of checks" >> beam.Create([str(plan.work / "checks.jsonl")])
            | "checks" >> beam.FlatMap(_read_checks)
        )
        placed = (
            {"lineage": lineages, "checks": of_lineages}
            | "lineages and checks" >> beam.CoGroupByKey()
            | "checked" >> beam.FlatMap(_checked, order=plan.order, seed=config.seed)
        )
        written = writing.write_shards(
            placed,
            folder=partial_,
            name=config.name,
            records_per_shard=config.records_per_shard,
            file_format=config.file_format,
        )
        keep(written, made_of, name="shards")

    _run(plan, build)
    files = sorted((DataFile(**one) for one in kept(made_of)), key=lambda one: (len(one.file), one.file))
    for stray in partial_.glob(".*"):  # of bundles that died
        stray.unlink()
    text = f"{description} Shuffled by seed {config.seed}." if plan.order == "shuffled" else description
    manifest = shards.finish_folder(
        partial_, name=config.name, file_format=config.file_format, shards=files, description=text
    )
    shards.put_in_place(partial_, out)
    return manifest


def _each_shard(pipeline: beam.Pipeline, plan: _Plan, do: Callable[..., Iterator[Any]]) -> beam.PCollection:
    """What `do` brings of every shard."""
    return (
        pipeline
        | "shards" >> beam.Create(range(plan.count))
        | "to all workers" >> beam.Reshuffle()
        | do.__name__ >> beam.FlatMap(do, work=str(plan.work), count=plan.count)
    )


def _compared(saved: tuple[int, Lineage]) -> Iterator[Record]:
    return map(checks.compared, saved[1].records)


def _named(saved: tuple[int, Lineage]) -> Iterator[tuple[str, tuple[int, Lineage]]]:
    """(lineage, (number of its seed, what came of it)) for one that has records."""
    if saved[1].records:
        yield saved[1].records[0].lineage, saved


def _read_checks(file: str) -> Iterator[tuple[str, tuple[str, list[Check]]]]:
    """(lineage, (record, what was found of it))."""
    with open(file, encoding="utf-8") as lines:
        for record, some in map(json.loads, lines):
            yield record.rpartition("/")[0], (record, [Check(*one) for one in some])


def _checked(
    named: tuple[str, Mapping[str, Iterable[Any]]], *, order: writing.Order, seed: int
) -> Iterator[tuple[int, tuple[tuple[int, int], Record]]]:
    """What `write_shards` takes of a lineage's records, those that are not to be dropped."""
    found = dict(named[1]["checks"])
    for index, lineage in named[1]["lineage"]:
        for number, record in enumerate(finish.checked(lineage, found).records):
            bucket, within = writing.place(order, record, index=index, number=number, seed=seed)
            yield bucket, (within, record)


# --- the runner


def _run(plan: _Plan, build: Callable[[beam.Pipeline], object]) -> None:
    """Runs a pipeline to its end; whatever fails in it is raised here, as the runner tells it."""
    with _pipeline(plan) as pipeline:
        build(pipeline)


def _pipeline(plan: _Plan) -> beam.Pipeline:
    try:
        return beam.Pipeline(runner=_runner(plan.options), options=PipelineOptions(list(plan.options)))
    except (ImportError, ValueError) as error:  # a runner that is not installed; options that it lacks
        raise BeamError(f"Beam's options {' '.join(plan.options)}: {error}") from error


def _runner(options: Sequence[str]) -> FnApiRunner | None:
    """A runner in this process where no other is asked for; None: the one of the options.

    Beam's DirectRunner would first download another, Prism, and try that.
    """
    name = PipelineOptions(list(options)).view_as(StandardOptions).runner
    return FnApiRunner() if name is None or name.lower() in _LOCAL_RUNNERS else None


@contextlib.contextmanager
def _watched(plan: _Plan, stop: StopFlag, *, progress: Progress) -> Iterator[None]:
    """While it is entered, finished shards are shown, and a signal is passed on to all workers by a file."""
    ended = threading.Event()

    def watch() -> None:
        passed_on, told = False, -math.inf
        while True:
            last = ended.wait(_POLL_SECONDS)
            if last or time.monotonic() >= told + _TOLD_SECONDS:
                told = time.monotonic()
                _show(plan, progress)
            if stop.exit_code is not None and not passed_on:
                write_atomically(plan.work / evolving.STOP, f"{stop.exit_code}\n")
                passed_on = True
            if last:
                return

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _show(plan: _Plan, progress: Progress) -> None:
    spent = evolving.spending(plan.work, count=plan.count)
    facts: dict[str, int | str | float] = {
        "requests": spent.requests,
        "429s": spent.rate_limited,
        "spent": dollars(spent.usd),
    }
    progress(plan.count - len(unfinished(plan.work, count=plan.count)), plan.count, facts)
