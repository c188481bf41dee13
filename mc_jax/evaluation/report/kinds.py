"""What result files hold, as the report uses it: one type for each kind of result.

Each `read_...` takes what it needs out of a file's content and raises KeyError, TypeError or
ValueError for a content that is not whole.
"""

import math
from typing import Any, NamedTuple

from mc_jax.evaluation.report.models import Model
from mc_jax.evaluation.results import Result

Number = float | None


class Span(NamedTuple):
    """Numbers of one bucket of positions or distances, both ends included."""

    first: int
    last: int
    value: Number


class Evaluation(NamedTuple):
    """Of `eval.py`: held-out text or recall, and the gates.

    Attributes:
      model: that was evaluated.
      result: the file.
      step: of the checkpoint.
      task: "text" or "mqar".
      length: tokens of an example.
      post_training: decay of post-training caching, or None.
      overall: numbers over all tokens, by name.
      by_position: bits per byte (text).
      by_pairs: recall for each number of pairs (mqar).
      by_distance: recall (mqar).
      gates: for each layer its block, and by head the weights of the online memory and of the one
        that holds the answer (or nothing); empty without gates.
    """

    model: Model
    result: Result
    step: int
    task: str
    length: int
    post_training: float | None
    overall: dict[str, Number]
    by_position: list[Span]
    by_pairs: list[tuple[int, Number]]
    by_distance: list[Span]
    gates: list[tuple[int, list[float], list[float]]]


class Score(NamedTuple):
    """Of one task of the harness.

    Attributes:
      model: that was evaluated.
      result: the file.
      step: of the checkpoint.
      task: its name.
      table: of the paper that the task belongs to, such as "table1", or None.
      column: the paper's name of the column, or None.
      value: in the unit of that column.
      metrics: value and standard error by name.
      documents: their number.
      settings: by name.
    """

    model: Model
    result: Result
    step: int
    task: str
    table: str | None
    column: str | None
    value: Number
    metrics: dict[str, tuple[Number, Number]]
    documents: int | None
    settings: dict[str, Any]


class Needles(NamedTuple):
    """Of a needle task at one length: accuracies from 0 to 1, over all and by depth in percent."""

    model: Model
    result: Result
    step: int
    task: int
    length: int
    samples: int
    accuracy: float
    by_depth: list[tuple[float, Number]]


class SweepCell(NamedTuple):
    """A cell of a sweep: its place on every axis, and the seeds' mean and extremes."""

    place: tuple[str | float, ...]
    mean: Number
    lowest: Number
    highest: Number
    seeds: int


class Sweep(NamedTuple):
    """A sweep: the names of its axes, and its cells."""

    result: Result
    name: str
    axes: tuple[str, ...]
    cells: list[SweepCell]


def read_evaluation(result: Result, model: Model) -> Evaluation:
    """See the module."""
    content = result.content
    held_out = content["held_out"]
    decay = content["post_training_caching"]
    overall = {k: _number(v) for k, v in held_out.items() if not isinstance(v, list)}
    layers = content["gates"].get("layers", [])
    return Evaluation(
        model,
        result,
        int(content["step"]),
        str(content["task"]),
        int(content["length"]),
        None if decay is None else float(decay),
        overall | {"tokens": int(held_out["tokens"]), "loss": _number(held_out["loss"])},
        _spans(held_out.get("by_position", []), "bits_per_byte"),
        [(int(row["pairs"]), _number(row["accuracy"])) for row in held_out.get("by_pairs", [])],
        _spans(held_out.get("by_distance", []), "accuracy"),
        [(int(x["block"]), _floats(x["online"]), _floats(x.get("on_answer", []))) for x in layers],
    )


def read_score(result: Result, model: Model) -> Score:
    """See the module."""
    content = result.content
    metrics = {
        str(name): (_number(metric["value"]), _number(metric.get("stderr")))
        for name, metric in content["metrics"].items()
    }
    documents = content.get("documents")
    return Score(
        model,
        result,
        int(content["step"]),
        str(content["task"]),
        content.get("table"),
        content.get("column"),
        _number(content.get("value")),
        metrics,
        None if documents is None else int(documents),
        dict(content.get("settings") or {}),
    )


def read_needles(result: Result, model: Model) -> Needles:
    """See the module."""
    content = result.content
    return Needles(
        model,
        result,
        int(content["step"]),
        int(content["task"]),
        int(content["length"]),
        int(content["samples"]),
        float(content["accuracy"]),
        [(float(row["depth"]), _number(row["accuracy"])) for row in content["by_depth"]],
    )


def read_sweep(result: Result) -> Sweep:
    """See the module."""
    content = result.content
    axes = tuple(map(str, content["axes"]))
    cells = [
        SweepCell(
            tuple(_place(cell[axis]) for axis in axes),
            _number(cell["mean"]),
            _number(cell["lowest"]),
            _number(cell["highest"]),
            len(cell["values"]),
        )
        for cell in content["cells"]
    ]
    return Sweep(result, str(content["name"]), axes, cells)


def _spans(rows: list[dict[str, Any]], name: str) -> list[Span]:
    return [Span(int(row["first"]), int(row["last"]), _number(row[name])) for row in rows]


def _floats(values: list[Any]) -> list[float]:
    return [float(value) for value in values]


def _place(value: Any) -> str | float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _number(value: Any) -> Number:
    """A number; None where there is none."""
    if value is None or not math.isfinite(number := float(value)):
        return None
    return number
