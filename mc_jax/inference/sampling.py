"""How the next token is drawn from its logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mc_jax.errors import InputError
from mc_jax.typing import Array, Float, Int

# A smaller one is 0 to a CPU or TPU.
_SMALLEST_TEMPERATURE = float(jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which tokens may be drawn, and how their probabilities are bent.

    Attributes:
      temperature: what logits are divided by; 0 always takes the most likely token.
      top_k: how many of the most likely tokens may be drawn; 0 for all.
      top_p: the most likely tokens whose probabilities first add up to this may be drawn; 1 for
        all. It looks at the probabilities after `temperature` and `top_k`.

    Of equally likely tokens the one with the smaller id comes first.

    Raises:
      InputError: a value that is not allowed.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        if not 0 <= self.temperature < math.inf:
            raise InputError("temperature", self.temperature, "a finite number >= 0")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError("top_k", self.top_k, "an integer >= 0")
        if not 0 < self.top_p <= 1:
            raise InputError("top_p", self.top_p, "a number above 0, up to 1")


AS_TRAINED = Sampling()


def draw(
    logits: Float[Array, "batch vocab"], keys: Array, sampling: Sampling
) -> Int[Array, " batch"]:
    """The next token of each sequence; keys are random keys [batch]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1)
    # The largest is 0, so that no temperature, however small, makes an infinity of it.
    below = logits.astype(jnp.float32) - jnp.max(logits, -1, keepdims=True)
    below = below / max(sampling.temperature, _SMALLEST_TEMPERATURE)
    return jax.vmap(jax.random.categorical)(keys, kept(below, sampling))


def kept(logits: Float[Array, "batch vocab"], sampling: Sampling) -> Float[Array, "batch vocab"]:
    """Logits with -inf for the tokens that `top_k` and `top_p` leave out."""
    vocab = logits.shape[-1]
    if 0 < sampling.top_k < vocab:
        _, best = jax.lax.top_k(logits, sampling.top_k)
        logits = _only(logits, best, True)
    if sampling.top_p < 1:
        ordered, best = jax.lax.top_k(logits, vocab)
        probability = jax.nn.softmax(ordered, -1)
        # A token is kept while those before it have not reached the share; the first always is.
        inside = jnp.cumsum(probability, -1) - probability < sampling.top_p
        logits = _only(logits, best, inside.at[:, 0].set(True))
    return logits


def _only(logits: Array, tokens: Array, allowed: Array | bool) -> Array:
    """Logits with -inf for all but those of `tokens` [batch, some] that are `allowed`."""
    rows = jnp.arange(logits.shape[0])[:, None]
    mask = jnp.zeros(logits.shape, bool).at[rows, tokens].set(allowed)
    return jnp.where(mask, logits, -jnp.inf)
