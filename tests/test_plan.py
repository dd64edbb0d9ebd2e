"""The step that is trained compiles for every generation of TPUs, and a plan says what the compiler made of it."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs.errors import UserError
from configs.loader import load
from launch.slices import find_slice
from wizard_jax.cli import main
from wizard_jax.model.flops import token_flops
from wizard_jax.plan.advice import changes_of_slice, changes_within, nearest_change
from wizard_jax.plan.cache import STEP_MODULES, Busy, PlanCache, plan_key
from wizard_jax.plan.plan import PlanError, Planner, _overflow, known_plan, make_plan, mesh_of, prepare, rows_of
from wizard_jax.plan.report import Overflow, Plan, from_json, report_rows, to_json
from wizard_jax.plan.search import Variant, remats, search, variants
from wizard_jax.plan.stopping import STOPPED
from wizard_jax.plan.tpu_compiler import CompilerError, check_versions, tpu_devices, use_tpu_compiler
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.fit import TooLarge, least_memory

ROOT = Path(__file__).parents[1]
SIZES = ["model.vocab_size=256", "model.n_layers=2", "model.n_heads=2", "model.n_kv_heads=1", "model.head_dim=64"]
SIZES += ["model.d_ff=256", "model.scan_unroll=1", "model.compute_dtype=bfloat16", "model.remat=full"]
NOWHERE = ["tokenizer=/nowhere/tokenizer.model", "data.dataset=/nowhere/data"]
GENERATIONS = [("v4-8", 1), ("v5e-4", 1), ("v5p-8", 1), ("v6e-4", 2), ("tpu7x-8", 1)]


def given(*settings: str) -> list[str]:
    """Settings of a tiny model with the shapes that the TPU's kernel wants; the last of each path counts."""
    asked = [*SIZES, *NOWHERE, "batch=@RowsPerStep", "batch.rows=16", *settings]
    return list({one.partition("=")[0]: one for one in asked}.values())


def config(*settings: str) -> TrainConfig:
    return load(TrainConfig, ["configs/train/quickstart.gin"], given(*settings))


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return Planner(PlanCache(tmp_path_factory.mktemp("plans")), use_tpu_compiler())


def planned(planner: Planner, *settings: str) -> Plan:
    outcome = make_plan(prepare(config(*settings), planner), planner)
    assert isinstance(outcome, Plan)
    return outcome


@pytest.mark.parametrize(("name", "slices"), GENERATIONS)
def test_the_step_compiles_for_every_generation_and_for_two_slices(planner: Planner, name: str, slices: int) -> None:
    told = config(f"slice={name}", f"slices={slices}")
    plan = planned(planner, f"slice={name}", f"slices={slices}")
    row = find_slice(name)
    assert (plan.devices, plan.device_kind) == (row.devices * slices, row.generation.device_kind)
    assert plan.mesh == {"slice": slices, "fsdp": row.devices, "tensor": 1}
    # Narrow arrays are filled up to whole tiles of 8 x 128.
    least = least_memory(told, mesh_of(told), rows=16)
    assert least.arguments <= plan.memory.arguments < 1.5 * least.arguments
    assert plan.memory.arguments < plan.memory.peak < plan.memory.limit == row.generation.usable_bytes
    assert plan.memory.outputs - plan.memory.aliased < 8192, "the state is given back in place"
    passes = {kernel.split("_segmented")[0].rpartition("_")[2]: count for kernel, count in plan.kernels.items()}
    assert passes["dq"] == passes["dkv"] < passes["fwd"], "attention's kernel, forward once more by remat"
    over = {(one.axes, one.network) for one in plan.collectives}
    assert (("fsdp",), "ICI") in over
    assert ((("slice",), "DCN") in over) == (slices > 1)
    assert all(one.is_exact for one in plan.collectives)


def test_what_remat_offloads_is_counted_on_the_host(planner: Planner) -> None:
    plan = planned(
        planner, "slice=v5e-4", "model.remat=offload", "batch.rows=8", "data.seq_len=256", "model.n_layers=6"
    )
    assert plan.memory.host >= 6 * 2 * 256 * 128 * 2, "the input of every layer"
    assert "on the host" in dict(report_rows(plan))


def test_gradients_cross_the_data_centre_once_and_parameters_do_not(planner: Planner) -> None:
    plan = planned(planner, "slice=v6e-4", "slices=2")
    crossing = [one for one in plan.collectives if one.network == "DCN"]
    state = least_memory(config("slice=v6e-4", "slices=2"), mesh_of(config("slice=v6e-4", "slices=2")))
    parameters = state.arguments // 3
    assert {one.kind for one in crossing} == {"all-reduce"}
    assert 0.4 * parameters < sum(one.bytes for one in crossing) < 1.2 * parameters  # in bfloat16 or float32


