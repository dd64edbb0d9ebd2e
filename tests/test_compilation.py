"""A second start finds the step compiled."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterator

import jax
import pytest
from exact_steps import LENGTH, MODEL, OPTIMIZER, ROWS
from tiny_flow import Flow

from wizard_jax.cli import main
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.train.compilation import compilation_cache
from wizard_jax.train.step import abstract_batch, make_steps

HITS, MISSES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


@pytest.fixture
def events() -> Iterator[Counter[str]]:
    """What JAX reports, counted."""
    seen: Counter[str] = Counter()

    def count(event: str, **_: object) -> None:
        seen[event] += 1

    jax.monitoring.register_event_listener(count)
    yield seen
    jax.monitoring.unregister_event_listener(count)


def compile_step() -> None:
    """As a new process does: nothing is remembered from the last time."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        steps = make_steps.__wrapped__(MODEL, optimizer=OPTIMIZER, total_steps=10, gradient_accumulation=2, mesh=mesh)
        steps.train.lower(steps.abstract, abstract_batch(rows=ROWS, seq_len=LENGTH, mesh=mesh)).compile()


def test_a_second_start_takes_the_step_from_the_folder(tmp_path: pathlib.Path, events: Counter[str]) -> None:
    with compilation_cache(tmp_path):
        compile_step()
        assert (events[HITS], events[MISSES]) == (0, 1)
        (kept,) = (path for path in tmp_path.iterdir() if path.name.endswith("-cache"))
        compile_step()
        assert (events[HITS], events[MISSES]) == (1, 1)
    compile_step()
    assert (events[HITS], events[MISSES]) == (1, 1), "out of it, JAX keeps nothing"
    assert kept.name.startswith("jit_train")


def test_a_run_keeps_its_compiled_step_where_it_is_told_to(flow: Flow, tmp_path: pathlib.Path) -> None:
    # a model of its own, as this process may have compiled the flow's
    settings = ("steps=1", "model.d_ff=24", f"compilation_cache={tmp_path / 'cache'}")
    assert main(flow.train_command(tmp_path / "run", *settings)) == 0
    assert any(path.name.startswith("jit_train") for path in (tmp_path / "cache").iterdir())
