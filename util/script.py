"""How a script of one process starts and ends; for those that a launcher may start see `util.distributed.run`."""

import signal
import subprocess
import sys
import warnings
from collections.abc import Callable


def run(work: Callable[..., int | None], *arguments: object) -> int:
    """Calls work(*arguments), which returns its number of errors, or nothing. Returns the exit status: 1 if there were any.

    An expected error that ends it is one line.
    """
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata; `images.read` checks sizes itself
    try:
        return 1 if work(*arguments) else 0
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def as_script(main: Callable[[], int]) -> None:
    """Runs main() and exits with what it returns."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # on Windows, pipes default to a code page without Chinese characters
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # removes partial outputs, as Ctrl-C does
    sys.exit(main())
