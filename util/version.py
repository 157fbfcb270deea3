"""The version, and the commit that is running."""

import subprocess
from pathlib import Path

VERSION = "0.2.0"


def commit() -> str:
    """The commit that is checked out, with "-dirty" appended if files differ from it; "unknown" outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