def test_a_plan_is_the_same_from_its_file(planner: Planner) -> None:
    plan = planned(planner, "slice=v5e-4")
    assert from_json(to_json(plan)) == plan
    assert json.loads(to_json(plan))["fits"] is True
    for damaged in ("", "{}", to_json(plan).replace('"peak"', '"pike"'), to_json(plan)[:-9]):
        with pytest.raises(ValueError, match=r"no plan of this version|Expecting|delimiter|char"):
            from_json(damaged)


def test_what_does_not_change_the_step_finds_the_plan_again(planner: Planner) -> None:
    planned(planner, "slice=v5e-4")
    for same in (["slice=v5litepod-4"], ["seed=7"], ["steps=9"], ["log_every=3"], ["data.selection.examples=5"]):
        assert known_plan(
            prepare(config("slice=v5e-4", *[one for one in same if "slice" not in one]), planner), planner
        )
    for other in (["model.remat=none"], ["gradient_accumulation=2"], ["batch.rows=32"], ["mesh.tensor=2"]):
        assert known_plan(prepare(config("slice=v5e-4", *other), planner), planner) is None
    told = config("slice=v5e-4")
    keys = {plan_key(told, mesh={}, rows=16, versions={"libtpu": version}, flags={}) for version in ("1", "2")}
    assert len(keys) == 2


def test_every_module_that_the_step_is_made_of_decides_the_plan() -> None:
    def imported(file: Path) -> set[Path]:
        found = (node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom))
        return {
            ROOT / f"{module.replace('.', '/')}.py" for module in found if module and module.startswith("wizard_jax")
        }

    seen: set[Path] = set()
    ahead = {ROOT / "wizard_jax/train/step.py"}
    while ahead - seen:
        seen |= ahead
        ahead = set().union(*(imported(file) for file in seen))
    known = {ROOT / f"wizard_jax/train/{name}.py" for name in STEP_MODULES}
    assert {file for file in seen if file.parts[-2] == "train"} == known
    beside = {ROOT / "wizard_jax/doctor.py"}  # names the extra of a library that is missing
    assert {file.parts[-2] for file in seen - known - beside} == {"model"}


def test_a_damaged_plan_in_the_cache_is_made_again(planner: Planner) -> None:
    prepared = prepare(config("slice=v5e-4"), planner)
    made = make_plan(prepared, planner)
    file = planner.cache.folder / f"{prepared.key}.json"
    file.write_text(file.read_text()[:100])
    assert known_plan(prepared, planner) is None
    planner.cache.put(made)


def test_a_plan_that_can_not_be_kept_is_told_all_the_same(planner: Planner, caplog: pytest.LogCaptureFixture) -> None:
    prepared = prepare(config("slice=v5e-4"), planner)
    cache = PlanCache(planner.cache.folder / "full")
    (cache.folder / f"{prepared.key}.json").mkdir(parents=True)
    assert isinstance(make_plan(prepared, dataclasses.replace(planner, cache=cache)), Plan)
    assert f"the plan is not kept in {cache.folder}" in caplog.text


def test_a_process_that_makes_a_plan_keeps_others_from_making_it(planner: Planner) -> None:
    prepared = prepare(config("slice=v5e-4", "batch.rows=32"), planner)
    with planner.cache.making(prepared.key, busy="wait"), pytest.raises(Busy):
        make_plan(prepared, planner, busy="raise")


def test_rows_are_counted_without_looking_at_data() -> None:
    use_tpu_compiler()
    base = [one for one in given("slice=v5e-4") if not one.startswith("batch")]
    of_conversations = [*base, "batch=@ConversationsPerStep", "batch.conversations=6"]
    told = load(TrainConfig, ["configs/train/quickstart.gin"], of_conversations)
    mesh = mesh_of(told)
    assert rows_of(told, mesh, given=None).count == 8, "as many rows as conversations at most, on 4 devices"
    assert rows_of(told, mesh, given=3).count == 4
    tokens = load(TrainConfig, ["configs/train/quickstart.gin"], base)
    with pytest.raises(PlanError, match="give --rows N"):
        rows_of(tokens, mesh, given=None)
    assert rows_of(tokens, mesh, given=9).count == 12
    with pytest.raises(PlanError, match=r"batch.rows is 16 already"):
        rows_of(config("slice=v5e-4"), mesh, given=8)
    with pytest.raises(UserError, match="10 rows a step are no positive multiple of 4"):
        rows_of(config("slice=v5e-4", "batch.rows=10"), mesh, given=None)


