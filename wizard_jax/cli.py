"""The `wizard` command. Each verb imports what it needs when it is called, so `wizard --help` is quick.

Exit codes: 0 done; 1 a bug; 2 the user's mistake; 3 the budget is spent, what is there is valid; 42 stopped by SIGTERM,
or without another process of the run, or stalled: saved, start again; 130 Ctrl-C, saved.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wizard_jax.convert_verbs import add_convert_verbs
from wizard_jax.data_verbs import Verb, add_data_verbs
from wizard_jax.eval_verbs import EXPORT, IMPORT, add_eval_verbs
from wizard_jax.model_verbs import add_model_verbs
from wizard_jax.progress import say
from wizard_jax.train_verbs import add_train_verbs

DESCRIPTION = "WizardLM on JAX: evolve instructions, train a LLaMA on them, export, evaluate, report."

STAGES = ("evolve", "answer", "train", "eval")

_PLACES_TO_MEND = "EEXIST EACCES EPERM EROFS EISDIR ENOTDIR ENOSPC EDQUOT EFBIG EIO".split()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code."""
    arguments = _parse(argv)
    from configs.errors import UserError
    from configs.interrupt import Interrupted

    try:
        with _stopped_by_sigterm():
            code: int | None = arguments.verb(arguments)
    except UserError as error:
        print(f"wizard: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"wizard: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) not in _PLACES_TO_MEND:
            raise
        mend = "mend that and start the same command again, or write elsewhere"
        print(f"wizard: {error.filename or 'a file'}: {error.strerror}; {mend}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wizard: stopped at once: run the same command to go on", file=sys.stderr)
        return 130
    except ImportError as error:
        from wizard_jax.doctor import extra_for

        extra = extra_for(error)
        if extra is None:
            raise
        print(f"wizard: {error}. It comes with an extra: pip install 'wizard-jax[{extra}]'", file=sys.stderr)
        return 2
    return code or 0


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """For what has no flag of its own to look at: it leaves whole files or none, so it may stop anywhere."""
    from configs.interrupt import EXIT_CODES, Interrupted

    def told(*_: object) -> None:
        raise Interrupted(EXIT_CODES[signal.SIGTERM])

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes positional arguments from one place only; settings and OUT may stand before and after options."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if (both := " ".join(words[:2])) in (EXPORT, IMPORT):  # what follows eval otherwise is a config file
        words[:2] = [both]
    arguments, rest = parser.parse_known_args(words)
    if rest and getattr(arguments, "place", "") is None and not rest[0].startswith("-"):
        try:
            arguments.place = _local(rest.pop(0))
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(arguments, "settings")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}; settings are written path=value")
    if rest:
        arguments.settings = [*arguments.settings, *rest]
    return arguments


