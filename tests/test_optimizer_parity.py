"""Ten updates of every optimizer are those of another program: PyTorch's AdamW, transformers' Adafactor, the paper's
Lion. Each sees the tensors as Hugging Face stores them, a layer and a matrix at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_tensors import hf_tensors

from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import abstract_params, logical_axes
from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.train.optimizer import Adafactor, AdamW, Lion, Optimizer, learning_rate, make_optimizer
from wizard_jax.train.step import make_steps

STEPS, PEAK, WARMUP, CLIP, DECAY = 10, 3e-2, 3, 1.0, 0.1
MODEL = ModelConfig(vocab_size=12, d_model=6, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=10)
RECIPE: dict[str, Any] = {"peak_lr": PEAK, "warmup_steps": WARMUP, "clip_norm": CLIP}
Tensors = dict[str, np.ndarray]


def trees(count: int) -> list[Any]:
    """Trees of the model's shapes: weights of unit size, then gradients whose norms are now above CLIP, now below."""
    random = np.random.default_rng(3)
    scales = [1.0] + [10.0 ** -(step % 4) for step in range(count - 1)]
    shapes = abstract_params(MODEL)

    def normal(scale: float) -> Any:
        return jax.tree.map(lambda leaf: np.asarray(scale * random.normal(size=leaf.shape), np.float32), shapes)

    return [normal(scale) for scale in scales]


def ours(config: Optimizer) -> Tensors:
    optimizer = make_optimizer(config, axes=logical_axes(MODEL))

    @jax.jit
    def update(step: jax.Array, params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params)
        rate = learning_rate(step, config=config, total_steps=STEPS)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

    params, *gradients = trees(1 + STEPS)
    state = optimizer.init(jax.tree.map(jnp.asarray, params))
    for step, gradient in enumerate(gradients):
        params, state = update(jnp.int32(step), params, state, gradient)
    return hf_tensors(params, MODEL)


def rate(step: int) -> float:
    """Warm-up and cosine, as a person would write them."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return PEAK * 0.5 * (1 + math.cos(math.pi * (step + 1 - WARMUP) / (STEPS - WARMUP)))


def clipped(gradients: Tensors) -> Tensors:
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    return {name: g * np.float32(min(1.0, CLIP / norm)) for name, g in gradients.items()}


def is_norm(name: str) -> bool:
    return name.endswith(("layernorm.weight", "model.norm.weight"))


def in_torch(make: Callable[[Any, list[dict[str, Any]]], Any]) -> Tensors:
    torch = pytest.importorskip("torch", reason="PyTorch is installed beside the lock file, by `make`")
    start, *gradients = (hf_tensors(tree, MODEL) for tree in trees(1 + STEPS))
    weights = {name: torch.nn.Parameter(torch.tensor(np.array(array))) for name, array in start.items()}
    groups = [
        {"params": [w for name, w in weights.items() if not is_norm(name)], "weight_decay": DECAY},
        {"params": [w for name, w in weights.items() if is_norm(name)], "weight_decay": 0.0},
    ]
    optimizer = make(torch, groups)
    for step, gradient in enumerate(gradients):
        for name, array in clipped(gradient).items():
            weights[name].grad = torch.tensor(np.array(array))
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def assert_same(found: Tensors, expected: Tensors, *, atol: float) -> None:
    assert found.keys() == expected.keys()
    start = hf_tensors(trees(1)[0], MODEL)
    for name, array in expected.items():
        assert np.abs(array - start[name]).max() > 1e-2, f"{name} has hardly moved: closeness would mean nothing"
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol, err_msg=name)


def test_adamw_is_that_of_pytorch() -> None:
    expected = in_torch(lambda torch, groups: torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), eps=1e-8))
    found = ours(AdamW(**RECIPE, b2=0.95, weight_decay=DECAY))
    # Weights of size 1 move by 1e-1: a few float32 roundings (6e-8) for each of ten steps.
    assert_same(found, expected, atol=2e-6)


@pytest.mark.parametrize("lr_scale", ["none", "parameter_rms"])
def test_adafactor_is_that_of_transformers(lr_scale: Any) -> None:
    scaled = lr_scale == "parameter_rms"
    decay = 0.0 if scaled else DECAY  # theirs times the matrix's scale, here never

    def make(_: Any, groups: list[dict[str, Any]]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of importing
            from transformers.optimization import Adafactor as Theirs

        for group in groups:
            group["weight_decay"] = min(group["weight_decay"], decay)
        return Theirs(groups, lr=PEAK, scale_parameter=scaled, relative_step=False)

    found = ours(Adafactor(**RECIPE, weight_decay=decay, lr_scale=lr_scale, min_factored=1))
    assert_same(found, in_torch(make), atol=2e-6)


def test_lion_is_algorithm_2_of_its_paper() -> None:
    weights, *gradients = (hf_tensors(tree, MODEL) for tree in trees(1 + STEPS))
    momentum = {name: np.zeros_like(array) for name, array in weights.items()}
    for step, gradient in enumerate(gradients):
        for name, g in clipped(gradient).items():
            direction = np.sign(0.8 * momentum[name] + 0.2 * g)
            decay = 0.0 if is_norm(name) else DECAY
            weights[name] = weights[name] - np.float32(rate(step)) * (direction + np.float32(decay) * weights[name])
            momentum[name] = 0.95 * momentum[name] + 0.05 * g
    assert_same(ours(Lion(**RECIPE, b1=0.8, b2=0.95, weight_decay=DECAY)), weights, atol=2e-6)


def test_factored_moments_are_split_as_the_rows_and_columns_of_their_matrices() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    model = ModelConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=4, d_ff=24)
    with jax.set_mesh(mesh):
        steps = make_steps(
            model,
            optimizer=Adafactor(peak_lr=0.1, min_factored=1),
            total_steps=3,
            gradient_accumulation=1,
            mesh=mesh,
        )
        state = steps.init(jax.random.key(0))
    factored = state.opt_state[1]
    found = {
        path: (moments.v_row.shape, moments.v_row.sharding.spec, moments.v_col.shape, moments.v_col.sharding.spec)
        for path, moments in [
            ("embed", factored["embed"][0]),
            *((name, factored["layers"][name][0]) for name in ("q", "o", "gate")),
        ]
    }
    spec = jax.sharding.PartitionSpec
    assert found == {
        # the longer side is what v_row is without
        "embed": ((16,), spec("fsdp"), (32,), spec("tensor")),
        "q": ((2, 16), spec(None, "fsdp"), (2, 16), spec(None, "tensor")),
        "o": ((2, 16), spec(None, "tensor"), (2, 16), spec(None, "fsdp")),
        "gate": ((2, 16), spec(None, "fsdp"), (2, 24), spec(None, "tensor")),
    }
    full = factored["layers"]["mlp_norm"][0].v
    assert (full.shape, full.sharding.spec) == ((2, 16), spec(None, "fsdp"))
