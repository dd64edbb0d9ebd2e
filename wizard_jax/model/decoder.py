"""LLaMA (arXiv 2302.13971; grouped-query attention as in arXiv 2307.09288).

Shapes stand in names: B batch, L length, S cache slots, N layers, D model, H heads, K key-value heads, Dh head,
F feed-forward, V vocabulary.

Flax NNX declares every array once: shape, dtype, logical axes and initialiser. The modules are split once, into
a static graph and a plain nested dict of arrays, and all that follows are functions of that dict.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from wizard_jax.model.attention import attend, attend_packed
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.remat import MLP_INPUT, QKV, RESIDUAL, checkpointed, named
from wizard_jax.model.sharding import constrain
from wizard_jax.model.weights import project

Params = dict[str, Any]
Cache = tuple[dict[str, jax.Array], ...]
Rotation = tuple[jax.Array, jax.Array]

RESIDUAL_AXES = ("batch", None, None)


class Declare:
    """Makes the parameters of a module: float32, each drawn from its own key, which depends on its name alone."""

    def __init__(self, key: jax.Array, *, config: ModelConfig) -> None:
        self.key = key
        self.scale = config.initializer_range

    def normal(self, name: str, **axes: int) -> nnx.Param[jax.Array]:
        key = jax.random.fold_in(self.key, zlib.crc32(name.encode()))
        drawn = self.scale * jax.random.normal(key, tuple(axes.values()), jnp.float32)
        return nnx.Param(drawn, logical_axes=tuple(axes))

    def ones(self, **axes: int) -> nnx.Param[jax.Array]:
        return nnx.Param(jnp.ones(tuple(axes.values()), jnp.float32), logical_axes=tuple(axes))


class Layer(nnx.Module):
    """One pre-norm block. Declared for all N layers at once; computed with the arrays of one (a scan's slice)."""

    def __init__(self, declare: Declare, *, config: ModelConfig) -> None:
        n, d, f, dh = config.n_layers, config.d_model, config.d_ff, config.head_dim
        h, k = config.n_heads, config.n_kv_heads
        self.config = config
        self.attention_norm = declare.ones(layers=n, embed=d)
        self.q = declare.normal("layers/q", layers=n, embed=d, heads=h, head_dim=dh)
        self.k = declare.normal("layers/k", layers=n, embed=d, kv_heads=k, head_dim=dh)
        self.v = declare.normal("layers/v", layers=n, embed=d, kv_heads=k, head_dim=dh)
        self.o = declare.normal("layers/o", layers=n, heads=h, head_dim=dh, embed=d)
        self.mlp_norm = declare.ones(layers=n, embed=d)
        self.gate = declare.normal("layers/gate", layers=n, embed=d, mlp=f)
        self.up = declare.normal("layers/up", layers=n, embed=d, mlp=f)
        self.down = declare.normal("layers/down", layers=n, mlp=f, embed=d)

    def heads(self, x_BxLxD: jax.Array, *, rotation: Rotation) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, L, H, Dh], keys and values [B, L, K, Dh]; queries and keys rotated to their positions."""
        x_BxLxD = rms_norm(x_BxLxD, self.attention_norm[...], eps=self.config.norm_eps)
        q_BxLxHxDh = self._project("bld,dhk->blhk", x_BxLxD, self.q)
        k_BxLxKxDh = self._project("bld,dhk->blhk", x_BxLxD, self.k)
        v_BxLxKxDh = self._project("bld,dhk->blhk", x_BxLxD, self.v)
        return rotate(q_BxLxHxDh, rotation), rotate(k_BxLxKxDh, rotation), v_BxLxKxDh

    def output(self, attended_BxLxHxDh: jax.Array) -> jax.Array:
        return self._project("blhk,hkd->bld", attended_BxLxHxDh, self.o)

    def mlp(self, x_BxLxD: jax.Array) -> jax.Array:
        """SwiGLU (arXiv 2002.05202)."""
        x_BxLxD = rms_norm(x_BxLxD, self.mlp_norm[...], eps=self.config.norm_eps)
        gate_BxLxF = self._project("bld,df->blf", x_BxLxD, self.gate)
        up_BxLxF = self._project("bld,df->blf", x_BxLxD, self.up)
        return self._project("blf,fd->bld", jax.nn.silu(gate_BxLxF) * up_BxLxF, self.down)

    def _project(self, equation: str, x: jax.Array, weight: nnx.Param[Any]) -> jax.Array:
        return project(equation, x, weight.get_value(), dtype=self.config.compute_dtype)


class Decoder(nnx.Module):
    """Every array of the network."""

    def __init__(self, key: jax.Array, *, config: ModelConfig) -> None:
        declare = Declare(key, config=config)
        self.embed = declare.normal("embed", vocab=config.vocab_size, embed=config.d_model)
        self.layers = Layer(declare, config=config)
        self.final_norm = declare.ones(embed=config.d_model)
        if not config.tied_embeddings:
            self.unembed = declare.normal("unembed", embed=config.d_model, vocab=config.vocab_size)


@functools.lru_cache(maxsize=16)
def _declared(config: ModelConfig) -> tuple[nnx.GraphDef[Layer], nnx.State[Any, Any]]:
    """The static graph of a layer, and the abstract state of the whole network."""
    decoder = nnx.eval_shape(lambda: Decoder(jax.random.key(0), config=config))
    return nnx.split(decoder.layers)[0], nnx.state(decoder)


def _tree_of(state: nnx.State[Any, Any], what: Any) -> Params:
    """A plain nested dict with `what(variable)` in place of each variable."""
    return {name: _tree_of(node, what) if isinstance(node, nnx.State) else what(node) for name, node in state.items()}


def abstract_params(config: ModelConfig) -> Params:
    """The tree of parameters as `jax.ShapeDtypeStruct`."""
    return _tree_of(_declared(config)[1], lambda variable: variable.get_value())


def logical_axes(config: ModelConfig) -> Params:
    """The tree of parameters as tuples of logical axis names (see `sharding.RULES`)."""
    return _tree_of(_declared(config)[1], lambda variable: variable.logical_axes)


def count_params(config: ModelConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


def init_params(config: ModelConfig, *, key: jax.Array) -> Params:
    """Initial parameters: normal(initializer_range) matrices, norms of one. Jit it with `out_shardings`.

    The values do not depend on the devices, nor on what other arrays the network has.
    """
    return _tree_of(nnx.state(Decoder(key, config=config)), lambda variable: variable.get_value())


def rms_norm(x_BxLxD: jax.Array, weight_D: jax.Array, *, eps: float) -> jax.Array:
    """Root-mean-square norm (arXiv 1910.07467), computed in float32, in the dtype of its input."""
    x32_BxLxD = x_BxLxD.astype(jnp.float32)
    inverse_BxLx1 = jax.lax.rsqrt(jnp.mean(jnp.square(x32_BxLxD), axis=-1, keepdims=True) + eps)
    return (x32_BxLxD * inverse_BxLx1 * weight_D).astype(x_BxLxD.dtype)


def rotary_angles(positions_BxL: jax.Array, *, config: ModelConfig) -> Rotation:
    """Cosine and sine of RoPE's angles (arXiv 2104.09864), float32 [B, L, 1, Dh / 2] each."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    angles = positions_BxL.astype(jnp.float32)[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxLxHxDh: jax.Array, rotation: Rotation) -> jax.Array:
    """Turn dimension i with i + Dh / 2, the pairs of Hugging Face checkpoints (Meta's own pair 2i with 2i + 1)."""
    cos, sin = rotation
    first, second = jnp.split(x_BxLxHxDh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxDh.dtype)


