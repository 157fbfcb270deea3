"""Signals that end a run."""

import signal
from collections.abc import Iterable, Iterator

from util import distributed


class StopSignal:
    """A context that records SIGTERM (the machine is reclaimed) and SIGINT (Ctrl-C), so that a run can save before it ends.

    `number` is the signal's number, 0 if none has arrived. A second SIGINT interrupts immediately.
    """

    def __init__(self):
        self.number = 0

    def __enter__(self) -> "StopSignal":
        self._earlier = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _record(self, number: int, _) -> None:
        self.number = number
        signal.signal(signal.SIGINT, self._earlier[signal.SIGINT])

    def watch(self, items: Iterable) -> Iterator:
        """This process's items, in step with all processes, which may have more or fewer of them.

        Raises SystemExit on all processes at once if one of them has received a signal.
        """
        items, end = iter(items), object()
        ended = [False]
        while not all(ended):
            item = next(items, end)
            ended, signals = zip(*distributed.gather((item is end, self.number)))
            if any(signals):
                raise SystemExit(128 + max(signals))
            if item is not end:
                yield item
