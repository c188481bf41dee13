"""From the runs of a sweep to its numbers: mean, lowest and highest of each place."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mc_jax.sweeps.description import Cell, Sweep, Value
from mc_jax.sweeps.runs import Run, RunResult


class Place(NamedTuple):
    """What is compared: all runs of the axes but the one that is chosen from.

    Attributes:
      axes: values by the names of the axes, the evaluation's part among them.
      chosen: value of the axis that is chosen from; None without one.
      values: the number by seed, of the runs that did not diverge.
      diverged: seeds of those that did.
    """

    axes: dict[str, Value]
    chosen: Value | None
    values: dict[int, float]
    diverged: list[int]

    def to_json(self) -> dict[str, Any]:
        """All of it, with `mean`, `lowest` and `highest`; None where every run diverged."""
        found = list(self.values.values())
        return {
            "axes": self.axes,
            "mean": statistics.fmean(found) if found else None,
            "lowest": min(found, default=None),
            "highest": max(found, default=None),
            "chosen": self.chosen,
            "seeds": list(self.values),
            "diverged": self.diverged,
            "values": {str(seed): value for seed, value in self.values.items()},
        }


def numbers(sweep: Sweep, held_out: Mapping[str, Any]) -> dict[int | None, float]:
    """The number that is compared, out of an evaluation: by part, or one under None."""
    if sweep.by is None:
        return {None: held_out[sweep.number]}
    return {row[sweep.by]: row[sweep.number] for row in held_out[f"by_{sweep.by}"]}


def collect(sweep: Sweep, results: Sequence[tuple[Run, RunResult]]) -> list[Place]:
    """Places of which a run has ended, in the order of the cells, parts innermost."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in sweep.cells:
        key = tuple(value for axis, value in cell.axes.items() if axis != sweep.choose)
        groups.setdefault(key, []).append(cell)
    places = []
    for cells in groups.values():
        ended = [[(r, x) for r, x in results if r.cell is cell] for cell in cells]
        candidates = [(cell, runs) for cell, runs in zip(cells, ended, strict=True) if runs]
        if candidates:
            cell, runs = _choose(sweep, candidates)
            places += _places(sweep, cell, runs)
    return places


def _choose(sweep: Sweep, candidates: list[tuple[Cell, list]]) -> tuple[Cell, list]:
    """The cell with the best mean over its runs and their parts.

    One with a run more that did not diverge comes before any other: a mean over the easier seeds
    would be no fair one.
    """

    def merit(candidate: tuple[Cell, list]) -> tuple[int, float]:
        means = [
            statistics.fmean(numbers(sweep, result.held_out).values())
            for _, result in candidate[1]
            if result.held_out is not None
        ]
        if not means:
            return 0, 0.0
        mean = statistics.fmean(means)
        return len(means), mean if sweep.higher else -mean

    return max(candidates, key=merit)


def _places(sweep: Sweep, cell: Cell, runs: list[tuple[Run, RunResult]]) -> list[Place]:
    axes = {axis: value for axis, value in cell.axes.items() if axis != sweep.choose}
    chosen = None if sweep.choose is None else cell.axes[sweep.choose]
    found = {
        run.seed: numbers(sweep, result.held_out)
        for run, result in runs
        if result.held_out is not None
    }
    diverged = [run.seed for run, result in runs if result.diverged is not None]
    own_parts = [None] if sweep.by is None else sorted(sweep.parts_of(cell))
    return [
        Place(
            axes if part is None else axes | {str(sweep.by): part},
            chosen,
            {seed: values[part] for seed, values in found.items()},
            diverged,
        )
        for part in own_parts
    ]
