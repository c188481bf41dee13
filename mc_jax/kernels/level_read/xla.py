"""The read of levels without kernels: by segment, and as the equation has it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mc_jax.memory.network import accumulator, matmul
from mc_jax.typing import Array, Float


def xla(
    x: Float[Array, "in tokens"],
    weights: Sequence[Float[Array, "segments out in"]],
    gate: Float[Array, "levels tokens"],
) -> Float[Array, "out tokens"]:
    """See `level_read`; a level after another, so that one is in memory at a time."""

    @jax.checkpoint
    def level(weights: Array) -> Array:
        by_segment = x.reshape(x.shape[0], weights.shape[0], -1)
        read = jax.vmap(lambda w, x: matmul(w, x, x.dtype), in_axes=(0, 1), out_axes=1)
        return read(weights, by_segment).reshape(-1, x.shape[1])

    return sum(g * level(w) for g, w in zip(gate, weights, strict=True))


def reference(
    x: Float[Array, "in tokens"],
    weights: Sequence[Float[Array, "segments out in"]],
    gate: Float[Array, "levels tokens"],
) -> Float[Array, "out tokens"]:
    """See `level_read`; a matrix for every token."""
    tokens, dtype = x.shape[1], accumulator(x.dtype)
    segment = jnp.arange(tokens) // (tokens // weights[0].shape[0])
    mixed = sum(
        g[:, None, None] * w.astype(dtype)[segment] for g, w in zip(gate, weights, strict=True)
    )
    return jnp.einsum("toi,it->ot", mixed, x.astype(dtype), precision="highest")
