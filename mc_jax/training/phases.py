"""Where the time of a run goes, and a warning where one part of it takes too long.

Goodput is the share of the time since the start that was spent in training steps: not in starting,
waiting for data, measuring, or saving.
"""

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

USEFUL = "step"


class Phases:
    """A clock with one hand for each part of a run."""

    def __init__(self, stuck_after: float = 0.0):
        """Start in the phase "start".

        Args:
          stuck_after: seconds in one phase after which a warning is printed, with what every
            thread is doing; 0 for never.
        """
        self._spent: dict[str, float] = {}
        self._began = time.perf_counter()
        self._phase, self._since = "start", self._began
        self._stuck_after = stuck_after
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if stuck_after:
            self._thread.start()

    @property
    def current(self) -> str:
        """The phase."""
        return self._phase

    def enter(self, phase: str) -> str:
        """Be in another phase from now on; returns the one before."""
        now, before = time.perf_counter(), self._phase
        self._spent[before] = self._spent.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be in a phase inside `with`."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def numbers(self) -> dict[str, float]:
        """`goodput`, and `seconds_in_<phase>` since the start for every phase."""
        self.enter(self._phase)
        total = time.perf_counter() - self._began
        found = {"goodput": self._spent.get(USEFUL, 0.0) / total}
        return found | {f"seconds_in_{name}": spent for name, spent in self._spent.items()}

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        warned: tuple[str, float] | None = None
        while not self._closed.wait(min(self._stuck_after / 4, 10.0)):
            here = self._phase, self._since
            seconds = time.perf_counter() - here[1]
            if seconds > self._stuck_after and here != warned:
                warned = here
                print(
                    f"train: in phase {here[0]!r} for {seconds:.0f} s now; is it stuck? All "
                    "threads:",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(file=sys.stderr)
