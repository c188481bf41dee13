"""Needles, teacher-forced: how often every token of an answer is the likeliest, by depth."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mc_jax.evaluation import scores


class AnswersResult(NamedTuple):
    """Held-out answers.

    Attributes:
      rows: for each `task` and `depth` the `examples`; `exact`, the share of answers right to the
        last token; `accuracy`, the share of their tokens; and the `loss` of a token, in nats.
    """

    rows: list[scores.Row]

    def to_json(self) -> scores.Row:
        """The means over all examples, and `by_depth`."""
        examples = sum(row["examples"] for row in self.rows)
        tokens = sum(row["tokens"] for row in self.rows)

        def mean(name: str, count: str, total: int) -> float:
            return sum(row[name] * row[count] for row in self.rows) / total

        return {
            "examples": examples,
            "tokens": tokens,
            "exact": mean("exact", "examples", examples),
            "accuracy": mean("accuracy", "tokens", tokens),
            "loss": mean("loss", "tokens", tokens),
            "by_depth": self.rows,
        }


def evaluate_answers(score: scores.Score, batches: Iterable[scores.Batch]) -> AnswersResult:
    """Score all batches.

    Args:
      score: from `scores.make_score`.
      batches: of needles, with `task` and `depth` [batch].
    """
    found: dict[tuple[int, float], list[tuple[bool, int, int, float]]] = {}
    for batch in batches:
        loss, correct = score(batch)
        for i, asked in enumerate(batch["weights"] > 0):
            if asked.any():  # a last batch is filled up with examples that ask nothing
                right = correct[i][asked]
                one = bool(right.all()), int(asked.sum()), int(right.sum()), loss[i][asked].sum()
                place = int(batch["task"][i]), float(batch["depth"][i])
                found.setdefault(place, []).append(one)
    rows = []
    for (task, depth), answers in sorted(found.items()):
        exact, tokens, right, losses = np.array(answers, np.float64).T
        rows.append(
            {
                "task": task,
                "depth": depth,
                "examples": len(answers),
                "tokens": int(tokens.sum()),
                "exact": float(exact.mean()),
                "accuracy": float(right.sum() / tokens.sum()),
                "loss": float(losses.sum() / tokens.sum()),
            }
        )
    return AnswersResult(rows)
