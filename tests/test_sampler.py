"""A prompt's continuation is its own: the same alone, in any batch, and with the cache or without."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wizard_jax.generate.sampler import Sampling, SamplingError, _choose, generate
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
EOS, PAD = 2, 0
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
    answers = generate(params, prompts, config=TINY, sampling=sampling, eos_id=EOS, pad_id=PAD, batch_size=batch_size)
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


def test_top_p_draws_from_the_likeliest_tokens_in_their_proportions() -> None:
    chances = jnp.array([0.05, 0.5, 0.15, 0.3])
    scores = jnp.tile(jnp.log(chances), (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = _choose(scores, keys, jnp.int32(0), sampling=Sampling(max_new_tokens=1, temperature=1.0, top_p=0.7))
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0, 0.625, 0, 0.375], atol=0.03)
    cold = _choose(scores, keys, jnp.int32(0), sampling=Sampling(max_new_tokens=1, temperature=0.05))
    assert (np.bincount(cold, minlength=4) / 4000)[1] > 0.99


def test_a_sharded_model_says_the_same(params: decoder.Params, prompts: list[np.ndarray]) -> None:
    expected = continued(params, prompts, sampling=GREEDY)
    mesh = make_mesh(MeshConfig(tensor=2))
    placed = jax.device_put(params, shardings(decoder.logical_axes(TINY), mesh, shapes=decoder.abstract_params(TINY)))
    with jax.set_mesh(mesh):
        assert continued(placed, prompts, sampling=GREEDY) == expected


def test_progress_is_told_after_each_batch(params: decoder.Params, prompts: list[np.ndarray]) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        params,
        prompts,
        config=TINY,
        sampling=GREEDY,
        eos_id=EOS,
        pad_id=PAD,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(3, 8), (6, 8), (8, 8)]
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
    "change", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_new_tokens": 0}], ids=str
)
def test_senseless_sampling_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(SamplingError, match=next(iter(change))):
        dataclasses.replace(GREEDY, **change)
