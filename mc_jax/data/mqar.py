"""Multi-query associative recall (MQAR), after Zoology (Arora et al. 2023, arXiv 2312.04927).

One example: n key-value pairs `k1 v1 ... kn vn`, then every key once more, as a query, somewhere
in the rest, where the other places hold random tokens. The target at a query is the key's value,
and nothing else is a target. Keys are different from each other and lie in [1, V/2), values are
different from each other and lie in [V/2, V). The rest is divided into places of two tokens, the
query first; the n-th place is asked with probability proportional to n^(a - 1), which for small a
puts most queries soon after the pairs and some far away.

An example is made from its index alone: nothing is stored, and any example can be had at once.
"""

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from mc_jax.data.config import Config


@dataclasses.dataclass(frozen=True)
class MQAR(Sequence):
    """Random access to the examples of one stream.

    Attributes:
      length: tokens of an example, at least 4 * max(pairs).
      vocab_size: V, at least 2 * max(pairs) + 2.
      pairs: pair counts, of which each example draws one.
      power_a: a of the power law.
      seed: non-negative.
      held_out: whether these are evaluation examples: they come from other random numbers than
        any training seed's, and hold two more entries.
      size: number of examples.
    """

    length: int
    vocab_size: int
    pairs: tuple[int, ...]
    power_a: float
    seed: int
    held_out: bool
    size: int

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        """Returns one example.

        Returns:
          {"inputs", "targets": int32 [length], "weights": float32 [length], 1 at the queries};
          held-out ones also {"distance": int32 [length], tokens from the pair's value to the
          query, 0 elsewhere, "pairs": int32}.
        """
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = np.random.default_rng(
            np.random.SeedSequence(self.seed, spawn_key=(int(self.held_out), index))
        )
        pairs = self.pairs[rng.integers(len(self.pairs))]
        half = self.vocab_size // 2
        keys = 1 + rng.choice(half - 1, pairs, replace=False)
        values = half + rng.choice(self.vocab_size - half, pairs, replace=False)
        inputs = rng.integers(self.vocab_size, size=self.length, dtype=np.int32)
        inputs[0 : 2 * pairs : 2] = keys
        inputs[1 : 2 * pairs : 2] = values
        queries = 2 * pairs + 2 * self._places(rng, pairs)
        inputs[queries] = keys

        example = {
            "inputs": inputs,
            "targets": np.zeros(self.length, np.int32),
            "weights": np.zeros(self.length, np.float32),
        }
        example["targets"][queries] = values
        example["weights"][queries] = 1
        if self.held_out:
            example["distance"] = np.zeros(self.length, np.int32)
            example["distance"][queries] = queries - np.arange(1, 2 * pairs, 2)
            example["pairs"] = np.array(pairs, np.int32)
        return example

    def _places(self, rng: np.random.Generator, pairs: int) -> np.ndarray:
        """Draws a different place for every pair, one after the other."""
        places = np.arange(1, (self.length - 2 * pairs) // 2 + 1)
        # Exponential times with these rates: the order in which they ring is a draw without
        # replacement in proportion to the rates.
        times = rng.exponential(size=len(places)) * places ** (1 - self.power_a)
        return np.argsort(times)[:pairs]


def training(config: Config, seed: int) -> MQAR:
    """Returns the endless training examples of `config.data.mqar`."""
    task = config.mqar
    return MQAR(
        length=config.length,
        vocab_size=task.vocab_size,
        pairs=tuple(task.pairs),
        power_a=task.power_a,
        seed=seed,
        held_out=False,
        size=sys.maxsize,
    )


def held_out(config: Config) -> list[MQAR]:
    """Returns as many evaluation examples for each of `eval_pairs` as `eval_batches` hold."""
    task = config.mqar
    return [
        MQAR(
            length=config.length,
            vocab_size=task.vocab_size,
            pairs=(pairs,),
            power_a=task.power_a,
            seed=pairs,
            held_out=True,
            size=config.eval_batches * config.eval_batch_size,
        )
        for pairs in task.eval_pairs
    ]
