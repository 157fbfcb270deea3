"""Which state of the code is running."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit that is checked out, "-dirty" behind it where files differ from it; "unknown" outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
