"""The picture of a sweep: means, with the spread over seeds."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mc_jax.files import replace
from mc_jax.sweeps.collect import Place
from mc_jax.sweeps.description import Lines, Rows, Sweep, Value

_COLOURS = ("#8a8a8a", "#3f6c8f", "#c2452d", "#d9a13b", "#4f8a5b", "#8559a5", "#2fa3a0", "#6b4a3a")
_MARKS = "osD^vPX*"
_COLUMNS = 3  # panels side by side


def draw(path: Path, sweep: Sweep, places: Sequence[Place]) -> None:
    """Draw what a sweep has found, as its `picture` says.

    Args:
      path: of the picture.
      sweep: the sweep.
      places: its numbers; those where every run diverged are left out.
    """
    places = [place for place in places if place.values]
    picture = sweep.picture
    # In the sweep's order, and each with the look that it has when all runs are finished.
    panels = [x for x in _values(sweep, picture.panels) if x in _shown(places, picture.panels)]
    columns = min(len(panels), _COLUMNS)
    lines = -(-len(panels) // columns)
    height = 3.0 if isinstance(picture, Lines) else 0.9 + 0.42 * len(_values(sweep, picture.rows))
    figure = Figure(figsize=(1.6 + 3.4 * columns, 0.9 + height * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, panel in zip(grid, panels, strict=False):
        shown = [p for p in places if picture.panels is None or p.axes[picture.panels] == panel]
        if picture.panels is not None:
            axis.set_title(_panel_title(picture.panels, panel), fontsize=9)
        if isinstance(picture, Lines):
            _draw_lines(axis, picture, shown, _values(sweep, picture.lines))
        else:
            _draw_rows(axis, picture, shown, _values(sweep, picture.rows))
        if sweep.number == "accuracy" and isinstance(picture, Lines):
            axis.set_ylim(-0.03, 1.03)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[len(panels) :]:
        axis.set_visible(False)
    for axis in grid[: len(panels)][-columns:]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    _label(figure, list(grid[: len(panels)]), sweep)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    replace(path, image.getvalue())


def _values(sweep: Sweep, axis: str | None) -> list[Any]:
    """All values of an axis; one that stands for all places where there is none."""
    if axis is None:
        return [None]
    return list(sweep.parts) if axis == sweep.by else sweep.axes[axis]


def _shown(places: Sequence[Place], axis: str | None) -> set[Any]:
    """Values of an axis that have a number."""
    return {None if axis is None else place.axes[axis] for place in places}


def _panel_title(axis: str, value: Value) -> str:
    return str(value) if isinstance(value, str) else f"{value} {axis}"


def _draw_lines(
    axis: Axes, picture: Lines, places: Sequence[Place], lines: Sequence[Value]
) -> None:
    for number, line in enumerate(lines):
        points = [p for p in places if p.axes[picture.lines] == line]
        if not points:
            continue
        points.sort(key=lambda p: float(p.axes[picture.x]))
        found = [p.to_json() for p in points]
        x: list[Any] = [p.axes[picture.x] for p in points]
        colour = _COLOURS[number % len(_COLOURS)]
        axis.fill_between(
            x,
            [f["lowest"] for f in found],
            [f["highest"] for f in found],
            alpha=0.18,
            linewidth=0,
            color=colour,
        )
        axis.plot(
            x,
            [f["mean"] for f in found],
            marker=_MARKS[number % len(_MARKS)],
            # Lines that coincide, as soup's and GRM's of matrices do, both show.
            linestyle="-" if number % 2 == 0 else (0, (4, 2)),
            markersize=4.5,
            label=str(line),
            color=colour,
        )
    ticks: list[Any] = sorted({p.axes[picture.x] for p in places})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.25)


def _draw_rows(axis: Axes, picture: Rows, places: Sequence[Place], rows: Sequence[Value]) -> None:
    for place in places:
        height = rows.index(place.axes[picture.rows])
        found = place.to_json()
        seeds = list(place.values.values())
        axis.plot([found["lowest"], found["highest"]], [height] * 2, color=_COLOURS[1], lw=1.5)
        axis.plot(seeds, [height] * len(seeds), "o", color=_COLOURS[1], markersize=3.5)
        axis.plot(found["mean"], height, "D", color=_COLOURS[2], markersize=6)
        axis.annotate(
            f"{found['mean']:.3f}",
            (found["mean"], height),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(rows)), [str(row) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.7)  # the first row at the top
    axis.margins(x=0.12)
    axis.grid(axis="x", alpha=0.25)


def _label(figure: Figure, axes: Sequence[Axes], sweep: Sweep) -> None:
    """Names of axes, title and legend."""
    if isinstance(sweep.picture, Lines):
        figure.supxlabel(sweep.picture.x, fontsize=10)
        figure.supylabel(sweep.label, fontsize=10)
        names = {
            name: handle
            for axis in axes
            for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            list(names.values()),
            list(names),
            loc="outside right center",
            title=sweep.picture.lines,
            frameon=False,
        )
        shown = "lines are means, bands reach from the lowest to the highest seed"
    else:
        figure.supxlabel(
            f"{sweep.label} ({'higher' if sweep.higher else 'lower'} is better)", fontsize=10
        )
        shown = "diamonds are means, dots are seeds"
    figure.suptitle(f"{sweep.title}: {shown}" if sweep.title else shown, fontsize=10)
