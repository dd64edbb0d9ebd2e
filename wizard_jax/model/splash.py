"""The splash attention kernel of TPUs, on the arrays of one device. Shape legend: see attention.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from wizard_jax.model.remat import ATTENDED

LANES = 128  # the kernel's arrays come in tiles of so many positions
BLOCKS = (512, 384, 256)  # positions of a block where L is longer than the first of them


def attend_splash(
    q_BxLxHxDh: jax.Array,
    k_BxLxKxDh: jax.Array,
    v_BxLxKxDh: jax.Array,
    *,
    segment_ids: jax.Array,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend` of packed rows: [B, L, H, Dh]. `segment_ids` is [B, L], of queries and keys alike.

    Blocks that causality or the sliding window masks whole are not computed, no array of [L, L] exists, and key heads
    are not repeated.
    Rows are filled up with padding (segment 0, which comes last and which nothing else sees) to whole blocks; an L
    that is a multiple of 512 needs none. What the backward kernels need of the forward one, its result and its
    log-sum-exp, has a name that remat policies know. `interpret` runs the program on any platform, slowly.
    """
    length, heads, head_dim = q_BxLxHxDh.shape[1:]
    block, padded = blocks_of(length)

    def laid_out(x_BxLxHxDh: jax.Array) -> jax.Array:
        return jnp.pad(x_BxLxHxDh, ((0, 0), (0, padded - length), (0, 0), (0, 0))).swapaxes(1, 2)

    # The kernel does not scale. float32, so that XLA may round once for this and for what made q.
    scaled_BxLxHxDh = (q_BxLxHxDh.astype(jnp.float32) * head_dim**-0.5).astype(q_BxLxHxDh.dtype)
    segments_BxL = jnp.pad(segment_ids, ((0, 0), (0, padded - length)))
    square = (padded, padded)
    mask = (
        splash_attention_mask.CausalMask(square)
        if window is None
        else splash_attention_mask.LocalMask(square, window_size=(window - 1, 0), offset=0)
    )
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=_block_sizes(block),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    attended_BxHxLxDh: jax.Array = jax.vmap(kernel)(
        laid_out(scaled_BxLxHxDh),
        laid_out(k_BxLxKxDh),
        laid_out(v_BxLxKxDh),
        splash_attention_kernel.SegmentIds(q=segments_BxL, kv=segments_BxL),
    )
    return attended_BxHxLxDh.swapaxes(1, 2)[:, :length]


def blocks_of(length: int) -> tuple[int, int]:
    """Positions in a block, and L filled up to whole blocks, with the least filling and then the fewest blocks.

    >>> blocks_of(2048), blocks_of(2100), blocks_of(200)
    ((512, 2048), (384, 2304), (256, 256))
    """
    if length <= BLOCKS[0]:
        padded = -(-length // LANES) * LANES
        return padded, padded
    padded, block = min((-(-length // block) * block, -block) for block in BLOCKS)
    return -block, padded


def _block_sizes(block: int) -> splash_attention_kernel.BlockSizes:
    return splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
