"""Products of the matrices of a few heads, inside a kernel.

Arrays are float32 and [heads, rows, columns]. Operands and, in gradients, cotangents are rounded to
the type of the call; sums are float32. Gradients come out the right way round, so that no result
has to be transposed.
"""

import functools

import jax
import jax.numpy as jnp

from mc_jax.kernels.tiles import contract
from mc_jax.typing import Array, Float


def dot(
    a: Float[Array, "heads m k"],
    b: Float[Array, "heads _ _"],
    axis: int,
    dtype: jnp.dtype,
    known: Float[Array, "heads _ n"] | None = None,
) -> Float[Array, "heads m n"]:
    """`a b` for axis 0, with `b` [heads, k, n], and `a bᵀ` for axis 1, with `b` [heads, n, k].

    Args:
      a: left factor.
      b: right factor.
      axis: of `b`, that is summed over.
      dtype: of the operands.
      known: the first rows of the result, for a gradient alone.
    """
    return _dot(a, b, known, axis, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _dot(a, b, known, axis, dtype):
    return _dot_fwd(a, b, known, axis, dtype)[0]


def _dot_fwd(a, b, known, axis, dtype):
    rows = 0 if known is None else known.shape[1]
    operands = a, b = _matrices(a, dtype), _matrices(b, dtype)
    if known is None:
        return _contract(a, b, (1, axis)), operands
    if rows == a[0].shape[0]:
        return known, operands
    rest = _contract([x[rows:] for x in a], b, (1, axis))
    return jnp.concatenate([known, rest], 1), operands


def _dot_bwd(axis, dtype, operands, y):
    (a, b), y = operands, _matrices(y, dtype)
    db = _contract(a, y, (0, 0)) if axis == 0 else _contract(y, a, (0, 0))
    return _contract(y, b, (1, 1 - axis)), db, None


_dot.defvjp(_dot_fwd, _dot_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def outer_sum(
    a: Float[Array, "heads rows m"],
    b: Float[Array, "heads rows n"],
    scale: Float[Array, "heads 1 rows"],
    dtype: jnp.dtype,
) -> Float[Array, "heads m n"]:
    """`sum_t scale_t a_t b_tᵀ` over the rows."""
    return _outer_sum_fwd(a, b, scale, dtype)[0]


def _outer_sum_fwd(a, b, scale, dtype):
    b = _matrices(b, dtype)
    scaled = _matrices(a.swapaxes(1, 2) * scale, dtype)
    return _contract(scaled, b, (1, 0)), (a, b, scale.swapaxes(1, 2))


def _outer_sum_bwd(dtype, operands, y):
    (a, b, scale), y = operands, _matrices(y, dtype)
    da = _contract(b, y, (1, 1))
    dscale = jnp.sum(da * a, 2, keepdims=True).swapaxes(1, 2)
    return scale * da, _contract(_matrices(scale * a, dtype), y, (1, 0)), dscale


outer_sum.defvjp(_outer_sum_fwd, _outer_sum_bwd)


def _matrices(x: Array, dtype: jnp.dtype) -> list[Array]:
    """Each head's matrix in `dtype`.

    Products are taken head by head: the compiler would take apart a bfloat16 array of three axes
    and pack it again.
    """
    return [matrix.astype(dtype) for matrix in x]


def _contract(a: list[Array], b: list[Array], axes: tuple[int, int]) -> Array:
    return jnp.stack([contract(*matrices, axes) for matrices in zip(a, b, strict=True)])
