"""The read of MLP memories in XLA: one memory at a time, or each by the tokens that chose it."""

import jax
import jax.numpy as jnp

from mc_jax.kernels.causal_tiles import seen_memories, sum_over_memories
from mc_jax.kernels.gates import Router, Scores, read_gates, visible_memories
from mc_jax.kernels.selected_memories import RowRead, read_selected, worth_selecting
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
    seen, on_average = seen_memories(memories, tokens, segment_len, first_segment)

    def read(weights: MlpWeights, x: Array) -> Array:
        return network.features(linear_of(weights, x.dtype), x)

    if router is not None and worth_selecting(top_k, on_average, tokens):
        facts = segment_len, first_segment, top_k
        y, own = read_selected(RowRead.of(read), weights, router, q, *facts)
        return y.astype(q.dtype), own
    visible = visible_memories(memories, tokens, segment_len, first_segment)
    own, gate = read_gates(router, visible, top_k, q.dtype)
    if not seen:
        return jnp.zeros_like(q), own
    weights = jax.tree.map(lambda w: w[:seen], weights)
    y = sum_over_memories(read, weights, gate[:seen], q, segment_len, first_segment)
    return y.astype(q.dtype), own
