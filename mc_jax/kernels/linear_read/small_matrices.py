"""The read of many small matrices on a CPU, whose gradients come from few large products.

With `y_t = sum_i gate_it W_i q_t`, matrices as vectors, and `z_t = dy_t q_t'` as a vector, too:

    dgate_it = <W_i, z_t>     dW_i = sum_t gate_it z_t     dq_t = (sum_i gate_it W_i)' dy_t

are three products over all memories for a tile of tokens, where one memory after another takes
three small ones each. The price is a matrix for every token, twice.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.kernels.causal_tiles import sum_over_memories
from mc_jax.kernels.linear_read.one_matrix import read_matrix
from mc_jax.typing import Array, Float

# Most numbers in the matrices of a tile's tokens, measured: they stay in the cache.
TILE_NUMBERS = 2**17
# Wider matrices gain nothing: for each number of z_t there is little work in the products.
WIDEST = 32


def worth_it(memories: int, shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether the gradients are faster so.

    Args:
      memories: how many the last token sees.
      shape: of one of them.
      dtype: type of the queries.
    """
    return on_cpu() and max(shape) <= min(WIDEST, memories) and jnp.finfo(dtype).bits >= 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def read_small_matrices(
    weights: Float[Array, "memories out in"],
    gate: Float[Array, "memories tokens"],
    q: Float[Array, "in tokens"],
    segment_len: int,
    first_segment: int,
) -> Float[Array, "out tokens"]:
    """`sum_i gate_i W_i q`, for tokens of which the last sees all memories.

    Args:
      weights: matrices, all of which are there.
      gate: weights of their outputs, 0 where a token does not see them.
      q: queries.
      segment_len: tokens of a segment.
      first_segment: segment of the first token.
    """
    return sum_over_memories(read_matrix, weights, gate, q, segment_len, first_segment)


def _forward(
    weights: Array, gate: Array, q: Array, segment_len: int, first_segment: int
) -> tuple[Array, tuple]:
    y = read_small_matrices(weights, gate, q, segment_len, first_segment)
    return y, (weights, gate, q)


def _backward(
    segment_len: int, first_segment: int, saved: tuple, dy: Array
) -> tuple[Array, Array, Array]:
    weights, *arrays = saved
    (memories, out, width), tokens = weights.shape, dy.shape[1]
    tiles = -(-tokens // max(1, TILE_NUMBERS // (out * width)))
    tile = -(-tokens // tiles)
    gate, q, dy = (jnp.pad(x, ((0, 0), (0, tiles * tile - tokens))) for x in (*arrays, dy))
    rows = weights.reshape(memories, -1).astype(q.dtype)
    gradients: tuple = tuple(map(jnp.zeros_like, (rows, gate, q)))
    add = functools.partial(_add_tile, rows, gate, q, dy, tile)
    of_rows, of_gate, of_q = lax.fori_loop(0, tiles, add, gradients)
    of_weights = of_rows.reshape(weights.shape).astype(weights.dtype)
    return of_weights, of_gate[:, :tokens], of_q[:, :tokens]


read_small_matrices.defvjp(_forward, _backward)


def _add_tile(
    rows: Array, gate: Array, q: Array, dy: Array, tile: int, index: Array, gradients: tuple
) -> tuple[Array, Array, Array]:
    """Add what a tile makes of gradients of matrices [memories, out * in], gates and queries."""
    of_rows, of_gate, of_q = gradients
    at = index * tile
    gates, inputs, of_y = (lax.dynamic_slice_in_dim(x, at, tile, 1) for x in (gate, q, dy))
    outputs = jnp.repeat(of_y, inputs.shape[0], 0)
    z = outputs * jnp.tile(inputs, (of_y.shape[0], 1))
    down = (rows.T @ gates) * outputs
    return (
        of_rows + gates @ z.T,
        lax.dynamic_update_slice_in_dim(of_gate, rows @ z, at, 1),
        lax.dynamic_update_slice_in_dim(of_q, _sum_outputs(down, inputs), at, 1),
    )


def _sum_outputs(x: Array, like: Array) -> Array:
    """Sums over the outputs of [out * in, tokens], as a product.

    Its other factor is one for each head, made of `like`, though all are the same: XLA would put
    the heads of a product with one array for all side by side, and copy them for it.
    """
    first = like[0, 0]
    one = jnp.where(jnp.isnan(first), 1, jnp.sign(1 + jnp.abs(first)))
    width = like.shape[0]
    eye = jnp.tile(jnp.eye(width, dtype=x.dtype), (1, x.shape[0] // width))
    return jnp.matmul(one * eye, x, precision=lax.Precision.HIGHEST)
