"""Pictures of an evaluation."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mc_jax.evaluation import scores
from mc_jax.evaluation.answers import AnswersResult
from mc_jax.evaluation.gates import GateMap
from mc_jax.evaluation.recall import RecallResult
from mc_jax.evaluation.text import TextResult
from mc_jax.files import replace

_LINE, _MARK = "#c2452d", "#555555"
_MOST_HEADS = 8  # with more than these, one panel shows their mean


def draw_positions(path: Path, result: TextResult, segment_len: int | None) -> None:
    """Bits per byte over the position in the context.

    Args:
      path: of the picture.
      result: the evaluation.
      segment_len: tokens after which the first memory is cached; None if none is.
    """
    length = len(result.sums.weight)
    # Six points an octave: single positions are too few tokens to read anything from.
    edges = np.unique(np.round(np.geomspace(1, length, 2 + 6 * length.bit_length())).astype(int))
    sums = scores.regroup(result.sums, np.array([0, *edges]))
    points = scores.rows(sums, scores.spans(np.array([0, *edges])))
    bits = [
        np.nan if point["bits_per_byte"] is None else point["bits_per_byte"] for point in points
    ]
    middle = [np.sqrt(max(point["first"], 1) * (point["last"] + 1)) for point in points]
    overall = scores.row(scores.total(result.sums))["bits_per_byte"]
    figure, axis = _figure("position in the context (tokens)", "bits per byte")
    axis.plot(middle, bits, color=_LINE, marker="o", markersize=3)
    axis.axhline(overall, color=_MARK, linestyle="--", linewidth=1, label=f"overall {overall:.3f}")
    if segment_len and segment_len < length:
        axis.axvline(segment_len, color=_MARK, linestyle=":", label="first memory cached")
    axis.set_xscale("log", base=2)
    axis.legend(frameon=False)
    _save(figure, path)


def draw_recall(path: Path, result: RecallResult) -> None:
    """Accuracy by the number of pairs, and by distance for each number of pairs."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    by_pairs = jax.tree.map(lambda x: x.sum(1), result.sums)
    left.plot(result.pairs, by_pairs.correct / by_pairs.weight, color=_LINE, marker="o")
    left.set_xticks(result.pairs)
    _style(left, "key-value pairs", "recall")
    for i, pairs in enumerate(result.pairs):
        seen = result.sums.weight[i] > 0
        accuracy = result.sums.correct[i][seen] / result.sums.weight[i][seen]
        shade = str(0.75 * (1 - (i + 1) / len(result.pairs)))
        right.plot(
            result.edges[:-1][seen], accuracy, color=shade, marker="o", label=f"{pairs} pairs"
        )
    right.set_xscale("log", base=2)
    _style(right, "tokens from the value to the query, from ... to twice as many", "")
    right.legend(frameon=False)
    left.set_ylim(-0.03, 1.03)
    _save(figure, path)


def draw_answers(path: Path, result: AnswersResult) -> None:
    """Accuracy by the depth of the needle, for each task."""
    figure, axis = _figure("depth of the needle (percent of the haystack)", "whole answers")
    tasks = sorted({row["task"] for row in result.rows})
    for i, task in enumerate(tasks):
        rows = [row for row in result.rows if row["task"] == task]
        shade = _LINE if len(tasks) == 1 else str(0.75 * i / len(tasks))
        points = [row["depth"] for row in rows], [row["exact"] for row in rows]
        axis.plot(*points, color=shade, marker="o", markersize=3, label=f"S-NIAH-{task}")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(frameon=False)
    _save(figure, path)


def draw_needles(path: Path, cells: Sequence[Mapping[str, Any]]) -> None:
    """A heat map of accuracy for each task: columns are lengths, rows are depths.

    Args:
      path: of the picture.
      cells: the results of `eval.py needles`, each of a task at a length.
    """
    tasks = sorted({cell["task"] for cell in cells})
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({row["depth"] for cell in cells for row in cell["by_depth"]})
    few = len(depths) <= 12
    size = (1.6 + len(tasks) * max(2.2, 0.75 * len(lengths)), 4.2)
    figure = Figure(figsize=size, layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        image = np.full((len(depths), len(lengths)), np.nan)
        for cell in cells:
            if cell["task"] == task:
                for row in cell["by_depth"]:
                    image[depths.index(row["depth"]), lengths.index(cell["length"])] = row[
                        "accuracy"
                    ]
        drawn = axis.imshow(image, aspect="auto", cmap="RdYlGn", vmin=0, vmax=1)
        axis.set_title(task, fontsize=10)
        axis.set_xlabel("length (tokens)")
        axis.set_xticks(range(len(lengths)), [_short(length) for length in lengths])
        shown = range(len(depths)) if few else np.linspace(0, len(depths) - 1, 11).astype(int)
        axis.set_yticks(shown, [f"{depths[i]:g}" for i in shown])
        if few:
            for (y, x), value in np.ndenumerate(image):
                if np.isfinite(value):
                    axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7)
    figure.axes[0].set_ylabel("depth of the needle (%)")
    figure.colorbar(drawn, ax=figure.axes, label="accuracy")
    _save(figure, path)


def _short(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def draw_gates(
    path: Path, maps: Sequence[GateMap], answers: tuple[np.ndarray, np.ndarray] | None
) -> None:
    """A heat map for each layer and head: rows are tokens, columns are memories.

    Args:
      path: of the picture.
      maps: the gates of each layer.
      answers: positions of queries, and the columns of the memories that hold what they ask for;
        None if there are none.
    """
    heads = maps[0].weights.shape[0]
    panels = heads if heads <= _MOST_HEADS else 1
    size = (1.2 + 2.3 * panels, 0.6 + 2.9 * len(maps))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(maps), panels, squeeze=False, sharex=True, sharey=True)
    for axes, (block, weights) in zip(grid, maps, strict=True):
        shown = weights if panels == heads else weights.mean(0, keepdims=True)
        for head, (axis, image) in enumerate(zip(axes, shown, strict=True)):
            drawn = axis.imshow(
                image, aspect="auto", interpolation="nearest", cmap="magma", vmin=0, vmax=1
            )
            if answers is not None:
                axis.scatter(
                    answers[1],
                    answers[0],
                    s=16,
                    marker="s",
                    facecolors="none",
                    edgecolors="#3ad1c1",
                )
            name = f"head {head}" if panels == heads else f"mean of {heads} heads"
            axis.set_title(f"block {block}, {name}", fontsize=9)
        axes[0].set_ylabel("token")
    _name_columns(grid[-1], maps[0].weights.shape[2])
    figure.colorbar(
        drawn, ax=grid, label="weight of the memory", shrink=0.8 if len(maps) < 3 else 0.3
    )
    if answers is not None:
        figure.suptitle("squares: queries, at the memory that holds the answer", fontsize=9)
    _save(figure, path)


def _name_columns(axes: np.ndarray, columns: int) -> None:
    step = -(-(columns - 1) // 6)
    places = [0, *range(1, columns, step)]
    for axis in axes:
        axis.set_xticks(places, ["online", *(str(place - 1) for place in places[1:])], fontsize=7)
        axis.set_xlabel("memory")


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    _style(axis, x, y)
    return figure, axis


def _style(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    replace(path, picture.getvalue())
