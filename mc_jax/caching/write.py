"""Compressing the segments of a call, for one head of one sequence.

A segment is a scan over its chunks. Segments that each start afresh are compressed side by side;
in checkpoint mode, and where a bucket began before the call, one after the other in one scan.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.cache import Cache, uses_streams
from mc_jax.caching.options import Options
from mc_jax.caching.segments import Grid
from mc_jax.memory.chunk import Coefficients
from mc_jax.memory.network import DeepParams, accumulator
from mc_jax.memory.rule import Rule, State
from mc_jax.memory.scan import Inputs, Written, scan_apart, scan_segments
from mc_jax.typing import Array


def write_dtype(options: Options, rule: Rule, dtype: jnp.dtype) -> jnp.dtype:
    """The type that keys and values are compressed in, where queries have `dtype`.

    Where rounding grows, bfloat16 is good for the tokens of one segment, over which retention is
    near 1, and no more: after some thousand tokens outputs have little in common with the exact.
    """
    return accumulator(dtype) if rule.amplifies and not options.one_segment_each else dtype


def write_segments(
    rule: Rule,
    grid: Grid,
    params: DeepParams | None,
    k: Array,
    v: Array,
    gates: Any,
    cache: Cache,
) -> tuple[Written, Coefficients, list[Written]]:
    """Compress a call's tokens.

    Args:
      rule: update rule.
      grid: where the tokens lie.
      params: learned parts of the rule.
      k: keys [head_dim, length].
      v: values [head_dim, length].
      gates: the rule's gates, leaves [..., length].
      cache: what came before.

    Returns:
      The segments as the online memory sees them, the coefficients of their chunks and, where
      buckets have to be compressed from their tokens, the streams of level 1, 2, ....
    """
    inputs, coefficients, state, window = _inputs(rule, grid, k, v, gates, cache)
    written = _write(rule, grid, params, inputs, state, cache)
    if window is not None:
        written = written._replace(final=written.final._replace(window=window))
    streams = []
    if uses_streams(rule, grid.options):
        levels = range(1, cache.capacity + 1)
        streams = [_write_stream(rule, grid, params, inputs, cache, level) for level in levels]
    return written, coefficients, streams


def _inputs(
    rule: Rule, grid: Grid, k: Array, v: Array, gates: Any, cache: Cache
) -> tuple[Inputs, Coefficients, State, Any]:
    """Tokens and coefficients on the grid, the state they meet, and the next window."""
    state, dtype = cache.state, accumulator(k.dtype)
    if grid.fresh:
        # Every chunk starts at the state's own weights: spare the scan a copy of them.
        state = state._replace(anchor=None)
    placed = jax.tree.map(grid.place, gates)
    prepared = rule.prepare(placed, grid.valid, dtype)
    prepared = jax.tree.map(grid.chunks_first, prepared)
    coefficients, end = jax.vmap(jax.vmap(rule.coefficients))(prepared)
    window = None
    if state.window is None:
        k, v = grid.place(k), grid.place(v)
    else:
        size = state.window[0].shape[1]
        buffers = [grid.place(x, old) for x, old in zip((k, v), state.window, strict=True)]
        window = tuple(_last(grid, buffer, size).astype(dtype) for buffer in buffers)
        state = state._replace(window=tuple(b[:, :size].astype(dtype) for b in buffers))
        k, v = (buffer[:, size:] for buffer in buffers)
    inputs = Inputs(end, grid.chunks_first(k), grid.chunks_first(v), grid.chunk_complete)
    return inputs, coefficients, state, window


def _last(grid: Grid, buffer: Array, size: int) -> Array:
    """The window after the call: the last tokens, without those of a segment that has ended."""
    last = lax.dynamic_slice_in_dim(buffer, grid.end, size, -1)
    if not grid.options.resets:
        return last
    inside = grid.end - size + jnp.arange(size) >= grid.ended * grid.block_len
    return jnp.where(inside, last, 0)


def _initial(rule: Rule, params: DeepParams | None, state: State) -> State:
    """The initial state in the form of `state`: without an anchor where that has none."""
    weights = jax.tree.leaves(state.weights)[0]
    window = 0 if state.window is None else state.window[0].shape[1]
    initial = rule.initial_state(params, weights.shape[-1], window, weights.dtype)
    return initial._replace(anchor=None) if state.anchor is None else initial


def _with_anchor(grid: Grid, cache: Cache, written: Written, start: int = 0) -> Written:
    """The final state's anchor, which a fresh sequence's scan did not carry.

    Args:
      grid: where the call's tokens lie.
      cache: tells whether the rule has an anchor.
      written: from segment `start` of the call on.
      start: first segment of `written`.
    """
    if not grid.fresh or cache.state.anchor is None:
        return written
    anchor = written.final.weights
    if grid.length % grid.options.chunk_len:
        segment = grid.ended - start
        chunk = grid.length % grid.block_len // grid.options.chunk_len
        anchor = jax.tree.map(lambda w: w[segment, chunk], written.chunks.weights)
    return written._replace(final=written.final._replace(anchor=anchor))


def _write(
    rule: Rule, grid: Grid, params: DeepParams | None, inputs: Inputs, state: State, cache: Cache
) -> Written:
    """Compress the call's segments: in parallel if each starts afresh, else one by one."""
    if not grid.options.resets:
        return _with_anchor(grid, cache, scan_segments(rule, params, state, inputs))
    initial = _initial(rule, params, state)

    def follow(first: Array, other: Array) -> Array:
        others = jnp.broadcast_to(other, (grid.segments - 1, *other.shape))
        return jnp.concatenate([first[None], others])

    starts = jax.tree.map(follow, state, initial)
    written = scan_apart(rule, params, starts, inputs)
    final = jax.tree.map(
        lambda x, i: jnp.concatenate([x, i[None]])[grid.ended], written.ends, initial
    )
    return _with_anchor(grid, cache, written._replace(final=final))


def _write_stream(
    rule: Rule, grid: Grid, params: DeepParams | None, inputs: Inputs, cache: Cache, level: int
) -> Written:
    """Compress the call's tokens into buckets of 2^level segments, each from the initial state."""
    span = 2**level
    if not grid.fresh:
        state = jax.tree.map(lambda x: x[level - 1], cache.streams)
        initial = _initial(rule, params, state)
        resets = grid.segment_complete & ((grid.index + 1) % span == 0)
        return scan_segments(rule, params, state, inputs, resets, initial)
    initial = _initial(rule, params, cache.state._replace(anchor=None))
    whole = grid.ended // span
    parts = []
    if whole:
        side_by_side = jax.tree.map(
            lambda x: x[: whole * span].reshape(whole, span, *x.shape[1:]), inputs
        )
        heads = jax.vmap(lambda x: scan_segments(rule, params, initial, x))(side_by_side)
        parts.append(jax.tree.map(lambda x: x.reshape(whole * span, *x.shape[2:]), heads.ends))
    if whole * span == grid.segments:
        final = initial._replace(anchor=initial.weights)
        return Written(parts[0], None, final)
    rest = jax.tree.map(lambda x: x[whole * span :], inputs)
    tail = _with_anchor(grid, cache, scan_segments(rule, params, initial, rest), start=whole * span)
    ends = jax.tree.map(lambda *x: jnp.concatenate(x), *parts, tail.ends)
    return tail._replace(ends=ends)
