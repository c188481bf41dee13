"""Held-out text: bits per byte and perplexity, overall and by position in the context."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mc_jax.evaluation import scores
from mc_jax.training.step import Sums


class TextResult(NamedTuple):
    """Totals by position.

    Attributes:
      sums: leaves [length]; the token at position t is predicted from t + 1 tokens.
    """

    sums: Sums

    def to_json(self) -> scores.Row:
        """Means over all, and `by_position` in buckets that double."""
        edges = scores.octaves(len(self.sums.weight))
        by_position = scores.rows(scores.regroup(self.sums, edges), scores.spans(edges))
        return scores.row(scores.total(self.sums)) | {"by_position": by_position}


def evaluate_text(
    score: scores.Score,
    batches: Iterable[scores.Batch],
    length: int,
    token_bytes: np.ndarray,
) -> TextResult:
    """Score all batches.

    Args:
      score: from `scores.make_score`.
      batches: of text, each [batch, length].
      length: positions.
      token_bytes: bytes of text that each token stands for.
    """

    def position(batch: scores.Batch) -> np.ndarray:
        return np.broadcast_to(np.arange(length), batch["inputs"].shape)

    return TextResult(scores.sums_by_cell(score, batches, length, position, token_bytes))
