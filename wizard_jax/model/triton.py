"""The fused attention kernel of GPUs (Pallas over Triton), on the arrays of one device. Shapes: see attention.py.

Chosen by reading what jax 0.10 has for packed rows: cuDNN's own packed layout is not public, needs Hopper, and
scales the offsets of keys by the number of query heads; the Mosaic kernel of the same folder has no segments. What
this one computes is tested by interpretation, and that it lowers for CUDA; its speed only a GPU can show.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

from wizard_jax.model.remat import ATTENDED, named

ROW_MULTIPLE = 128  # every block size below divides it


def attend_triton(
    q_BxLxHxDh: jax.Array,
    k_BxLxKxDh: jax.Array,
    v_BxLxKxDh: jax.Array,
    *,
    segment_ids: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend` of packed rows: [B, L, H, Dh]. `segment_ids` is [B, L], of queries and keys alike.

    Rows are filled up with padding to a multiple of 128. Key-value heads are repeated, once per query head of
    theirs: the kernel knows no groups. Whatever a remat policy keeps, the kernel runs again before its backward
    pass, for its log-sum-exp. `interpret` runs the program on any platform, slowly.
    """
    length, heads, head_dim = q_BxLxHxDh.shape[1:]
    missing = -length % ROW_MULTIPLE

    def filled(x_BxLxHxDh: jax.Array) -> jax.Array:
        repeated = jnp.repeat(x_BxLxHxDh, heads // x_BxLxHxDh.shape[2], axis=2)
        return jnp.pad(repeated, ((0, 0), (0, missing), (0, 0), (0, 0)))

    attended_BxLxHxDh: jax.Array = mha(
        filled(q_BxLxHxDh),
        filled(k_BxLxKxDh),
        filled(v_BxLxKxDh),
        jnp.pad(segment_ids, ((0, 0), (0, missing))),
        sm_scale=head_dim**-0.5,
        causal=True,
        block_sizes=_block_sizes(q_BxLxHxDh.dtype),
        interpret=interpret,
    )
    return named(attended_BxLxHxDh[:, :length], ATTENDED)


def _block_sizes(dtype: jnp.dtype) -> BlockSizes:
    """Blocks of 96 KiB of shared memory at Dh = 128, in two stages: what any GPU since Volta has."""
    wide = dtype.itemsize <= 2
    backward = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), 32)
    return BlockSizes(block_q=128 if wide else 64, block_k=64 if wide else 32, **backward)
