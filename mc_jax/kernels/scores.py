"""The product that memories are scored by, as exact on every device: what it selects depends on it.

The matrix units of a TPU or a GPU would round what is in float32, a training pass by other products
than a decoder.
"""

import jax.numpy as jnp
from jax import lax

from mc_jax.typing import Array


def score(equation: str, descriptors: Array, u: Array) -> Array:
    """`jnp.einsum` of descriptors and router queries, in the type of the descriptors."""
    u = u.astype(descriptors.dtype)
    return jnp.einsum(equation, descriptors, u, precision=lax.Precision.HIGHEST)