def _embed(params: Params, tokens_BxL: jax.Array, *, config: ModelConfig) -> jax.Array:
    with jax.named_scope("embed"):
        return constrain(params["embed"][tokens_BxL].astype(config.compute_dtype), RESIDUAL_AXES)


def hidden_states(
    params: Params,
    *,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    config: ModelConfig,
) -> jax.Array:
    """The residual stream after the final norm: [B, L, D] in the compute dtype.

    All three columns are int32 [B, L]. A token sees its own segment up to itself; segment 0 is padding, whose
    rows are finite and mean nothing.
    """
    graph = _declared(config)[0]
    rotation = rotary_angles(positions, config=config)

    def step(x_BxLxD: jax.Array, arrays: Params) -> tuple[jax.Array, None]:
        layer = nnx.merge(graph, arrays)
        x_BxLxD = named(x_BxLxD, RESIDUAL)
        with jax.named_scope("attention"):
            q, k, v = named(layer.heads(x_BxLxD, rotation=rotation), QKV)
            attended = attend_packed(q, k, v, segment_ids=segment_ids, implementation=config.attention)
            x_BxLxD = constrain(x_BxLxD + layer.output(attended), RESIDUAL_AXES)
            x_BxLxD = named(x_BxLxD, MLP_INPUT)
        with jax.named_scope("mlp"):
            return constrain(x_BxLxD + layer.mlp(x_BxLxD), RESIDUAL_AXES), None

    x_BxLxD = _embed(params, tokens, config=config)
    x_BxLxD, _ = jax.lax.scan(checkpointed(step, config=config), x_BxLxD, params["layers"], unroll=config.scan_unroll)
    return rms_norm(x_BxLxD, params["final_norm"], eps=config.norm_eps)


