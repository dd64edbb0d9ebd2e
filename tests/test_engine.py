"""A row says what it would say alone, to the bit, whoever else is there and whenever it came."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wizard_jax.generate.engine import Ask, Chances, Engine
from wizard_jax.generate.sampling import Sampling, SamplingError
from wizard_jax.generate.weights import prepared
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig, make_mesh, shardings
from wizard_jax.model.weights import Turned, project

TINY = ModelConfig(
    vocab_size=48,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=24,
    max_positions=64,
    initializer_range=0.5,
)
EOS = 2
ROWS, LENGTH = 4, 48


@pytest.fixture(scope="module")
def params() -> decoder.Params:
    return jax.jit(lambda key: decoder.init_params(TINY, key=key))(jax.random.key(2))


@pytest.fixture(scope="module")
def engine(params: decoder.Params) -> Engine:
    return Engine(params, config=TINY, rows=ROWS, length=LENGTH)


def asks() -> list[Ask]:
    """Twelve of mixed lengths, greedy and warm, with and without log probabilities."""
    rng = np.random.default_rng(0)
    made = []
    for place in range(12):
        prompt = rng.integers(3, TINY.vocab_size, rng.integers(1, 30)).astype(np.int32)
        warm = {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 7} if place % 3 else {}
        sampling = Sampling(max_new_tokens=int(rng.integers(1, 18)), **warm)
        made.append(Ask(prompt=prompt, sampling=sampling, place=place, ends=(EOS, 40), chances=place % 4 == 1))
    return made


def heard(engine: Engine, wanted: list[Ask], *, steps: int) -> list[tuple[list[int], str, np.ndarray]]:
    """Tokens, end and log probabilities of each, admitted as rows come free."""
    waiting = list(range(len(wanted)))
    by_row: dict[int, int] = {}
    tokens: dict[int, list[int]] = {number: [] for number in waiting}
    chances: dict[int, list[np.ndarray]] = {number: [] for number in waiting}
    ended: dict[int, str] = {}
    while waiting or by_row:
        while waiting and engine.free:
            number = waiting.pop(0)
            by_row[engine.admit(wanted[number])] = number
        for row, said in engine.advance(steps).items():
            tokens[by_row[row]] += said.tokens.tolist()
            if said.chances is not None:
                chances[by_row[row]].append(np.concatenate([said.chances.chosen, said.chances.of_likeliest.ravel()]))
            if said.ended:
                ended[by_row.pop(row)] = said.ended
                engine.release(row)
    assert engine.free == ROWS
    assert not engine.busy
    return [
        (tokens[n], ended[n], np.concatenate(chances[n]) if chances[n] else np.zeros(0)) for n in range(len(wanted))
    ]


def test_each_says_what_it_says_alone_to_the_bit(engine: Engine) -> None:
    wanted = asks()
    together = heard(engine, wanted, steps=32)
    for ask, (tokens, ended, chances) in zip(wanted, together, strict=True):
        alone = heard(engine, [ask], steps=32)[0]
        assert alone[:2] == (tokens, ended)
        np.testing.assert_array_equal(alone[2], chances)
    assert {ended for _, ended, _ in together} == {"stop", "length"}
    assert [len(tokens) for tokens, ended, _ in together if ended == "length"] == [
        ask.sampling.max_new_tokens for ask, (_, ended, _) in zip(wanted, together, strict=True) if ended == "length"
    ]
    in_other_rows = heard(engine, wanted[::-1], steps=32)[::-1]
    assert [one[:2] for one in in_other_rows] == [one[:2] for one in together]


def test_how_many_steps_are_taken_at_once_changes_nothing(engine: Engine) -> None:
    wanted = asks()[:6]
    expected = heard(engine, wanted, steps=32)
    for steps in (1, 5):
        found = heard(engine, wanted, steps=steps)
        assert [one[:2] for one in found] == [one[:2] for one in expected]


def test_a_row_that_is_released_while_it_speaks_is_as_good_as_new(engine: Engine) -> None:
    first, second = asks()[:2]
    expected = heard(engine, [second], steps=32)[0]
    row = engine.admit(dataclasses.replace(first, sampling=Sampling(max_new_tokens=18)))
    engine.advance(3)
    engine.release(row)
    assert heard(engine, [second], steps=32)[0][:2] == expected[:2]


def log_chances(params: decoder.Params, tokens: np.ndarray) -> np.ndarray:
    """[L, V] by the forward pass of training."""
    length = len(tokens)
    columns = {"tokens": jnp.asarray(tokens)[None], "positions": jnp.arange(length)[None]}
    hidden = decoder.hidden_states(params, **columns, segment_ids=jnp.ones((1, length), jnp.int32), config=TINY)
    return np.asarray(jax.nn.log_softmax(decoder.logits(params, hidden, config=TINY)[0]))


def check(found: Chances, expected_LxV: np.ndarray, chosen: np.ndarray) -> None:
    np.testing.assert_allclose(found.chosen, expected_LxV[np.arange(len(chosen)), chosen], atol=1e-5)
    ranked = np.sort(expected_LxV)[:, ::-1][:, : found.likeliest.shape[1]]
    np.testing.assert_allclose(found.of_likeliest, ranked, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected_LxV, found.likeliest, axis=1), ranked, atol=1e-5)


def test_log_probabilities_are_those_of_the_whole_text(engine: Engine, params: decoder.Params) -> None:
    prompt = np.arange(5, 16, dtype=np.int32)
    ask = Ask(prompt=prompt, sampling=Sampling(max_new_tokens=9, temperature=1.0), ends=(), chances=True)
    row = engine.admit(ask)
    said = engine.advance()[row]
    engine.release(row)
    assert said.chances is not None
    text = np.concatenate([prompt, said.tokens])
    expected = log_chances(params, text)
    check(said.chances, expected[len(prompt) - 1 : -1], said.tokens)
    scored = engine.score(text)
    assert np.isnan(scored.chosen[0])
    check(Chances(*(column[1:] for column in scored)), expected[:-1], text[1:])


def test_in_bfloat16_and_over_a_mesh_it_is_the_same_too(params: decoder.Params) -> None:
    half = dataclasses.replace(TINY, compute_dtype="bfloat16")
    mesh = make_mesh(MeshConfig(tensor=2))
    placed = jax.device_put(params, shardings(decoder.logical_axes(TINY), mesh, shapes=decoder.abstract_params(TINY)))
    wanted = asks()[:6]
    with jax.set_mesh(mesh):
        engine = Engine(placed, config=half, rows=ROWS, length=LENGTH)
        assert engine.params["layers"][0]["q"].array.dtype == jnp.bfloat16
        assert engine.params["layers"][0]["attention_norm"].dtype == jnp.float32
        together = heard(engine, wanted, steps=8)
        assert [heard(engine, [ask], steps=8)[0][:2] for ask in wanted] == [one[:2] for one in together]


@pytest.mark.parametrize("devices", [1, 2])
def test_once_compiled_no_prompt_answer_or_score_waits_for_a_compiler(params: decoder.Params, devices: int) -> None:
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=devices), jax.devices()[:devices])
    placed = jax.device_put(params, shardings(decoder.logical_axes(TINY), mesh, shapes=decoder.abstract_params(TINY)))
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    with contextlib.nullcontext() if devices == 1 else jax.set_mesh(mesh):
        engine = Engine(params if devices == 1 else placed, config=TINY, rows=3, length=20)
        assert sum(1 for _ in engine.compiling()) == 1 + len(engine.buckets)
        assert compiled
        compiled.clear()
        for size in (1, 9, 16, 18):
            prompt = np.full(size, 7, np.int32)
            row = engine.admit(Ask(prompt=prompt, sampling=Sampling(max_new_tokens=2, top_p=0.5), ends=(EOS,)))
            engine.advance(1)
            engine.advance(1)
            engine.release(row)
            engine.score(np.full(size + 2, 7, np.int32))
    assert not compiled


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [("bld,dhk->blhk", (6, 4, 2)), ("blhk,hkd->bld", (4, 2, 6)), ("bld,df->blf", (6, 5)), ("blf,fd->bld", (5, 6))],
)
def test_a_turned_matrix_gives_what_it_gives_as_it_is(equation: str, sizes: tuple[int, ...]) -> None:
    inputs = len(equation.split(",")[0]) - 2
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=sizes), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 3, *sizes[:inputs])), jnp.float32)
    turned = Turned(jnp.transpose(matrix, (*range(inputs, matrix.ndim), *range(inputs))))
    expected = project(equation, x, matrix, dtype="float32")
    found = project(equation, x, turned, dtype="float32")
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_preparing_may_free_what_it_was_given() -> None:
    made = decoder.init_params(TINY, key=jax.random.key(0))
    ready = prepared(made, config=TINY, source="freed")
    assert made["layers"]["q"].is_deleted()
    assert not made["embed"].is_deleted()  # it is used as it is
    assert prepared(ready, config=TINY) is ready
    assert len(ready["layers"]) == TINY.n_layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": np.zeros(0, np.int32)}, "has no tokens"),
        ({"prompt": np.full(40, 5, np.int32), "sampling": Sampling(max_new_tokens=9)}, "40 tokens.*would pass 48"),
        ({"ends": tuple(range(9))}, "at most 8"),
    ],
    ids=["empty", "long", "ends"],
)
def test_what_can_not_be_asked_takes_no_row(engine: Engine, change: dict[str, object], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        engine.admit(dataclasses.replace(asks()[0], **change))
    assert engine.free == ROWS


def test_shapes_that_no_model_has_are_refused(params: decoder.Params) -> None:
    with pytest.raises(SamplingError, match="rows = 0"):
        Engine(params, config=TINY, rows=0, length=8)
    with pytest.raises(SamplingError, match=r"length = 65.*max_positions = 64"):
        Engine(params, config=TINY, rows=1, length=65)
