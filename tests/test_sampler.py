"""A prompt's continuation is its own: the same alone, in any batch, and with the cache or without."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wizard_jax.generate.sampler import Sampling, SamplingError, generate
from wizard_jax.generate.sampling import Choosing, choose
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import MeshConfig, make_mesh, shardings

TINY = ModelConfig(
    vocab_size=32,
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
GREEDY = Sampling(max_new_tokens=8)
WARM = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=5)


@pytest.fixture(scope="module")
def params() -> decoder.Params:
    return jax.jit(lambda key: decoder.init_params(TINY, key=key))(jax.random.key(2))


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, TINY.vocab_size, length).astype(np.int32) for length in (3, 14, 1, 7, 20, 5, 16, 9)]


def continued(
    params: decoder.Params, prompts: list[np.ndarray], *, sampling: Sampling, batch_size: int = 8
) -> list[list[int]]:
    answers = generate(params, prompts, config=TINY, sampling=sampling, eos_id=EOS, batch_size=batch_size)
    assert all(answer.dtype == np.int32 for answer in answers)
    return [answer.tolist() for answer in answers]


def without_cache(params: decoder.Params, prompt: np.ndarray, *, steps: int) -> list[int]:
    """Greedy, the whole sequence anew for each token."""
    hidden_states = jax.jit(decoder.hidden_states, static_argnames="config")
    width = 32
    tokens = np.zeros((1, width), np.int32)
    tokens[0, : len(prompt)] = prompt
    said: list[int] = []
    for end in range(len(prompt), len(prompt) + steps):
        hidden = hidden_states(
            params,
            tokens=tokens,
            positions=jnp.arange(width)[None],
            segment_ids=(jnp.arange(width)[None] < end).astype(jnp.int32),
            config=TINY,
        )
        token = int(decoder.logits(params, hidden[:, end - 1 : end], config=TINY).argmax())
        if token == EOS:
            break
        tokens[0, end] = token
        said.append(token)
    return said


def test_greedy_with_a_cache_is_greedy_without(params: decoder.Params, prompts: list[np.ndarray]) -> None:
    found = continued(params, prompts, sampling=GREEDY)
    assert found == [without_cache(params, prompt, steps=8) for prompt in prompts]
    lengths = {len(answer) for answer in found}
    assert 8 in lengths  # some are cut,
    assert min(lengths) < 8  # and some end themselves


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "top-p"])
def test_the_batch_does_not_change_the_text(
    params: decoder.Params, prompts: list[np.ndarray], sampling: Sampling
) -> None:
    together = continued(params, prompts, sampling=sampling)
    assert together == continued(params, prompts, sampling=sampling, batch_size=3)
    if sampling is GREEDY:
        assert together == [continued(params, [prompt], sampling=sampling)[0] for prompt in prompts]


def test_draws_depend_on_the_seed_and_on_the_place_in_the_list(params: decoder.Params) -> None:
    same = [np.array([5, 6, 7], np.int32)] * 8
    drawn = continued(params, same, sampling=WARM)
    assert len(set(map(tuple, drawn))) > 1
    assert drawn == continued(params, same, sampling=WARM)
    assert drawn != continued(params, same, sampling=dataclasses.replace(WARM, seed=6))


def shares(**sampling: float) -> np.ndarray:
    """How often each of four tokens is drawn by 4,000 rows, each in a place of its own."""
    count = 4000
    scores = jnp.tile(jnp.log(jnp.array([0.05, 0.5, 0.15, 0.3])), (count, 1))
    asked = Sampling(max_new_tokens=1, **sampling)  # type: ignore[arg-type]
    columns = (np.float32(asked.temperature), np.float32(asked.top_p), np.int32(asked.top_k), np.uint32(asked.seed))
    choosing = Choosing(*(jnp.full(count, value) for value in columns), jnp.arange(count))
    drawn = jax.jit(choose)(scores, jnp.zeros(count, jnp.int32), choosing)
    return np.bincount(drawn, minlength=4) / count


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"temperature": 1.0}, [0.05, 0.5, 0.15, 0.3]),
        ({"temperature": 1.0, "top_p": 0.7}, [0, 0.625, 0, 0.375]),
        ({"temperature": 1.0, "top_k": 3}, [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95]),
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_p": 1e-60}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_k": 9}, [0.05, 0.5, 0.15, 0.3]),
        ({"temperature": 0.05}, [0, 1, 0, 0]),
        ({"temperature": 0.0, "top_k": 3}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_draws_are_of_the_tokens_that_are_left_in_their_proportions(
    asked: dict[str, float], expected: list[float]
) -> None:
    np.testing.assert_allclose(shares(**asked), expected, atol=0.03)


def test_a_sharded_model_says_the_same(params: decoder.Params, prompts: list[np.ndarray]) -> None:
    expected = continued(params, prompts, sampling=GREEDY)
    mesh = make_mesh(MeshConfig(tensor=2))
    placed = jax.device_put(params, shardings(decoder.logical_axes(TINY), mesh, shapes=decoder.abstract_params(TINY)))
    with jax.set_mesh(mesh):
        assert continued(placed, prompts, sampling=GREEDY) == expected


def test_progress_is_told_as_prompts_are_done(params: decoder.Params, prompts: list[np.ndarray]) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        params,
        prompts,
        config=TINY,
        sampling=GREEDY,
        eos_id=EOS,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) > 1
    assert seen[-1] == (8, 8)
    assert continued(params, [], sampling=GREEDY) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt 1 has no tokens"), ([5] * 60, "prompt 1 has 60 tokens.*max_positions = 64")],
    ids=["empty", "long"],
)
def test_prompts_that_can_not_be_continued_are_named(params: decoder.Params, prompt: list[int], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        continued(params, [np.array([5], np.int32), np.array(prompt, np.int32)], sampling=GREEDY)


@pytest.mark.parametrize(
    "change", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_new_tokens": 0}, {"top_k": -1}], ids=str
)
def test_senseless_sampling_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(SamplingError, match=next(iter(change))):
        dataclasses.replace(GREEDY, **change)
