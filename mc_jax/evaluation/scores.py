"""Losses of single tokens, added up by cell: by position, by number of pairs, by distance."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mc_jax.training.sharding import Shardings, to_devices
from mc_jax.training.step import Sums, means, token_scores
from mc_jax.typing import PyTree

Batch = Mapping[str, np.ndarray]
Score = Callable[[Batch], tuple[Any, Any]]
Row = dict[str, Any]


def make_score(model: nn.Module, params: PyTree, shardings: Shardings) -> Score:
    """Build `score(batch) -> (loss, correct)`, what `token_scores` says of a batch's tokens."""
    scores = functools.partial(token_scores, model)
    compiled = shardings.on_mesh(jax.jit(scores, out_shardings=shardings.everywhere))
    params = jax.device_put(params, shardings.everywhere)
    return lambda batch: jax.device_get(compiled(params, to_devices(batch, shardings.batch)))


def sums_by_cell(
    score: Score,
    batches: Iterable[Batch],
    cells: int,
    cell_of: Callable[[Batch], np.ndarray],
    token_bytes: np.ndarray | None,
) -> Sums:
    """Score all batches; every token adds to the totals of its cell.

    Args:
      score: from `make_score`.
      batches: held-out batches.
      cells: their number.
      cell_of: gives the cell of each token of a batch, integers [batch, length].
      token_bytes: bytes of text that each token stands for; None if the tokens are no text.

    Returns:
      Totals in float64, leaves [cells].
    """
    zeros: Any = np.zeros(cells)  # `Sums` in NumPy: float64 for any number of tokens
    total = Sums(zeros, zeros, zeros, None if token_bytes is None else zeros)
    for batch in batches:
        loss, correct = score(batch)
        weights, cell = batch["weights"].astype(np.float64), cell_of(batch).ravel()
        text: Any = None if token_bytes is None else token_bytes[batch["targets"]]
        values: Any = Sums(loss, np.ones_like(loss), correct, text)
        total = jax.tree.map(
            lambda sums, x, w=weights, at=cell: sums + np.bincount(at, (w * x).ravel(), cells),
            total,
            values,
        )
    return total


def octaves(size: int) -> np.ndarray:
    """Edges 0, 1, 2, 4, ... of buckets that twice as large a number each starts, up to `size`."""
    return np.array([0, *(1 << i for i in range((size - 1).bit_length())), size])


def regroup(sums: Sums, edges: np.ndarray) -> Sums:
    """Totals of the buckets [edges[i], edges[i + 1]) of cells; the last axis becomes theirs."""
    return jax.tree.map(lambda x: np.add.reduceat(x, edges[:-1], axis=-1), sums)


def total(sums: Sums) -> Sums:
    """Totals over all cells."""
    return jax.tree.map(np.sum, sums)


def row(sums: Sums) -> Row:
    """The means of one cell, by the names of `mc_jax.training.step.means`.

    With `perplexity` (the exponential of the loss) where the tokens are text, and `tokens`. A mean
    that does not exist, such as the bits per byte of no byte, is None.
    """
    values: dict[str, Any] = {"tokens": int(sums.weight)}
    with np.errstate(all="ignore"):
        values |= {name: _number(value) for name, value in means(sums).items()}
        if sums.bytes is not None:
            values["perplexity"] = _number(np.exp(sums.loss / sums.weight))
    return values


def rows(sums: Sums, names: list[Row]) -> list[Row]:
    """`row` of every cell that a token fell into, after what `names` says of the cell."""
    cells = [jax.tree.map(lambda x, i=i: x[i], sums) for i in range(len(names))]
    return [name | row(cell) for name, cell in zip(names, cells, strict=True) if cell.weight]


def spans(edges: np.ndarray) -> list[Row]:
    """`first` and `last` number of each bucket."""
    return [
        {"first": int(start), "last": int(end) - 1}
        for start, end in zip(edges, edges[1:], strict=False)
    ]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
