"""What result files hold, as the report uses it: one type for each kind of result.

Each `read_...` takes what it needs out of a file's content and raises KeyError, TypeError or
ValueError for a content that is not whole.
"""

import json
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
      task: "text", "mqar" or "needles".
      length: tokens of an example.
      overall: numbers over all tokens, by name.
      by_position: bits per byte (text).
      by_pairs: recall for each number of pairs (mqar).
      by_distance: recall (mqar).
      by_depth: the share of whole answers for each needle task and depth in percent (needles).
      gates: for each layer its block, and by head the weights of the online memory and of the one
        that holds the answer (or nothing); empty without gates.
    """

    model: Model
    result: Result
    step: int
    task: str
    length: int
    overall: dict[str, Number]
    by_position: list[Span]
    by_pairs: list[tuple[int, Number]]
    by_distance: list[Span]
    by_depth: list[tuple[int, float, Number]]
    gates: list[tuple[int, list[float], list[float]]]


class Score(NamedTuple):
    """Of one task of the harness.

    Attributes:
      model: that was evaluated.
      result: the file.
      step: of the checkpoint.
      task: its name.
      context: tokens that its documents are cut to, or None.
      columns: its numbers in the paper's tables, by table and column, in the paper's unit.
      metrics: value and standard error by name.
      documents: their number.
      settings: by name.
    """

    model: Model
    result: Result
    step: int
    task: str
    context: int | None
    columns: dict[tuple[str, str], float]
    metrics: dict[str, tuple[Number, Number]]
    documents: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The task, and its context where it has one."""
        return self.task if self.context is None else f"{self.task} at {self.context:,} tokens"

    @property
    def conditions(self) -> str:
        """What two numbers of a task have to share to be compared."""
        settings = {k: v for k, v in self.settings.items() if k != "post_training_caching"}
        return json.dumps([self.step, self.documents, settings], sort_keys=True)


class Needles(NamedTuple):
    """Of a needle task at one length: accuracies from 0 to 1, over all and by depth in percent.

    `conditions` are what two numbers have to share to be compared.
    """

    model: Model
    result: Result
    step: int
    task: int
    length: int
    samples: int
    accuracy: float
    by_depth: list[tuple[float, Number]]
    conditions: str


class SweepCell(NamedTuple):
    """A cell of a sweep.

    Attributes:
      place: its value on every axis.
      mean: over seeds; None where all diverged.
      lowest: of the seeds.
      highest: of the seeds.
      chosen: value of the axis that is chosen from, or None.
      seeds: that ended well.
      diverged: seeds that did not.
    """

    place: tuple[str | float, ...]
    mean: Number
    lowest: Number
    highest: Number
    chosen: str | float | None
    seeds: int
    diverged: int


class Sweep(NamedTuple):
    """Many runs.

    Attributes:
      result: the file.
      name: of the sweep.
      title: for people.
      axes: their names.
      label: the number that is compared.
      better: "higher" or "lower".
      chosen_axis: of which each cell takes the best value, or None.
      choice: how, in words, or None.
      planned: runs.
      finished: of them.
      cells: in their order.
    """

    result: Result
    name: str
    title: str
    axes: tuple[str, ...]
    label: str
    better: str
    chosen_axis: str | None
    choice: str | None
    planned: int
    finished: int
    cells: list[SweepCell]


def read_evaluation(result: Result, model: Model) -> Evaluation:
    """See the module."""
    content = result.content
    held_out = content["held_out"]
    overall = {k: _number(v) for k, v in held_out.items() if not isinstance(v, list)}
    layers = content["gates"].get("layers", [])
    return Evaluation(
        model,
        result,
        int(content["step"]),
        str(content["task"]),
        int(content["length"]),
        overall | {"tokens": int(held_out["tokens"]), "loss": _number(held_out["loss"])},
        _spans(held_out.get("by_position", []), "bits_per_byte"),
        [(int(row["pairs"]), _number(row["accuracy"])) for row in held_out.get("by_pairs", [])],
        _spans(held_out.get("by_distance", []), "accuracy"),
        [
            (int(row["task"]), float(row["depth"]), _number(row["exact"]))
            for row in held_out.get("by_depth", [])
        ],
        [(int(x["block"]), _floats(x["online"]), _floats(x.get("on_answer", []))) for x in layers],
    )


def read_score(result: Result, model: Model) -> Score:
    """See the module."""
    content = result.content
    metrics = {
        str(name): (_number(metric["value"]), _number(metric.get("stderr")))
        for name, metric in content["metrics"].items()
    }
    columns = {
        (str(x["table"]), str(x["column"])): float(x["value"])
        for x in content["paper"]
        if x["value"] is not None
    }
    context = content["context"]
    settings = {**content["settings"], "num_fewshot": content["num_fewshot"]}
    settings.pop("log_samples", None)  # changes no number
    return Score(
        model,
        result,
        int(content["step"]),
        str(content["task"]),
        None if context is None else int(context),
        columns,
        metrics,
        int(content["documents"]),
        settings,
    )


def read_needles(result: Result, model: Model) -> Needles:
    """See the module."""
    content = result.content
    numbers = {"accuracy", "by_depth", "post_training_caching"}
    about = {"kind", "command", "date", "versions"}
    conditions = {k: v for k, v in content.items() if k not in numbers | about}
    return Needles(
        model,
        result,
        int(content["step"]),
        int(content["task"].removeprefix("S-NIAH-")),
        int(content["length"]),
        int(content["samples"]),
        float(content["accuracy"]),
        [(float(row["depth"]), _number(row["accuracy"])) for row in content["by_depth"]],
        json.dumps(conditions, sort_keys=True),
    )


def read_sweep(result: Result) -> Sweep:
    """See the module."""
    content = result.content
    chosen, choice = content["chosen_axis"], content["choice"]
    axes = tuple(axis for axis in content["axes"] if axis != chosen)
    cells = [
        SweepCell(
            tuple(_place(cell["axes"][axis]) for axis in axes),
            _number(cell["mean"]),
            _number(cell["lowest"]),
            _number(cell["highest"]),
            None if cell["chosen"] is None else _place(cell["chosen"]),
            len(cell["values"]),
            len(cell["diverged"]),
        )
        for cell in content["cells"]
    ]
    return Sweep(
        result,
        str(content["sweep"]),
        str(content["title"] or content["sweep"]),
        axes,
        str(content["label"]),
        str(content["better"]),
        None if chosen is None else str(chosen),
        None if choice is None else str(choice),
        int(content["planned"]),
        int(content["finished"]),
        cells,
    )


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
