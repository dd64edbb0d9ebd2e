"""The audit of packed rows names what was lost, in the folder, on the terminal and in a run."""

import json
import pathlib

import numpy as np
import pytest
from packed_rows import config, record, rows_of, small_tokenizer, write
from tiny_flow import Flow

from data_gen.records import Record, Turn
from wizard_jax.cli import main
from wizard_jax.data import encoding
from wizard_jax.data.audit import Audit
from wizard_jax.data.encoding import BOS_REPEATED, END_UNTRAINED, EOS_REPEATED, find_marks
from wizard_jax.data.packing import LossError, pack
from wizard_jax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("t"))


def said(name: str, *turns: str) -> Record:
    roles = ("user", "assistant") * len(turns)
    return Record(id=f"{name}/0", lineage=name, turns=tuple(Turn(*pair) for pair in zip(roles, turns, strict=False)))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """17 sound conversations and 4 odd ones."""
    odd = [
        said("long", "fig", "fig " * 300),
        said("late", "fig " * 299, "fig"),
        said("mute", "fig", " "),
        said("fades", "fig", "jam", "fig", " "),
    ]
    return write([*(record(i) for i in range(17)), *odd], tmp_path_factory.mktemp("u") / "dataset")


def test_what_was_lost_is_counted_and_named(uneven: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    asked = config(uneven, truncation="truncate", max_lost_share=0.5)
    packed = pack(asked, tokenizer, cache_dir=tmp_path)
    audit = packed.audit
    assert (audit.truncated.count, audit.truncated.examples) == (1, ("long/0",))
    assert (audit.untrained.count, audit.untrained.examples) == (2, ("late/0", "mute/0"))
    assert (audit.dropped.count, audit.dropped.examples) == (0, ())
    assert (audit.end_untrained.count, audit.end_untrained.examples) == (1, ("fades/0",))
    assert (audit.bos_repeated.count, audit.eos_repeated.count, audit.zero_loss_rows) == (0, 0, 0)
    assert (audit.eos_trained, audit.eos_untrained) == (17 + 3, 2)  # of mute's and fades' empty answers
    assert audit.longest[0] == ("long/0", 310)
    assert audit.lengths["longest"] == 310
    assert sum(count for _, count in audit.histogram) == 21
    assert dict(audit.histogram)[512] == 2
    assert audit.stats.tokens == sum(len(row.tokens) for row in rows_of(packed))
    assert sum(group.tokens for group in audit.groups) == audit.stats.tokens
    dropped = pack(config(uneven, truncation="drop", max_lost_share=0.5), tokenizer, cache_dir=tmp_path).audit
    assert (dropped.dropped.count, dropped.dropped.examples) == (2, ("long/0", "late/0"))
    assert dropped.untrained.examples == ("mute/0",)


def test_the_audit_lies_beside_the_rows(uneven: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    packed = pack(config(uneven, truncation="drop", max_lost_share=0.5), tokenizer, cache_dir=tmp_path)
    text = (packed.path / "audit.json").read_text()
    assert Audit.from_json(text) == packed.audit
    assert json.loads(text)["dropped"] == {"count": 2, "examples": ["long/0", "late/0"]}


def test_a_refusal_leaves_its_audit(uneven: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    with pytest.raises(LossError, match=r"more than data\.max_lost_share") as refused:
        pack(config(uneven, truncation="drop"), tokenizer, cache_dir=tmp_path)
    (file,) = tmp_path.glob("*.audit.json")
    assert str(file) in str(refused.value)
    assert Audit.from_json(file.read_text()) == refused.value.audit
    assert refused.value.audit.dropped.count == 2
    pack(config(uneven, truncation="drop", max_lost_share=0.5), tokenizer, cache_dir=tmp_path)
    assert not file.exists()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 5, 6, 2], 0),
        ([1, 1, 5, 2], BOS_REPEATED),
        ([1, 5, 2, 1, 5, 2], 0),  # as llama-2 has it
        ([1, 5, 2, 2], EOS_REPEATED),
        ([1, 1, 5, 2, 2], BOS_REPEATED | EOS_REPEATED),
    ],
)
def test_repeated_bos_and_eos_are_seen(ids: list[int], expected: int) -> None:
    tokens = np.array(ids)
    assert find_marks(tokens, trained=tokens != 1, bos=1, eos=2) == expected
    assert find_marks(tokens, trained=tokens == 5, bos=1, eos=2) == expected | END_UNTRAINED


def test_wizard_pack_shows_the_audit(flow: Flow, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pack", *flow.train_command(tmp_path / "packed")[1:], "data.held_out_share=0.2"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for line in (
        "of simulated world (seed 0), round 0",
        "held-out",
        "untrained",
        "EOS trained",
        "filled; in 0 nothing is",
    ):
        assert line in shown
    assert len(list((tmp_path / "packed").glob("*/audit.json"))) == 2


def test_wizard_pack_shows_the_audit_of_what_it_refuses(
    flow: Flow, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("data.truncation=drop", "data.seq_len=45")
    assert main(["pack", *flow.train_command(tmp_path / "packed", *asked)[1:]]) == 2
    out, err = capsys.readouterr()
    assert "left out: longer than a row, such as 0" in out
    assert "max_lost_share" in err


def test_a_run_keeps_the_audit_of_what_it_trains_on(flow: Flow) -> None:
    audit = Audit.from_json((flow.run / "audit.json").read_text())
    assert audit.stats.rows
    assert audit.stats.candidates == sum(group.conversations for group in audit.groups)


def test_every_finding_is_in_the_table(uneven: pathlib.Path, tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    asked = config(uneven, truncation="truncate", max_lost_share=0.5)
    table = {line[0]: line for line in pack(asked, tokenizer, cache_dir=tmp_path).audit.table()}
    assert table["untrained"][1:] == ("2", "left out: nothing to train on within a row, such as late/0, mute/0")
    marks = {name.lower().replace("_", " ") for name in vars(encoding) if name.isupper()}
    assert {"truncated", "dropped", "untrained", *marks} <= set(table)
