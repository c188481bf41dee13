"""The memories that a token's router scores best, and the gradients of their logits.

On a CPU a tile of tokens at a time is scored against the memories that it may see, and neither the
logits of all memories nor their gradients are ever arrays in memory: of the gradients few are not
0.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.kernels.causal_tiles import seen_memories
from mc_jax.kernels.in_place import scan_runs
from mc_jax.kernels.scores import score
from mc_jax.typing import Array, Bool, Float, Int

# Most logits that are looked for one after another on a CPU, many tokens at once: `lax.top_k`, a
# token at a time there, takes three times as long for 4 of 128 and eighteen for 4 of 8.
MOST_ROUNDS = 8
# Runs of tiles that are scored against the same memories, those that the run's last token sees.
RUNS = 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def best_memories(
    top_k: int,
    u: Float[Array, "head_dim tokens"],
    descriptors: Float[Array, "memories head_dim"],
    visible: Bool[Array, "memories tokens"],
    segment_len: int | None = None,
) -> tuple[Float[Array, "top_k tokens"], Int[Array, "top_k tokens"]]:
    """The `top_k` highest of the logits `<u_t, descriptors_i>`, and whose they are.

    A token that sees fewer has -inf and memory number `memories` for the rest; of equal logits the
    older memory's comes first.

    Args:
      top_k: how many.
      u: router queries.
      descriptors: of the memories.
      visible: which memories a token sees.
      segment_len: tokens of a segment, where the first of these tokens is that of a sequence, and
        none sees memories of its own segment or a later one: earlier tokens are then scored against
        fewer memories.
    """
    memories = descriptors.shape[0]

    def step(seen: int) -> Callable:
        # One that is not a number is selected, and shows in what the token reads.
        def tile(_: None, u: Array, visible: Array) -> tuple[None, list[Array]]:
            logits = score("md,dt->mt", descriptors[:seen], u)
            best, memory = largest(jnp.where(visible[:seen], logits, -jnp.inf), top_k)
            return None, [best, jnp.where(best == -jnp.inf, memories, memory)]

        return tile

    _, (best, memory) = _scan(step, memories, top_k, segment_len, None, u, visible)
    return best, memory


def _scan(
    step: Callable[[int], Callable],
    memories: int,
    top_k: int,
    segment_len: int | None,
    carry: Any,
    *columns: Array,
) -> tuple[Any, list[Array]]:
    """`scan_runs`, with `step` of how many memories the tokens before a run's end may see."""

    def step_until(tokens: int) -> Callable:
        if segment_len is None:
            return step(memories)
        seen, _ = seen_memories(memories, tokens, segment_len, 0)
        # There are as many as are looked for.
        return step(max(seen, min(top_k, memories)))

    return scan_runs(step_until, RUNS if segment_len else 1, carry, *columns)


def _forward(
    top_k: int, u: Array, descriptors: Array, visible: Array, segment_len: int | None
) -> tuple[tuple[Array, Array], tuple]:
    best, memory = best_memories(top_k, u, descriptors, visible, segment_len)
    return (best, memory), (u, descriptors, memory)


def _backward(
    top_k: int, segment_len: int | None, saved: tuple, cotangents: tuple[Array, Array]
) -> tuple:
    u, descriptors, memory = saved

    def step(seen: int) -> Callable:
        every = jnp.arange(seen)[:, None]

        def tile(
            total: Array, u: Array, memory: Array, of_best: Array
        ) -> tuple[Array, list[Array]]:
            of_logits = jnp.zeros((seen, u.shape[1]), of_best.dtype)
            for m, of_m in zip(memory, of_best, strict=True):
                of_logits = jnp.where(every == m, of_m, of_logits)
            of_u = (descriptors[:seen].T @ of_logits).astype(u.dtype)
            return total.at[:seen].add(of_logits @ u.T.astype(descriptors.dtype)), [of_u]

        return tile

    facts = len(descriptors), top_k, segment_len
    arrays = u, memory, cotangents[0]
    of_descriptors, (of_u,) = _scan(step, *facts, jnp.zeros_like(descriptors), *arrays)
    return of_u, of_descriptors, None


best_memories.defvjp(_forward, _backward)


def largest(
    logits: Float[Array, "memories tokens"], top_k: int
) -> tuple[Float[Array, "top_k tokens"], Int[Array, "top_k tokens"]]:
    """As `lax.top_k` over the first axis, without a gradient: the highest and their indices.

    What is not a number comes before all others.

    Where fewer are above -inf, the rest are -inf, with any index.
    """
    logits = lax.stop_gradient(logits)
    if top_k > MOST_ROUNDS or not on_cpu():
        best, index = lax.top_k(logits.T, top_k)
        return best.T, index.T
    every = lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    values: list[Array] = []
    indices: list[Array] = []
    left = logits
    for _ in range(top_k):
        value = jnp.max(left, 0, keepdims=True)
        is_it = (left == value) | jnp.isnan(left)
        index = jnp.min(jnp.where(is_it, every, every.shape[0]), 0, keepdims=True)
        values, indices = [*values, value], [*indices, index]
        left = jnp.where(every == index, -jnp.inf, left)
    return jnp.concatenate(values), jnp.concatenate(indices)
