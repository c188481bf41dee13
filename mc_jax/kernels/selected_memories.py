"""Reads of few among many memories in XLA: tokens are grouped by the memory that they read.

Each token reads `top_k` memories, one read a pair of token and memory. Pairs are sorted by memory
into slots, blocks of which read the same memory: as in a mixture of experts without a capacity.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.kernels.causal_tiles import Read, pull_through, seen_memories, starts_here
from mc_jax.kernels.gates import Router, Scores, selected_gates, visible_memories
from mc_jax.kernels.in_place import scan_in_place
from mc_jax.kernels.tiles import round_up
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float, Int

# Slots of a block: as many as keep a product busy; each memory leaves half of one empty.
BLOCK = 128
# Blocks of a step on a CPU: few, which stay in the cache, and enough to be shared by its cores.
AT_ONCE = 4
# Most numbers of memories that a step gathers elsewhere, one memory for each of its blocks.
MOST_GATHERED = 2**22
# Time of a read through a slot, routing included, over that of a read by all tokens, forward and
# backward: on a CPU, with heads of 64, tokens that see 7 memories and read 4 take as long either
# way, and those that see 15 or 31 half as long through slots. Elsewhere the rows of all slots are
# in memory at once.
COST_ON_CPU, COST_ELSEWHERE = 1.6, 3.5


class RowRead(NamedTuple):
    """One memory as slots read it, which are gathered as rows.

    Attributes:
      read: outputs [slots, out] from the memory and inputs [slots, in].
      pull: gradients of the memory, of its gates and of the inputs, from the memory, its gates
        [slots], the inputs and the gradient of the outputs.
    """

    read: Callable[[Any, Array], Array]
    pull: Callable[[Any, Array, Array, Array], tuple[Any, Array, Array]]

    @classmethod
    def of(cls, read: Read) -> "RowRead":
        """Of a read of columns, which is differentiated."""
        pull = pull_through(read)

        def pull_rows(weights: Any, gate: Array, x: Array, of_y: Array) -> tuple:
            of_weights, of_gate, of_x = pull(weights, gate, x.T, of_y.T)
            return of_weights, of_gate, of_x.T

        return cls(lambda weights, x: read(weights, x.T).T, pull_rows)


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


def group(memory: Int[Array, " pairs"], memories: int, at_once: int = 1) -> Groups:
    """Sort pairs into slots.

    Args:
      memory: of each pair; `memories` or more for a pair that reads none.
      memories: how many there are.
      at_once: what the number of blocks is a multiple of.
    """
    pairs = memory.shape[0]
    blocks = round_up(pairs // BLOCK + memories, at_once)
    ordered, pair = _sorted(memory, memories)
    first = jnp.searchsorted(ordered, jnp.arange(memories + 1))
    last_block = jnp.cumsum(-(-jnp.diff(first) // BLOCK))
    first_block = jnp.concatenate([jnp.zeros(1, last_block.dtype), last_block])
    memory_of = jnp.searchsorted(last_block, jnp.arange(blocks), side="right")
    # Where the pairs of a block's memory begin and end, and how many of them lie before the block.
    begin, end = (_take(edges, memory_of, pairs)[:, None] for edges in (first[:-1], first[1:]))
    before = (jnp.arange(blocks) - _take(first_block[:-1], memory_of, 0))[:, None] * BLOCK
    place = begin + before + jnp.arange(BLOCK)
    pair_of = jnp.where(place < end, _take(pair, place, pairs), pairs).reshape(-1)
    slots = jnp.arange(blocks * BLOCK)
    slot_of = jnp.full(pairs, blocks * BLOCK).at[pair_of].set(slots, mode="drop")
    return Groups(slot_of, pair_of, memory_of)


def _sorted(memory: Int[Array, " pairs"], memories: int) -> tuple[Array, Array]:
    """Memories in order, and the pairs they are of; both as one number where that is one.

    Numbers alone are sorted four times as fast as numbers with something beside them.
    """
    pairs, memory = memory.shape[0], jnp.minimum(memory, memories)
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
    cost = COST_ON_CPU if on_cpu() else COST_ELSEWHERE
    return memories > cost * (top_k + empty)


def read_selected(
    memory_read: RowRead,
    weights: Any,
    router: Router | Scores,
    x: Float[Array, "in tokens"],
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """Outputs, mixed of the `top_k` best memories of each token, and the online memory's gates.

    Args:
      memory_read: how a memory is read.
      weights: leaves [memories, ...].
      router: what memories are scored with.
      x: inputs.
      segment_len: tokens of a segment.
      first_segment: segment of the first token, which sees the memories before it.
      top_k: memories that a token reads.
    """
    facts = jax.tree.leaves(weights)[0].shape[0], x.shape[1], segment_len, first_segment
    seen, _ = seen_memories(*facts)
    known = segment_len if starts_here(first_segment) else None
    own, gate, memory = selected_gates(router, visible_memories(*facts), top_k, known)
    at_once = _blocks_at_once(weights, memory.size // BLOCK + seen)
    groups = group(memory.reshape(-1), seen, at_once)
    weights = jax.tree.map(lambda w: w[:seen], weights)
    return _mix((memory_read, at_once), weights, gate, x, groups), own


def _blocks_at_once(weights: Any, blocks: int) -> int:
    """Blocks of a step, of about so many; those of one step each gather their memory."""
    if on_cpu():
        return AT_ONCE
    memory = sum(math.prod(w.shape[1:]) for w in jax.tree.leaves(weights))
    return min(max(MOST_GATHERED // memory, 1), max(blocks, 1))


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    static: tuple[RowRead, int], weights: Any, gate: Array, x: Array, groups: Groups
) -> Float[Array, "out tokens"]:
    memory_read, at_once = static
    rows = x.T

    def step(carry: None, blocks: _Blocks) -> tuple[None, None, Array]:
        chosen = jax.tree.map(lambda w: _take(w, blocks.memory), weights)
        outputs = jax.vmap(memory_read.read)(chosen, _take_once(rows, blocks.token))
        return carry, None, blocks.gate[..., None] * outputs

    blocks = _Blocks.of(groups, gate, at_once)
    return _sum_by_token(step, None, blocks, groups.slot_of.reshape(gate.shape))[2]


def _forward(
    static: tuple[RowRead, int], weights: Any, gate: Array, x: Array, groups: Groups
) -> tuple[Array, tuple]:
    return _mix(static, weights, gate, x, groups), (weights, gate, x, groups)


def _backward(static: tuple[RowRead, int], saved: tuple, cotangent: Array) -> tuple:
    memory_read, at_once = static
    weights, gate, x, groups = saved
    # Side by side, so that both are gathered at once.
    rows = jnp.concatenate([x.T, cotangent.T], 1)

    def step(of_weights: Any, blocks: _Blocks) -> tuple[Any, Array, Array]:
        chosen = jax.tree.map(lambda w: _take(w, blocks.memory), weights)
        inputs, of_y = jnp.split(_take(rows, blocks.token), [x.shape[0]], -1)
        arrays = blocks.gate, inputs.astype(x.dtype), of_y.astype(cotangent.dtype)
        of_chosen, of_gate, of_inputs = jax.vmap(memory_read.pull)(chosen, *arrays)
        of_weights = jax.tree.map(
            lambda total, a: total.at[blocks.memory].add(a.astype(total.dtype), mode="drop"),
            of_weights,
            of_chosen,
        )
        return of_weights, of_gate, of_inputs

    sums = jax.tree.map(lambda w: jnp.zeros(w.shape, accumulator(w.dtype)), weights)
    blocks = _Blocks.of(groups, gate, at_once)
    slots = groups.slot_of.reshape(gate.shape)
    sums, of_gate, of_x = _sum_by_token(step, sums, blocks, slots)
    of_weights = jax.tree.map(lambda total, w: total.astype(w.dtype), sums, weights)
    pairs = jnp.zeros(gate.size, of_gate.dtype)
    of_gate = pairs.at[groups.pair_of].set(of_gate.reshape(-1), mode="drop").reshape(gate.shape)
    return of_weights, of_gate, of_x.astype(x.dtype), None


_mix.defvjp(_forward, _backward)


def _sum_by_token(
    step: Callable[[Any, _Blocks], tuple[Any, Any, Array]],
    carry: Any,
    blocks: _Blocks,
    slot_of: Int[Array, "top_k tokens"],
) -> tuple[Any, Any, Float[Array, "width tokens"]]:
    """A scan over blocks, and the sum of the rows that it gives for each token's slots.

    A CPU adds rows where they belong, and never has those of all slots; on other devices, where
    that would be slow or in no fixed order, each token gathers its own.

    Args:
      step: gives the carry, what is stacked, and rows [..., slots, width].
      carry: what the first step takes.
      blocks: what the steps take.
      slot_of: slot of each pair.

    Returns:
      The last carry, what was stacked, and the sums.
    """
    tokens = slot_of.shape[1]
    if not on_cpu():

        def keep(carry: Any, blocks: _Blocks) -> tuple[Any, tuple[Any, Array]]:
            carry, stacked, rows = step(carry, blocks)
            return carry, (stacked, rows)

        carry, (stacked, rows) = scan_in_place(keep, carry, blocks)
        rows = rows.reshape(-1, rows.shape[-1])
        return carry, stacked, jnp.sum(_take(rows, slot_of), 0).T

    def add(state: tuple[Any, Array], blocks: _Blocks) -> tuple[tuple[Any, Array], Any]:
        carry, total = state
        carry, stacked, rows = step(carry, blocks)
        return (carry, total.at[blocks.token].add(rows, mode="drop")), stacked

    first = jax.tree.map(lambda x: x[0], blocks)
    like = jax.eval_shape(lambda: step(carry, first)[2])
    total = jnp.zeros((tokens, like.shape[-1]), like.dtype)
    (carry, total), stacked = scan_in_place(add, (carry, total), blocks)
    return carry, stacked, total.T


def _take(rows: Array, index: Array, fill: Any = 0) -> Array:
    """`rows[index]`, with `fill` where that is out of range."""
    return jnp.take(rows, index, axis=0, mode="fill", fill_value=fill)


def _take_once(rows: Array, index: Int[Array, "..."]) -> Array:
    """`_take(rows, index)`, for a product and nothing else.

    Multiplied by one: XLA on a CPU then gathers what it calculates with, three times as fast as it
    copies rows of this width one after another.
    """
    inside = (index < len(rows))[..., None]
    return jnp.where(inside, jnp.take(rows, index, axis=0, mode="clip") * inside, 0)
