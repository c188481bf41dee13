"""The read of chosen memories as the equation has it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float, Int


def reference(
    read: Callable[[Any, Array], Array],
    x: Float[Array, "in tokens"],
    weights: Any,
    memory: Int[Array, "reads blocks"],
    gate: Float[Array, "reads tokens"],
) -> Float[Array, "out tokens"]:
    """See `block_read`; every memory is read by every token.

    Args:
      read: outputs of one memory for inputs.
      x: inputs.
      weights: leaves [memories, ...].
      memory: those that each block has chosen.
      gate: their weights.
    """
    dtype, tokens = accumulator(x.dtype), x.shape[1]
    memories = jax.tree.leaves(weights)[0].shape[0]
    by_token = jnp.repeat(memory, tokens // memory.shape[1], 1)
    chosen = by_token[:, None] == jnp.arange(memories)[:, None]
    weight = jnp.sum(jnp.where(chosen, gate[:, None], 0), 0).astype(dtype)
    # A memory that nobody reads may hold anything.
    there = jnp.any(chosen, (0, 2))[:, None, None]
    weights = jax.tree.map(lambda w: jnp.where(there, w, 0), weights)
    reads = jax.vmap(lambda memory: read(memory, x))(weights)
    return jnp.einsum("nt,not->ot", weight, reads.astype(dtype), precision="highest")
