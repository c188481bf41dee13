"""The write as XLA runs it well: one loop writes, and all tokens read at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.deep_write.types import Sequence, Written
from mc_jax.memory.chunk import Chunk, EndCoefficients, Factors, online_linear
from mc_jax.memory.deep import DeepRule
from mc_jax.memory.network import DeepParams, accumulator
from mc_jax.memory.rule import State, chunk_step
from mc_jax.typing import Array, Bool, Float


class _Chunks(NamedTuple):
    """What chunks write; leading axes [segments, chunks]."""

    end: EndCoefficients
    k: Float[Array, "head_dim chunk"]
    v: Float[Array, "head_dim chunk"]
    complete: Bool[Array, ""]


def xla(
    rule: DeepRule,
    params: DeepParams,
    sequence: Sequence,
    segment_len: int,
    chunk_len: int,
    independent: bool,
) -> Written:
    """See `deep_write`; ends are float32."""

    def head(params: DeepParams, sequence: Sequence) -> Written:
        return _head(rule, params, sequence, segment_len, chunk_len, independent)

    return jax.vmap(head)(params, sequence)


def _head(rule, params, sequence, segment_len, chunk_len, independent) -> Written:
    """One head."""
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
    # Every chunk starts at the state's own weights: an anchor would be a copy of them.
    initial = rule.initial_state(params, head_dim, 0, accumulator(dtype))._replace(anchor=None)
    states, starts, factors = _write(
        rule, params, initial, _Chunks(end, k, v, complete), independent
    )

    def read(start: State, factors: Factors, coefficients: Any, q: Array) -> Array:
        chunk = Chunk(start.weights, start.momentum, factors)
        return rule.network.features(online_linear(chunk, coefficients, dtype), q)

    features = jax.vmap(jax.vmap(read))(starts, factors, coefficients, q)
    features = jnp.moveaxis(features, 2, 0).reshape(head_dim, -1)[:, :length]
    final = jax.tree.map(lambda x: x[-1], states)
    if independent and length % segment_len == 0:
        final = initial
    anchor = final.weights
    if length % chunk_len:
        last = (length - 1) // chunk_len % chunks
        anchor = jax.tree.map(lambda w: w[-1, last], starts.weights)
    return Written(
        features.T.astype(sequence.q.dtype), states.weights, final._replace(anchor=anchor)
    )


def _write(
    rule: DeepRule, params: DeepParams, initial: State, chunks: _Chunks, independent: bool
) -> tuple[State, State, Factors]:
    """States after every segment [segments], and those before every chunk with its gradients."""

    # Rematerialised: stacking what a backward pass needs costs more than computing it again.
    @jax.checkpoint
    def step(state: State, x: _Chunks) -> tuple[State, tuple[State, Factors]]:
        after, factors = chunk_step(rule, params, state, x.end, x.k, x.v, x.complete)
        return after, (state, factors)

    if independent:
        ends, (starts, factors) = jax.vmap(lambda x: lax.scan(step, initial, x))(chunks)
        return ends, starts, factors
    shape = chunks.complete.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunks)
    last, outputs = lax.scan(step, initial, flat)
    starts, factors = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), outputs)
    # A segment ends where the next one starts.
    ends = jax.tree.map(lambda x, y: jnp.concatenate([x[1:, 0], y[None]]), starts, last)
    return ends, starts, factors
