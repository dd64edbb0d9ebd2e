"""README.md says of every file where it is, and is right. Its commands are tested in `test_cli.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = "## Where each thing happens"


def named() -> Iterator[str]:
    """The path of every file and folder that the list under `HEADING` names.

    A line begins with what it is about; names behind that are of files beside it, or in it.
    """
    listed = (ROOT / "README.md").read_text(encoding="utf-8").partition(HEADING)[2]
    package = ""
    for line in (line[4:] for line in listed.splitlines() if line.startswith("    ")):
        if not line.startswith(" "):
            package = line.split()[0]
            yield package
            continue
        subject, told = re.split(r"  +", line.strip(), maxsplit=1)
        folder = f"{package}{subject[: subject.rfind('/') + 1]}"
        yield f"{package}{subject.split()[0]}"
        for name in re.findall(r"(?<![\w<>./])\w+(?:\.py|/)(?![\w*>])", f"{subject} {told}"):
            yield f"{folder}{name}" if (ROOT / folder / name).exists() else f"{package}{name}"


def test_every_file_that_the_readme_names_is_where_it_says() -> None:
    found = [name for name in named() if "*" not in name]
    assert {"configs/loader.py", "data_gen/llm/journal_file.py", "wizard_jax/evaluate/tasks/", "launch/"} <= {*found}
    assert not [name for name in found if not (ROOT / name).exists()]


def test_the_readme_says_where_plots_are_drawn_and_verbs_are_read() -> None:
    asked = {"data_gen/plots.py", "data_gen/lineage_view.py", "wizard_jax/report/comparison.py"}
    assert asked | {"wizard_jax/data_verbs.py", "wizard_jax/data/order.py"} <= set(named())
