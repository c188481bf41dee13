"""The write as the project's rules spell it: chunk after chunk, one head at a time."""

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.writing.types import Sequence, Written
from mc_jax.memory.chunk import Chunk, online_linear
from mc_jax.memory.network import DeepParams, accumulator
from mc_jax.memory.rule import Rule, State, chunk_step
from mc_jax.typing import Array


def reference(
    rule: Rule,
    params: DeepParams | None,
    sequence: Sequence,
    segment_len: int,
    chunk_len: int,
    independent: bool,
) -> Written:
    """See `write`, for one head: segments one after the other."""
    length, head_dim = sequence.q.shape
    initial = rule.initial_state(params, head_dim, sequence.window, accumulator(sequence.k.dtype))
    state, features, ends = initial, [], []
    for first in range(0, length, segment_len):
        if independent:
            state = initial
        segment = jax.tree.map(lambda x, s=first: x[..., s : s + segment_len], _by_token(sequence))
        state, read = _segment(rule, params, state, segment, chunk_len)
        features.append(read)
        ends.append(State(state.weights, log_decay=state.log_decay))
    if independent and length % segment_len == 0:
        state = initial
    return Written(
        jnp.concatenate(features, 1).T.astype(sequence.q.dtype),
        jax.tree.map(lambda *x: jnp.stack(x), *ends),
        state,
    )


def _by_token(sequence: Sequence) -> Sequence:
    """Tokens on the last axis, as the project's functions have them."""
    q, k, v, steps = sequence
    return Sequence(q.T, k.T, v.T, steps)


def _segment(rule, params, state, segment, chunk_len) -> tuple[State, Array]:
    """State after a segment and its tokens' features [head_dim, tokens]."""
    length = segment.q.shape[-1]
    chunks = -(-length // chunk_len)

    def chunked(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, chunks * chunk_len - length)])
        return jnp.moveaxis(x.reshape(*x.shape[:-1], chunks, chunk_len), -2, 0)

    def step(state: State, x: tuple[Sequence, Array]) -> tuple[State, Array]:
        (q, k, v, steps), complete = x
        coefficients, end = rule.coefficients(steps)
        after, factors = chunk_step(rule, params, state, end, k, v, complete)
        chunk = Chunk(state.weights, state.momentum, factors)
        linear = online_linear(chunk, coefficients, k.dtype)
        return after, rule.network.features(linear, q)

    complete = jnp.arange(1, chunks + 1) * chunk_len <= length
    state, features = lax.scan(step, state, (jax.tree.map(chunked, segment), complete))
    return state, jnp.moveaxis(features, 0, 1).reshape(-1, chunks * chunk_len)[:, :length]
