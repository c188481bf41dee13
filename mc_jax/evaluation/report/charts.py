"""Charts as SVG, readable on light and on dark ground."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mc_jax.evaluation.report.models import short

# Stands for the colour of text until the file is written: there it follows the reader's scheme.
_INK = "#010203"
_SCHEME = "<style>svg{color:#3a3d40}@media (prefers-color-scheme:dark){svg{color:#c9cccf}}</style>"
_COLOURS = ("#0a7bbd", "#dd5f1d", "#159a76", "#c264a0", "#c99700", "#8573d6", "#7b8288", "#b0463c")
_DASHES = ("-", "--", ":", "-.")
_SETTINGS: Any = {
    "svg.hashsalt": "report",  # the same names inside the file each time
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
    "grid.color": _INK,
}


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
      label: in the legend; empty for none.
      x: places.
      y: values there.
      style: a number; lines of one number look the same.
      faint: whether it stands in the background.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    faint: bool = False


class Panel(NamedTuple):
    """A heat map: `values` [rows, columns] from 0 to 1, NaN where there is none."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray


def lines(
    series: Sequence[Line],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    large_x: bool = False,
    limits: tuple[float, float] | None = None,
) -> bytes:
    """Lines over `x`, with the legend below them.

    Args:
      series: the lines.
      x: label of the axis.
      y: label of the axis.
      log_x: whether x doubles from tick to tick.
      log_y: whether y is logarithmic.
      large_x: whether x counts in thousands, millions, billions.
      limits: of y.
    """
    names = [line.label for line in series if line.label]
    # Two columns of longer names would be wider than the chart, and cut off.
    columns = 2 if len(names) > 3 and max(map(len, names)) <= 26 else 1

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for line in series:
            axis.plot(line.x, line.y, label=line.label or None, **_look(line))
        axis.set(xlabel=x, ylabel=y)
        if log_x:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if large_x:
            axis.xaxis.set_major_formatter(lambda value, _: short(value))
        if log_y:
            axis.set_yscale("log")
            for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                # All nine of a decade would touch each other.
                ticks(lambda value, _: short(value) if f"{value:e}"[0] in "125" else "")
        if limits:
            axis.set_ylim(limits)
        figure.legend(loc="outside lower center", ncols=columns)

    return _svg((5.4, 3.4 + 0.18 * max(len(names) / columns, 1)), draw)


def heat(panels: Sequence[Panel], rows: str, columns: str) -> bytes:
    """Heat maps beside each other; `rows` and `columns` are the labels of the axes."""
    width = sum(0.6 + 0.62 * max(len(panel.columns), 2) for panel in panels)
    height = 0.9 + 0.24 * max(len(panel.rows) for panel in panels)

    def draw(figure: Figure) -> None:
        ratios = [max(len(panel.columns), 2) for panel in panels]
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=ratios)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _heat(axis, panel)
            axis.set_xlabel(columns)
        axes[0].set_ylabel(rows)

    return _svg((max(width, 3.2), max(height, 2.2)), draw)


def _heat(axis: Axes, panel: Panel) -> None:
    values = np.ma.masked_invalid(panel.values)
    axis.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=1)
    axis.set_title(panel.title, fontsize=9)
    axis.set_xticks(range(len(panel.columns)), panel.columns)
    axis.set_yticks(range(len(panel.rows)), panel.rows)
    axis.grid(False)
    if len(panel.rows) > 20:  # numbers in so many rows would touch each other
        axis.yaxis.set_tick_params(labelsize=6)
        return
    for (row, column), value in np.ndenumerate(panel.values):
        if np.isfinite(value):
            colour = "#111111" if value > 0.6 else "#f4f4f4"
            axis.text(
                column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, size=8
            )


def _look(line: Line) -> dict[str, Any]:
    colour = _COLOURS[line.style % len(_COLOURS)]
    dash = _DASHES[line.style // len(_COLOURS) % len(_DASHES)]
    if line.faint:
        return {"color": colour, "linestyle": dash, "linewidth": 0.8, "alpha": 0.45}
    return {"color": colour, "linestyle": dash, "linewidth": 1.5, "marker": "o", "markersize": 3}


def _svg(size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """What `draw` draws on a figure of `size` inches."""
    with rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.StringIO()
        # Without the day, the same numbers give the same bytes.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    picture = file.getvalue().replace(_INK, "currentColor")
    return picture.replace("<defs>", f"{_SCHEME}<defs>", 1).encode()
