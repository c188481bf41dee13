"""Running sums over the tokens of each segment."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.typing import Array, Float

# The ones of a longer segment would cost more than they spare.
MOST_TOKENS = 1024


def running_sums(
    x: Float[Array, "width segments tokens"], dtype: jnp.dtype
) -> Float[Array, "width segments tokens"]:
    """Sums of a segment's tokens up to each one, in `dtype`.

    On a GPU or a TPU a product with ones, which takes one pass over memory; float32 sums of what is
    bfloat16 are the same either way.
    """
    product = not on_cpu() and x.shape[-1] <= MOST_TOKENS
    return _products(dtype, x) if product else jnp.cumsum(x.astype(dtype), -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(dtype: jnp.dtype, x: Array) -> Array:
    return _summed(x, jnp.tril, dtype)


def _summed(x: Array, part: Callable[[Array], Array], dtype: jnp.dtype) -> Array:
    """Products with the part of a matrix of ones; tokens in rows, as kernels leave them."""
    ones = part(jnp.ones((x.shape[-1],) * 2, x.dtype))
    rows = jnp.moveaxis(x, 0, -1)
    sums = jnp.einsum(
        "tj,sjd->std", ones, rows, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
    )
    return jnp.moveaxis(sums, -1, 0)


def _backward(dtype: jnp.dtype, like: Array, dsums: Array) -> tuple[Array]:
    # In the type of x: a product of float32 would take several times as long.
    return (_summed(dsums.astype(like.dtype), jnp.triu, like.dtype),)


_products.defvjp(lambda dtype, x: (_products(dtype, x), jnp.zeros((), x.dtype)), _backward)
