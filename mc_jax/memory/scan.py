"""Compressing tokens chunk after chunk, for one head of one sequence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.memory.chunk import Chunk, EndCoefficients, Factors
from mc_jax.memory.rule import Rule, State, chunk_step, select
from mc_jax.typing import Array


class Inputs(NamedTuple):
    """What is compressed, leading axes [segments, chunks].

    Attributes:
      end: coefficients of each chunk's end.
      k: keys [..., head_dim, chunk].
      v: values [..., head_dim, chunk].
      complete: whether a chunk's last token is there.
    """

    end: EndCoefficients
    k: Array
    v: Array
    complete: Array


class Written(NamedTuple):
    """What compressing a run of segments gives.

    Attributes:
      ends: state at the end of each segment.
      chunks: for reading the online memory, leading axes [segments, chunks].
      final: state with which the sequence goes on.
    """

    ends: State
    chunks: Chunk
    final: State


def scan_segments(
    rule: Rule,
    params: Any,
    state: State,
    inputs: Inputs,
    resets: Array | None = None,
    initial: State | None = None,
) -> Written:
    """Compress segments one after the other; after one with `resets` start from `initial`.

    One loop over the chunks of all segments: loops in loops would copy what they stack twice.
    """
    segments, chunks = inputs.complete.shape

    # Rematerialised: stacking what a backward pass needs costs more than computing it again.
    @jax.checkpoint
    def chunk(state: State, x: Inputs) -> tuple[State, Factors]:
        return chunk_step(rule, params, state, x.end, x.k, x.v, x.complete)

    def step(state: State, x: tuple[Inputs, Array | None]) -> tuple[State, Any]:
        end, factors = chunk(state, x[0])
        if x[1] is None:
            return end, (state, factors, None)
        return select(x[1], initial, end), (state, factors, end)

    if resets is not None:
        last = jnp.arange(chunks) == chunks - 1
        resets = (resets[:, None] & last).reshape(-1)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
    once = segments * chunks == 1  # a loop would copy what it stacks
    final, (starts, factors, ends) = lax.scan(step, state, (flat, resets), unroll=once)
    if ends is None:
        # Where nothing is reset, a segment ends where the next one starts.
        ends = jax.tree.map(
            lambda x, last: jnp.concatenate([x[chunks::chunks], last[None]]), starts, final
        )
    else:
        ends = jax.tree.map(lambda x: x[chunks - 1 :: chunks], ends)
    written = Chunk(starts.weights, starts.momentum, factors)
    written = jax.tree.map(lambda x: x.reshape(segments, chunks, *x.shape[1:]), written)
    return Written(ends, written, final)


def scan_apart(rule: Rule, params: Any, starts: State, inputs: Inputs) -> Written:
    """Compress segments side by side, each from its own state.

    Args:
      rule: update rule.
      params: its learned parts.
      starts: state at the start of each segment, leaves [segments, ...].
      inputs: what is compressed.

    Returns:
      As `scan_segments`; `final` is the state after each segment [segments, ...].
    """
    one_each = jax.tree.map(lambda x: x[:, None], inputs)
    written = jax.vmap(lambda s, x: scan_segments(rule, params, s, x))(starts, one_each)
    ends, chunks = jax.tree.map(lambda x: x[:, 0], (written.ends, written.chunks))
    return Written(ends, chunks, written.final)
