"""Gated sums over memories in XLA, of which a token reads those before its own segment.

A tile of tokens reads one memory after another, and its inputs, gates and outputs stay in a core's
cache meanwhile. How many memories it reads is known only when its turn comes: the loops have no
fixed length, and so derivatives are those written here, in reverse mode.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.kernels.columns import tile_sums
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float, Int

# Fewest tiles of a call that is long enough. A tile reads every memory that its last token sees:
# with eight of them a ninth of the reads are of memories that a token does not see.
TILES = 8
# Tokens of a tile: a shorter one does not pay for the steps of its loop, and on a CPU a longer one
# leaves the cache. Elsewhere steps are dear, and a tile is as long as it can be.
SHORTEST, LONGEST_ON_CPU = 32, 256

# Outputs [out, tokens] of one memory for inputs [in, tokens], each of its own column.
Read = Callable[[Any, Array], Array]
# Gradients of a memory, of its gates and of the inputs, from the memory, its gates, the inputs and
# the gradient of the outputs.
Pull = Callable[[Any, Array, Array, Array], tuple[Any, Array, Array]]


def starts_here(first_segment: Int[Array, ""] | int) -> bool:
    """Whether the first token is known to be that of a sequence."""
    return isinstance(first_segment, int) and first_segment == 0


def seen_memories(
    memories: int, tokens: int, segment_len: int, first_segment: Int[Array, ""] | int
) -> tuple[int, float]:
    """How many of the memories some token may see, and how many a token sees on average."""
    if starts_here(first_segment):
        seen = min(memories, (tokens - 1) // segment_len)
        return seen, seen / 2
    return memories, memories


def sum_over_memories(
    read: Read,
    weights: Any,
    gate: Float[Array, "memories tokens"],
    x: Float[Array, "in tokens"],
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    pull: Pull | None = None,
    longest_on_cpu: int | None = None,
) -> Float[Array, "out tokens"]:
    """`sum_i gate_i read(weights_i, x)`, in the type of the gates.

    Args:
      read: see `Read`.
      weights: leaves [memories, ...]; what no token sees may hold anything.
      gate: weights of the memories' outputs, 0 where a token sees no memory.
      x: inputs.
      segment_len: tokens of a segment.
      first_segment: segment of the first token.
      pull: see `Pull`; None derives it from `read`.
      longest_on_cpu: most tokens of a tile there; None for what stays in a core's cache.
    """
    tokens = x.shape[1]
    longest = (longest_on_cpu or LONGEST_ON_CPU) if on_cpu() else tokens
    # Tokens that come later read more memories that all of a tile see: it may be longer.
    before = first_segment * segment_len if isinstance(first_segment, int) else 0
    tile = min(tokens, max(SHORTEST, min(longest, -(-(2 * before + tokens) // TILES))))
    missing = -tokens % tile
    if missing:
        gate, x = (jnp.pad(a, ((0, 0), (0, missing))) for a in (gate, x))
    loops = _Loops(read, pull or pull_through(read), tile, tokens, segment_len)
    return _sum(loops, weights, gate, x, first_segment)[:, :tokens]


def pull_through(read: Read) -> Pull:
    """The gradients of a read, by differentiating it."""

    def pull(weights: Any, gate: Array, x: Array, cotangent: Array) -> tuple[Any, Array, Array]:
        y, back = jax.vjp(read, weights, x)
        of_weights, of_x = back((gate * cotangent).astype(y.dtype))
        return of_weights, tile_sums(y * cotangent), of_x

    return pull


class _Loops(NamedTuple):
    """What the loops are made of: functions of one memory, and the tiles of a call."""

    read: Read
    pull: Pull
    tile: int
    tokens: int
    segment_len: int

    def over_memories(
        self,
        index: Array,
        memories: int,
        first_segment: Int[Array, ""] | int,
        step: Any,
        start: Any,
    ) -> Any:
        """`lax.fori_loop` over the memories that tokens of a tile see."""
        last_token = jnp.minimum((index + 1) * self.tile, self.tokens) - 1
        seen = jnp.clip(first_segment + last_token // self.segment_len, 0, memories)
        return lax.fori_loop(0, seen, step, start)

    def over_tiles(self, tile: Any, start: Any) -> Any:
        """`lax.fori_loop` over the tiles of all tokens."""
        return lax.fori_loop(0, -(-self.tokens // self.tile), tile, start)

    def cut(self, index: Array, *arrays: Array) -> list[Array]:
        """The columns of one tile."""
        at = index * self.tile
        return [lax.dynamic_slice_in_dim(a, at, self.tile, 1) for a in arrays]

    def put(self, index: Array, array: Array, columns: Array) -> Array:
        """Write a tile's columns."""
        return lax.dynamic_update_slice_in_dim(array, columns, index * self.tile, 1)


def _at(weights: Any, memory: Array) -> Any:
    return jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, memory, 0, keepdims=False), weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(
    loops: _Loops, weights: Any, gate: Array, x: Array, first_segment: Int[Array, ""] | int
) -> Array:
    memories = gate.shape[0]

    def tile(index: Array, y: Array) -> Array:
        gates, inputs = loops.cut(index, gate, x)

        def add(memory: Array, total: Array) -> Array:
            return total + _at(gates, memory) * loops.read(_at(weights, memory), inputs)

        start = jnp.zeros((y.shape[0], inputs.shape[1]), y.dtype)
        return loops.put(index, y, loops.over_memories(index, memories, first_segment, add, start))

    out = jax.eval_shape(loops.read, jax.tree.map(lambda w: w[0], weights), x)
    return loops.over_tiles(tile, jnp.zeros(out.shape, gate.dtype))


def _forward(
    loops: _Loops, weights: Any, gate: Array, x: Array, first_segment: Int[Array, ""] | int
) -> tuple[Array, tuple]:
    return _sum(loops, weights, gate, x, first_segment), (weights, gate, x, first_segment)


def _backward(loops: _Loops, saved: tuple, cotangent: Array) -> tuple:
    weights, gate, x, first_segment = saved
    memories = gate.shape[0]

    def tile(index: Array, gradients: tuple) -> tuple:
        of_weights, of_gate, of_x = gradients
        gates, inputs, of_y = loops.cut(index, gate, x, cotangent)

        def add(memory: Array, gradients: tuple) -> tuple:
            of_weights, of_gates, of_inputs = gradients
            own, of_own, more = loops.pull(_at(weights, memory), _at(gates, memory), inputs, of_y)
            of_weights = jax.tree.map(
                lambda total, a: total.at[memory].add(a.astype(total.dtype)), of_weights, own
            )
            of_gates = lax.dynamic_update_index_in_dim(of_gates, of_own, memory, 0)
            return of_weights, of_gates, of_inputs + more

        start = of_weights, jnp.zeros_like(gates), jnp.zeros(inputs.shape, gate.dtype)
        of_weights, of_gates, of_inputs = loops.over_memories(
            index, memories, first_segment, add, start
        )
        return (
            of_weights,
            loops.put(index, of_gate, of_gates),
            loops.put(index, of_x, of_inputs.astype(x.dtype)),
        )

    sums = jax.tree.map(lambda w: jnp.zeros(w.shape, accumulator(w.dtype)), weights)
    start = sums, jnp.zeros_like(gate), jnp.zeros_like(x)
    sums, of_gate, of_x = loops.over_tiles(tile, start)
    of_weights = jax.tree.map(lambda total, w: total.astype(w.dtype), sums, weights)
    return of_weights, of_gate, of_x, None


_sum.defvjp(_forward, _backward)