def _local(text: str) -> Path:
    """A place to write to. `Path` makes gs:/ of gs://, which would then be an ordinary folder here."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is not local: write to a local folder, and copy it when it is complete"
        )
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wizard", description=DESCRIPTION)
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(name: str, verb: Verb, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(verb=verb)
        return added

    def add_stage(name: str, verb: Verb, text: str) -> argparse.ArgumentParser:
        stage = add(name, verb, text)
        stage.add_argument("config", help="a .gin file, such as configs/train/quickstart.gin")
        stage.add_argument("settings", nargs="*", metavar="path=value", help="settings that go before the file's")
        stage.add_argument("--out", type=_local, required=True, help="the folder to write; one that was begun goes on")
        return stage

    quickstart = add("quickstart", _quickstart, "run the whole flow, small and offline")
    quickstart.add_argument("--out", type=_local, default=Path("quickstart"), help="where to (default: quickstart)")
    add_data_verbs(add, add_stage, local=_local)
    tokenizer = add("tokenizer", _tokenizer, "train a SentencePiece tokenizer on a data set")
    tokenizer.add_argument("dataset", type=Path, help="the folder of wizard evolve")
    tokenizer.add_argument("--chat-format", required=True, help="vicuna, wizardlm, wizardlm_7b, alpaca or llama2_chat")
    tokenizer.add_argument("--vocab-size", type=int, default=32_000)
    tokenizer.add_argument("--digits", choices=("split", "whole"), default="split", help="whole: numbers are words")
    tokenizer.add_argument("--out", type=_local, required=True, help="the file to write, such as tokenizer.model")
    add_stage("pack", _pack, "plan and write packed rows for a training config, ahead of wizard train")
    add_train_verbs(add, local=_local)
    add_stage("train", _train, "fine-tune a model on a data set")
    add_convert_verbs(add, local=_local)
    add_model_verbs(add, local=_local)
    add_stage("eval", _eval, "ask models the items of a task; score, judge and compare their answers")
    add_eval_verbs(add, local=_local)
    report = add("report", _report, "write the page of an evaluation, or one that compares several")
    several = "one: all that it found; several: exact match side by side, of the simulated world alone"
    report.add_argument("evaluations", type=Path, nargs="+", metavar="EVAL", help=several)
    report.add_argument("--out", type=_local, help="the .html file to write (default for one: EVAL/report.html)")
    _add_launch(verbs.add_parser("launch", help="run a verb that is started again when it is cut off"))
    _add_config(verbs.add_parser("config", help="show, compare or list settings"))
    doctor = add("doctor", _doctor, "say what is installed, found and writable here")
    doctor.add_argument("folders", type=Path, nargs="*", help="folders that you mean to write to")
    return parser


def _add_launch(parser: argparse.ArgumentParser) -> None:
    places = parser.add_subparsers(metavar="WHERE", required=True)
    text = "run a verb on this machine, and again after exit code 42 or death by a signal"
    local = places.add_parser("local", help=text, description=text, usage="%(prog)s [options] -- VERB ...")
    local.add_argument("--processes", type=int, default=1, help="how many, which make one run (default: 1)")
    local.add_argument("--devices", type=int, help="simulate so many CPU devices in each")
    local.add_argument("--restarts", type=int, default=3, help="how often at most (default: 3)")
    local.add_argument("--log", type=Path, help="a file to append its output to")
    local.add_argument("command", nargs=argparse.REMAINDER, metavar="-- VERB ...", help="a verb with its arguments")
    local.set_defaults(verb=_launch_local)


def _add_config(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every setting of a config, and where it comes from")
    show.add_argument("stage", choices=STAGES)
    show.add_argument("config")
    show.add_argument("settings", nargs="*", metavar="path=value")
    show.set_defaults(verb=_config_show)
    diff = actions.add_parser("diff", help="the settings in which two configs differ")
    diff.add_argument("stage", choices=STAGES)
    diff.add_argument("left")
    diff.add_argument("right")
    diff.add_argument("settings", nargs="*", metavar="path=value", help="for both, such as what they leave open")
    diff.set_defaults(verb=_config_diff)
    paths = actions.add_parser("paths", help="every setting that there is, with type and default")
    paths.add_argument("stage", choices=STAGES)
    paths.set_defaults(verb=_config_paths)


def _quickstart(arguments: argparse.Namespace) -> int:
    from wizard_jax.quickstart import quickstart

    return quickstart(arguments.out, run=main)


def _tokenizer(arguments: argparse.Namespace) -> None:
    from configs.errors import UserError
    from data_gen.shards import read_dataset
    from wizard_jax.chat import get_format, segments
    from wizard_jax.tokenizer import train_tokenizer

    chat_format = get_format(arguments.chat_format)
    if chat_format.special_tokens:
        raise UserError(
            f"the {chat_format.name} format needs the special tokens {', '.join(chat_format.special_tokens)}, which a "
            "tokenizer trained here does not have: use the tokenizer.json that the format came with"
        )
    records = read_dataset(arguments.dataset)
    texts = (text for record in records for text in segments(record.turns, chat_format=chat_format))
    tokenizer = train_tokenizer(texts, arguments.out, vocab_size=arguments.vocab_size, digits=arguments.digits)
    say(f"{tokenizer.vocab_size:,} pieces in {arguments.out}")


def _pack(arguments: argparse.Namespace) -> None:
    from wizard_jax.data.audit import Audit
    from wizard_jax.data.packing import LossError, pack
    from wizard_jax.progress import show_progress, show_table
    from wizard_jax.tokenizer import Tokenizer
    from wizard_jax.train.config import TrainConfig

    config = _load(TrainConfig, arguments)
    tokenizer = Tokenizer(config.tokenizer)

    def show(audit: Audit) -> None:
        show_table((audit.part.replace("_", "-"), "", ""), audit.table())

    for part in config.data.parts:
        try:
            with show_progress(f"pack {part.replace('_', '-')}") as progress:
                packed = pack(config.data, tokenizer, cache_dir=arguments.out, part=part, progress=progress)
        except LossError as refused:
            show(refused.audit)
            raise
        show(packed.audit)
        say(f"{packed.rows:,} rows in {packed.path}, {packed.stats.efficiency:.1%} filled")


def _train(arguments: argparse.Namespace) -> None:
    from wizard_jax.doctor import check_platforms
    from wizard_jax.hosts.joining import joined
    from wizard_jax.progress import nobody, show_progress
    from wizard_jax.train.config import TrainConfig
    from wizard_jax.train.train import train

    check_platforms()
    config = _load(TrainConfig, arguments)
    with joined() as hosts, show_progress("train") if hosts.is_first else contextlib.nullcontext(nobody) as progress:
        summary = train(config, arguments.out, progress=progress, hosts=hosts)
    steps, tokens = summary["steps"], summary["trained_tokens"]
    if hosts.is_first:
        say(f"{steps:,} steps on {tokens:,.0f} trained tokens; the run is in {arguments.out}")


def _eval(arguments: argparse.Namespace) -> None:
    from wizard_jax.doctor import check_platforms
    from wizard_jax.evaluate.config import EvalConfig
    from wizard_jax.evaluate.evaluate import evaluate
    from wizard_jax.evaluate.judged_results import capacity_rows, comparison_rows, judge_rows
    from wizard_jax.evaluate.results import measure_rows, score_rows, unanswered_rows
    from wizard_jax.progress import show_progress, show_table
    from wizard_jax.report.evaluation import PAGE, write_page

    check_platforms()
    config = _load(EvalConfig, arguments)
    with show_progress("eval") as progress:
        results = evaluate(config, arguments.out, progress=progress, say=say, page=write_page)
    for table in (score_rows, unanswered_rows, measure_rows, judge_rows, comparison_rows, capacity_rows):
        head, rows = table(results)
        if rows:
            show_table(head, rows)
    say(f"answers and results are in {arguments.out}; the page is {arguments.out / PAGE}")


def _report(arguments: argparse.Namespace) -> None:
    from configs.errors import UserError
    from wizard_jax.progress import show_table
    from wizard_jax.report import comparison, evaluation

    if len(arguments.evaluations) == 1:
        say(f"the page is {evaluation.write_page(arguments.evaluations[0], target=arguments.out)}")
        return
    if arguments.out is None:
        raise UserError("a page that compares several evaluations belongs to none of them: say where to, with --out")
    arms = comparison.write_report(arguments.evaluations, arguments.out)
    show_table(comparison.HEAD, comparison.comparison_rows(arms))
    say(f"the page is {arguments.out}")


def _launch_local(arguments: argparse.Namespace) -> int:
    from configs.errors import UserError
    from launch.local import run_locally

    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not words:
        raise UserError("wizard launch local runs a verb: write it after --, as in -- train FILE --out FOLDER")
    command = [sys.executable, "-P", "-m", "wizard_jax", *words]
    return run_locally(
        command,
        processes=arguments.processes,
        devices=arguments.devices,
        restarts=arguments.restarts,
        log=arguments.log,
    )


def _doctor(arguments: argparse.Namespace) -> None:
    from wizard_jax.doctor import findings
    from wizard_jax.progress import show_table

    show_table(("what", "found", "to do"), findings(arguments.folders))


def _config_show(arguments: argparse.Namespace) -> None:
    from configs.loader import entries, origins
    from configs.parsing import Reference
    from wizard_jax.progress import show_table

    root = _root(arguments.stage)
    config = _load(root, arguments)
    came_from = origins(root, [arguments.config], arguments.settings)
    rows = [
        (one.path, f"@{one.value.name}" if isinstance(one.value, Reference) else one.value, one.role, source)
        for one in entries(config)
        if one.path
        for source in [came_from.get(one.path, "default")]
    ]
    show_table(("setting", "value", "role", "from"), rows)


def _config_diff(arguments: argparse.Namespace) -> None:
    from configs.loader import diff, load
    from wizard_jax.progress import show_table

    root = _root(arguments.stage)
    left, right = (load(root, [file], arguments.settings) for file in (arguments.left, arguments.right))
    found = diff(left, right)
    rows = [(one.path, one.left or "-", one.right or "-", one.role) for one in found]
    show_table(("setting", arguments.left, arguments.right, "role"), rows)


def _config_paths(arguments: argparse.Namespace) -> None:
    from configs.loader import paths
    from wizard_jax.progress import show_table

    rows = [
        (one.path, one.component or "", one.type, "required" if one.required else one.default or "", one.role, one.doc)
        for one in paths(_root(arguments.stage))
    ]
    show_table(("setting", "of", "type", "default", "role", "meaning"), rows)


def _root(stage: str) -> type[Any]:
    if stage == "evolve":
        from data_gen.config import EvolveConfig

        return EvolveConfig
    if stage == "answer":
        from data_gen.config import AnswerConfig

        return AnswerConfig
    if stage == "train":
        from wizard_jax.train.config import TrainConfig

        return TrainConfig
    from wizard_jax.evaluate.config import EvalConfig

    return EvalConfig


def _load(root: type[Any], arguments: argparse.Namespace) -> Any:
    from configs.loader import load

    return load(root, [arguments.config], arguments.settings)
