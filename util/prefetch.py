"""Work done ahead of time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


def prefetch(items: Iterator) -> Iterator:
    """The same items, each worked out by a thread while the one before it is used. What fails there is raised here."""
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item
