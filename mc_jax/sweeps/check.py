"""Everything about a sweep that can be found wrong before its first run is trained."""

from collections import Counter
from collections.abc import Iterable

import jax
from ml_collections import ConfigDict

from mc_jax import data
from mc_jax.data.config import check as check_data
from mc_jax.errors import InputError
from mc_jax.sweeps.description import NUMBERS, PARTS, Cell, Lines, Rows, Sweep
from mc_jax.training.experiment import check as check_config
from mc_jax.training.experiment import check_devices


def check(sweep: Sweep) -> None:
    """Check a sweep and the config of every cell.

    Raises:
      InputError: what cannot be used; of a config, with the cell's name.
    """
    _check_cells(sweep)
    _check_seeds(sweep)
    for cell in sweep.cells:
        _check_config(sweep, cell)
    _check_lengths(sweep)
    if sweep.choose is not None and sweep.choose not in sweep.axes:
        raise InputError("sweep.choose", sweep.choose, " | ".join(sweep.axes) + " | None")
    _check_picture(sweep)


def _check_cells(sweep: Sweep) -> None:
    cells = sweep.cells
    if not cells or not all(isinstance(cell, Cell) and cell.axes for cell in cells):
        found = [dict(cell.axes) if isinstance(cell, Cell) else cell for cell in cells]
        raise InputError("sweep.cells", found, "one Cell or more, each with its axes")
    for cell in cells:
        if list(cell.axes) != list(cells[0].axes):
            allowed = f"the axes of the first one, in their order: {list(cells[0].axes)}"
            raise InputError(f"sweep.cells: {cell.name}", list(cell.axes), allowed)
        for axis, value in cell.axes.items():
            if not isinstance(value, (str, int, float)):
                raise InputError(f"sweep.cells: {cell.name}: {axis}", value, "a text or a number")
    if double := _double(cell.name for cell in cells):
        allowed = "each name once: it is that of the run's folder"
        raise InputError("sweep.cells", double, allowed)
    if taken := {"seed", sweep.by} & set(cells[0].axes):
        raise InputError("sweep.cells", sorted(map(str, taken)), "another name of the axis")


def _check_seeds(sweep: Sweep) -> None:
    seeds = sweep.seeds
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise InputError("seeds", seeds, "one integer >= 0 or more")
    if double := _double(seeds):
        raise InputError("seeds", double, "each seed once")


def _check_config(sweep: Sweep, cell: Cell) -> None:
    config = cell.config
    if not isinstance(config, ConfigDict):
        allowed = "a ConfigDict, as get_config() of a config returns it"
        raise InputError(f"sweep.cells: {cell.name}", type(config).__name__, allowed)
    try:
        check_devices(check_config(config), jax.device_count())
    except InputError as error:
        field = f"sweep.cells: {cell.name}: {error.field}"
        raise InputError(field, error.found, error.allowed) from None
    task = config.data.task
    if task != sweep.cells[0].config.data.task:
        allowed = f"{sweep.cells[0].config.data.task!r}: all cells have one task"
        raise InputError(f"sweep.cells: {cell.name}: data.task", task, allowed)
    if sweep.number not in NUMBERS[task]:
        allowed = " | ".join(NUMBERS[task]) + f" for data.task={task!r}"
        raise InputError("sweep.number", sweep.number, allowed)
    if sweep.by is not None and sweep.by not in PARTS[task]:
        allowed = " | ".join([*PARTS[task], "None"]) + f" for data.task={task!r}"
        raise InputError("sweep.by", sweep.by, allowed)


def _check_lengths(sweep: Sweep) -> None:
    lengths = sweep.lengths
    if (sweep.by == "length") != bool(lengths):
        allowed = "some with by='length', () without"
        raise InputError("sweep.lengths", lengths, allowed)
    if double := _double(lengths):
        raise InputError("sweep.lengths", double, "each length once")
    for length in lengths:
        for cell in sweep.cells:
            config = ConfigDict(cell.config.to_dict())
            config.data.length = length
            try:
                check_data(config.data)
                if config.data.task == "needles":
                    data.eval_batches(config.data)  # made when they are read
            except (InputError, TypeError) as error:
                allowed = f"lengths that {cell.name} can be evaluated at ({error})"
                raise InputError("sweep.lengths", length, allowed) from None


def _check_picture(sweep: Sweep) -> None:
    picture = sweep.picture
    if not isinstance(picture, (Lines, Rows)):
        raise InputError("sweep.picture", picture, "Lines(...) | Rows(...)")
    axes = {name: values for name, values in sweep.axes.items() if name != sweep.choose}
    if sweep.by is not None:
        axes[sweep.by] = list(sweep.parts)
    for axis in picture.axes:
        if axis not in axes:
            raise InputError("sweep.picture", axis, " | ".join(axes))
    for axis, values in axes.items():
        if len(values) > 1 and axis not in picture.axes:
            allowed = f"one that shows {axis!r} as well, which has {len(values)} values"
            raise InputError("sweep.picture", picture, allowed)
    if isinstance(picture, Lines) and not all(
        isinstance(value, (int, float)) and value > 0 for value in axes[picture.x]
    ):
        raise InputError(f"sweep.picture.x: {picture.x}", axes[picture.x], "numbers > 0")


def _double(names: Iterable) -> list:
    """What occurs more than once."""
    return [name for name, times in Counter(names).items() if times > 1]
