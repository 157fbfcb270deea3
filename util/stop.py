"""Signals that ask a run to end."""

import signal


class StopSignal:
    """Notes SIGTERM (the node is taken away) and SIGINT (Ctrl-C) while it is entered, so that a run can save before it ends.

    `number` is the signal's, 0 before one came. A second SIGINT interrupts at once.
    """

    def __init__(self):
        self.number = 0

    def __enter__(self) -> "StopSignal":
        self._earlier = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        self.number = number
        signal.signal(signal.SIGINT, self._earlier[signal.SIGINT])
