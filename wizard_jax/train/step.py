"""One update of the weights: `jax.jit` with shardings, under `jax.set_mesh`.

Shape legend: B rows of a step, L length, M microbatches.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from wizard_jax.model.attention import with_attention_for
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import hidden_states, init_params, unembedding
from wizard_jax.model.lora import (
    LoRA,
    abstract_source,
    freeze_all,
    init_adapter,
    source_axes,
    trained_axes,
    with_adapter,
)
from wizard_jax.model.sharding import batch_sharding, constrain, partition_spec, replicated, shardings
from wizard_jax.train.factored import moment_axes
from wizard_jax.train.guard import GuardState, Skip, Stop, judge, start_guard
from wizard_jax.train.loss import Loss, cross_entropy, token_losses
from wizard_jax.train.optimizer import Optimizer, learning_rate, make_optimizer

Columns = dict[str, jax.Array]

HALT = "halt"
STOP_AFTER = 1
"""The largest code in `halt` with which a batch is whole: the update is made, and is the last."""


class TrainState(NamedTuple):
    """All that a step needs but its batch. `step` counts the batches that were taken, and so says which is next.

    With an adapter, `params` and `opt_state` are the adapter's, and `frozen` is the model's: no step changes it, so
    its buffers are those of the state before.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    guard: GuardState
    frozen: Any = ()


class StepMetrics(NamedTuple):
    """Scalars of one step: float32, but `tokens` (all that are not padding) and `halt`, which are int32, and bools.

    `loss` is the cross-entropy; what is minimised is `loss + z_loss`.
    """

    loss_sum: jax.Array
    weight: jax.Array
    loss: jax.Array
    z_loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    tokens: jax.Array
    halt: jax.Array
    loss_bound: jax.Array
    """the largest loss that the guard would have let pass; infinite where it looks for no spikes"""
    skipped: jax.Array
    """bool; the guard refused the batch, and the weights are as they were"""
    stopped: jax.Array
    """bool; and will take no other: the run must end"""


class Steps(NamedTuple):
    """The compiled functions of a run, and the abstract state, each leaf with its sharding."""

    abstract: TrainState
    init: Callable[[jax.Array], TrainState]
    start: Callable[[Any], TrainState]
    train: Callable[[TrainState, Columns], tuple[TrainState, StepMetrics]]
    evaluate: Callable[[TrainState, Columns], jax.Array]


