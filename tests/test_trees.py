"""Finished configs: a dump loads as it was; identity, differences and paths say what they must."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from config_example import AdamW, Data, Lion, Probe, Train, Warmup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.loader import diff, dump, identity, load, paths, setting

texts = (
    st.text() | st.text(alphabet=st.characters()) | st.sampled_from(["'", '"', "'\"\n\\%@", "@Lion", "%X", "None", ""])
)
floats = st.floats(allow_nan=False)
warmups = st.builds(Warmup, steps=st.integers(), shape=st.sampled_from(["linear", "cosine"]))
optimizers = st.builds(AdamW, peak_lr=floats, b2=floats, warmup=warmups) | st.builds(
    Lion, peak_lr=floats, weight_decay=floats
)
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
trains = st.builds(
    Train,
    data=st.builds(
        Data,
        path=texts,
        seq_len=st.integers(),
        columns=st.lists(texts).map(tuple),
        blocks=st.lists(st.tuples(st.integers(), texts)).map(tuple),
        limit=st.none() | st.integers(),
        label=st.none() | texts,
        size=st.just("auto") | st.integers(),
        tag=texts | st.integers(),
        workers=st.integers(),
    ),
    optimizer=optimizers,
    judge=optimizers,
    probe=st.none() | st.builds(Probe, every=st.integers(min_value=1)),
    watch=warmups,
    arms=st.dictionaries(names, optimizers, max_size=3),
    probes=st.dictionaries(names, st.builds(Probe, every=st.integers(min_value=1)), max_size=2),
    steps=st.integers(),
    scale=floats,
    strict=st.booleans(),
    note=texts,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(trains)
def test_a_dump_loads_as_the_config_that_it_was(tmp_path: Path, config: Train) -> None:
    text = dump(config)
    (tmp_path / "config.gin").write_text(text, encoding="utf-8")
    loaded = load(Train, [tmp_path / "config.gin"])
    assert loaded == config
    assert dump(loaded) == text
    assert identity(loaded) == identity(config)
    assert diff(loaded, config) == []


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(trains, trains)
def test_configs_are_the_same_work_exactly_when_only_operational_settings_differ(a: Train, b: Train) -> None:
    differing = [one for one in diff(a, b) if one.role == "identity"]
    assert (identity(a) == identity(b)) == (not differing)


def test_identity_leaves_out_operational_settings_and_what_lies_below_them() -> None:
    config = Train(data=Data(path="p"))
    other = dataclasses.replace(config, data=Data(path="p", workers=9), watch=Warmup(steps=1))
    assert identity(other) == identity(config)
    assert [(one.path, one.role) for one in diff(config, other)] == [
        ("data.workers", "operational"),
        ("watch.steps", "operational"),
    ]


@dataclass(frozen=True, kw_only=True)
class One:
    a: float = setting(1.0)
    b: int = setting(2)


def test_identity_does_not_depend_on_the_order_of_fields_nor_on_int_for_float() -> None:
    reordered = dataclasses.make_dataclass(
        "One", [("b", int, setting(2)), ("a", float, setting(1.0))], frozen=True, kw_only=True
    )
    assert identity(reordered()) == identity(One()) == identity(One(a=1))


def test_identity_tells_types_with_the_same_fields_apart() -> None:
    same = dataclasses.make_dataclass("Other", [("a", float, setting(1.0)), ("b", int, setting(2))], frozen=True)
    assert identity(same()) != identity(One())


def test_diff_names_types_and_paths_of_one_side_only() -> None:
    left, right = Train(data=Data(path="p")), Train(data=Data(path="q"), optimizer=Lion(peak_lr=1e-3))
    assert [(one.path, one.left, one.right) for one in diff(left, right)] == [
        ("data.path", "'p'", "'q'"),
        ("optimizer", "@AdamW", "@Lion"),
        ("optimizer.b2", "0.95", None),
        ("optimizer.warmup", "@Warmup", None),
        ("optimizer.warmup.steps", "100", None),
        ("optimizer.warmup.shape", "'linear'", None),
        ("optimizer.weight_decay", None, "0.1"),
    ]


def test_paths_list_every_member_of_a_union_with_defaults_and_roles() -> None:
    found = {(one.path, one.component): one for one in paths(Train)}
    assert found["data.path", "Data"].required
    assert found["data.path", "Data"].default is None
    assert found["data.path", "Data"].doc == "the packed folder"
    assert found["optimizer", "Train"].type == "@AdamW | @Lion"
    assert found["optimizer", "Train"].default == "@AdamW"
    assert found["judge.weight_decay", "Lion"].default == "0.5"
    assert found["optimizer.weight_decay", "Lion"].default == "0.1"
    assert found["watch.steps", "Warmup"].role == "operational"
    assert found["probe", "Train"].type == "@Probe | None"
    assert found["data.size", "Data"].type == "int | 'auto'"


def test_a_setting_that_no_file_could_express_is_a_mistake_of_its_class() -> None:
    mixed = dataclasses.make_dataclass("Mixed", [("a", Lion | int, setting(3))], frozen=True)
    with pytest.raises(TypeError, match=r"Mixed\.a"):
        paths(mixed)


def test_nan_is_no_setting() -> None:
    with pytest.raises(TypeError, match="nan"):
        dump(Train(data=Data(path="p"), scale=math.nan))
