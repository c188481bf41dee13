"""The runs of a sweep: each is trained as train.py does and evaluated as eval.py does, once."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from mc_jax.errors import InputError
from mc_jax.evaluation import evaluate
from mc_jax.files import replace
from mc_jax.sweeps.description import Cell, Sweep
from mc_jax.training import DivergedError, check, train
from mc_jax.training.resume import differences


class RunResult(NamedTuple):
    """How a run ended: outcome.json in its folder.

    Attributes:
      held_out: the evaluation's numbers, those of other lengths `by_length`; None if the run
        diverged.
      diverged: what was not finite, and at which step; None if the run is whole.
      seconds: of training and evaluation, compiling included; None if it was ever stopped.
    """

    held_out: dict[str, Any] | None
    diverged: str | None
    seconds: float | None


class Run(NamedTuple):
    """One cell with one seed."""

    cell: Cell
    seed: int
    folder: Path
    lengths: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        axes = ", ".join(f"{axis}={value}" for axis, value in self.cell.axes.items())
        return f"{axes}, seed {self.seed}"

    @property
    def config(self) -> ConfigDict:
        """What is trained."""
        config = ConfigDict(self.cell.config.to_dict())
        config.seed = self.seed
        return config.lock()

    @property
    def result(self) -> RunResult | None:
        """How it ended; None if it has not, or not at all of the lengths.

        Raises:
          InputError: its outcome.json is damaged.
        """
        found = _read(self.folder / "outcome.json")
        if found is None:
            return None
        result = RunResult(**found)
        if result.held_out is not None and self.lengths:
            measured = {row["length"] for row in result.held_out.get("by_length", [])}
            if not measured.issuperset(self.lengths):
                return None
        return result

    def check_unchanged(self) -> None:
        """Check that what was begun in the folder is this run.

        Raises:
          InputError: another experiment was, and every setting that differs is named; or the
            folder's config.json is damaged.
        """
        saved = _read(self.folder / "config.json")
        if saved is None:
            return
        changed = differences(saved, check(self.config).to_json())
        if changed:
            found = {name: now for name, (_, now) in changed.items()}
            before = ", ".join(f"{name}={old!r}" for name, (old, _) in changed.items())
            allowed = f"{before}, of the run that is there; delete it, or name another --workdir"
            raise InputError(str(self.folder), found, allowed)

    def finish(self) -> Signals | None:
        """Train to the end and evaluate; returns the signal that stopped it before."""
        stopped_before = (self.folder / "config.json").exists()
        start, held_out, diverged = time.monotonic(), None, None
        try:
            signal = train(self.config, self.folder).signal
            if signal:
                return signal
            held_out = self._evaluate()
        except DivergedError as error:
            diverged = str(error).partition(";")[0]
        seconds = None if stopped_before else time.monotonic() - start
        result = RunResult(held_out, diverged, seconds)
        replace(self.folder / "outcome.json", json.dumps(result._asdict()).encode())
        # The next run has programs of its own.
        jax.clear_caches()
        return None

    def _evaluate(self) -> dict[str, Any]:
        """The numbers; those of the own length come last, since it is they that stay in eval/."""
        own = self.cell.config.data.length
        lengths = sorted({own, *self.lengths}, key=lambda length: (length == own, length))
        found = {n: evaluate(self.folder, length=n)["held_out"] for n in lengths}
        by_length = [{"length": n, **_numbers(found[n])} for n in self.lengths]
        return found[own] | ({"by_length": by_length} if by_length else {})


def _numbers(held_out: dict[str, Any]) -> dict[str, Any]:
    """Without the parts."""
    return {name: value for name, value in held_out.items() if not isinstance(value, list)}


def _read(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if there is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        allowed = f"a readable file ({error}); delete the folder to do the run again"
        raise InputError(str(path), "a damaged file", allowed) from None


def runs_of(sweep: Sweep, cells: Sequence[Cell], workdir: Path) -> list[Run]:
    """The runs of some of a sweep's cells; seeds outermost, so that each cell soon has a run."""
    return [
        Run(cell, seed, workdir / f"{cell.name}-seed{seed}", sweep.lengths)
        for seed in sweep.seeds
        for cell in cells
    ]


def finish_all(runs: Sequence[Run], after_each: Callable[[], None]) -> Signals | None:
    """Finish every run that is not.

    Args:
      runs: in their order.
      after_each: called after each that was finished here.

    Returns:
      The signal that stopped it; None if all are finished.
    """
    for place, run in enumerate(runs, 1):
        if run.result is not None:
            continue
        left = seconds_left(runs)
        time_left = "" if left is None else f"; about {tqdm.format_interval(left)} left"
        print(f"\nrun {place} of {len(runs)}: {run.name}{time_left}", flush=True)
        signal = run.finish()
        if signal:
            print(f"{signal.name}: saved; the same command goes on from there", flush=True)
            return signal
        result = run.result
        if result is not None and result.diverged:
            print(f"diverged: {result.diverged}", flush=True)
        after_each()
    return None


def seconds_left(runs: Sequence[Run]) -> float | None:
    """Seconds of the runs that are not finished, by those that are; None if none is.

    A run takes as long as its cell's others, or else as the mean of all.
    """
    results = [(run, run.result) for run in runs]
    known = [(run, r.seconds) for run, r in results if r is not None and r.seconds is not None]
    if not known:
        return None

    def expected(cell: Cell) -> float:
        own = [seconds for run, seconds in known if run.cell is cell]
        return statistics.fmean(own or [seconds for _, seconds in known])

    return sum(expected(run.cell) for run, result in results if result is None)


def finished(runs: Sequence[Run]) -> Iterator[tuple[Run, RunResult]]:
    """Those that have ended, with how."""
    for run in runs:
        result = run.result
        if result is not None:
            yield run, result