def test_a_step_that_the_compiler_can_not_place_is_an_overflow_in_its_own_figures() -> None:
    use_tpu_compiler()
    devices = np.array(tpu_devices(find_slice("v5e-4")))
    placed = NamedSharding(Mesh(devices, ("x",), axis_types=(AxisType.Auto,)), PartitionSpec())
    rows = jax.ShapeDtypeStruct((16, 2**29), jnp.float32, sharding=placed)  # type: ignore[no-untyped-call]
    with pytest.raises(jax.errors.JaxRuntimeError) as failed:
        jax.jit(lambda x: x * 2).lower(rows).compile()
    found = _overflow(failed.value, slice_key="v5e:2x2", key="0")
    assert found.available == int(15.75 * 2**30) == find_slice("v5e-4").generation.usable_bytes
    assert found.needed == pytest.approx(64 * 2**30, rel=0.01)
    assert from_json(to_json(found)) == found
    with pytest.raises(PlanError, match="refuses the step: something else"):
        _overflow(jax.errors.JaxRuntimeError("something else"), slice_key="v5e:2x2", key="0")


def nearest(planner: Planner, told: TrainConfig, *, fits: set[str], fitting: Plan) -> str:
    """The nearest change where the plans of all changes are known: `fits` names those that fit, as `fitting` does."""
    ladders = [*changes_within(told, rows=256), list(changes_of_slice(told))]
    for change in itertools.chain.from_iterable(ladders):
        with contextlib.suppress(UserError):
            key = prepare(change.config, planner).key
            overflow = Overflow(slice="v5e:2x2", needed=2**35, available=2**34, told="too large", key=key)
            known = dataclasses.replace(fitting, key=key) if change.settings in fits else overflow
            planner.cache.put(known)
    return nearest_change(told, planner, compiles=0, say=print)


@pytest.mark.parametrize(
    ("fits", "told"),
    [
        ({"gradient_accumulation=2", "gradient_accumulation=4"}, "gradient_accumulation=2 ("),
        ({"gradient_accumulation=4", "model.remat=full"}, "gradient_accumulation=4 ("),
        ({"gradient_accumulation=4 model.remat=full"}, "gradient_accumulation=4 model.remat=full ("),
        ({"slice=v5e-128"}, "slice=v5e-128 ("),
    ],
)
def test_the_nearest_change_is_the_first_that_fits_settings_before_slices(
    planner: Planner, tmp_path: Path, fits: set[str], told: str
) -> None:
    own = dataclasses.replace(planner, cache=PlanCache(tmp_path))
    asked = config("slice=v5e-64", "batch.rows=256", "model.remat=dots")
    told_of = nearest(own, asked, fits=fits, fitting=planned(planner, "slice=v5e-4"))
    assert told_of.startswith(f"The nearest change that fits: {told}")


def test_where_nothing_fits_no_change_is_named(planner: Planner, tmp_path: Path) -> None:
    own = dataclasses.replace(planner, cache=PlanCache(tmp_path))
    asked = config("slice=v5e-64", "batch.rows=256")
    told = nearest(own, asked, fits=set(), fitting=planned(planner, "slice=v5e-4"))
    assert told.startswith("No change of microbatches, remat or slice")


def test_a_search_orders_what_fits_and_says_why_it_left_out_the_rest(planner: Planner, tmp_path: Path) -> None:
    """All plans are known here: 'none' and 'dots' are too large in one microbatch, everything else fits."""
    told, own = config("slice=v5e-4", "batch.rows=16"), dataclasses.replace(planner, cache=PlanCache(tmp_path))
    fitting = planned(planner, "slice=v5e-4")
    for variant in variants(told, rows=16):
        prepared = prepare(variant.apply(told), own)
        flops = token_flops(prepared.config.model, seq_len=told.data.seq_len)
        share = dataclasses.replace(fitting.flops, recomputed=fitting.flops.step * flops.recomputed_share)
        known: Plan | Overflow = dataclasses.replace(fitting, key=prepared.key, flops=share)
        if variant.remat in ("none", "dots") and variant.gradient_accumulation == 1:
            needed = 40 * 2**30 if variant.remat == "none" else 2**34 + 1
            known = Overflow(slice="v5e:2x2", needed=needed, available=2**34, told="too large", key=prepared.key)
        own.cache.put(known)
    found = search(told, own, compiles=0, say=print)
    assert found.compiles == 0
    best = Variant(remat="none", gradient_accumulation=4, fsdp=4, tensor=1)
    assert found.fitting[0].variant in (best, dataclasses.replace(best, fsdp=2, tensor=2))
    assert [one.merit for one in found.fitting] == sorted(one.merit for one in found.fitting)
    assert {one.variant.remat for one in found.fitting} == set(remats())
    everything = {*(one.variant for one in found.fitting), *(variant for variant, _ in found.skipped)}
    assert everything == set(variants(told, rows=16))
    whys = dict(found.skipped)
    once, twice = (dataclasses.replace(best, gradient_accumulation=count) for count in (1, 2))
    assert whys[once] == "needs 40.00 GiB of 16.00 GiB"
    assert whys[twice] == f"too large by what was found of {once.settings}", "half of it is too large still"
    assert whys[dataclasses.replace(best, remat="dots")].startswith("fits, and gathers more often")


