"""The memories that a token's router scores best, and the gradients of their logits.

Gradients reach few of the logits. In a tile of tokens at a time these are put where they belong
among all of them, and an array of the gradients of all logits is never made.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.chips import on_cpu
from mc_jax.typing import Array, Bool, Float, Int

# Tokens of a tile on a CPU, where it then stays in the cache; elsewhere one tile has all.
TILE = 256


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
    # Transposed before anything is done to them, logits come out of their product so.
    logits = (descriptors @ u.astype(descriptors.dtype)).T
    best, memory = lax.top_k(jnp.where(visible.T, logits, -jnp.inf), top_k)
    return best.T, jnp.where(best > -jnp.inf, memory, descriptors.shape[0]).T


def _forward(
    top_k: int, u: Array, descriptors: Array, visible: Array
) -> tuple[tuple[Array, Array], tuple]:
    best, memory = best_memories(top_k, u, descriptors, visible)
    return (best, memory), (u, descriptors, memory)


def _backward(top_k: int, saved: tuple, cotangents: tuple[Array, Array]) -> tuple:
    u, descriptors, memory = saved
    memories, tokens = descriptors.shape[0], u.shape[1]
    size = min(tokens, TILE) if on_cpu() else tokens

    def cut(a: Array, fill: int) -> Array:
        a = jnp.pad(a, ((0, 0), (0, -tokens % size)), constant_values=fill)
        return a.reshape(a.shape[0], -1, size).swapaxes(0, 1)

    def tile(of_descriptors: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        u, memory, of_best = inputs
        every = jnp.arange(memories)[:, None]
        of_logits = sum(
            jnp.where(every == m, of_m, 0) for m, of_m in zip(memory, of_best, strict=True)
        )
        of_u = (descriptors.T @ of_logits).astype(u.dtype)
        return of_descriptors + of_logits @ u.T.astype(descriptors.dtype), of_u

    tiles = cut(u, 0), cut(memory, memories), cut(cotangents[0], 0)
    of_descriptors, of_u = lax.scan(tile, jnp.zeros_like(descriptors), tiles)
    of_u = of_u.swapaxes(0, 1).reshape(u.shape[0], -1)[:, :tokens]
    return of_u, of_descriptors, None


best_memories.defvjp(_forward, _backward)
