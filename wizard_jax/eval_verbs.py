"""`wizard eval` and what belongs to it: sheets for people to rate, and reading what they send back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from wizard_jax.data_verbs import Verb
from wizard_jax.progress import say

Add = Callable[[str, Verb, str], argparse.ArgumentParser]

EXPORT, IMPORT = "eval export-human", "eval import-human"


def add_eval_verbs(add: Add, *, local: Callable[[str], Path]) -> None:
    export = add(EXPORT, _export_human, "write pages on which people rate the answers of an evaluation blind")
    export.add_argument("evaluation", type=Path, help="a finished folder of wizard eval, of two models or more")
    export.add_argument("--out", type=local, required=True, help="a new folder: pages and CSV twins, and a secret key")
    export.add_argument("--raters", type=int, required=True, help="how many pages")
    export.add_argument("--baseline", default="", help="compare each model with this one (default: every pair)")
    export.add_argument("--evolved", type=Path, help="a folder of wizard evolve: also ask which instruction is harder")
    export.add_argument("--instructions", type=int, default=50, help="so many pairs of those (default: 50)")
    export.add_argument("--no-aspects", action="store_true", help="ask for the verdict alone, not for five aspects")
    export.add_argument("--plain", action="store_true", help="strip formatting by which a model could be told")
    export.add_argument("--seed", type=int, help="of order and sides (default: drawn; it is in the key)")
    back = add(IMPORT, _import_human, "read ratings with the key of their export: agreement, win rates, judges beside")
    back.add_argument("export", type=Path, help="the folder of eval export-human")
    back.add_argument("ratings", type=Path, nargs="+", help="the files that raters sent back, JSON or CSV")
    back.add_argument("--evaluation", type=Path, help="the evaluation, to set its judges beside the people")
    back.add_argument("--out", type=local, help="the .json file to write (default: people.json in the export's folder)")


def _export_human(arguments: argparse.Namespace) -> None:
    import secrets

    from configs.errors import UserError
    from configs.folder import read_complete
    from data_gen.shards import read_dataset
    from wizard_jax.evaluate.people.export import export_human
    from wizard_jax.evaluate.people.questions import ASPECTS, evolved_instructions
    from wizard_jax.evaluate.results import read_answers

    read_complete(arguments.evaluation, stage="eval")
    items, answers = read_answers(arguments.evaluation)
    if not answers:
        raise UserError(f"{arguments.evaluation} has no answers: its task measures models without asking them")
    seed = secrets.randbits(63) if arguments.seed is None else arguments.seed
    harder, answerable = (
        evolved_instructions(read_dataset(arguments.evolved), count=arguments.instructions, seed=seed)
        if arguments.evolved is not None
        else ((), ())
    )
    written = export_human(
        arguments.out,
        items,
        answers,
        raters=arguments.raters,
        seed=seed,
        baseline=arguments.baseline,
        harder=harder,
        answerable=answerable,
        aspects=() if arguments.no_aspects else ASPECTS,
        formatting="plain" if arguments.plain else "as written",
        made_by=str(arguments.evaluation.resolve()),
    )
    for note in written.notes:
        say(note)
    lines = ", ".join(f"{rater} {count}" for rater, count in written.lines.items())
    say(f"{written.comparisons:,} comparisons in {written.folder}/raters ({lines} lines); keep key.json to yourself")


def _import_human(arguments: argparse.Namespace) -> None:
    import json

    from configs.folder import write_atomically
    from wizard_jax.evaluate.judged_results import read_verdicts
    from wizard_jax.evaluate.people.import_ import import_human
    from wizard_jax.evaluate.people.told import told

    verdicts = read_verdicts(arguments.evaluation) if arguments.evaluation is not None else ()
    results = import_human(arguments.export, arguments.ratings, verdicts=verdicts)
    for line in told(results):
        say(line)
    out = arguments.out or arguments.export / "people.json"
    write_atomically(out, json.dumps(results.to_dict(), indent=2, ensure_ascii=False) + "\n")
    say(f"all of it is in {out}")
