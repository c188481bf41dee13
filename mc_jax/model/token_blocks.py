"""Tokens on the last axis, as memories take them.

On a TPU that is all. Elsewhere they go there in blocks: over a whole long sequence the features of
one token would lie a large power of two apart, of which a processor's caches hold few. On a CPU a
layer of width 256 would take half as long again at 2,048 tokens and three times as long at 32,768.
"""

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.typing import Array, Float

BLOCK_LEN = 256


def tokens_last(
    x: Float[Array, "batch length *features"], reach: int
) -> Float[Array, "batch blocks *features block_len"]:
    """Blocks of `BLOCK_LEN` tokens, or one block of all.

    Args:
      x: tokens first.
      reach: how many tokens back a token looks, at most into the block before.
    """
    batch, length, *features = x.shape
    whole = length % BLOCK_LEN or reach > BLOCK_LEN or pltpu.is_tpu_device()
    x = x.reshape(batch, -1, length if whole else BLOCK_LEN, *features)
    return jnp.moveaxis(x, 2, -1)


def tokens_first(
    x: Float[Array, "batch blocks *features block_len"],
) -> Float[Array, "batch length *features"]:
    """The inverse of `tokens_last`."""
    x = jnp.moveaxis(x, -1, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
