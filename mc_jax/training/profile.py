"""A trace of some steps, for xprof and TensorBoard's profile tab."""

from collections.abc import Sequence
from pathlib import Path

import jax

from mc_jax.training.step import Metrics


class Profile:
    """Traces from the first to the last of the steps it is asked for."""

    def __init__(self, steps: Sequence[int], workdir: Path):
        """Write to workdir/profile; no `steps`, no profile."""
        self._first, self._last = steps or (0, -1)
        self._folder, self._running = workdir / "profile", False

    def before(self, step: int) -> None:
        """A step begins."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, values: Metrics) -> None:
        """A step has been dispatched; its values are there when it is done."""
        if self._running and step == self._last:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """End a trace that is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
