"""Mixtures: an epoch holds every data set in its share, and each conversation as often as the audit says."""

import pathlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from packed_rows import config, rows_of, small_tokenizer, write

from configs.loader import dump, load
from data_gen.records import Record, Turn
from wizard_jax.data.choosing import MemberUse
from wizard_jax.data.config import DataConfig, DataError, Mixture, Selection
from wizard_jax.data.packing import PackedFolder, pack
from wizard_jax.tokenizer import Tokenizer


def records(name: str, count: int) -> list[Record]:
    """Each of its own words, in rounds 0 and 1 in turn."""
    return [
        Record(
            id=f"{number:06d}/{number % 2}",
            lineage=f"{number:06d}",
            turns=(Turn("user", f"{name} {number}"), Turn("assistant", "fig jam")),
            round=number % 2,
            source=name,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("t"))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """70 records of `a` and 90 of `b`."""
    folder = tmp_path_factory.mktemp("sets")
    return write(records("a", 70), folder / "a"), write(records("b", 90), folder / "b")


def mixed(sets: tuple[pathlib.Path, pathlib.Path], **settings: object) -> DataConfig:
    return config(sets[0], mixture=Mixture(datasets=(str(sets[1]),), **settings))


def counts(packed: PackedFolder) -> dict[str, Counter[object]]:
    """How often each conversation is there, by source."""
    found = {group.source: Counter[object]() for group in packed.groups}
    for row in rows_of(packed):
        parts = np.split(row.tokens, np.cumsum(row.lengths)[:-1])
        for tokens, group in zip(parts, row.groups.tolist(), strict=True):
            found[packed.groups[group].source][tuple(tokens.tolist())] += 1
    assert sum(of.total() for of in found.values()) == packed.stats.conversations
    return found


def test_without_weights_all_that_is_selected_of_each_is_there_once(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    found = counts(pack(mixed(sets), tokenizer, cache_dir=tmp_path))
    assert {name: len(of) for name, of in found.items()} == {"a": 70, "b": 90}
    assert {times for of in found.values() for times in of.values()} == {1}


def test_weights_are_shares_of_the_conversations_of_an_epoch_in_which_nothing_repeats(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    packed = pack(mixed(sets, weights=(0.7, 0.3)), tokenizer, cache_dir=tmp_path)
    found = counts(packed)
    assert {name: of.total() for name, of in found.items()} == {"a": 70, "b": 30}
    assert {times for of in found.values() for times in of.values()} == {1}
    assert packed.audit.members == (
        MemberUse(dataset=str(sets[0]), usable=70, conversations=70, times=1),
        MemberUse(dataset=str(sets[1]), usable=90, conversations=30, times=0),
    )


def test_sets_that_are_used_up_repeat_as_often_as_is_said(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    asked = mixed(sets, weights=(5.0, 2.0), ends="all_exhausted")  # 90 of b, so 225 of a: 3 x 70 + 15
    packed = pack(asked, tokenizer, cache_dir=tmp_path)
    found = counts(packed)
    assert Counter(found["a"].values()) == {3: 55, 4: 15}
    assert Counter(found["b"].values()) == {1: 90}
    first = packed.audit.members[0]
    assert (first.times, first.once_more) == (3, 15)
    assert ("of " + str(sets[0]), "225", "each of 70 3 times, 15 once more") in packed.audit.table()


def test_a_weight_is_taken_as_it_is_written(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    """70 / 0.7 is 100.00000000000001 in floating point, and 0.7 * 100 is 70: no rounding may cost a conversation."""
    for weights in ((0.7, 0.7), (0.1, 0.1), (1e-3, 1e-3)):
        packed = pack(mixed(sets, weights=weights), tokenizer, cache_dir=tmp_path)
        assert [one.conversations for one in packed.audit.members] == [70, 70]


def test_each_set_has_its_own_selection(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    asked = mixed(sets, examples=(12,), rounds_to=(0,))
    asked = replace(asked, selection=Selection(rounds_from=1, trained_tokens=30))
    packed = pack(asked, tokenizer, cache_dir=tmp_path)
    of = {(group.source, group.round): group for group in packed.groups}
    assert set(of) == {("a", 1), ("b", 0)}
    assert of["b", 0].conversations == 12
    assert 30 <= of["a", 1].trained_tokens < 40


def test_other_weights_are_other_rows_and_the_same_weights_the_same(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    one, other, again = (
        pack(mixed(sets, weights=weights), tokenizer, cache_dir=tmp_path / place)
        for weights, place in (((0.7, 0.3), "x"), ((0.6, 0.4), "x"), ((0.7, 0.3), "y"))
    )
    assert one.sha256 == again.sha256 != other.sha256
    assert one.path.name == again.path.name != other.path.name


def test_the_held_out_part_is_of_every_set_and_knows_no_weights(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    asked = replace(mixed(sets, weights=(0.9, 0.1)), held_out_share=0.3)
    held_out = pack(asked, tokenizer, cache_dir=tmp_path, part="held_out")
    without = replace(asked, mixture=replace(asked.mixture, weights=()))
    assert pack(without, tokenizer, cache_dir=tmp_path, part="held_out").path == held_out.path
    trained = pack(without, tokenizer, cache_dir=tmp_path)
    apart = [counts(packed) for packed in (held_out, trained)]
    for source, total in (("a", 70), ("b", 90)):
        assert not set(apart[0][source]) & set(apart[1][source])
        assert len(apart[0][source]) + len(apart[1][source]) == total
        assert apart[0][source]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (1.0,)}, r"weights has 1 numbers for 2 data sets"),
        ({"weights": (1.0, 0.0)}, r"each must be above 0"),
        ({"weights": (1.0, float("inf"))}, r"each must be above 0"),
        ({"examples": (1, 2)}, r"examples has 2 values for 1 data sets"),
        ({"ends": "all_exhausted"}, r"ends has no effect without data.mixture.weights"),
    ],
    ids=str,
)
def test_a_mixture_that_does_not_agree_with_itself_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture(datasets=("b",), **settings)


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="name other data sets"):
        Mixture(datasets=())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (1e6, 1.0)}, r"leaves not one conversation of .*b: the set that is used up first is too small"),
        ({"examples": (91,)}, r"data\.mixture\.examples is 91, and there are 90 to take from in .*b"),
        ({"operations": (("x",),)}, r"data\.mixture\.operations names x, which wrote no record of .*b"),
    ],
    ids=str,
)
def test_a_mixture_that_cannot_be_met_is_refused(
    sets: tuple[pathlib.Path, pathlib.Path],
    tokenizer: Tokenizer,
    tmp_path: pathlib.Path,
    settings: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        pack(mixed(sets, **settings), tokenizer, cache_dir=tmp_path)


def test_no_record_may_come_from_two_members(
    sets: tuple[pathlib.Path, pathlib.Path], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    twice = (sets[0], sets[0])
    with pytest.raises(DataError, match=r"hold the same records, and data\.mixture takes some of them from both"):
        pack(mixed(twice), tokenizer, cache_dir=tmp_path)
    apart = replace(mixed(twice, rounds_from=(1,)), selection=Selection(rounds_to=0))
    assert pack(apart, tokenizer, cache_dir=tmp_path).stats.conversations == 70


def test_a_mixture_is_read_from_text(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "data.gin"
    file.write_text(
        "dataset = 'evolved'\nchat_format = 'vicuna'\nseq_len = 512\nselection.rounds_to = 2\n"
        "mixture = @Mixture\nmixture.datasets = ('sharegpt', 'dolly')\nmixture.weights = (0.6, 0.3, 0.1)\n"
        "mixture.examples = (None, 500)\nmixture.operations = ((), ('deepening',))\n"
    )
    loaded = load(DataConfig, [file])
    assert [(one.dataset, one.selection) for one in loaded.members] == [
        ("evolved", Selection(rounds_to=2)),
        ("sharegpt", Selection()),
        ("dolly", Selection(examples=500, operations=("deepening",))),
    ]
    (tmp_path / "again.gin").write_text(dump(loaded))
    assert load(DataConfig, [tmp_path / "again.gin"]) == loaded
