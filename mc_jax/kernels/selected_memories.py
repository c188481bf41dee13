"""Reads of few among many memories in XLA: tokens are grouped by the memory that they read.

Each token reads `top_k` memories, one read a pair of token and memory. Pairs are sorted by memory
into slots, blocks of which read the same memory: as in a mixture of experts without a capacity.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.gates import Router, Scores, selected_gates
from mc_jax.typing import Array, Float, Int

# Slots of a block: as many as keep a product busy; each memory leaves half of one empty.
BLOCK = 128
# Time of a read through a slot over that of a read by all tokens, forward and backward: measured on
# a CPU at 1.6 to 2.6 for matrices and MLPs, heads of 64 and 128, 31 to 127 memories.
COST = 2.5


class Groups(NamedTuple):
    """Where pairs of token and memory lie; what is out of range stands for none.

    Attributes:
      slot_of: slot of each pair.
      pair_of: pair of each slot.
      memory_of: memory that each block of slots reads.
    """

    slot_of: Int[Array, " pairs"]
    pair_of: Int[Array, " slots"]
    memory_of: Int[Array, " blocks"]


def group(memory: Int[Array, " pairs"], memories: int) -> Groups:
    """Sort pairs into slots.

    Args:
      memory: of each pair; `memories` for a pair that reads none.
      memories: how many there are.
    """
    pairs = memory.shape[0]
    blocks = pairs // BLOCK + memories
    ordered, pair = lax.sort((memory, jnp.arange(pairs)), num_keys=1)
    first = jnp.searchsorted(ordered, jnp.arange(memories + 1))
    last_block = jnp.cumsum(-(-jnp.diff(first) // BLOCK))
    first_block = jnp.concatenate([jnp.zeros(1, last_block.dtype), last_block])
    slot = first_block[ordered] * BLOCK + jnp.arange(pairs) - first[ordered]
    slot = jnp.where(ordered < memories, slot, blocks * BLOCK)
    return Groups(
        slot_of=jnp.zeros(pairs, slot.dtype).at[pair].set(slot, unique_indices=True),
        pair_of=jnp.full(blocks * BLOCK, pairs).at[slot].set(pair, mode="drop"),
        memory_of=jnp.searchsorted(last_block, jnp.arange(blocks), side="right"),
    )


@jax.custom_vjp
def permute(rows: Array, source: Int[Array, " out"], target: Int[Array, " in"]) -> Array:
    """`rows[source]`, with zeros where that is out of range.

    Args:
      rows: what is moved, each to one place at most.
      source: row that comes to each place.
      target: place that each row comes to; the gradient is `cotangent[target]`.
    """
    return _take(rows, source)


def _take(rows: Array, index: Array) -> Array:
    return jnp.take(rows, index, axis=0, mode="fill", fill_value=0)


permute.defvjp(
    lambda rows, source, target: (_take(rows, source), target),
    lambda target, cotangent: (_take(cotangent, target), None, None),
)


def worth_selecting(top_k: int | None, memories: float, tokens: int) -> bool:
    """Whether to read only selected memories rather than all with the weights of most at 0.

    Args:
      top_k: memories that a token reads; None for all.
      memories: that a token sees, on average.
      tokens: of the call.
    """
    if top_k is None:
        return False
    empty = memories * BLOCK / tokens
    return memories > COST * (top_k + empty)


def read_selected(
    read: Callable[[Any, Array], Array],
    weights: Any,
    router: Router | Scores,
    visible: Array,
    x: Float[Array, "in tokens"],
    top_k: int,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """Outputs, mixed of the `top_k` best memories of each token, and the online memory's gates.

    Args:
      read: outputs [out, slots] of one memory for inputs [in, slots].
      weights: leaves [memories, ...]; what no token sees may be left out at the end.
      router: what memories are scored with.
      visible: which memories a token may read [memories, tokens].
      x: inputs.
      top_k: memories that a token reads.
    """
    width, tokens = x.shape
    memories = jax.tree.leaves(weights)[0].shape[0]
    own, gate, memory = selected_gates(router, visible, top_k)
    groups = group(memory.reshape(-1), memories)
    rows = jnp.broadcast_to(x.T, (top_k, tokens, width)).reshape(-1, width)
    slots = permute(rows, groups.pair_of, groups.slot_of).reshape(-1, BLOCK, width)
    # Rematerialised: of an MLP the hidden activations of all slots would be the largest arrays.
    one = jax.checkpoint(lambda w, rows: read(w, rows.T).T)
    by_block = jax.tree.map(lambda w: _take(w, groups.memory_of), weights)
    outputs = jax.vmap(one)(by_block, slots)
    outputs = permute(outputs.reshape(-1, outputs.shape[-1]), groups.slot_of, groups.pair_of)
    outputs = outputs.reshape(top_k, tokens, -1)
    return jnp.einsum("kt,kto->ot", gate, outputs.astype(gate.dtype)), own
