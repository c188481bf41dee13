"""What a write of memories takes and gives."""

from typing import NamedTuple

from mc_jax.errors import InputError
from mc_jax.memory.deep import Steps
from mc_jax.memory.linear import Writes
from mc_jax.memory.rule import State
from mc_jax.typing import Array, Float

WRITE_MODES = ("independent", "checkpoint")


class Sequence(NamedTuple):
    """A fresh sequence of every head.

    Attributes:
      q: queries.
      k: keys.
      v: values.
      steps: gates, leaves [heads, ..., length], as the rule's `prepare` makes them.
    """

    q: Float[Array, "heads length head_dim"]
    k: Float[Array, "heads length head_dim"]
    v: Float[Array, "heads length head_dim"]
    steps: Steps | Writes

    @property
    def window(self) -> int:
        """How many tokens back a token writes again."""
        return self.steps.scale.shape[-2] - 1 if isinstance(self.steps, Writes) else 0


class Written(NamedTuple):
    """What compressing a sequence gives.

    Attributes:
      features: the network's features of every query, read from its token's own weights.
      ends: of the state at the end of every segment what memories are made of, its weights and
        log_decay, leaves [heads, segments, ...].
      final: state with which the sequence goes on, leaves [heads, ...], float32. Where segments
        are independent and the last one is full, that is the initial state. Its window is not
        theirs to say, who see a last chunk filled up.
    """

    features: Float[Array, "heads length head_dim"]
    ends: State
    final: State


def check_write_mode(write_mode: str) -> None:
    """Raise InputError for a mode that no write has."""
    if write_mode not in WRITE_MODES:
        raise InputError("write_mode", write_mode, " | ".join(WRITE_MODES))
