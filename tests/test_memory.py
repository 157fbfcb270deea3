"""The allocator: freed memory is kept, and other C libraries do not matter."""

import ctypes
import platform
import subprocess
import sys

import pytest

from util import memory

# counts the pages that the system must clear for twenty large tensors, one after the other; glibc has found a place that it can
# use again after the first few, since small blocks come to lie between the large ones
SCRIPT = """
import resource, torch
from util.memory import keep_freed_memory
{call}
def fill():
    torch.ones(8 * 2**20)
for _ in range(20):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    faults = [
        int(subprocess.run([sys.executable, "-c", SCRIPT.format(call=call)], capture_output=True, text=True, check=True).stdout)
        for call in ("", "keep_freed_memory()")
    ]
    assert faults[1] < faults[0] / 2, faults


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_library_does_not_matter(monkeypatch, error):
    def load(name):
        raise error("no mallopt")

    monkeypatch.setattr(ctypes, "CDLL", load)
    memory.keep_freed_memory()
