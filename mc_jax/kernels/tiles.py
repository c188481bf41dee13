"""Small things that the kernels share: products, rows of a scratch array, groups, sizes."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.typing import Array

LANES = 128


def contract(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Product of two matrices over axis `axes[0]` of a and `axes[1]` of b, in float32.

    Float32 operands are not rounded to bfloat16, as a TPU would by default.
    """
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a,
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def row(ref: Any, index: Array) -> Array:
    """Row `index` of a float32 array in VMEM, [1, lanes]."""
    return ref[pl.ds(index, 1), :]


def each_group(count: Array, most: int, each: Callable[[Array, int], None]) -> None:
    """Cover 0..count-1 by runs of `most`, a power of two, and its halves: `each(start, size)`."""

    @pl.loop(0, lax.div(count, most))
    def _(i: Array) -> None:
        each(i * most, most)

    size = most // 2
    while size:
        done = lax.div(count, 2 * size) * (2 * size)

        @pl.when(count - done >= size)
        def _(done: Array = done, size: int = size) -> None:
            each(done, size)

        size //= 2


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple
