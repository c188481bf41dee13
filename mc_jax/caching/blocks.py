"""Blocks of tokens that read the same memories: their first token selects, each weighs them itself.

All that ssc reads is then known block by block, so that nothing has to be sorted or gathered by
token. The selection is causal, since it takes nothing but the first token's router query.
"""

import jax.numpy as jnp
from jax import lax

from mc_jax.caching.options import Options
from mc_jax.caching.segments import Grid
from mc_jax.kernels.best_memories import best_memories
from mc_jax.kernels.gates import softmax_beside
from mc_jax.kernels.scores import score
from mc_jax.typing import Array, Bool, Float, Int


def leaders(
    grid: Grid, router: Float[Array, "head_dim tokens"], before: Float[Array, " head_dim"]
) -> Float[Array, "head_dim blocks"]:
    """Router queries of the first token of each block.

    Args:
      grid: where a call's tokens lie.
      router: their router queries, in their places.
      before: those of the block in which the call starts, if another call has begun it.
    """
    size = grid.options.route_every
    first = router[:, ::size]
    if grid.fresh:
        return first
    block, begun = grid.offset // size, grid.offset % size > 0
    return first.at[:, block].set(jnp.where(begun, before, first[:, block]))


def last_leader(
    grid: Grid, first: Float[Array, "head_dim blocks"], before: Float[Array, " head_dim"]
) -> Float[Array, " head_dim"]:
    """That of the block of a call's last token; arguments as of `leaders`, which gave `first`."""
    last = first[:, jnp.maximum(grid.end - 1, 0) // grid.options.route_every]
    return jnp.where(grid.end > grid.offset, last, before)


def select(
    options: Options,
    first: Float[Array, "head_dim blocks"],
    descriptors: Float[Array, "memories head_dim"],
    visible: Bool[Array, "memories blocks"],
) -> Int[Array, "reads blocks"]:
    """The memories that blocks read, best first; `memories` where a block sees fewer.

    Args:
      options: static options.
      first: router queries of the blocks' first tokens.
      descriptors: of the cached memories.
      visible: which memories a block sees.
    """
    top_k = min(options.top_k, descriptors.shape[0])
    first, descriptors = lax.stop_gradient((first, descriptors))
    return best_memories(top_k, first, descriptors, visible)[1]


def block_gates(
    router: Float[Array, "head_dim tokens"],
    online: Float[Array, " tokens"],
    descriptors: Float[Array, "memories head_dim"],
    memory: Int[Array, "reads blocks"],
) -> tuple[Float[Array, " tokens"], Float[Array, "reads tokens"]]:
    """Weights of the online memory and of those that a block has selected (eq. 17).

    Args:
      router: router queries.
      online: logits of the online memory.
      descriptors: of the cached memories.
      memory: what blocks have selected.
    """
    reads, blocks = memory.shape
    chosen = jnp.take(descriptors, memory, axis=0, mode="fill", fill_value=0)
    by_block = router.reshape(router.shape[0], blocks, -1)
    logits = score("kbd,dbt->kbt", chosen, by_block)
    logits = jnp.where((memory < descriptors.shape[0])[..., None], logits, -jnp.inf)
    return softmax_beside(online, logits.reshape(reads, -1))
