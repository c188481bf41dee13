"""Leaving at a step boundary on SIGTERM and Ctrl-C."""

import signal
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While it is entered, the first signal is only remembered; a second one ends the process.

    Attributes:
      received: the signal that arrived, or None.
    """

    received: signal.Signals | None = None

    def __enter__(self) -> Self:
        """Take over SIGINT and SIGTERM."""
        self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
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
        self.received = signal.Signals(number)
        # The default action, since a Python handler would have to wait for compiled code to end.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)
