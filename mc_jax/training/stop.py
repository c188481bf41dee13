"""Leaving at a step boundary on SIGTERM and Ctrl-C, on all hosts at the same one."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self

from jax.experimental import multihost_utils

from mc_jax.training import hosts

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While it is entered, the first signal is only remembered; a second one ends the process.

    With several hosts SIGTERM is JAX's: a signal to any of them stops all after the same step.
    """

    _received: signal.Signals | None = None

    def at(self, step: int) -> signal.Signals | None:
        """The signal to stop for after a step, or None; to be asked after every step."""
        if not hosts.several():
            return self._received
        stop = multihost_utils.reached_preemption_sync_point(step)
        return (self._received or signal.SIGTERM) if stop else None

    def __enter__(self) -> Self:
        """Take over SIGINT and SIGTERM."""
        taken = (signal.SIGINT,) if hosts.several() else _SIGNALS
        self._previous = {number: signal.signal(number, self._remember) for number in taken}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        # The default action, since a Python handler would have to wait for compiled code to end.
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL)
        if hosts.several():
            os.kill(os.getpid(), signal.SIGTERM)
