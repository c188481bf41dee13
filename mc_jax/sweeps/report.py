"""What a sweep has found so far: a table, sweep.json and sweep.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mc_jax.evaluation import results
from mc_jax.sweeps.collect import Place, collect, numbers
from mc_jax.sweeps.description import Sweep, Value
from mc_jax.sweeps.pictures import draw
from mc_jax.sweeps.runs import Run, RunResult, finished


def write_report(sweep: Sweep, name: str, runs: Sequence[Run], workdir: Path) -> list[Place]:
    """Write workdir/sweep.json and workdir/sweep.png of all runs that have ended.

    Args:
      sweep: checked.
      name: of the sweep.
      runs: all of its runs.
      workdir: of the sweep; it is there.

    Returns:
      Its numbers; without any, nothing is written.
    """
    ended = list(finished(runs))
    places = collect(sweep, ended)
    if not places:
        return []
    content: dict[str, Any] = {
        "sweep": name,
        "title": sweep.title,
        "axes": sweep.axes | ({sweep.by: sweep.parts} if sweep.by else {}),
        "number": sweep.number,
        "label": sweep.label,
        "better": "higher" if sweep.higher else "lower",
        "chosen_axis": sweep.choose,
        "choice": choice(sweep),
        "seeds": list(sweep.seeds),
        "planned": len(runs),
        "finished": len(ended),
        "cells": [place.to_json() for place in places],
        "runs": [_run(sweep, run, result) for run, result in ended],
    }
    results.write(workdir / "sweep.json", "sweep", content)
    draw(workdir / "sweep.png", sweep, places)
    return places


def _run(sweep: Sweep, run: Run, result: RunResult) -> dict[str, Any]:
    values = {} if result.held_out is None else numbers(sweep, result.held_out)
    return {
        "axes": dict(run.cell.axes),
        "seed": run.seed,
        "values": {sweep.label if part is None else str(part): x for part, x in values.items()},
        "diverged": result.diverged,
        "seconds": result.seconds,
    }


def choice(sweep: Sweep) -> str | None:
    """How the value of the axis that is chosen from was found, in words."""
    if sweep.choose is None:
        return None
    over = "seeds" if sweep.by is None else f"seeds and {sweep.by}"
    return (
        f"{sweep.choose}: of each cell the one with the best mean {sweep.label} over {over}, "
        "on the held-out examples that are reported"
    )


def table(sweep: Sweep, places: Sequence[Place]) -> str:
    """Markdown: a row for each cell, with mean, lowest and highest."""
    axes = [axis for axis in places[0].axes if axis != sweep.by]
    rows: dict[tuple, dict[Value | None, Place]] = {}
    for place in places:
        part = None if sweep.by is None else place.axes[sweep.by]
        rows.setdefault(tuple(place.axes[axis] for axis in axes), {})[part] = place
    parts: list[Any] = [None] if sweep.by is None else list(sweep.parts)
    unit = "tokens" if sweep.by == "length" else sweep.by
    titles = [sweep.label if n is None else f"{sweep.label}, {n} {unit}" for n in parts]
    chosen = [] if sweep.choose is None else [sweep.choose]
    lines = [[*axes, *titles, *chosen, "seeds"]]
    lines.append(["---"] * len(lines[0]))
    for values, row in rows.items():
        any_place = next(iter(row.values()))
        entries = [_entry(row[n]) if n in row else "" for n in parts]
        seeds = str(len(any_place.values))
        if any_place.diverged:
            seeds += f", {len(any_place.diverged)} diverged"
        picked = [] if sweep.choose is None else [_short(any_place.chosen)]
        lines.append([*map(str, values), *entries, *picked, seeds])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _entry(place: Place) -> str:
    found = place.to_json()
    if found["mean"] is None:
        return "diverged"
    return f"{found['mean']:.3f} ({found['lowest']:.3f} to {found['highest']:.3f})"


def _short(value: Value | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
