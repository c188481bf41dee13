"""What a write of MLP memories takes and gives."""

from typing import NamedTuple

from mc_jax.memory.deep import Steps
from mc_jax.memory.network import MlpWeights
from mc_jax.memory.rule import State
from mc_jax.typing import Array, Float


class Sequence(NamedTuple):
    """A fresh sequence of every head.

    Attributes:
      q: queries.
      k: keys.
      v: values.
      steps: gates, leaves [heads, length], as `DeepRule.prepare` makes them.
    """

    q: Float[Array, "heads length head_dim"]
    k: Float[Array, "heads length head_dim"]
    v: Float[Array, "heads length head_dim"]
    steps: Steps


class Written(NamedTuple):
    """What compressing a sequence gives.

    Attributes:
      features: `MlpNetwork.features` of every query, read from its token's own weights.
      ends: weights at the end of every segment, leaves [heads, segments, ...].
      final: state with which the sequence goes on, leaves [heads, ...], float32. Where segments
        are independent and the last one is full, that is the initial state.
    """

    features: Float[Array, "heads length head_dim"]
    ends: MlpWeights
    final: State
