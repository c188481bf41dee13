"""`train.py sweep`."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from mc_jax.errors import InputError
from mc_jax.sweeps.check import check
from mc_jax.sweeps.description import Cell, Sweep
from mc_jax.sweeps.report import choice, table, write_report
from mc_jax.sweeps.runs import finish_all, finished, runs_of
from mc_jax.training.cli import Parser, call_in_file, default_folder

HELP = """Train many runs, evaluate them, and compare them over seeds.

  python train.py sweep --sweep=configs/sweeps/figure5.py
      every cell with every seed, in runs/sweeps/figure5; NAME.py:TEXT calls its get_sweep("TEXT")

  python train.py sweep --sweep=configs/sweeps/figure5.py --only dim=16,32 read=grm
      only the cells with these values

  python train.py sweep --sweep=configs/sweeps/figure5.py --report
      train nothing: the table and the picture of what is finished

  python train.py sweep --sweep=configs/sweeps/figure5.py --share=1/2
      the first of two processes or machines that divide the runs; --report afterwards, where the
      folders of all of them are

Every run is trained as train.py does and evaluated as eval.py does, in a folder of its own. The
same command goes on where it was stopped, by whatever, and skips what is finished. A run that
diverges is recorded as that. After each run sweep.json and sweep.png of the workdir are made anew,
of all runs of its cells and seeds that are finished.

Exit codes: 0 all runs are finished; 2 a setting, a file or the workdir cannot be used; 130 and 143
it was stopped by Ctrl-C or SIGTERM and has been saved.
"""


def sweep_command(arguments: Sequence[str]) -> int:
    """Run `train.py sweep`; returns the exit code."""
    options = _parser().parse_args(arguments)
    sweep = call_in_file("--sweep", options.sweep, "get_sweep", Sweep)
    if options.seeds is not None:
        sweep = dataclasses.replace(sweep, seeds=tuple(options.seeds))
    check(sweep)
    cells = _only(sweep, options.only)
    name = default_folder(options.sweep)
    workdir = Path(options.workdir or f"runs/sweeps/{name}")
    every_run = runs_of(sweep, sweep.cells, workdir)
    for run in every_run:
        run.check_unchanged()
    if not options.report:
        wanted = _share(runs_of(sweep, cells, workdir), options.share)
        print(f"{sum(1 for _ in finished(wanted))} of {len(wanted)} runs are finished", flush=True)

        def after_each() -> None:
            # Shares do not know of each other: they would write the same files.
            if options.share is None:
                write_report(sweep, name, every_run, workdir)

        signal = finish_all(wanted, after_each)
        if signal:
            return 128 + signal
        if options.share is not None:
            print(f"share {options.share} is finished; --report makes table and picture")
            return 0
    places = write_report(sweep, name, every_run, workdir)
    if not places:
        raise InputError("--report", str(workdir), "a folder with a finished run of this sweep")
    print(f"\n{table(sweep, places)}\n")
    if sweep.choose is not None:
        print(choice(sweep))
    ended = sum(1 for _ in finished(every_run))
    print(f"{ended} of {len(every_run)} runs; {workdir}/sweep.json and sweep.png")
    return 0


def _parser() -> Parser:
    parser = Parser(HELP)
    parser.add_argument("--sweep", metavar="FILE", required=True, help="what is compared")
    parser.add_argument(
        "--workdir", metavar="FOLDER", help="the sweep's; default runs/sweeps/<sweep name>"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="AXIS=VALUE,...",
        help="train only cells with these values",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", help="instead of the sweep's own"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--share", metavar="I/N", help="train the I-th of N shares of the runs")
    how.add_argument("--report", action="store_true", help="train nothing, only report")
    return parser


def _only(sweep: Sweep, conditions: Sequence[str]) -> list[Cell]:
    """The cells that meet all conditions.

    Raises:
      InputError: no such axis or value, or no cell has all of them.
    """
    cells = list(sweep.cells)
    for condition in conditions:
        axis, _, texts = condition.partition("=")
        if axis not in sweep.axes:
            raise InputError("--only", condition, "AXIS=VALUE,... of " + ", ".join(sweep.axes))
        known = list(map(str, sweep.axes[axis]))
        wanted = texts.split(",")
        if not set(wanted) <= set(known):
            raise InputError("--only", condition, f"{axis}=" + " | ".join(known))
        cells = [cell for cell in cells if str(cell.axes[axis]) in wanted]
    if not cells:
        raise InputError("--only", " ".join(conditions), "values that a cell has together")
    return cells


def _share(runs: list, share: str | None) -> list:
    """Every N-th run from the I-th on, finished or not: a rule that stays the same."""
    if share is None:
        return runs
    found = re.fullmatch(r"(\d+)/(\d+)", share)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError("--share", share, "I/N with I from 1 to N, such as 1/2")
    return runs[int(found[1]) - 1 :: int(found[2])]
