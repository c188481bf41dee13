"""One matrix memory in XLA: its read and the read's gradients."""

from mc_jax.kernels.causal_tiles import column_sums
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
    return matmul(gate * cotangent, x.T, x.dtype), column_sums(through * x), gate * through