def unembedding(params: Params, config: ModelConfig) -> jax.Array:
    """The [D, V] float32 matrix that turns hidden states into logits."""
    matrix_DxV: jax.Array = params["embed"].T if config.tied_embeddings else params["unembed"]
    return matrix_DxV


def logits(params: Params, hidden: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Scores of the next token: [B, L, V] float32, from hidden states [B, L, D]."""
    with jax.named_scope("logits"):
        matrix_DxV = unembedding(params, config).astype(hidden.dtype)
        return jnp.einsum("bld,dv->blv", hidden, matrix_DxV, preferred_element_type=jnp.float32)


def init_cache(config: ModelConfig, *, batch: int, length: int) -> Cache:
    """An empty cache: for each layer, keys and values [B, K, S, Dh], in which slot s is of position s.

    An array of its own for each layer, and heads before slots, so that a step changes it where it lies and no
    product has to turn it first.
    """
    shape = (batch, config.n_kv_heads, length, config.head_dim)

    def empty() -> jax.Array:
        return jnp.zeros(shape, config.compute_dtype)

    return tuple({"keys": empty(), "values": empty()} for _ in range(config.n_layers))


def unstacked(params: Params) -> Params:
    """The parameters with a tuple of trees, one for each layer, in place of the stacked layers.

    `decode` takes either. Of stacked ones it copies each layer's out of the stack, at every step where XLA does not
    see through it, as on CPUs; so who decodes much takes them apart once.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    count = jax.tree.leaves(layers)[0].shape[0]
    return {**params, "layers": tuple(jax.tree.map(lambda array, n=n: array[n], layers) for n in range(count))}


def decode(
    params: Params,
    *,
    tokens: jax.Array,
    start: jax.Array,
    cache: Cache,
    config: ModelConfig,
) -> tuple[jax.Array, Cache]:
    """`hidden_states` of tokens that continue a cache: hidden [B, L, D], and the cache with them in it.

    Row b's tokens [B, L] stand at positions `start[b]` to `start[b] + L - 1` (start: int32 [B]), which must be slots
    of the cache: prefill is L tokens, a step is one. A token sees what stands in the slots of its row up to its own.
    So what pads a prompt on the right is never seen: each of its slots is written anew before a token reaches it.
    """
    graph = _declared(config)[0]
    length = tokens.shape[1]
    rotation = rotary_angles(start[:, None] + jnp.arange(length), config=config)
    x_BxLxD = _embed(params, tokens, config=config)
    updated = []
    for arrays, slots in zip(unstacked(params)["layers"], cache, strict=True):
        layer = nnx.merge(graph, arrays)
        with jax.named_scope("attention"):
            q, k, v = layer.heads(x_BxLxD, rotation=rotation)
            slots = {"keys": _write(slots["keys"], k, start), "values": _write(slots["values"], v, start)}
            attended = attend(
                q,
                slots["keys"].swapaxes(1, 2),
                slots["values"].swapaxes(1, 2),
                q_segment_ids=jnp.ones(tokens.shape, jnp.int32),
                kv_segment_ids=jnp.ones((tokens.shape[0], slots["keys"].shape[2]), jnp.int32),
                q_offset=start,
            )
            x_BxLxD = x_BxLxD + layer.output(attended)
        with jax.named_scope("mlp"):
            x_BxLxD = x_BxLxD + layer.mlp(x_BxLxD)
        updated.append(slots)
    return rms_norm(x_BxLxD, params["final_norm"], eps=config.norm_eps), tuple(updated)


def _write(slots_BxKxSxDh: jax.Array, new_BxLxKxDh: jax.Array, start_B: jax.Array) -> jax.Array:
    """The slots with new ones from `start_B` on."""

    def row(slots_KxSxDh: jax.Array, new_LxKxDh: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(slots_KxSxDh, new_LxKxDh.swapaxes(0, 1), start, axis=1)

    return jax.vmap(row)(slots_BxKxSxDh, new_BxLxKxDh, start_B)
