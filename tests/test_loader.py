"""Configs: what a file may say, and what is refused and how it is told."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from config_example import AdamW, Data, Lion, Probe, Shipped, Train, Warmup
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from configs.loader import ConfigError, identity, load, origins
from configs.parsing import SHIPPED
from data_gen.config import EvolveConfig

BASE = "data.path = 'p'\n"


class Files:
    """Writes config files into a folder and loads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def load(self, text: str, *overrides: str, root: type = Train) -> Any:
        return load(root, [self.write("main.gin", text)], overrides)

    def problems(self, text: str, *overrides: str, root: type = Train) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as refused:
            self.load(text, *overrides, root=root)
        assert isinstance(refused.value, UserError)
        for problem in refused.value.problems:
            assert problem in str(refused.value)
        return refused.value.problems


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.chdir(tmp_path)
    return Files(tmp_path)


# What a file may say


def test_a_binding_addresses_a_path_in_the_tree_and_the_rest_is_default(files: Files) -> None:
    config = files.load("data.path = 'p'  # where\noptimizer.warmup.steps = 5\nsteps = 3\n")
    assert config == Train(data=Data(path="p"), optimizer=AdamW(warmup=Warmup(steps=5)), steps=3)


def test_components_by_name_are_as_many_as_are_chosen_in_the_order_of_the_files(files: Files) -> None:
    files.write(
        "base.gin",
        BASE + "arms.z = @AdamW\narms.z.b2 = 0.5\narms.a = @Lion\nprobes.one = @Probe\nprobes.one.every = 2\n",
    )
    config = files.load(
        "include 'base.gin'\narms.z.b2 = 0.7\narms.b = @Lion\nprobes.one = None\n", "arms.b.weight_decay=0.3"
    )
    assert list(config.arms.items()) == [("z", AdamW(b2=0.7)), ("a", Lion()), ("b", Lion(weight_decay=0.3))]
    assert config.probes == {}
    assert files.load(BASE).arms == {}


def test_text_below_a_component_that_is_left_out_is_told_once(files: Files) -> None:
    (told,) = files.problems(BASE, "arms.a=None", "arms.a.peak_lr=slow")
    assert told == "command line: arms.a.peak_lr: has no effect, as arms.a is None (command line)"


def test_the_order_of_names_is_no_part_of_what_a_stage_is_told(files: Files) -> None:
    first, second = (
        files.load(BASE + text) for text in ("arms.a = @Lion\narms.b = @AdamW\n", "arms.b = @AdamW\narms.a = @Lion\n")
    )
    assert identity(first) == identity(second) != identity(files.load(BASE + "arms.a = @Lion\n"))


def test_a_block_binds_the_fields_below_its_name(files: Files) -> None:
    config = files.load("data:\n  path = 'p'\n  seq_len = 9\n\nsteps = 4\n")
    assert config == Train(data=Data(path="p", seq_len=9), steps=4)


def test_an_int_stands_for_a_float_and_is_one(files: Files) -> None:
    scale = files.load(BASE + "scale = 3\n").scale
    assert (scale, type(scale)) == (3.0, float)


def test_a_component_is_chosen_by_its_type_name_in_any_order(files: Files) -> None:
    config = files.load(BASE + "optimizer.weight_decay = 0.3\noptimizer = @Lion\n")
    assert config.optimizer == Lion(weight_decay=0.3)


def test_a_binding_below_a_default_component_changes_that_field_of_the_default(files: Files) -> None:
    config = files.load(BASE + "judge.peak_lr = 2.0\nwatch.shape = 'cosine'\n")
    assert config.judge == Lion(peak_lr=2.0, weight_decay=0.5)
    assert config.watch == Warmup(steps=7, shape="cosine")


def test_an_optional_component_is_chosen_or_none(files: Files) -> None:
    assert files.load(BASE).probe is None
    assert files.load(BASE + "probe = @Probe\nprobe.every = 5\n").probe == Probe(every=5)


def test_what_follows_overrides_what_is_included(files: Files) -> None:
    files.write("parts/data.gin", BASE + "data.seq_len = 1\nsteps = 1\n")
    files.write("parts/middle.gin", "include 'data.gin'\nsteps = 2\nscale = 2.0\n")
    config = files.load("include 'parts/middle.gin'\nscale = 3.0\n")
    assert (config.data.seq_len, config.steps, config.scale) == (1, 2, 3.0)


