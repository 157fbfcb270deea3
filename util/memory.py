"""The C library's allocator, set for training on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
NEVER = 2**30  # bytes


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that a batch frees for the next one.

    By default it returns large blocks to the system, which clears each page again before the next use. Does nothing with another C
    library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have no mallopt, Windows has no such library
        return
    mallopt(M_MMAP_THRESHOLD, NEVER)
    mallopt(M_TRIM_THRESHOLD, NEVER)
