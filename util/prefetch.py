"""Work done ahead of time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def prefetch(items: Iterator) -> Iterator:
    """The same items, each worked out by a thread while the one before it is used. What fails there is raised here."""
    end, threads = object(), torch.get_num_threads()
    with ThreadPoolExecutor(1, "prefetch") as pool:
        pool.submit(torch.set_num_threads, 1).result()  # helpers of its own would take the cores from whoever uses the items
        torch.set_num_threads(threads)  # the setting is each thread's own but for the matrix library's
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item
