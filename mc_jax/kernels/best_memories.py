"""The memories that a token's router scores best, and the gradients of their logits.

On a CPU a tile of tokens at a time is scored against all memories, and neither the logits of all
memories nor their gradients are ever arrays in memory: of the gradients few are not 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.chips import on_cpu
from mc_jax.kernels.in_place import scan_tiles
from mc_jax.typing import Array, Bool, Float, Int

# Most logits that are looked for one after another on a CPU, many tokens at once: `lax.top_k`, a
# token at a time there, takes three times as long for 4 of 128 and eighteen for 4 of 8.
MOST_ROUNDS = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def best_memories(
    top_k: int,
    u: Float[Array, "head_dim tokens"],
    descriptors: Float[Array, "memories head_dim"],
    visible: Bool[Array, "memories tokens"],
) -> tuple[Float[Array, "top_k tokens"], Int[Array, "top_k tokens"]]:
    """The `top_k` highest of the logits `<u_t, descriptors_i>`, and whose they are.

    A token that sees fewer has -inf and memory number `memories` for the rest; of equal logits the
    older memory's comes first.
    """

    def tile(_: None, u: Array, visible: Array) -> tuple[None, list[Array]]:
        logits = jnp.where(visible, descriptors @ u.astype(descriptors.dtype), -jnp.inf)
        best, memory = largest(logits, top_k)
        # One that is not a number is selected, and shows in what the token reads.
        return None, [best, jnp.where(best == -jnp.inf, descriptors.shape[0], memory)]

    _, (best, memory) = scan_tiles(tile, None, u, visible)
    return best, memory


def _forward(
    top_k: int, u: Array, descriptors: Array, visible: Array
) -> tuple[tuple[Array, Array], tuple]:
    best, memory = best_memories(top_k, u, descriptors, visible)
    return (best, memory), (u, descriptors, memory)


def _backward(top_k: int, saved: tuple, cotangents: tuple[Array, Array]) -> tuple:
    u, descriptors, memory = saved
    every = jnp.arange(descriptors.shape[0])[:, None]

    def tile(total: Array, u: Array, memory: Array, of_best: Array) -> tuple[Array, list[Array]]:
        of_logits = jnp.zeros((descriptors.shape[0], u.shape[1]), of_best.dtype)
        for m, of_m in zip(memory, of_best, strict=True):
            of_logits = jnp.where(every == m, of_m, of_logits)
        of_u = (descriptors.T @ of_logits).astype(u.dtype)
        return total + of_logits @ u.T.astype(descriptors.dtype), [of_u]

    arrays = u, memory, cotangents[0]
    of_descriptors, (of_u,) = scan_tiles(tile, jnp.zeros_like(descriptors), *arrays)
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
