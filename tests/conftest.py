import signal

import pytest

from tests import pictures


@pytest.fixture(autouse=True)
def default_child_signal():
    """Restores SIGCHLD: torch's DataLoader leaves a handler behind, and a child's end then killed test workers (SIGSEGV)."""
    yield
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_pack(tmp_path_factory):
    """The path of a small handwriting set."""
    return pictures.tiny_pack(tmp_path_factory.mktemp("pack") / "tiny.pack")
