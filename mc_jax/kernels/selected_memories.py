"""Reads of few among many memories in XLA: tokens are grouped by the memory that they read.

Each token reads `top_k` memories, one read a pair of token and memory. Pairs are sorted by memory
into slots, blocks of which read the same memory: as in a mixture of experts without a capacity.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.causal_tiles import Pull, Read, pull_through
from mc_jax.kernels.chips import on_cpu
from mc_jax.kernels.gates import Router, Scores, selected_gates
from mc_jax.kernels.in_place import cut, map_in_place, scan_in_place
from mc_jax.kernels.tiles import round_up
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float, Int

# Slots of a block: as many as keep a product busy; each memory leaves half of one empty.
BLOCK = 128
# Blocks of a step on a CPU: few, which stay in the cache, and enough to be shared by its cores.
AT_ONCE = 4
# Time of a read through a slot, routing included, over that of a read by all tokens, forward and
# backward: on a CPU, with heads of 64, tokens that see 15 memories and read 4 take as long either
# way, and those that see 64 two thirds as long through slots.
COST = 3.5


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
    blocks = round_up(pairs // BLOCK + memories, AT_ONCE)
    ordered, pair = _sorted(memory, memories)
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


def _sorted(memory: Int[Array, " pairs"], memories: int) -> tuple[Array, Array]:
    """Memories in order, and the pairs they are of; both as one number where that is one.

    Numbers alone are sorted four times as fast as numbers with something beside them.
    """
    pairs = memory.shape[0]
    if (memories + 1) * pairs > jnp.iinfo(memory.dtype).max:
        ordered, pair = lax.sort((memory, jnp.arange(pairs)), num_keys=1)
        return ordered, pair
    both = lax.sort(memory * pairs + jnp.arange(pairs, dtype=memory.dtype))
    return both // pairs, both % pairs


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
    read: Read,
    weights: Any,
    router: Router | Scores,
    visible: Array,
    x: Float[Array, "in tokens"],
    top_k: int,
    pull: Pull | None = None,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """Outputs, mixed of the `top_k` best memories of each token, and the online memory's gates.

    Args:
      read: see `Read`.
      weights: leaves [memories, ...]; what no token sees may be left out at the end.
      router: what memories are scored with.
      visible: which memories a token may read [memories, tokens].
      x: inputs.
      top_k: memories that a token reads.
      pull: see `Pull`; None derives it from `read`.
    """
    memories = jax.tree.leaves(weights)[0].shape[0]
    own, gate, memory = selected_gates(router, visible, top_k)
    groups = group(memory.reshape(-1), memories)
    at_once = AT_ONCE if on_cpu() else groups.memory_of.shape[0]
    y = _mix((read, pull or pull_through(read), at_once), weights, gate, x, groups)
    return y, own


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    static: tuple[Read, Pull, int], weights: Any, gate: Array, x: Array, groups: Groups
) -> Float[Array, "out tokens"]:
    read, _, at_once = static
    rows = x.T

    def step(blocks: _Blocks) -> Array:
        chosen = jax.tree.map(lambda w: _take(w, blocks.memory), weights)
        inputs = _take(rows, blocks.token).swapaxes(1, 2)
        return jax.vmap(read)(chosen, inputs).swapaxes(1, 2)

    outputs = map_in_place(step, _Blocks.of(groups, gate, at_once))
    outputs = outputs.reshape(-1, outputs.shape[-1])
    return _sum_of_slots(outputs, groups.slot_of.reshape(gate.shape), gate)


def _forward(
    static: tuple[Read, Pull, int], weights: Any, gate: Array, x: Array, groups: Groups
) -> tuple[Array, tuple]:
    return _mix(static, weights, gate, x, groups), (weights, gate, x, groups)


def _backward(static: tuple[Read, Pull, int], saved: tuple, cotangent: Array) -> tuple:
    _, pull, at_once = static
    weights, gate, x, groups = saved
    rows, of_rows = x.T, cotangent.T

    def step(of_weights: Any, blocks: _Blocks) -> tuple[Any, tuple[Array, Array]]:
        chosen = jax.tree.map(lambda w: _take(w, blocks.memory), weights)
        inputs, of_y = (_take(a, blocks.token).swapaxes(1, 2) for a in (rows, of_rows))
        of_chosen, of_gate, of_inputs = jax.vmap(pull)(chosen, blocks.gate, inputs, of_y)
        of_weights = jax.tree.map(
            lambda total, a: total.at[blocks.memory].add(a.astype(total.dtype), mode="drop"),
            of_weights,
            of_chosen,
        )
        return of_weights, (of_gate, of_inputs.swapaxes(1, 2))

    sums = jax.tree.map(lambda w: jnp.zeros(w.shape, accumulator(w.dtype)), weights)
    sums, (of_gate, of_inputs) = scan_in_place(step, sums, _Blocks.of(groups, gate, at_once))
    of_inputs = of_inputs.reshape(-1, of_inputs.shape[-1])
    slots = groups.slot_of.reshape(gate.shape)
    of_x = _sum_of_slots(of_inputs, slots, jnp.ones_like(gate)).astype(x.dtype)
    of_weights = jax.tree.map(lambda total, w: total.astype(w.dtype), sums, weights)
    return of_weights, _take(of_gate.reshape(-1), slots), of_x, None


_mix.defvjp(_forward, _backward)


class _Blocks(NamedTuple):
    """Blocks of slots: the memory that each reads, and its slots' tokens and gates."""

    memory: Int[Array, " blocks"]
    token: Int[Array, "blocks slots"]
    gate: Float[Array, "blocks slots"]

    @classmethod
    def of(cls, groups: Groups, gate: Float[Array, "top_k tokens"], at_once: int) -> "_Blocks":
        """All blocks, with an axis in front: `at_once` of them a step."""
        pairs, tokens = gate.size, gate.shape[1]
        token = jnp.where(groups.pair_of < pairs, groups.pair_of % tokens, tokens)
        gates = _take(gate.reshape(-1), groups.pair_of)
        return cls(
            groups.memory_of.reshape(-1, at_once),
            token.reshape(-1, at_once, BLOCK),
            gates.reshape(-1, at_once, BLOCK),
        )


def _sum_of_slots(
    rows: Float[Array, "slots width"],
    slot_of: Int[Array, "top_k tokens"],
    scale: Float[Array, "top_k tokens"],
) -> Float[Array, "width tokens"]:
    """`sum_k scale_kt rows[slot_of_kt]`, a tile of tokens at a time.

    With all tokens at once a CPU would gather column by column, in one loop with what follows.
    """

    def tile(parts: tuple[Array, Array]) -> Array:
        return sum(s[:, None] * _take(rows, at) for at, s in zip(*parts, strict=True))

    found = map_in_place(tile, (cut(slot_of), cut(scale)))
    return found.reshape(-1, rows.shape[1])[: slot_of.shape[1]].T


def _take(rows: Array, index: Array) -> Array:
    """`rows[index]`, with zeros where that is out of range."""
    return jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
