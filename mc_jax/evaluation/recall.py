"""Associative recall: how often a query's value is found, by pairs in the context and distance."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mc_jax.evaluation import scores
from mc_jax.training.step import Sums


class RecallResult(NamedTuple):
    """Totals of queries.

    Attributes:
      pairs: the numbers of key-value pairs.
      edges: of the buckets of distance.
      sums: leaves [pairs, distance buckets].
    """

    pairs: tuple[int, ...]
    edges: np.ndarray
    sums: Sums

    def to_json(self) -> scores.Row:
        """Means over all, `by_pairs`, `by_distance`, and `by_pairs_and_distance`."""
        by_pairs = jax.tree.map(lambda x: x.sum(1), self.sums)
        by_distance = jax.tree.map(lambda x: x.sum(0), self.sums)
        names, distances = [{"pairs": n} for n in self.pairs], scores.spans(self.edges)
        both = jax.tree.map(np.ravel, self.sums)
        return scores.row(scores.total(self.sums)) | {
            "by_pairs": scores.rows(by_pairs, names),
            "by_distance": scores.rows(by_distance, distances),
            "by_pairs_and_distance": scores.rows(both, [n | d for n in names for d in distances]),
        }


def evaluate_recall(
    score: scores.Score, batches: Iterable[scores.Batch], length: int, pairs: Sequence[int]
) -> RecallResult:
    """Score all batches.

    Args:
      score: from `scores.make_score`.
      batches: of recall, with `distance` [batch, length] and `pairs` [batch].
      length: tokens of an example.
      pairs: numbers of pairs that occur.
    """
    counts, edges = np.unique(pairs), scores.octaves(length)
    buckets = len(edges) - 1

    def cell(batch: scores.Batch) -> np.ndarray:
        count = np.searchsorted(counts, batch["pairs"])
        return count[:, None] * buckets + np.searchsorted(edges, batch["distance"], "right") - 1

    sums = scores.sums_by_cell(score, batches, len(counts) * buckets, cell, None)
    sums = jax.tree.map(lambda x: x.reshape(len(counts), buckets), sums)
    return RecallResult(tuple(map(int, counts)), edges, sums)
