"""The write as XLA runs it well: one loop writes, and all tokens read at once."""

import jax
import jax.numpy as jnp

from mc_jax.kernels.writing.types import Sequence, Written
from mc_jax.memory.chunk import Chunk, Coefficients, online_linear
from mc_jax.memory.network import DeepParams, accumulator
from mc_jax.memory.rule import Rule, State
from mc_jax.memory.scan import Inputs, scan_apart, scan_segments
from mc_jax.typing import Array


def xla(
    rule: Rule,
    params: DeepParams | None,
    sequence: Sequence,
    segment_len: int,
    chunk_len: int,
    independent: bool,
) -> Written:
    """See `write`, for one head."""
    (length, head_dim), dtype = sequence.q.shape, sequence.k.dtype
    chunks = min(segment_len, -(-length // chunk_len) * chunk_len) // chunk_len
    segments = -(-length // (chunks * chunk_len))

    def placed(x: Array) -> Array:
        """[..., length] as [segments, chunks, ..., chunk_len]."""
        padding = segments * chunks * chunk_len - length
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
        x = x.reshape(*x.shape[:-1], segments, chunks, chunk_len)
        return jnp.moveaxis(x, (-3, -2), (0, 1))

    q, k, v = (placed(x.T) for x in sequence[:3])
    coefficients, end = jax.vmap(jax.vmap(rule.coefficients))(jax.tree.map(placed, sequence.steps))
    complete = placed(jnp.ones(length, bool))[..., -1]
    initial = rule.initial_state(params, head_dim, sequence.window, accumulator(dtype))
    anchored = initial.anchor is not None
    # Every chunk starts at the state's own weights: an anchor would be a copy of them.
    initial = initial._replace(anchor=None)
    inputs = Inputs(end, k, v, complete)
    if independent:
        starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (segments, *x.shape)), initial)
        ends, written, _ = scan_apart(rule, params, starts, inputs)
        final = jax.tree.map(lambda x: x[-1], ends)
    else:
        ends, written, final = scan_segments(rule, params, initial, inputs)

    def read(chunk: Chunk, coefficients: Coefficients, q: Array) -> Array:
        return rule.network.features(online_linear(chunk, coefficients, dtype), q)

    features = jax.vmap(jax.vmap(read))(written, coefficients, q)
    features = jnp.moveaxis(features, 2, 0).reshape(head_dim, -1)[:, :length]
    if independent and length % segment_len == 0:
        final = initial
    features = features.T.astype(sequence.q.dtype)
    ends = State(ends.weights, log_decay=ends.log_decay)
    if not anchored:
        return Written(features, ends, final)
    anchor = final.weights
    if length % chunk_len:
        last = (length - 1) // chunk_len % chunks
        anchor = jax.tree.map(lambda w: w[-1, last], written.weights)
    return Written(features, ends, final._replace(anchor=anchor))
