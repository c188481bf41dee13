"""The rivals of `benchmarks.tpu_static`: JAX's own attention on TPUs."""

import jax
import jax.numpy as jnp

from benchmarks.tpu_work import HEAD_DIM, HEADS, LENGTH, Kernel, shape


def flash_attention(backward: bool, block: int) -> Kernel:
    """JAX's own causal attention over the same tokens; both directions of one are compiled."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    x = shape(1, HEADS, LENGTH, HEAD_DIM)
    names = (
        *("block_q", "block_k_major", "block_k"),
        *("block_q_major_dkv", "block_k_major_dkv", "block_k_dkv", "block_q_dkv"),
        *("block_k_major_dq", "block_k_dq", "block_q_dq"),
    )
    sizes = flash.BlockSizes(block_b=1, **dict.fromkeys(names, block))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return flash.flash_attention(q, k, v, causal=True, block_sizes=sizes)

    def loss(*args: jax.Array) -> jax.Array:
        return jnp.sum(attend(*args).astype(jnp.float32))

    run = jax.grad(loss, argnums=(0, 1, 2)) if backward else attend
    pallas = ("flash_mha_bwd_dkv", "flash_mha_bwd_dq") if backward else ("flash_attention",)
    return Kernel(lambda chip: (run, (x, x, x)), pallas, *attention_cost(backward))


def attention_cost(backward: bool) -> tuple[int, int]:
    """FLOPs and bytes of causal attention."""
    pairs = HEADS * LENGTH * (LENGTH + 1) // 2
    products, arrays = (5, 8) if backward else (2, 4)
    return products * 2 * pairs * HEAD_DIM, arrays * 2 * HEADS * LENGTH * HEAD_DIM


def splash_attention(backward: bool, block: int) -> Kernel:
    """JAX's attention with a mask that is an array, with its fused backward kernel.

    What its kernel branches on is that array. Compiled is the mask that lets everything through,
    of whose blocks a causal one keeps those on and below the diagonal; masking the diagonal is
    left out, in its favour.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    x = shape(HEADS, LENGTH, HEAD_DIM)
    sizes = splash.BlockSizes(
        *(block, block, block),
        *(block, block, block),
        use_fused_bwd_kernel=True,
    )
    mask = splash.MultiHeadMask([splash.FullMask((LENGTH, LENGTH))] * HEADS)

    attend = splash.make_splash_mha_single_device(mask, block_sizes=sizes)

    def loss(*args: jax.Array) -> jax.Array:
        return jnp.sum(attend(*args).astype(jnp.float32))

    run = jax.grad(loss, argnums=(0, 1, 2)) if backward else attend
    side = LENGTH // block
    return Kernel(
        lambda chip: (run, (x, x, x)),
        ("splash_mha_dkv" if backward else "splash_mha_fwd",),
        *attention_cost(backward),
        share=(side + 1) / (2 * side),
        # Four blocks to a word, each of them marked as one that needs no mask.
        arrays=lambda: 0x02020202,
    )
