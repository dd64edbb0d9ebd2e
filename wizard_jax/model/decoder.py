"""LLaMA (arXiv 2302.13971; grouped-query attention as in arXiv 2307.09288), and its relatives, as `ModelConfig` says.

Shapes stand in names: B batch, L length, S cache slots, N layers, D model, E embedding (D but where it is projected),
H heads, K key-value heads, Dh head, F feed-forward, V vocabulary, P learned positions.

Flax NNX declares every array once: shape, dtype, logical axes and initialiser. The modules are split once, into
a static graph and a plain nested dict of arrays, and all that follows are functions of that dict.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from wizard_jax.model.attention import attend, attend_packed
from wizard_jax.model.config import LINEAR_LAYERS, ModelConfig
from wizard_jax.model.remat import MLP_INPUT, QKV, RESIDUAL, checkpointed, named
from wizard_jax.model.rope import Rotation, rotary_angles, rotate
from wizard_jax.model.sharding import constrain
from wizard_jax.model.weights import Turned, project, project_turned

Params = dict[str, Any]
Cache = tuple[dict[str, jax.Array], ...]

RESIDUAL_AXES = ("batch", None, None)

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "relu": jax.nn.relu,
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    }
)
"""`ModelConfig.mlp` -> what lies between `up` and `down` where there is no gate."""


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

    def zeros(self, **axes: int) -> nnx.Param[jax.Array]:
        return nnx.Param(jnp.zeros(tuple(axes.values()), jnp.float32), logical_axes=tuple(axes))

    def norm(self, module: nnx.Module, name: str, *, kind: str, **axes: int) -> None:
        """Of `ModelConfig.norm`: a scale under `name`, and for LayerNorm a bias beside it."""
        if kind != "layer_plain":
            setattr(module, name, self.ones(**axes))
        if kind == "layer":
            setattr(module, f"{name}_bias", self.zeros(**axes))


class Layer(nnx.Module):
    """One block. Declared for all N layers at once; computed with the arrays of one (a scan's slice)."""

    def __init__(self, declare: Declare, *, config: ModelConfig) -> None:
        n, d, f, dh = config.n_layers, config.d_model, config.d_ff, config.head_dim
        h, k = config.n_heads, config.n_kv_heads
        self.config = config
        declare.norm(self, "attention_norm", kind=config.norm, layers=n, embed=d)
        self.q = declare.normal("layers/q", layers=n, embed=d, heads=h, head_dim=dh)
        self.k = declare.normal("layers/k", layers=n, embed=d, kv_heads=k, head_dim=dh)
        self.v = declare.normal("layers/v", layers=n, embed=d, kv_heads=k, head_dim=dh)
        self.o = declare.normal("layers/o", layers=n, heads=h, head_dim=dh, embed=d)
        if config.qk_norm:
            self.q_norm = declare.ones(layers=n, head_norm=dh)
            self.k_norm = declare.ones(layers=n, head_norm=dh)
        declare.norm(self, "mlp_norm", kind=config.norm, layers=n, embed=d)
        if config.mlp == "swiglu":
            self.gate = declare.normal("layers/gate", layers=n, embed=d, mlp=f)
        self.up = declare.normal("layers/up", layers=n, embed=d, mlp=f)
        self.down = declare.normal("layers/down", layers=n, mlp=f, embed=d)
        sizes = {"embed": d, "heads": h, "kv_heads": k, "head_dim": dh, "mlp": f}
        for name in config.biases:
            axes = {axis: sizes[axis] for axis in LINEAR_LAYERS[name]}
            setattr(self, f"{name}_bias", declare.zeros(layers=n, **axes))

    def heads(self, x_BxLxD: jax.Array, *, rotation: Rotation | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, L, H, Dh], keys and values [B, L, K, Dh]; queries and keys rotated to their positions."""
        x_BxLxD = self.before(x_BxLxD, "attention_norm")
        q_BxLxHxDh = self._project("bld,dhk->blhk", x_BxLxD, "q")
        k_BxLxKxDh = self._project("bld,dhk->blhk", x_BxLxD, "k")
        v_BxLxKxDh = self._project("bld,dhk->blhk", x_BxLxD, "v")
        if self.config.qk_norm:
            q_BxLxHxDh = rms_norm(q_BxLxHxDh, self.q_norm[...], eps=self.config.norm_eps)
            k_BxLxKxDh = rms_norm(k_BxLxKxDh, self.k_norm[...], eps=self.config.norm_eps)
        if rotation is None:
            return q_BxLxHxDh, k_BxLxKxDh, v_BxLxKxDh
        return rotate(q_BxLxHxDh, rotation), rotate(k_BxLxKxDh, rotation), v_BxLxKxDh

    def add_attention(self, x_BxLxD: jax.Array, attended_BxLxHxDh: jax.Array) -> jax.Array:
        """The residual stream with what attention gave."""
        x_BxLxD = x_BxLxD + self._project("blhk,hkd->bld", attended_BxLxHxDh, "o")
        return x_BxLxD if self.config.norm_place == "before" else self._norm(x_BxLxD, "attention_norm")

    def add_mlp(self, x_BxLxD: jax.Array) -> jax.Array:
        """The residual stream with the feed-forward layer; swiglu: arXiv 2002.05202."""
        if self.config.norm_place == "after":
            return self._norm(x_BxLxD + self._mlp(x_BxLxD), "mlp_norm")
        return x_BxLxD + self._mlp(self._norm(x_BxLxD, "mlp_norm"))

    def before(self, x_BxLxD: jax.Array, norm: str) -> jax.Array:
        """What attention or the feed-forward layer is given: the residual stream, normed unless norms come after."""
        return self._norm(x_BxLxD, norm) if self.config.norm_place == "before" else x_BxLxD

    def inner(self, x_BxLxD: jax.Array) -> jax.Array:
        """What `down` maps: [B, L, F]."""
        if self.config.mlp == "swiglu":
            gate_BxLxF = self._project("bld,df->blf", x_BxLxD, "gate")
            return jax.nn.silu(gate_BxLxF) * self._project("bld,df->blf", x_BxLxD, "up")
        return ACTIVATIONS[self.config.mlp](self._project("bld,df->blf", x_BxLxD, "up"))

    def _mlp(self, x_BxLxD: jax.Array) -> jax.Array:
        return self._project("blf,fd->bld", self.inner(x_BxLxD), "down")

    def _norm(self, x_BxLxD: jax.Array, name: str) -> jax.Array:
        return normalised(x_BxLxD, vars(self), name, config=self.config)

    def _project(self, equation: str, x: jax.Array, name: str) -> jax.Array:
        given = project(equation, x, getattr(self, name).get_value(), dtype=self.config.compute_dtype)
        if name not in self.config.biases:
            return given
        bias: jax.Array = getattr(self, f"{name}_bias")[...]
        return given + bias.astype(self.config.compute_dtype)


class Decoder(nnx.Module):
    """Every array of the network."""

    def __init__(self, key: jax.Array, *, config: ModelConfig) -> None:
        declare = Declare(key, config=config)
        d, e = config.d_model, config.d_embed
        width = {"embed": d} if e is None else {"d_embed": e}
        self.embed = declare.normal("embed", vocab=config.vocab_size, **width)
        if e is not None:
            self.project_in = declare.normal("project_in", d_embed=e, embed=d)
            self.project_out = declare.normal("project_out", embed=d, d_embed=e)
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.positions = declare.normal("positions", positions=rows, embed=d)
        self.layers = Layer(declare, config=config)
        if config.norm_place == "before":
            declare.norm(self, "final_norm", kind=config.norm, embed=d)
        if not config.tied_embeddings:
            self.unembed = declare.normal("unembed", **width, vocab=config.vocab_size)


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


def layer_norm(x_BxLxD: jax.Array, *, eps: float) -> jax.Array:
    """LayerNorm (arXiv 1607.06450) without scale and bias, float32."""
    x32_BxLxD = x_BxLxD.astype(jnp.float32)
    centred_BxLxD = x32_BxLxD - jnp.mean(x32_BxLxD, axis=-1, keepdims=True)
    return centred_BxLxD * jax.lax.rsqrt(jnp.mean(jnp.square(centred_BxLxD), axis=-1, keepdims=True) + eps)


def normalised(x_BxLxD: jax.Array, arrays: Mapping[str, Any], name: str, *, config: ModelConfig) -> jax.Array:
    """The norm of `config.norm` with the scale `name` and the bias beside it, in the dtype of its input."""
    if config.norm == "rms":
        return rms_norm(x_BxLxD, arrays[name][...], eps=config.norm_eps)
    plain_BxLxD = layer_norm(x_BxLxD, eps=config.norm_eps)
    if config.norm == "layer":
        plain_BxLxD = plain_BxLxD * arrays[name][...] + arrays[f"{name}_bias"][...]
    return plain_BxLxD.astype(x_BxLxD.dtype)


def embedded(params: Params, tokens_BxL: jax.Array, positions_BxL: jax.Array, *, config: ModelConfig) -> jax.Array:
    """The residual stream before the first layer: [B, L, D] in the compute dtype."""
    with jax.named_scope("embed"):
        x_BxLxD = params["embed"][tokens_BxL].astype(config.compute_dtype)
        if config.d_embed is not None:
            x_BxLxD = project("ble,ed->bld", x_BxLxD, params["project_in"], dtype=config.compute_dtype)
        if config.positions == "learned":
            x_BxLxD += params["positions"][positions_BxL + config.position_offset].astype(config.compute_dtype)
        return constrain(x_BxLxD, RESIDUAL_AXES)


def _rotation(positions_BxL: jax.Array, *, config: ModelConfig) -> Rotation | None:
    if config.positions == "learned":
        return None
    return rotary_angles(positions_BxL, head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)


def _final(x_BxLxD: jax.Array, params: Params, *, config: ModelConfig) -> jax.Array:
    """What is unembedded: [B, L, E]."""
    if config.norm_place == "before":
        x_BxLxD = normalised(x_BxLxD, params, "final_norm", config=config)
    if config.d_embed is None:
        return x_BxLxD
    return project("bld,de->ble", x_BxLxD, params["project_out"], dtype=config.compute_dtype)


def hidden_states(
    params: Params,
    *,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    config: ModelConfig,
) -> jax.Array:
    """The residual stream after the final norm: [B, L, E] in the compute dtype.

    All three columns are int32 [B, L]. A token sees its own segment up to itself; segment 0 is padding, whose
    rows are finite and mean nothing.
    """
    graph = _declared(config)[0]
    rotation = _rotation(positions, config=config)

    def step(x_BxLxD: jax.Array, arrays: Params) -> tuple[jax.Array, None]:
        layer = nnx.merge(graph, arrays)
        x_BxLxD = named(x_BxLxD, RESIDUAL)
        with jax.named_scope("attention"):
            q, k, v = named(layer.heads(x_BxLxD, rotation=rotation), QKV)
            attended = attend_packed(
                q,
                k,
                v,
                segment_ids=segment_ids,
                window=config.sliding_window,
                implementation=config.attention,
            )
            x_BxLxD = constrain(layer.add_attention(x_BxLxD, attended), RESIDUAL_AXES)
            x_BxLxD = named(x_BxLxD, MLP_INPUT)
        with jax.named_scope("mlp"):
            return constrain(layer.add_mlp(x_BxLxD), RESIDUAL_AXES), None

    x_BxLxD = embedded(params, tokens, positions, config=config)
    x_BxLxD, _ = jax.lax.scan(checkpointed(step, config=config), x_BxLxD, params["layers"], unroll=config.scan_unroll)
    return _final(x_BxLxD, params, config=config)


def block(
    arrays: Params, x_BxLxD: jax.Array, *, positions: jax.Array, segment_ids: jax.Array, config: ModelConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The residual stream after one layer with these arrays; and, for who watches them, the inputs of its linear
    layers: `attention` of queries, keys and values, `o`, `mlp` of gate and up, and `down`."""
    layer = nnx.merge(_declared(config)[0], arrays)
    q, k, v = layer.heads(x_BxLxD, rotation=_rotation(positions, config=config))
    attended = attend_packed(
        q, k, v, segment_ids=segment_ids, window=config.sliding_window, implementation=config.attention
    )
    middle_BxLxD = layer.add_attention(x_BxLxD, attended)
    mlp_BxLxD = layer.before(middle_BxLxD, "mlp_norm")
    inputs = {"attention": layer.before(x_BxLxD, "attention_norm"), "o": attended}
    inputs |= {"mlp": mlp_BxLxD, "down": layer.inner(mlp_BxLxD)}
    return layer.add_mlp(middle_BxLxD), inputs


def unembedding(params: Params, config: ModelConfig) -> jax.Array:
    """The [E, V] float32 matrix that turns hidden states into logits."""
    matrix_ExV: jax.Array = params["embed"].T if config.tied_embeddings else params["unembed"]
    return matrix_ExV


def logits(params: Params, hidden: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Scores of the next token: [B, L, V] float32, from hidden states [B, L, E]."""
    with jax.named_scope("logits"):
        if config.tied_embeddings or isinstance(params["unembed"], Turned):
            rows_VxE = params["embed"] if config.tied_embeddings else params["unembed"].array
            return project_turned("ble,ev->blv", hidden, rows_VxE.astype(hidden.dtype), dtype="float32")
        matrix_ExV = unembedding(params, config).astype(hidden.dtype)
        return jnp.einsum("ble,ev->blv", hidden, matrix_ExV, preferred_element_type=jnp.float32)


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
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    rotation = _rotation(positions, config=config)
    x_BxLxD = embedded(params, tokens, positions, config=config)
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
                window=config.sliding_window,
            )
            x_BxLxD = layer.add_attention(x_BxLxD, attended)
        with jax.named_scope("mlp"):
            x_BxLxD = layer.add_mlp(x_BxLxD)
        updated.append(slots)
    return _final(x_BxLxD, params, config=config), tuple(updated)


def _write(slots_BxKxSxDh: jax.Array, new_BxLxKxDh: jax.Array, start_B: jax.Array) -> jax.Array:
    """The slots with new ones from `start_B` on."""

    def row(slots_KxSxDh: jax.Array, new_LxKxDh: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(slots_KxSxDh, new_LxKxDh.swapaxes(0, 1), start, axis=1)

    return jax.vmap(row)(slots_BxKxSxDh, new_BxLxKxDh, start_B)
