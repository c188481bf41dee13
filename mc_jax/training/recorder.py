"""Reads the numbers of a step from the device, checks them, shows them and writes them down."""

import math
from collections.abc import Mapping
from typing import Any

from mc_jax.training.experiment import Experiment
from mc_jax.training.metrics import Record, Sink
from mc_jax.training.progress import Progress, describe


class DivergedError(ArithmeticError):
    """The loss or the gradient of a step is not finite."""


class Recorder:
    """Takes the numbers of each step in turn."""

    def __init__(self, sinks: list[Sink], progress: Progress, experiment: Experiment):
        """Write them to `sinks` and show them on `progress`."""
        self._sinks, self._progress, self._experiment = sinks, progress, experiment

    def read(self, step: int, values: Mapping[str, Any]) -> Record:
        """Wait for the metrics of a step, and show them.

        Args:
          step: its number.
          values: its metrics, scalars that may still be computing.

        Raises:
          DivergedError: the loss or the gradient is not finite.
        """
        record: Record = {name: float(value) for name, value in values.items()}
        # As long as updates may be left out, what is not finite is not an end.
        if not 0 < record.get("skipped_in_a_row", 0) <= self._experiment.train.skip_nonfinite:
            for name in ("loss", "grad_norm"):
                _check_finite(step, name, record[name])
        speed = self._progress.update(record)
        return record | {"tokens": step * self._experiment.tokens} | speed

    def held_out(self, step: int, values: Mapping[str, float]) -> Record:
        """Show the held-out metrics of a step, and give them their names in the record.

        Raises:
          DivergedError: the held-out loss is not finite.
        """
        _check_finite(step, "held-out loss", values["loss"])
        self._progress.note(f"step {step}: held-out {describe(values, self._experiment.text)}")
        return {f"held_out_{name}": value for name, value in values.items()}

    def write(self, step: int, record: Record, always: bool = False) -> None:
        """Write the numbers of a step down, if it is its turn or `always`."""
        if always or step % self._experiment.train.log_every == 0:
            for sink in self._sinks:
                sink.write(step, record)

    def sync(self) -> None:
        """Return when all that was written survives a crash of the machine."""
        for sink in self._sinks:
            sink.sync()

    def note(self, text: str) -> None:
        """Show a line."""
        self._progress.note(text)

    def pause(self) -> None:
        """Leave out of the speed what was done since the last step."""
        self._progress.pause()


def _check_finite(step: int, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise DivergedError(f"{name} is {value} at step {step}")
