"""Scores and weights with which a token reads its memories (eqs. 9, 10, 16 and 17)."""

from typing import NamedTuple

import jax.numpy as jnp

from mc_jax.caching.options import Options
from mc_jax.kernels.chunk_read import segment_scores
from mc_jax.kernels.columns import inner
from mc_jax.kernels.gates import softmax_gates
from mc_jax.kernels.scores import score
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Bool, Float, Int


class RunningMean(NamedTuple):
    """Causal mean of the own segment's keys, the online memory's descriptor.

    It is left as a sum, which only its products with the router queries are divided for.

    Attributes:
      sums: of the keys up to each token.
      counts: how many they are [tokens].
    """

    sums: Float[Array, "head_dim tokens"]
    counts: Array

    def scores(self, router: Float[Array, "head_dim tokens"]) -> Float[Array, " tokens"]:
        """The online memory's logits."""
        return inner(router, self.sums) / self.counts


class RunningKeys(NamedTuple):
    """The same mean as a GPU's kernel takes it, which writes no sums.

    Attributes:
      keys: of whole segments.
      counts: as above.
      segment_len: tokens of a segment.
    """

    keys: Float[Array, "head_dim tokens"]
    counts: Array
    segment_len: int

    def scores(self, router: Float[Array, "head_dim tokens"]) -> Float[Array, " tokens"]:
        """The online memory's logits; router queries are read in the type of the keys."""
        return segment_scores(router.T, self.keys.T, self.segment_len) / self.counts


def gate_logits(
    options: Options,
    u: Array | None,
    q: Float[Array, "head_dim tokens"],
    own: RunningMean | RunningKeys | None,
    descriptors: Array | None,
    distance: Int[Array, "memories tokens"],
) -> tuple[Float[Array, " tokens"], Float[Array, "memories tokens"]]:
    """Scores of the online and of the cached memories.

    Args:
      options: static options, with a gate.
      u: what the gate asks for: router queries [head_dim, tokens], a temperature [] or None, or
        scores by distance [distances, tokens].
      q: queries.
      own: the online memory's descriptor.
      descriptors: mean keys of the cached segments, [memories, head_dim], or [segments, memories,
        head_dim] where each segment of the tokens sees its own.
      distance: how far back each memory lies, >= 1.
    """
    if options.gate == "position":
        scores = u.astype(jnp.promote_types(u.dtype, jnp.float32))
        return scores[0], jnp.take_along_axis(scores, jnp.minimum(distance, len(scores) - 1), 0)
    router, online = route(options, u, q, own)
    if descriptors.ndim == 2:
        return online, score("md,dt->mt", descriptors, router)
    segments, memories, width = descriptors.shape
    cached = score("snd,dst->nst", descriptors, router.reshape(width, segments, -1))
    return online, cached.reshape(memories, -1)


def route(
    options: Options,
    u: Array | None,
    q: Float[Array, "head_dim tokens"],
    own: RunningMean | RunningKeys,
) -> tuple[Float[Array, "head_dim tokens"], Float[Array, " tokens"]]:
    """Router queries, and with them the logits of the online memory; arguments as above."""
    router = router_queries(options, u, q, accumulator(q.dtype))
    return router, own.scores(router)


def router_queries(
    options: Options, u: Array | None, q: Float[Array, "head_dim tokens"], dtype: jnp.dtype
) -> Float[Array, "head_dim tokens"]:
    """What descriptors are scored with; arguments as above."""
    router = (u if options.gate == "context" else q).astype(dtype)
    if options.gate == "shared_query" and u is not None:
        router = router * u.astype(dtype)
    return router


def gate_weights(
    options: Options,
    online: Float[Array, " tokens"],
    cached: Float[Array, "memories tokens"],
    visible: Bool[Array, "memories tokens"],
    ranked: Float[Array, "memories tokens"] | None = None,
) -> tuple[Float[Array, " tokens"], Float[Array, "memories tokens"]]:
    """Softmax over the online and the visible cached memories; for ssc over the selected ones.

    Those are selected by `ranked` in place of their logits, if that is given.
    """
    return softmax_gates(online, cached, visible, options.selected, ranked)
