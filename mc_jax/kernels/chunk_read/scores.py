"""Scores of the online memory on a GPU: Pallas kernels that lower through Triton.

The online memory's descriptor is the mean of its segment's keys up to the token. XLA would write
one for each token, in float32; here the sums stay in registers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.kernels.chunk_read.triton import TOKENS, Call, by_block, causal
from mc_jax.kernels.tiles import contract
from mc_jax.typing import Array, Float

F32 = jnp.float32


def segment_scores(
    u: Float[Array, "tokens head_dim"],
    k: Float[Array, "tokens head_dim"],
    segment_len: int,
    interpret: bool = False,
) -> Float[Array, " tokens"]:
    """`<u_t, sum_{j <= t} k_j>` over the keys of each token's own segment, for one head; float32.

    Args:
      u: router queries, whole segments of them; read in the type of `k`.
      k: keys.
      segment_len: tokens of a segment, as `chunk_read` takes those of a chunk.
      interpret: run the kernels' steps on any device.
    """
    return _scores(Call(segment_len, min(segment_len, TOKENS), interpret), u.astype(k.dtype), k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(call: Call, u: Array, k: Array) -> Array:
    line = jax.ShapeDtypeStruct(u.shape[:1], F32)
    return by_block(_score, call, (u,), (k,), None, (line,))[0]


def _scores_forward(call: Call, u: Array, k: Array) -> tuple[Array, Any]:
    return _scores(call, u, k), (u, k)


def _scores_backward(call: Call, inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    u, k = inputs
    (du,) = by_block(_score_queries, call, (dy,), (k,), None, (u,))
    (dk,) = by_block(_score_keys, call, (), (u, dy), None, (k,))
    return du, dk


_scores.defvjp(_scores_forward, _scores_backward)


def _score(block: int, u: Any, k: Any, y: Any) -> None:
    mine, queries = pl.program_id(1), u[...]

    def add(b: Array, total: Array) -> Array:
        scores = contract(queries, k[pl.ds(b * block, block), :], (1, 1))
        return total + jnp.sum(jnp.where(causal(mine, b, block), scores, 0), 1)

    y[...] = lax.fori_loop(0, mine + 1, add, jnp.zeros(block, F32))


def _score_queries(block: int, dy: Any, k: Any, du: Any) -> None:
    """`du_t = dy_t sum_{j <= t} k_j`."""
    mine = pl.program_id(1)

    def add(b: Array, total: Array) -> Array:
        ones = causal(mine, b, block).astype(k.dtype)
        return total + contract(ones, k[pl.ds(b * block, block), :], (1, 0))

    total = lax.fori_loop(0, mine + 1, add, jnp.zeros(du.shape, F32))
    du[...] = (dy[...][:, None] * total).astype(du.dtype)


def _score_keys(block: int, u: Any, dy: Any, dk: Any) -> None:
    """`dk_j = sum_{t >= j} dy_t u_t`."""
    mine = pl.program_id(1)

    def add(b: Array, total: Array) -> Array:
        rows = pl.ds(b * block, block)
        weights = jnp.where(causal(b, mine, block), dy[rows][:, None], 0).astype(u.dtype)
        return total + contract(weights, u[rows, :], (0, 0))

    blocks = u.shape[0] // block
    dk[...] = lax.fori_loop(mine, blocks, add, jnp.zeros(dk.shape, F32)).astype(dk.dtype)