def test_the_search_of_the_command_line_prints_settings_to_paste(
    planner: Planner, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(planner, "slice=v5e-4")
    asked = [*given("slice=v5e-4"), "--search", "--compiles", "0", "--cache", str(planner.cache.folder)]
    assert main(["plan", "configs/train/quickstart.gin", *asked]) == 0
    told = capsys.readouterr().out
    assert "model.remat=full gradient_accumulation=1 mesh.fsdp=4 mesh.tensor=1" in told
    assert "not tried: 0 compiles were allowed" in told
    asked[:-5] = given("slice=v5e-4", "batch.rows=64")
    assert main(["plan", "configs/train/quickstart.gin", *asked]) == 2
    assert (
        "nothing that was tried fits v5e-4; the table says why. Give --compiles more than 0" in capsys.readouterr().err
    )


def test_variants_divide_the_devices_the_rows_and_the_model() -> None:
    use_tpu_compiler()
    told = config("slice=v5e-16", "batch.rows=32")
    meshes = {(one.fsdp, one.tensor) for one in variants(told, rows=32)}
    assert meshes == {(16, 1), (8, 2)}, "two heads"
    assert {one.gradient_accumulation for one in variants(told, rows=32) if one.tensor == 2} == {1, 2, 4}
    left = config("slice=v5e-16", "batch.rows=32", "mesh.slice=-1", "mesh.fsdp=16")
    assert set(variants(left, rows=32)) == set(variants(told, rows=32)), "what is left is 1"
    one = Variant(remat="dots", gradient_accumulation=2, fsdp=8, tensor=2)
    assert load(
        TrainConfig, ["configs/train/quickstart.gin"], given("slice=v5e-16", "batch.rows=32", *one.settings.split())
    ) == one.apply(told)


def test_a_model_that_is_too_large_is_told_the_first_slice_that_arithmetic_lets_pass(planner: Planner) -> None:
    large = ["model.n_layers=64", "model.d_model=2048", "model.d_ff=8192", "model.vocab_size=1024", "batch.rows=64"]
    with pytest.raises(TooLarge, match=r"at least \d+\.\d\d GiB on each of 1 devices"):
        prepare(config("slice=v5e-1", *large), planner)
    told = nearest_change(config("slice=v5e-1", *large), planner, compiles=0, say=print)
    assert told == "--compiles 1 or more tries slice=v5e-4, which arithmetic lets pass"
    larger = ["model.d_model=8192", "model.d_ff=32768", "model.n_layers=1024"]
    told = nearest_change(config("slice=v5e-1", *large, *larger), planner, compiles=0, say=print)
    assert told == "No change of microbatches, remat or slice of this generation makes it fit by arithmetic"


def test_libtpu_of_another_jax_is_refused() -> None:
    requires = ['libtpu==0.0.42.*; extra == "tpu"', "numpy>=2.0", 'libtpu==9; extra == "other"']
    check_versions({"jax": "0.10.2", "libtpu": "0.0.42.1"}, jax_requires=requires)
    with pytest.raises(CompilerError, match=r"libtpu 0\.0\.52 is installed, .* takes libtpu==0\.0\.42\.\*"):
        check_versions({"jax": "0.10.2", "libtpu": "0.0.52"}, jax_requires=requires)


def test_without_libtpu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main(["plan", "configs/train/quickstart.gin", "slice=v5e-4"]) == 2
    assert "pip install 'wizard-jax[plan]'" in capsys.readouterr().err


def environment() -> dict[str, str]:
    of_users = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_", "XLA_"))}
    return {**of_users, "PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`wizard plan` as a user starts it: nothing of the compiler in the environment."""
    command = [sys.executable, "-m", "wizard_jax", "plan", "configs/train/quickstart.gin", *arguments]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_needs_nothing_around_it_and_answers_from_its_cache(tmp_path: Path) -> None:
    """A search of one compile, and then the plan of what it found."""
    place = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "new" / "folder")]
    searched = run(*given("slice=v5e-4"), *place, "--search", "--compiles", "1")
    assert (searched.returncode, searched.stderr) == (0, "")
    assert searched.stdout.count("compiling ") == 1
    assert "not tried: 1 compiles were allowed" in searched.stdout
    best = ["model.remat=none", "gradient_accumulation=1", "mesh.fsdp=4", "mesh.tensor=1"]
    assert f"│ {' '.join(best)} │" in searched.stdout
    found = run(*given("slice=v5e-4", *best), *place)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("cached: ")
    assert "15.75 GiB" in found.stdout
    plan = from_json((tmp_path / "new" / "folder" / "plan.json").read_text())
    assert isinstance(plan, Plan)
    assert (plan.slice, plan.remat) == ("v5e:2x2", "none")


