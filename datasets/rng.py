"""Counter-based random numbers: each depends on (seed, epoch, sample id, name, counter) alone.

They do not depend on the batch, the process, the number of workers or on resuming. The generator is SplitMix64 (Steele, Lea &
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) over a counter.
"""

import zlib

import numpy as np

_GAMMA, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output of SplitMix64 for each uint64 state."""
    with np.errstate(over="ignore"):
        z = state + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        return z ^ (z >> np.uint64(31))


def sample_keys(seed: int, epoch: int, ids) -> np.ndarray:
    """(N,) sample ids → (N,) uint64 keys: a hash of seed, epoch and id."""
    key = np.asarray(ids).astype(np.uint64)
    for part in (epoch, seed):
        key = splitmix64(key) ^ np.uint64(part)
    return splitmix64(key)


class Stream:
    """Random numbers for N pictures: number j of picture i depends on its key, the name and j alone.

    Args:
        keys: (N,) uint64 of `sample_keys`.
        name: what the numbers are for; streams of different names are independent.
    """

    BLOCK = 64  # numbers made at once; one number costs nearly as much

    def __init__(self, keys: np.ndarray, name: str):
        self.base = splitmix64(keys ^ np.uint64(zlib.crc32(name.encode())))
        self.count, self.made = 0, np.empty((len(keys), 0))

    def __len__(self) -> int:
        return len(self.base)

    def uniform(self, low=0.0, high=1.0, k: int | None = None) -> np.ndarray:
        """(N,) or (N, k) float64 in [low, high); the bounds may be (N,) or (N, 1) arrays."""
        start, self.count = self.count, self.count + (k or 1)
        ready = self.made.shape[1]
        if self.count > ready:
            counter = np.arange(ready, max(self.count, ready + self.BLOCK), dtype=np.uint64)
            with np.errstate(over="ignore"):
                bits = splitmix64(self.base[:, None] + counter * _GAMMA)
            self.made = np.concatenate([self.made, (bits >> np.uint64(11)) * 2.0**-53], axis=1)
        return low + (high - low) * (self.made[:, start : self.count] if k else self.made[:, start])

    def log_uniform(self, low, high, k: int | None = None) -> np.ndarray:
        """Like `uniform`, with a uniform logarithm."""
        return np.exp(self.uniform(np.log(low), np.log(high), k))

    def normal(self, k: int | None = None) -> np.ndarray:
        """(N,) or (N, k) standard normal numbers (Box & Muller, Ann. Math. Stat. 1958)."""
        radius = np.sqrt(-2 * np.log1p(-self.uniform(k=k)))
        return radius * np.cos(self.uniform(0, 2 * np.pi, k))

    def chance(self, p: float) -> np.ndarray:
        """(N,) bool, True with probability p."""
        return self.uniform() < p

    def rows(self, index: np.ndarray) -> "Stream":
        """The same stream for the pictures at `index`."""
        part = object.__new__(Stream)
        part.base, part.count, part.made = self.base[index], self.count, self.made[index]
        return part
