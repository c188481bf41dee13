"""The read of MLP memories as the paper writes it (eqs. 7, 9 and 17)."""

import jax
import jax.numpy as jnp

from mc_jax.kernels.gates import Router, Scores, read_gates, visible_memories
from mc_jax.memory.network import MlpNetwork, MlpWeights, linear_of
from mc_jax.typing import Array, Float, Int


def reference(
    q: Float[Array, "head_dim tokens"],
    weights: MlpWeights,
    router: Router | Scores | None,
    network: MlpNetwork,
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int | None,
) -> tuple[Float[Array, "head_dim tokens"], Float[Array, " tokens"]]:
    """`features_t = sum_i gate_ti f_i(q_t)`, every read by itself."""
    visible = visible_memories(weights.w1.shape[0], q.shape[1], segment_len, first_segment)
    own, gate = read_gates(router, visible, top_k, q.dtype)
    # A memory that nobody sees may hold anything.
    seen = jnp.any(visible, 1)[:, None, None]
    weights = jax.tree.map(lambda w: jnp.where(seen, w, 0), weights)
    reads = jax.vmap(lambda memory: network.features(linear_of(memory, q.dtype), q))(weights)
    return jnp.einsum("nt,ndt->dt", gate, reads).astype(q.dtype), own
