"""The read of matrix memories as the paper writes it (eqs. 7, 9 and 17)."""

import jax.numpy as jnp

from mc_jax.kernels.gates import Router, Scores, read_gates, visible_memories
from mc_jax.typing import Array, Float, Int


def reference(
    q: Float[Array, "in tokens"],
    weights: Float[Array, "memories out in"],
    router: Router | Scores | None,
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int | None,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """`y_t = sum_i gate_ti W_i q_t`, every read by itself."""
    visible = visible_memories(weights.shape[0], q.shape[1], segment_len, first_segment)
    own, gate = read_gates(router, visible, top_k, q.dtype)
    # A memory that nobody sees may hold anything.
    weights = jnp.where(jnp.any(visible, 1)[:, None, None], weights, 0)
    reads = jnp.einsum("noi,it->not", weights.astype(gate.dtype), q.astype(gate.dtype))
    return jnp.einsum("nt,not->ot", gate, reads).astype(q.dtype), own
