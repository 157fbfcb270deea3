import pytest

from tests import pictures


@pytest.fixture(scope="session")
def tiny_pack(tmp_path_factory):
    """The path of a small handwriting set."""
    return pictures.tiny_pack(tmp_path_factory.mktemp("pack") / "tiny.pack")