def test_a_later_file_overrides_an_earlier_one_and_the_command_line_both(files: Files) -> None:
    first = files.write("first.gin", BASE + "steps = 1\nscale = 1.5\nnote = 'a'\n")
    second = files.write("second.gin", "steps = 2\nscale = 2.5\n")
    config = load(Train, [first, second], ["steps=3"])
    assert (config.steps, config.scale, config.note) == (3, 2.5, "a")


def test_a_macro_is_the_value_set_last_wherever_it_is_used(files: Files) -> None:
    files.write("base.gin", BASE + "LENGTH = 64\nHALF = 32\ndata.seq_len = %LENGTH\ndata.limit = %HALF\n")
    config = files.load("include 'base.gin'\nLENGTH = 128\n")
    assert (config.data.seq_len, config.data.limit) == (128, 32)
    assert files.load("include 'base.gin'\n", "LENGTH=256").data.seq_len == 256


def test_a_macro_may_use_another_and_stand_in_a_tuple(files: Files) -> None:
    config = files.load(BASE + "A = 'a'\nBOTH = (%A, 'b')\ndata.columns = %BOTH\ndata.label = %A\n")
    assert config.data.columns == ("a", "b")
    assert config.data.label == "a"


def test_an_include_is_found_beside_its_file_and_then_among_the_shipped_ones(files: Files) -> None:
    shipped = files.load("include 'models/llama2_7b.gin'\n", root=Shipped)
    assert shipped.model.d_model == 4096
    files.write("models/llama2_7b.gin", "steps = 77\n")
    assert files.load("include 'models/llama2_7b.gin'\n" + BASE).steps == 77


def test_a_config_file_is_found_in_the_working_directory_and_then_beside_the_shipped_folder(
    files: Files,
) -> None:
    name = "configs/models/llama2_7b.gin"
    assert load(Shipped, [name]).model.n_layers == 32
    files.write(name, (SHIPPED / "models/llama2_7b.gin").read_text().replace("n_layers = 32", "n_layers = 31"))
    assert load(Shipped, [name]).model.n_layers == 31


# Choosing another type


def test_another_choice_in_a_later_layer_keeps_the_fields_it_shares_and_drops_the_rest(files: Files) -> None:
    text = BASE + "optimizer = @AdamW\noptimizer.peak_lr = 0.5\noptimizer.warmup.steps = 3\n"
    assert files.load(text, "optimizer=@Lion").optimizer == Lion(peak_lr=0.5)
    files.write("base.gin", text)
    config = files.load("include 'base.gin'\noptimizer = @Lion\noptimizer.weight_decay = 0.2\n")
    assert config.optimizer == Lion(peak_lr=0.5, weight_decay=0.2)


def test_a_binding_that_its_own_layer_s_choice_does_not_have_is_never_dropped(files: Files) -> None:
    (problem,) = files.problems(BASE + "optimizer = @Lion\noptimizer.b2 = 0.9\n")
    assert "main.gin:3: optimizer.b2: Lion has no setting 'b2'; it goes with optimizer = @AdamW" in problem
    (problem,) = files.problems(BASE + "optimizer = @AdamW\noptimizer.b3 = 0.9\n", "optimizer=@Lion")
    assert "optimizer.b3: AdamW has no setting 'b3'; did you mean optimizer.b2?" in problem


def test_an_optional_component_is_taken_away_with_what_was_bound_below_it(files: Files) -> None:
    assert files.load(BASE + "probe = @Probe\nprobe.every = 5\n", "probe=None").probe is None


