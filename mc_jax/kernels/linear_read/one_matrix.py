"""One matrix memory in XLA: its read and the read's gradients, of columns and of rows."""

import jax.numpy as jnp

from mc_jax.kernels.columns import row_sums, tile_sums
from mc_jax.memory.network import matmul
from mc_jax.typing import Array, Float


def read_matrix(weights: Float[Array, "out in"], x: Float[Array, "in tokens"]) -> Array:
    """See `Read`."""
    return matmul(weights, x, x.dtype)


def pull_matrix(
    weights: Float[Array, "out in"],
    gate: Float[Array, " tokens"],
    x: Float[Array, "in tokens"],
    cotangent: Float[Array, "out tokens"],
) -> tuple[Array, Array, Array]:
    """See `Pull`: one product serves gates and inputs, since reads are linear in the inputs."""
    through = matmul(weights.T, cotangent, x.dtype)
    return matmul(gate * cotangent, x.T, x.dtype), tile_sums(through * x), gate * through


def read_rows(weights: Float[Array, "out in"], x: Float[Array, "slots in"]) -> Array:
    """See `RowRead`."""
    return matmul(x, weights.T, x.dtype)


def pull_rows(
    weights: Float[Array, "out in"],
    gate: Float[Array, " slots"],
    x: Float[Array, "slots in"],
    cotangent: Float[Array, "slots out"],
) -> tuple[Array, Array, Array]:
    """See `RowRead`; as `pull_matrix`."""
    gates = gate[:, None]
    through = matmul(cotangent, weights, x.dtype)
    of_weights = jnp.einsum(
        "so,si->oi", (gates * cotangent).astype(x.dtype), x, preferred_element_type=through.dtype
    )
    return of_weights, row_sums(through * x), gates * through
