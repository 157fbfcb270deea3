"""Prepares the next batch while the current one is used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def prefetch(items: Iterator) -> Iterator:
    """Yields the same items; a thread computes each while the previous one is used. Its exceptions are raised here."""
    end, threads = object(), torch.get_num_threads()
    with ThreadPoolExecutor(1, "prefetch") as pool:
        pool.submit(torch.set_num_threads, 1).result()  # more would take cores from the user of the items
        torch.set_num_threads(threads)  # the setting is per thread, except in the matrix library
        upcoming = pool.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, items, end)
            yield item