def test_ctrl_c_ends_a_plan_in_the_middle_of_a_compile_of_minutes(tmp_path: Path) -> None:
    long = ("model.n_layers=12", "model.scan_unroll=12", "model.d_model=1024", "model.d_ff=2816", "model.n_heads=8")
    asked = ["plan", "configs/train/quickstart.gin", *given("slice=v5e-4", *long), "--cache", str(tmp_path)]
    command = [sys.executable, "-m", "wizard_jax", *asked]
    child = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.lock")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(4.0)  # of which tracing takes half
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert (child.returncode, said) == (130, f"wizard: {STOPPED}\n")


UNINTERRUPTED = """
import hashlib, signal
from wizard_jax.plan.stopping import ending_at_once
signal.signal(signal.SIGTERM, lambda *_: None)
with ending_at_once():
    pass
with ending_at_once():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_that_python_does_not_come_back_to(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", UNINTERRUPTED]
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(number)
    _, said = child.communicate(timeout=20)
    assert (child.returncode, said) == (code, f"wizard: {STOPPED}\n")


def test_a_place_for_the_plan_that_can_be_none_is_told_before_a_compile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.json" / "plan.json").mkdir(parents=True)
    asked = ["plan", "configs/train/quickstart.gin", *given("slice=v5e-4"), "--cache", str(tmp_path / "cache")]
    for out, says in (("file/plan.json", "file is no folder"), ("folder.json", "folder.json/plan.json is a folder")):
        assert main([*asked, "--out", str(tmp_path / out)]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*asked, "--compiles", "-1"])
    assert "-1 is no whole number of 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "a plan is for a slice: give one, such as slice=v5e-16"),
        (["slice=v5e-17"], "did you mean v5e-16"),
        (["slice=v5e-16", "mesh.tensor=16"], "mesh.tensor is 16 and does not divide model.n_heads = 2"),
        (["slice=v5e-4", "data.seq_len=1024"], "data.seq_len is 1024 and model.max_positions 512"),
        (["slice=v5e-4", "mesh.fsdp=3"], "does not divide 4 device"),
        (["slice=v5e-4", "batch.rows=6"], "6 rows a step are no positive multiple of 4"),
        (["--search"], "a plan is for a slice: give one, such as slice=v5e-16"),
        (["--search", "slice=v5e-4", "data.seq_len=1024"], "data.seq_len is 1024 and model.max_positions 512"),
        (["slice=v5e-4", "--rows", "0"], "batch.rows is 16 already"),
    ],
)
def test_mistakes_end_with_2_and_one_message_and_leave_nothing(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for word in settings if "=" not in word]
    told_to = given(*(word for word in settings if "=" in word))
    asked = [*told_to, *options, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert main(["plan", "configs/train/quickstart.gin", *asked]) == 2
    told = capsys.readouterr().err
    assert told.startswith("wizard: ")
    assert message in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_step_that_is_too_large_ends_with_2_and_with_a_change_that_was_compiled(tmp_path: Path) -> None:
    """About 100 s of CPU."""
    sizes = ("model.n_layers=4", "model.remat=none", "data.seq_len=512", "batch.rows=2048")
    large = given("slice=v5e-1", *sizes)
    done = run(*large, "--cache", str(tmp_path), "--out", str(tmp_path / "plan.json"))
    assert done.returncode == 2
    assert "it is short of" in done.stderr
    assert "The nearest change that fits: gradient_accumulation=" in done.stderr
    assert not (tmp_path / "plan.json").exists()