# The command line


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("note=v5e-16", "note", "v5e-16"),
        ("note=a/b c", "note", "a/b c"),
        ("note= 'quoted' # %X @Y", "note", " 'quoted' # %X @Y"),
        ("note=x=y", "note", "x=y"),
        ("note=", "note", ""),
        ("note=None", "note", "None"),
        ("data.label=None", "data.label", None),
        ("data.label=5", "data.label", "5"),
        ("data.path=gs://b/p", "data.path", "gs://b/p"),
        ("optimizer.warmup.shape=cosine", "optimizer.warmup.shape", "cosine"),
        ("data.size=auto", "data.size", "auto"),
        ("data.size=5", "data.size", 5),
        ("data.tag=5", "data.tag", 5),
        ("data.tag=v5e", "data.tag", "v5e"),
        ("data.limit=None", "data.limit", None),
        ("data.columns=('a', 'b')", "data.columns", ("a", "b")),
        ("scale=1e-3", "scale", 1e-3),
        ("strict=True", "strict", True),
        ("optimizer=@Lion", "optimizer", Lion()),
    ],
)
def test_an_override_is_text_where_text_is_held_and_a_value_elsewhere(
    files: Files, override: str, path: str, value: Any
) -> None:
    found: Any = files.load(BASE, override)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_an_override_may_bind_below_a_component_that_another_override_chooses(files: Files) -> None:
    config = files.load(BASE, "optimizer.weight_decay=0.7", "optimizer=@Lion")
    assert config.optimizer == Lion(weight_decay=0.7)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps", "'steps': an override is written path=value"),
        ("=3", "'=3': an override is written path=value"),
        ("steps=ten", "steps = 'ten': expected int"),
        ("steps=", "steps = '': expected int"),
        ("steps=1\nscale = 2", "expected int"),
        ("stepz=3", "did you mean steps?"),
        ("optimizer=Lion", "optimizer: 'Lion' chooses no type; write @"),
        ("optimizer.warmup.shape=cosin", "did you mean cosine?"),
        ("UNUSED=3", "UNUSED: no setting uses this macro"),
    ],
)
def test_a_wrong_override_is_told(files: Files, override: str, told: str) -> None:
    (problem,) = files.problems(BASE, override)
    assert problem.startswith("command line: ")
    assert told in problem


def test_a_path_given_twice_on_the_command_line_is_refused(files: Files) -> None:
    assert files.problems(BASE, "steps=1", "steps=2") == ("command line: steps: given twice",)


