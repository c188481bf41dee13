"""Compressing the chunks of a run of tokens, for one head of one sequence.

A chunk after the other; on a GPU, where every step of a loop waits for kernels to start, matrix
memories take all chunks at once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_gpu
from mc_jax.memory.chunk import Chunk, EndCoefficients, Factors
from mc_jax.memory.network import narrow_matmul
from mc_jax.memory.rule import Rule, State, chunk_step, select
from mc_jax.typing import Array, Float

# Chunks whose states are one product of their writes: its work grows with their square.
SUMMED = 128


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
    if on_gpu() and rule.network.is_linear and resets is None:
        return sum_segments(rule, params, state, inputs)

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
    flat = _flat(inputs)
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
    return Written(ends, _by_segment(written, segments), final)


def _flat(inputs: Inputs) -> Inputs:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)


def _by_segment(chunks: Any, segments: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(segments, -1, *x.shape[1:]), chunks)


def sum_segments(rule: Rule, params: Any, state: State, inputs: Inputs) -> Written:
    """As `scan_segments`, for matrices: their states are decayed sums of what the chunks write."""
    segments, chunks = inputs.complete.shape
    flat = _flat(inputs)
    windows = tuple(
        _windows(old, new) for old, new in zip(state.window, (flat.k, flat.v), strict=True)
    )

    def factors_of(window: Any, k: Array, v: Array) -> Factors:
        return rule.factors(params, state._replace(window=window), k, v)

    before, after = ([x[part] for x in windows] for part in (slice(-1), slice(1, None)))
    factors = jax.vmap(factors_of)(before, flat.k, flat.v)

    def ends_of(name: str, start: Array) -> Array:
        # Tokens in rows, as the kernels of a GPU leave them.
        inputs, delta = (x[name].swapaxes(1, 2) for x in (factors.inputs, factors.delta))
        delta = (delta * -flat.end.grads[..., None]).astype(inputs.dtype)
        writes = narrow_matmul(delta.swapaxes(1, 2), inputs)
        return decayed_sums(flat.end.log_decay, writes, start)

    weights = {name: ends_of(name, start) for name, start in state.weights._asdict().items()}
    log_decay = state.log_decay + jnp.cumsum(flat.end.log_decay)
    ends = State(type(state.weights)(**weights), window=tuple(after), log_decay=log_decay)
    starts = jax.tree.map(
        lambda first, x: jnp.concatenate([first[None], x[:-1]]), state.weights, ends.weights
    )
    return Written(
        jax.tree.map(lambda x: x[chunks - 1 :: chunks], ends),
        _by_segment(Chunk(starts, None, factors), segments),
        jax.tree.map(lambda x: x[-1], ends),
    )


def _windows(
    old: Float[Array, "head_dim window"], new: Float[Array, "chunks head_dim chunk"]
) -> Float[Array, "chunks_and_end head_dim window"]:
    """The last tokens before each chunk, and before what follows the last one."""
    chunks, width, size = new.shape
    tokens = new.swapaxes(0, 1).reshape(width, -1).astype(old.dtype)
    tokens = jnp.concatenate([old, tokens], 1)
    index = jnp.arange(chunks + 1)[:, None] * size + jnp.arange(old.shape[1])
    return jnp.moveaxis(tokens[:, index], 1, 0)


def _decays_between(log_decay: Float[Array, " chunks"]) -> Float[Array, "chunks chunks"]:
    """Products of the decays of j+1..t at [j, t], 0 for j > t.

    Each is a sum of its own: a difference of two running sums would lose what follows a chunk that
    forgets nearly all.
    """
    count = log_decay.shape[0]
    after = jnp.triu(jnp.ones((count, count), bool), 1)
    spans = jnp.cumsum(jnp.where(after, log_decay, 0), 1)
    return jnp.exp(jnp.where(after.T, -jnp.inf, spans))


def decayed_sums(
    log_decay: Float[Array, " chunks"],
    writes: Float[Array, "chunks out in"],
    start: Float[Array, "out in"],
) -> Float[Array, "chunks out in"]:
    """`S_i = a_i S_{i-1} + writes_i`, as products with the decays between two chunks.

    Args:
      log_decay: log a.
      writes: what each chunk adds.
      start: S before the first chunk.
    """
    count = writes.shape[0]
    if count > SUMMED:
        blocks = -(-count // SUMMED)
        pad = [(0, blocks * SUMMED - count)]
        log_decay = jnp.pad(log_decay, pad).reshape(blocks, SUMMED)
        writes = jnp.pad(writes, [*pad, (0, 0), (0, 0)])
        writes = writes.reshape(blocks, SUMMED, *start.shape)
        inside = jax.vmap(decayed_sums, (0, 0, None))(log_decay, writes, jnp.zeros_like(start))
        ends = decayed_sums(jnp.sum(log_decay, 1), inside[:, -1], start)
        starts = jnp.concatenate([start[None], ends[:-1]])
        total = jnp.exp(jnp.cumsum(log_decay, 1))
        sums = inside + total[..., None, None] * starts[:, None]
        return sums.reshape(-1, *start.shape)[:count]
    total, between = jnp.exp(jnp.cumsum(log_decay)), _decays_between(log_decay)
    # States are float32: a GPU would round to TensorFloat-32.
    sums = jnp.einsum("jt,joi->toi", between, writes, precision=lax.Precision.HIGHEST)
    return sums + total[:, None, None] * start


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
