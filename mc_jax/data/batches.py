"""The finite evaluation batches."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Batches over held-out examples: the same ones, in the same order, every time.

    Attributes:
      parts: sequences of examples, read one after the other.
      batch_size: examples of every batch; the last batch is filled up with weights 0.
      max_batches: when the examples fill more, this many batches of examples that lie evenly
        spread over all of them; 0 for all.
    """

    parts: Sequence[Sequence]
    batch_size: int
    max_batches: int = 0

    def __len__(self) -> int:
        return -(-len(self._indices()) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        indices = self._indices()
        for start in range(0, len(indices), self.batch_size):
            examples = [self._example(i) for i in indices[start : start + self.batch_size]]
            examples += [{key: np.zeros_like(value) for key, value in examples[0].items()}] * (
                self.batch_size - len(examples)
            )
            yield {key: np.stack([e[key] for e in examples]) for key in examples[0]}

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(map(len, self.parts))]

    def _indices(self) -> list[int]:
        total = self._starts[-1]
        wanted = min(total, self.max_batches * self.batch_size or total)
        return [i * total // wanted for i in range(wanted)]

    def _example(self, index: int) -> Batch:
        part = bisect.bisect_right(self._starts, index) - 1
        return self.parts[part][index - self._starts[part]]