# Refused, with file, line, path and the nearest right name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dtaa.seq_len = 3", "main.gin:2: dtaa.seq_len: Train has no setting 'dtaa'; did you mean data?"),
        ("data.sqe_len = 3", "main.gin:2: data.sqe_len: Data has no setting 'sqe_len'; did you mean data.seq_len?"),
        ("arms = @Lion", "holds components by name: arms.NAME = @AdamW | @Lion"),
        ("arms.a.weight_decay = 0.1", "arms.a is not chosen; write arms.a = @AdamW or arms.a = @Lion"),
        ("arms.a = @Lion\narms.a.b2 = 0.1", "Lion has no setting 'b2'; it goes with arms.a = @AdamW"),
        ("arms.a = @Loin", "@Loin is none of its types, @AdamW | @Lion | None; did you mean Lion?"),
        ("arms.a = 3", "3 chooses no type"),
        ("probes.a = @Probe", "probes.a.every: required"),
        ("weight_decay = 1.0", "did you mean optimizer.weight_decay or judge.weight_decay or arms.NAME.weight_decay?"),
        ("zzz = 3", "main.gin:2: zzz: Train has no setting 'zzz'; a macro is written in upper case: ZZZ"),
        ("steps.x = 3", "main.gin:2: steps.x: steps is no component: its type is int"),
        ("steps = 1.5", "main.gin:2: steps = 1.5: expected int"),
        ("steps = True", "main.gin:2: steps = True: expected int"),
        ("steps = '3'", "main.gin:2: steps = '3': expected int"),
        ("steps = None", "main.gin:2: steps = None: expected int"),
        ("steps = {'a': 1}", "main.gin:2: steps = {'a': 1}: expected int"),
        ("steps = @Lion", "main.gin:2: steps = @Lion: expected int"),
        ("scale = True", "main.gin:2: scale = True: expected float"),
        ("note = 3", "main.gin:2: note = 3: expected str"),
        ("note = b'x'", "main.gin:2: note = b'x': expected str"),
        ("strict = 1", "main.gin:2: strict = 1: expected bool"),
        ("data.columns = ['a']", "expected tuple[str, ...]; write (1, 2), not [1, 2]"),
        ("data.columns = ('a')", "expected tuple[str, ...]; a tuple of one is written (1,)"),
        ("data.blocks = ((1, 2),)", "expected tuple[tuple[int, str], ...]"),
        ("data.size = 'aut'", "expected int | 'auto'; did you mean auto?"),
        ("watch.shape = 'cosin'", "expected 'linear' | 'cosine'; did you mean cosine?"),
        ("steps = 1\nsteps = 2", "main.gin:3: steps: bound twice in one file, first at main.gin:2"),
        ("optimizer = @Lion\noptimizer = @AdamW", "main.gin:3: optimizer: bound twice in one file"),
        ("optimizer:\n  b2 = 1.0\noptimizer.b2 = 2.0", "main.gin:4: optimizer.b2: bound twice in one file"),
        ("X = 1\nX = 2\nsteps = %X", "main.gin:3: X: bound twice in one file"),
        ("STEPS = 4", "main.gin:2: STEPS: no setting uses this macro; did you mean steps?"),
        ("A = 4\nB = %A", "main.gin:2: A: no setting uses this macro"),
        ("LEN = 1\nsteps = %LENN\nscale = %LEN", "main.gin:3: steps = %LENN: %LENN is not defined; did you mean LEN?"),
        ("A = %B\nB = (%A, 1)\nsteps = %A", "main.gin:2: A: macros form a cycle: %A -> %B -> %A"),
        ("A = %A", "main.gin:2: A: macros form a cycle: %A -> %A"),
        ("A = @Lion\noptimizer = %A", "main.gin:2: A: a macro holds a value; choose a type where it stands"),
        ("optimizer = @Adam", "@Adam is none of its types, @AdamW | @Lion; did you mean AdamW?"),
        ("optimizer = @Sophia", "main.gin:2: optimizer: @Sophia is none of its types, @AdamW | @Lion"),
        ("optimizer = 'Lion'", "main.gin:2: optimizer: 'Lion' chooses no type; write @AdamW | @Lion"),
        ("optimizer = None", "main.gin:2: optimizer: None chooses no type"),
        ("optimizer = @optax.Lion", "@optax.Lion is none of its types"),
        ("probe.every = 3", "main.gin:2: probe.every: probe is not chosen; write probe = @Probe"),
        ("probe = None\nprobe.every = 3", "main.gin:3: probe.every: has no effect, as probe is None (main.gin:2)"),
        ("probe = @Probe", "probe.every: required, and nothing binds it"),
        ("probe = @Probe\nprobe.every = 0", "main.gin:3: probe: every = 0: must be above 0"),
        ("eval/steps = 3", "main.gin:2: eval/steps: there are no scopes here; write steps"),
        ("eval/data:\n  seq_len = 3", "main.gin:2: eval/data: there are no scopes here"),
        ("steps = %a/X", "main.gin:2: steps: a/X: there are no scopes here"),
        ("optimizer = @a/Lion", "main.gin:2: optimizer: a/Lion: there are no scopes here"),
        ("optimizer = @Lion()", "main.gin:2: optimizer: nothing is called here; write @Lion without ()"),
        ("data.columns = ('a', @Lion())", "main.gin:2: data.columns: nothing is called here"),
        ("import os.path", "main.gin:2: 'import os.path': a config file imports nothing; use include"),
        ("from os import path", "main.gin:2: 'from os import path': a config file imports nothing"),
        ("steps = 1\ninclude 'x.gin'", "main.gin:3: an include stands above all bindings"),
        ("steps = ", "main.gin:2: syntax error: "),
        ("steps = (1,", "syntax error: EOF in multi-line statement"),
        ("steps 3", "main.gin:2: syntax error: "),
        ("steps = 1 2", "main.gin:2: syntax error: Expected newline: steps = 1 2"),
        ("note = hello", "main.gin:2: syntax error: hello is no value; a string needs quotes: note = hello"),
        ("note = 'hello", "main.gin:2: syntax error: "),
        ("note = '\\d'", "main.gin:2: syntax error: "),
        ("steps = 1\ndata.columns = " + "(" * 500 + ")" * 500, "main.gin:3: brackets are nested too deep"),
        ("scale = inf", "inf is no value (infinity is written 1e999)"),
    ],
)
def test_a_mistake_is_told_with_its_place(files: Files, text: str, told: str) -> None:
    problems = files.problems(BASE + text + "\n")
    assert any(told in problem for problem in problems), problems


def test_a_missing_required_field_is_told_with_its_type_and_meaning(files: Files) -> None:
    assert files.problems("steps = 3\n") == (
        "data.path: required, and nothing binds it; write data.path = <str> (the packed folder)",
    )
    (problem, *_others) = files.problems("rounds = 3\n", root=EvolveConfig)
    assert problem == ("seeds: required, and nothing chooses it; write seeds = @SeedFile | @SimulatedSeeds")


def test_several_mistakes_are_told_together(files: Files) -> None:
    problems = files.problems("stepz = 3\nscale = 'a'\nnote = 4\nUNUSED = 1\n", "strict=5")
    assert len(problems) == 6
    text = "\n".join(problems)
    for told in ("stepz", "scale = 'a'", "note = 4", "UNUSED", "data.path: required", "strict = 5"):
        assert told in text


