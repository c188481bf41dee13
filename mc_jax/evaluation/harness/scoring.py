"""Log-probabilities of the last tokens of sequences, in few compiled programs.

Sequences are sorted by length and scored in batches of one size, padded on the right to a power of
two: models are causal, so that what stands behind a sequence changes nothing. Logits are computed
only for the places that are scored.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.inference.run import padded_size
from mc_jax.training.sharding import Shardings, check_batch_size
from mc_jax.training.step import logit_scores
from mc_jax.typing import Array, PyTree

# The least length that sequences, and places to score, are padded to.
SMALLEST = 32


class Item(NamedTuple):
    """A sequence whose last tokens are to be scored.

    Attributes:
      tokens: ids [length], at least one more than `scored`.
      scored: how many of the last tokens.
    """

    tokens: np.ndarray
    scored: int


class Score(NamedTuple):
    """What an item got.

    Attributes:
      loglikelihood: of its scored tokens after those before them, in nats.
      greedy: whether each of them is the likeliest in its place.
    """

    loglikelihood: float
    greedy: bool


@functools.lru_cache(maxsize=4)
def compiled_scores(model: nn.Module, shardings: Shardings) -> Any:
    """`(params, tokens, at, targets) -> (log-probabilities, whether greedy)`, each [batch, places].

    Compiled for each shape, and once for all scorers of a model.
    """

    def scores(params: PyTree, tokens: Array, at: Array, targets: Array) -> tuple[Array, Array]:
        logits = jnp.asarray(model.apply({"params": params}, tokens, at))
        loss, correct = logit_scores(logits, targets)
        return -loss, correct

    return jax.jit(scores, out_shardings=shardings.everywhere)


class Scorer:
    """Scores items with one model."""

    def __init__(
        self, model: nn.Module, params: PyTree, shardings: Shardings, batch_size: int
    ) -> None:
        """Place the parameters.

        Args:
          model: gives logits [batch, places, vocab] for tokens [batch, length] and places.
          params: its parameters.
          shardings: the devices; they share each batch.
          batch_size: items of a batch, a multiple of the devices.

        Raises:
          InputError: a batch that does not divide.
        """
        check_batch_size("batch_size", batch_size, shardings.mesh.size)
        self.batch_size = batch_size
        self._shardings = shardings
        self.params = jax.device_put(params, shardings.everywhere)
        self._compiled = compiled_scores(model, shardings)

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[int, Score]]:
        """Give the number of each item and its score, the longest items first."""
        order = sorted(range(len(items)), key=lambda i: -len(items[i].tokens))
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            yield from zip(numbers, self._score([items[i] for i in numbers]), strict=True)

    def _score(self, items: list[Item]) -> list[Score]:
        """Score one batch; rows that are left over are filled up with nothing."""
        length = padded_size(max(len(item.tokens) - 1 for item in items), SMALLEST)
        # Two programs for each length: few places, as of an answer, or all of them.
        few = max(item.scored for item in items) <= SMALLEST
        tokens = np.zeros((self.batch_size, length), np.int32)
        at = np.zeros((self.batch_size, SMALLEST if few else length), np.int32)
        targets = np.zeros_like(at)
        for row, (ids, scored) in enumerate(items):
            tokens[row, : len(ids) - 1] = ids[:-1]
            # A token is predicted at the place before its own.
            at[row, :scored] = np.arange(len(ids) - 1 - scored, len(ids) - 1)
            targets[row, :scored] = ids[len(ids) - scored :]
        batch = [jax.device_put(x, self._shardings.batch) for x in (tokens, at, targets)]
        run = self._shardings.on_mesh(self._compiled)
        logprobs, greedy = jax.device_get(run(self.params, *batch))
        return [
            Score(
                float(np.sum(logprobs[row, : item.scored], dtype=np.float64)),
                bool(np.all(greedy[row, : item.scored])),
            )
            for row, item in enumerate(items)
        ]
