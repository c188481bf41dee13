"""The read of MLP memories in XLA: one memory at a time, causal by groups."""

import jax
import jax.numpy as jnp

from mc_jax.kernels.causal_groups import sum_over_memories
from mc_jax.kernels.gates import Router, Scores, read_gates, visible_memories
from mc_jax.memory.network import MlpNetwork, MlpWeights, linear_of
from mc_jax.typing import Array, Float, Int


def xla(
    q: Float[Array, "head_dim tokens"],
    weights: MlpWeights,
    router: Router | Scores | None,
    network: MlpNetwork,
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int | None,
) -> tuple[Float[Array, "head_dim tokens"], Float[Array, " tokens"]]:
    """See `deep_read`."""
    memories, tokens = weights.w1.shape[0], q.shape[1]
    visible = visible_memories(memories, tokens, segment_len, first_segment)
    own, gate = read_gates(router, visible, top_k, q.dtype)
    stride = 0
    if isinstance(first_segment, int) and first_segment == 0:
        stride, memories = segment_len, min(memories, (tokens - 1) // segment_len)
    if not memories:
        return jnp.zeros_like(q), own

    def add(y: Array, memory: tuple[MlpWeights, Array], x: Array) -> Array:
        weights, scale = memory
        return y + scale * network.features(linear_of(weights, x.dtype), x)

    weights, gate = jax.tree.map(lambda a: a[:memories], (weights, gate))
    return sum_over_memories(add, (weights, gate), q, stride).astype(q.dtype), own