def test_a_value_of_a_macro_is_told_with_both_lines(files: Files) -> None:
    (problem,) = files.problems(BASE + "N = 'a'\nsteps = %N\n")
    assert problem == "main.gin:3, N main.gin:2: steps = %N: expected int"


def test_a_macro_whose_only_use_is_overridden_in_the_same_layer_has_no_effect(files: Files) -> None:
    files.write("base.gin", BASE + "N = 1\nsteps = %N\n")
    assert files.load("include 'base.gin'\nsteps = 5\n").steps == 5
    (problem,) = files.problems("include 'base.gin'\nN = 2\nsteps = 5\n")
    assert "main.gin:2: N: no setting uses this macro" in problem
    (problem,) = files.problems("include 'base.gin'\n", "N=2", "steps=5")
    assert "command line: N: no setting uses this macro" in problem


def test_an_include_cycle_is_told_as_a_chain(files: Files) -> None:
    files.write("a.gin", "include 'b.gin'\n")
    files.write("b.gin", "include 'main.gin'\n")
    assert files.problems("include 'a.gin'\n") == (
        "b.gin:1: includes form a cycle: main.gin -> a.gin -> b.gin -> main.gin",
    )


def test_a_file_read_twice_is_refused_because_it_would_undo_what_lies_between(files: Files) -> None:
    files.write("base.gin", BASE + "steps = 1\n")
    files.write("long.gin", "include 'base.gin'\nsteps = 9\n")
    files.write("wide.gin", "include 'base.gin'\ndata.seq_len = 9\n")
    (problem,) = files.problems("include 'long.gin'\ninclude 'wide.gin'\n")
    assert problem.startswith("wide.gin:1: base.gin is read a second time (first by long.gin:1)")


def test_a_missing_file_is_told_with_the_places_and_the_nearest_name(files: Files) -> None:
    files.write("main.gin", BASE)
    with pytest.raises(ConfigError, match=r"no such config file: mian\.gin .*did you mean main\.gin\?"):
        load(Train, ["mian.gin"])
    (problem,) = files.problems("include 'models/llama2_7.gin'\n")
    assert "main.gin:1: no such config file: models/llama2_7.gin" in problem
    assert "did you mean models/llama2_7b.gin?" in problem


def test_a_file_that_is_not_utf8_is_told(files: Files) -> None:
    file = files.write("main.gin", "")
    file.write_bytes(b"note = '\xff'\n")
    with pytest.raises(ConfigError, match=r"main\.gin: not UTF-8 text \(byte 8\)"):
        load(Train, [file])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet="ab.=@%()[]{}:,'\"\\\n\t /#1-\x00é", max_size=40))
@example("a = (1,\n")
@example("a:\n\n")
def test_any_text_loads_or_is_refused_as_the_user_s_mistake(files: Files, text: str) -> None:
    file = files.folder / "any.gin"
    file.write_text(BASE + text, encoding="utf-8")
    with contextlib.suppress(ConfigError):
        assert isinstance(load(Train, [file], [text]), Train)


def test_origins_name_the_line_that_won(files: Files) -> None:
    files.write("base.gin", BASE + "N = 3\nsteps = %N\nscale = 2.0\n")
    main = files.write("main.gin", "include 'base.gin'\nscale = 3.0\noptimizer = @Lion\n")
    found = origins(Train, [main], ["note=x"])
    assert found["data.path"] == "base.gin:1"
    assert found["steps"] == "base.gin:3, N base.gin:2"
    assert found["scale"] == "main.gin:2"
    assert found["optimizer"] == "main.gin:3"
    assert found["note"] == "command line"
    assert found["optimizer.weight_decay"] == "default"


# The shipped files


@pytest.mark.parametrize(
    ("size", "parameters"), [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)]
)
def test_a_llama2_file_describes_a_model_of_the_published_size(size: str, parameters: int) -> None:
    model = load(Shipped, [SHIPPED / f"models/llama2_{size}.gin"]).model
    attention = 2 * model.d_model * model.head_dim * (model.n_heads + model.n_kv_heads)
    layer = attention + 3 * model.d_model * model.d_ff + 2 * model.d_model
    assert model.n_heads * model.head_dim == model.d_model
    assert 2 * model.vocab_size * model.d_model + model.n_layers * layer + model.d_model == parameters
    assert f"{parameters:,}" in (SHIPPED / f"models/llama2_{size}.gin").read_text()
