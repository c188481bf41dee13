"""Scores and weights with which a token reads its memories (eqs. 9, 10, 16 and 17)."""

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.options import Options
from mc_jax.typing import Array, Bool, Float, Int


def gate_logits(
    options: Options,
    u: Array | None,
    q: Float[Array, "tokens head_dim"],
    own: Float[Array, "tokens head_dim"] | None,
    descriptors: Float[Array, "memories head_dim"] | None,
    distance: Int[Array, " memories"],
) -> tuple[Float[Array, " tokens"], Float[Array, "tokens memories"]]:
    """Scores of the online and of the cached memories for tokens of one segment.

    Args:
      options: static options, with a gate.
      u: what the gate asks for: router queries [tokens, head_dim], a temperature [] or None, or
        scores by distance [tokens, distances].
      q: queries.
      own: causal mean of the own segment's keys, the online memory's descriptor.
      descriptors: mean keys of the cached segments.
      distance: how far back each memory lies, >= 1.
    """
    if options.gate == "position":
        scores = u.astype(jnp.promote_types(u.dtype, jnp.float32))
        return scores[:, 0], scores[:, jnp.minimum(distance, u.shape[1] - 1)]
    dtype = own.dtype
    router = u if options.gate == "context" else q
    router = router.astype(dtype)
    if options.gate == "shared_query" and u is not None:
        router = router * u.astype(dtype)
    return jnp.sum(router * own, -1), router @ descriptors.T


def gate_weights(
    options: Options,
    online: Float[Array, " tokens"],
    cached: Float[Array, "tokens memories"],
    visible: Bool[Array, " memories"],
) -> tuple[Float[Array, " tokens"], Float[Array, "tokens memories"]]:
    """Softmax over the online and the visible cached memories; for ssc over the selected ones."""
    cached = jnp.where(visible, cached, -jnp.inf)
    memories = cached.shape[-1]
    if options.aggregation == "ssc" and options.top_k < memories:
        _, best = lax.top_k(cached, options.top_k)
        selected = jnp.any(best[..., None] == jnp.arange(memories), -2)
        cached = jnp.where(selected, cached, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([online[..., None], cached], -1))
    return weights[..., 0], weights[..., 1:]
