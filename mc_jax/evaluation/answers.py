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
        """The means over all examples, `by_quarter` of the haystack, and `by_depth`."""
        quarters: dict[tuple[int, int], list[scores.Row]] = {}
        for row in self.rows:
            quarter = min(int(row["depth"] // 25), 3)
            quarters.setdefault((row["task"], quarter), []).append(row)
        by_quarter = [
            {"task": task, "from": 25 * quarter, "to": 25 * (quarter + 1), **_mean(rows)}
            for (task, quarter), rows in quarters.items()
        ]
        return {**_mean(self.rows), "by_quarter": by_quarter, "by_depth": self.rows}


def _mean(rows: list[scores.Row]) -> scores.Row:
    """What rows say together."""
    examples = sum(row["examples"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    return {
        "examples": examples,
        "tokens": tokens,
        "exact": sum(row["exact"] * row["examples"] for row in rows) / examples,
        "accuracy": sum(row["accuracy"] * row["tokens"] for row in rows) / tokens,
        "loss": sum(row["loss"] * row["tokens"] for row in rows) / tokens,
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
