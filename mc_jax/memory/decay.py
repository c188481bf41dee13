"""Products of per-token decays, taken in log space."""

import jax.numpy as jnp

from mc_jax.typing import Array, Float


def log_decay(gate: Array, valid: Array, dtype: jnp.dtype) -> Array:
    """Logarithm of a retention gate in (0, 1]; 0 (no decay) where a token is padding.

    A gate that underflowed to 0 is read as the smallest positive number, so that differences of
    its cumulative sums stay finite.
    """
    gate = jnp.maximum(gate.astype(dtype), jnp.finfo(dtype).tiny)
    return jnp.where(valid, jnp.log(gate), 0)


def decay_products(
    log_gate: Float[Array, " chunk"],
) -> tuple[Float[Array, " chunk"], Float[Array, "chunk chunk"]]:
    """Cumulative decays of a chunk.

    Returns:
      `A[t]`, the product of gates 0..t, and `P[i, t]`, the product of gates i+1..t for t >= i
      and 0 below the diagonal.
    """
    total = jnp.cumsum(log_gate)
    causal = jnp.triu(jnp.ones((log_gate.shape[0],) * 2, bool))
    # Masked before exp: below the diagonal exp would overflow and its gradient be NaN.
    return jnp.exp(total), jnp.exp(jnp.where(causal, total - total[:, None], -jnp.inf))
