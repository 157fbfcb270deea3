"""What ends a run before its end: signals, and a limit of time."""

import math
import signal
import time
from collections.abc import Iterable, Iterator

from util import distributed

TIME_IS_UP = -128  # in place of a signal's number: the run ends with the exit status 0


class StopSignal:
    """A context that records SIGTERM (the machine is reclaimed) and SIGINT (Ctrl-C), so that a run can save before it ends.

    A second SIGINT interrupts immediately. `minutes`: time after which the run ends as well; 0 disables.
    """

    def __init__(self, minutes: float = 0):
        self._received = 0
        self._deadline = time.monotonic() + 60 * minutes if minutes else math.inf

    @property
    def number(self) -> int:
        """The number of the signal that has arrived, TIME_IS_UP, or 0."""
        return self._received or (TIME_IS_UP if time.monotonic() >= self._deadline else 0)

    def __enter__(self) -> "StopSignal":
        self._earlier = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _record(self, number: int, _) -> None:
        self._received = number
        signal.signal(signal.SIGINT, self._earlier[signal.SIGINT])

    def watch(self, items: Iterable) -> Iterator:
        """This process's items, in step with all processes, which may have more or fewer of them.

        Raises SystemExit on all processes at once if one of them has received a signal.
        """
        items, end = iter(items), object()
        ended = [False]
        while not all(ended):
            item = next(items, end)
            ended, numbers = zip(*distributed.gather((item is end, self.number)))
            exit_if_any(numbers)
            if item is not end:
                yield item


def exit_if_any(numbers: Iterable[int]) -> None:
    """Raises SystemExit if one of the processes' `StopSignal.number` is not 0; a signal goes before the time."""
    if stopping := [number for number in numbers if number]:
        raise SystemExit(128 + max(stopping))
