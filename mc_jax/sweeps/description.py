"""What a sweep is: cells of settings, seeds, the number that is compared, and a picture of it."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

Value = str | int | float

# Numbers of an evaluation that can be compared, by task, and which ones are better.
NUMBERS = {
    "text": {"loss": "lower", "perplexity": "lower", "bits_per_byte": "lower"},
    "mqar": {"loss": "lower", "accuracy": "higher"},
    "needles": {"loss": "lower", "accuracy": "higher", "exact": "higher"},
}
# What a number can be split by, by task: parts of one evaluation, or an evaluation for each length.
PARTS = {"text": ("length",), "mqar": ("pairs", "length"), "needles": ("length",)}
LABELS = {
    ("text", "bits_per_byte"): "bits per byte",
    ("mqar", "accuracy"): "recall",
    ("needles", "accuracy"): "accuracy of an answer's tokens",
    ("needles", "exact"): "whole answers",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of a sweep.

    Attributes:
      axes: its values by the names of the axes, in an order that is that of the sweep.
      config: what is trained there, with any seed.
    """

    axes: Mapping[str, Value]
    config: ConfigDict

    @property
    def name(self) -> str:
        """Its values as a part of a folder's name."""
        return "-".join(re.findall(r"[\w.+]+", " ".join(map(str, self.axes.values()))))


@dataclasses.dataclass(frozen=True)
class Lines:
    """The mean over an axis of numbers, with a band from the lowest to the highest seed.

    Attributes:
      x: axis from left to right.
      lines: axis of which each value is a line.
      panels: axis of which each value is a panel; None for one panel.
    """

    x: str
    lines: str
    panels: str | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """All that it shows."""
        return tuple(axis for axis in (self.x, self.lines, self.panels) if axis is not None)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A row for each value of an axis: its mean, and a dot for each seed.

    Attributes:
      rows: the axis.
      panels: axis of which each value is a panel; None for one panel.
    """

    rows: str
    panels: str | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """All that it shows."""
        return tuple(axis for axis in (self.rows, self.panels) if axis is not None)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `get_sweep()` of a sweep's file returns.

    Attributes:
      cells: what is trained, in the order of the table.
      seeds: `config.seed` of the runs of each cell.
      number: of the evaluation's held-out numbers, the one that is compared: see `NUMBERS`.
      picture: how it is drawn.
      by: what it is split by, which becomes one more axis: "pairs" for recall, with the values of
        `data.mqar.eval_pairs`; "length", with those of `lengths`; None for the number over all.
      lengths: tokens of the held-out examples that every run is evaluated on, one time each, for
        `by="length"`; without it they are those of `data.length`.
      choose: an axis, such as the learning rate, of which every cell of the other axes takes the
        value whose runs have the best mean; None if there is none.
      title: of the picture.
    """

    cells: Sequence[Cell]
    seeds: tuple[int, ...]
    number: str
    picture: Lines | Rows
    by: str | None = None
    lengths: tuple[int, ...] = ()
    choose: str | None = None
    title: str = ""

    @property
    def axes(self) -> dict[str, list[Value]]:
        """The cells' axes with their values, in order."""
        return {
            axis: list(dict.fromkeys(cell.axes[axis] for cell in self.cells))
            for axis in self.cells[0].axes
        }

    @property
    def parts(self) -> list[int]:
        """Values of the axis `by`."""
        return sorted({part for cell in self.cells for part in self.parts_of(cell)})

    def parts_of(self, cell: Cell) -> Sequence[int]:
        """Those that a cell has."""
        match self.by:
            case "pairs":
                return cell.config.data.mqar.eval_pairs
            case "length":
                return self.lengths
            case _:
                return ()

    @property
    def higher(self) -> bool:
        """Whether a higher number is a better one."""
        return NUMBERS[self._task][self.number] == "higher"

    @property
    def label(self) -> str:
        """The number's name for people."""
        return LABELS.get((self._task, self.number), self.number)

    @property
    def _task(self) -> str:
        return self.cells[0].config.data.task


def grid(config_of: Callable[..., ConfigDict], **axes: Sequence[Value]) -> list[Cell]:
    """A cell for every combination of the axes' values, the last axis fastest.

    Args:
      config_of: called with one value of each axis by its name; returns the config.
      axes: values by the name of their axis.
    """
    places = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [Cell(place, config_of(**place)) for place in places]