@functools.lru_cache(maxsize=4)  # runs of one process that differ in their data alone compile once
def make_steps(
    model: ModelConfig,
    *,
    optimizer: Optimizer,
    total_steps: int,
    gradient_accumulation: int,
    mesh: Mesh,
    z_loss: float = 0.0,
    guard: Stop | Skip = Stop(),  # noqa: B008  # frozen
    adapter: LoRA | None = None,
) -> Steps:
    """Everything of a run that depends on no data.

    `init(key)` makes random weights, `start(source)` takes and donates given ones, the model's or, with an adapter,
    those to freeze; both are placed as `abstract` says.
    `train(state, batch)` donates the state. `batch` is as `abstract_batch` says: its rows are split over the mesh's
    `slice` and `fsdp`, which with the microbatches must divide B. The largest `halt` of all rows comes back in
    the metrics, so that all processes learn in the same step that one of them must stop; above STOP_AFTER, rows
    are missing, and the state stays what it was. A batch that the `guard` refuses is counted in `step` and changes
    no weight and no moment; once it has stopped, nothing changes any more.
    `evaluate(state, batch)` is weight x cross-entropy of every position, float32 [B, L], on every device; it
    needs no `halt`.
    """
    model = with_attention_for(mesh, config=model)
    transform = make_optimizer(optimizer, axes=trained_axes(model, adapter=adapter))
    start = functools.partial(_start, model=model, adapter=adapter, transform=transform)
    abstract = _abstract_state(model, adapter=adapter, start=start, mesh=mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def train(state: TrainState, batch: Columns) -> tuple[TrainState, StepMetrics]:
        halt = batch[HALT].max()
        columns = {name: column for name, column in batch.items() if name != HALT}
        loss, gradients = _gradients(
            state.params,
            columns,
            network=functools.partial(_network, frozen=state.frozen, adapter=adapter),
            model=model,
            z_loss=z_loss,
            microbatches=gradient_accumulation,
        )
        weight = jnp.where(loss.weight > 0, loss.weight, 1.0)  # a batch that trains on nothing has a gradient of 0
        with jax.named_scope("optimizer"):
            gradients = jax.tree.map(lambda g: g / weight, gradients)
            rate = learning_rate(state.step, config=optimizer, total_steps=total_steps)
            updates, opt_state = transform.update(gradients, state.opt_state, state.params)
            params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        mean_loss, grad_norm = (loss.total - loss.z) / weight, optax.tree.norm(gradients)
        verdict, guarded = judge(state.guard, loss=mean_loss, grad_norm=grad_norm, config=guard)
        whole = halt <= STOP_AFTER
        params, opt_state = _chosen(whole & ~verdict.refused, (params, opt_state), (state.params, state.opt_state))
        guarded = _chosen(whole, guarded, state.guard)
        metrics = StepMetrics(
            loss_sum=loss.total - loss.z,
            weight=loss.weight,
            loss=mean_loss,
            z_loss=loss.z / weight,
            grad_norm=grad_norm,
            learning_rate=rate,
            tokens=(batch["segment_ids"] > 0).sum(dtype=jnp.int32),
            halt=halt,
            loss_bound=verdict.bound,
            skipped=whole & verdict.refused,
            stopped=guarded.stopped,
        )
        step = state.step + (whole & ~guarded.stopped).astype(jnp.int32)
        return TrainState(step, params, opt_state, guarded, state.frozen), metrics

    def evaluate(state: TrainState, batch: Columns) -> jax.Array:
        hidden_BxLxD, matrix_DxV = _hidden_and_unembedding(
            _network(state.params, frozen=state.frozen, adapter=adapter), batch, model=model
        )
        with jax.named_scope("loss"):
            return token_losses(
                hidden_BxLxD,
                unembedding_DxV=matrix_DxV,
                targets_BxL=batch["targets"],
                weights_BxL=batch["loss_weights"],
            )

    return Steps(
        abstract=abstract,
        init=jax.jit(
            lambda key: start(freeze_all(init_params(model, key=key), model=model, adapter=adapter)),
            out_shardings=placed,
        ),
        start=jax.jit(
            start,
            in_shardings=(placed.params if adapter is None else placed.frozen,),
            out_shardings=placed,
            donate_argnums=0,
        ),
        train=jax.jit(
            train,
            in_shardings=(placed, batch_sharding(mesh)),
            out_shardings=(placed, replicated(mesh)),
            donate_argnums=0,
        ),
        evaluate=jax.jit(evaluate, in_shardings=(placed, batch_sharding(mesh)), out_shardings=replicated(mesh)),
    )


def abstract_batch(*, rows: int, seq_len: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What `Steps.train` takes: the columns of a `data.pipeline.Batch`, [B, L], and `halt`, int32 [B].

    Every process fills its rows of `halt`: 0 go on, STOP_AFTER the last step, above it the data has failed.
    """
    placed = batch_sharding(mesh)

    def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)  # type: ignore[no-untyped-call]  # jax leaves it so

    whole_numbers = ("tokens", "targets", "positions", "segment_ids")
    return {
        **{name: abstract((rows, seq_len), jnp.int32) for name in whole_numbers},
        "loss_weights": abstract((rows, seq_len), jnp.float32),
        HALT: abstract((rows,), jnp.int32),
    }


def _chosen(take: jax.Array, then: Any, otherwise: Any) -> Any:
    """One of two trees of equal shapes, leaf by leaf: fused into what makes the leaves, so that nothing is copied."""
    return jax.tree.map(lambda a, b: jnp.where(take, a, b), then, otherwise)


def _start(
    source: Any, *, model: ModelConfig, adapter: LoRA | None, transform: optax.GradientTransformation
) -> TrainState:
    params, frozen = (source, ()) if adapter is None else (init_adapter(model, adapter=adapter), source)
    return TrainState(jnp.zeros((), jnp.int32), params, transform.init(params), start_guard(), frozen)


def _network(params: Any, *, frozen: Any, adapter: LoRA | None) -> Any:
    """The parameters that the decoder computes with."""
    return params if adapter is None else with_adapter(frozen, params, adapter=adapter)


def _abstract_state(
    model: ModelConfig, *, adapter: LoRA | None, start: Callable[[Any], TrainState], mesh: Mesh
) -> TrainState:
    """The shapes of a state; moments lie where their parameter lies, the rest is everywhere."""
    state = jax.eval_shape(start, abstract_source(model, adapter=adapter))
    params: Any = state.params
    axes: Any = trained_axes(model, adapter=adapter)
    everywhere = replicated(mesh)

    def place(leaf: Any, sharding: Any) -> Any:
        return leaf.update(sharding=sharding)

    def place_moment(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if not names:  # of no parameter, as a count
            return place(leaf, everywhere)
        of, of_axes = (functools.reduce(operator.getitem, names, tree) for tree in (params, axes))
        leaf_axes = moment_axes(getattr(path[-1], "name", ""), leaf.shape, of=of.shape, axes=of_axes)
        return place(leaf, NamedSharding(mesh, partition_spec(leaf_axes, mesh.shape, shape=leaf.shape)))

    frozen = state.frozen
    if adapter is not None:
        frozen = jax.tree.map(place, frozen, shardings(source_axes(model, adapter=adapter), mesh, shapes=frozen))
    return TrainState(
        step=place(state.step, everywhere),
        params=jax.tree.map(place, params, shardings(axes, mesh, shapes=params)),
        opt_state=jax.tree_util.tree_map_with_path(place_moment, state.opt_state),
        guard=jax.tree.map(lambda leaf: place(leaf, everywhere), state.guard),
        frozen=frozen,
    )


def _gradients(
    params: Any,
    batch: Columns,
    *,
    network: Callable[[Any], Any],
    model: ModelConfig,
    z_loss: float,
    microbatches: int,
) -> tuple[Loss, Any]:
    """The loss of a batch and the gradient of its SUM with respect to `params`, added up over microbatches.

    Microbatches differ in the tokens they train on, so means of means would be another loss: the caller divides
    the sum once. Every M-th row goes into the same microbatch, so that rows stay on their devices.
    """

    def loss_sum(params: Any, part: Columns) -> tuple[jax.Array, Loss]:
        loss = batch_loss(network(params), part, model=model, z_loss=z_loss)
        return loss.total, loss

    gradient = jax.value_and_grad(loss_sum, has_aux=True)
    if microbatches == 1:
        (_, loss), gradients = gradient(params, batch)
        return loss, gradients

    def split(column_BxL: jax.Array) -> jax.Array:
        return jnp.moveaxis(column_BxL.reshape(-1, microbatches, *column_BxL.shape[1:]), 1, 0)

    def add(carry: tuple[Loss, Any], part: Columns) -> tuple[tuple[Loss, Any], None]:
        part = {name: constrain(column, ("batch", None)) for name, column in part.items()}
        (_, loss), gradients = gradient(params, part)
        return jax.tree.map(jnp.add, carry, (loss, gradients)), None

    zero = jnp.zeros((), jnp.float32)
    nothing = (Loss(zero, zero, zero), jax.tree.map(jnp.zeros_like, params))
    (loss, gradients), _ = jax.lax.scan(add, nothing, {name: split(column) for name, column in batch.items()})
    return loss, gradients


def batch_loss(params: Any, batch: Columns, *, model: ModelConfig, z_loss: float = 0.0) -> Loss:
    """The weighted sum of cross-entropies of a packed batch, and the sum of its weights."""
    hidden_BxLxD, matrix_DxV = _hidden_and_unembedding(params, batch, model=model)
    with jax.named_scope("loss"):
        return cross_entropy(
            hidden_BxLxD,
            unembedding_DxV=matrix_DxV,
            targets_BxL=batch["targets"],
            weights_BxL=batch["loss_weights"],
            z_loss=z_loss,
        )


def _hidden_and_unembedding(params: Any, batch: Columns, *, model: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """[B, L, D] and [D, V], both in the compute dtype."""
    hidden_BxLxD = hidden_states(
        params,
        tokens=batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
        config=model,
    )
    with jax.named_scope("loss"):
        return hidden_BxLxD, unembedding(params, config=model).astype(hidden_BxLxD.dtype)
