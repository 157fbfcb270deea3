"""Damage for clean handwriting, in batches, on any device.

A preset (configs/damage/*.yaml) is a table: operation → probability and ranges. Every draw is made on the host, from the
picture's key alone, by a counter-based generator; so it depends neither on the batch nor on the process, and which pictures an
operation hits is known without asking the device. The pixels are then worked out in batches on the device that holds them.

Noise is cut from fields made once per side: a window at a drawn place costs a copy, not a computation.

Lengths are pixels at side 224 and scale with the side. What was measured on real characters, and where the physical models
come from, stands in docs/damage.md.
"""

import difflib
import functools
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from util.binarise import otsu_threshold

VERSION = 3  # of the generator: one more whenever the same preset and key give another picture; it is part of the benchmark's name
PRESETS = Path(__file__).parent.parent / "configs" / "damage"
CPU_CHUNK = 32  # pictures worked on at once on a CPU, so that memory does not grow with the batch
_GAMMA, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) for each uint64 state."""
    with np.errstate(over="ignore"):
        z = state + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        return z ^ (z >> np.uint64(31))


def sample_keys(seed: int, epoch: int, ids) -> np.ndarray:
    """(N,) sample ids → (N,) uint64 keys; equal exactly where seed, epoch and id are."""
    key = np.asarray(ids).astype(np.uint64)
    for part in (epoch, seed):
        key = splitmix64(key) ^ np.uint64(part)
    return splitmix64(key)


class Stream:
    """Random numbers of one operation for N pictures: number j of picture i depends on its key, the name and j alone."""

    BLOCK = 64  # numbers are made so many at a time, which costs hardly more than one

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
        return np.exp(self.uniform(np.log(low), np.log(high), k))

    def normal(self, k: int | None = None) -> np.ndarray:
        """Standard normal, by Box and Muller."""
        radius = np.sqrt(-2 * np.log1p(-self.uniform(k=k)))
        return radius * np.cos(self.uniform(0, 2 * np.pi, k))

    def chance(self, p: float) -> np.ndarray:
        return self.uniform() < p

    def rows(self, index: np.ndarray) -> "Stream":
        """The same stream for some of the pictures."""
        part = object.__new__(Stream)
        part.base, part.count, part.made = self.base[index], self.count, self.made[index]
        return part


def load_preset(preset: str | Path | dict) -> dict:
    """A preset's table, by the name of one that comes with the project, a YAML file's path, or as a dict.

    Raises ValueError for an unknown preset, operation or parameter, and for a range out of bounds, by name.
    """
    if isinstance(preset, dict):
        table, where = preset, "preset"
    else:
        path = Path(preset)
        if path.suffix not in (".yaml", ".yml"):
            path = PRESETS / f"{preset}.yaml"
        if not path.is_file():
            raise ValueError(f"no damage preset '{preset}': one of {', '.join(preset_names())}, or a YAML file's path")
        table, where = yaml.safe_load(path.read_text(encoding="utf-8")), str(preset)
    if not isinstance(table, dict):
        raise ValueError(f"{where}: a preset is a table of operations")
    table = {"clean": 0.0, "severity": [1.2, 2.2], **table}
    for name, row in table.items():
        if name in ("clean", "severity"):
            _check(f"{where}: {name}", row, (0, 1) if name == "clean" else [0.1, 100])
            continue
        if name not in OPERATIONS:
            raise ValueError(f"{where}: no operation '{name}'" + _nearest(name, OPERATIONS))
        bounds = {"p": (0, 1), **OPERATIONS[name][1]}
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {name} is a table of {', '.join(bounds)}")
        for key, value in row.items():
            if key not in bounds:
                raise ValueError(f"{where}: {name} has no '{key}'" + _nearest(key, bounds))
            _check(f"{where}: {name}.{key}", value, bounds[key])
        missing = [key for key in bounds if key not in row]
        if missing:
            raise ValueError(f"{where}: {name} lacks {', '.join(missing)}")
    if "geometry" in list(table)[3:]:
        raise ValueError(f"{where}: geometry moves the target as well, so it is the first operation")
    return table


def scored_preset(preset: str | Path | dict) -> dict:
    """The preset as scores are taken with: no picture stays clean, for each would count the cap of the PSNR."""
    return {**load_preset(preset), "clean": 0.0}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean '{near[0]}'?" if near else f": one of {', '.join(known)}"


def _check(name: str, value, bounds: tuple[float, float] | list[float]) -> None:
    (low, high), is_pair = bounds, isinstance(bounds, list)
    if isinstance(value, list) != is_pair or (is_pair and len(value) != 2):
        raise ValueError(f"{name} is {value}, not " + ("two numbers [low, high]" if is_pair else "one number"))
    if not all(isinstance(v, int | float) and low <= v <= high for v in (value if is_pair else [value])):
        raise ValueError(f"{name} is {value}, outside {low} … {high}")
    if is_pair and value[0] > value[1] and not name.endswith(" severity"):
        raise ValueError(f"{name} is {value}: a range is [low, high]")


class Degradation:
    """Damages clean pictures.

    Args:
        preset: see `load_preset`.
        side: side of the pictures in pixels.
        device: where the pictures are.

    `degradation(clean, keys, severity=None)`: clean (N, 1, side, side) float in [0, 1], strokes bright; keys (N,) uint64 of
    `sample_keys`; severity in [0, 1] for all pictures, or None to draw each from the preset's Beta distribution. Returns
    (damaged, target), both like `clean`; the target is `clean` moved as the damaged picture was (rotation, shift, warp) and
    otherwise untouched.
    """

    def __init__(self, preset: str | Path | dict = "mixed", side: int = 224, device: torch.device | str = "cpu"):
        self.table, self.side, self.device = load_preset(preset), side, torch.device(device)
        self.px = side / 224
        self.noise = _Fields(side, self.device)
        self._beta = _beta_quantiles(*self.table["severity"])
        ramp = torch.arange(side, dtype=torch.float32, device=self.device)
        self.y, self.x = ramp[None, :, None], ramp[None, None, :]  # pixel coordinates

    def severities(self, keys: np.ndarray) -> np.ndarray:
        return np.interp(Stream(keys, "severity").uniform(), np.linspace(0, 1, len(self._beta)), self._beta)

    @torch.no_grad()
    def __call__(self, clean: Tensor, keys: np.ndarray, severity: float | None = None) -> tuple[Tensor, Tensor]:
        if clean.shape[1:] != (1, self.side, self.side) or len(keys) != len(clean):
            raise ValueError(f"expected ({len(keys)}, 1, {self.side}, {self.side}) pictures, got {tuple(clean.shape)}")
        if severity is not None and not 0 <= severity <= 1:
            raise ValueError(f"severity {severity} is outside 0 … 1")
        s = self.severities(keys) if severity is None else np.full(len(keys), float(severity))
        touched = np.flatnonzero(~Stream(keys, "clean").chance(self.table["clean"]))
        damaged, target = (clean.clone(memory_format=torch.contiguous_format) for _ in range(2))
        at_once = CPU_CHUNK if self.device.type == "cpu" else max(len(touched), 1)
        for start in range(0, len(touched), at_once):
            rows = touched[start : start + at_once]
            index = self.tensor(rows, torch.int64)
            x, moved = self._damage(clean[:, 0].index_select(0, index), keys[rows], s[rows])
            _put(damaged[:, 0], index, x)
            if moved is not None:
                _put(target[:, 0], index[moved[0]], moved[1])
        return damaged, target

    def _damage(self, x: Tensor, keys: np.ndarray, s: np.ndarray) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Damages pictures (N, H, W), in place; also returns which of them geometry moved, and as what."""
        moved = None
        for name, row in self.table.items():
            if name in ("clean", "severity"):
                continue
            stream = Stream(keys, name)
            rows = np.flatnonzero(stream.chance(row["p"]))
            if not len(rows):
                continue
            everyone, index = len(rows) == len(keys), self.tensor(rows, torch.int64)
            if not everyone:
                stream = stream.rows(rows)
            part = OPERATIONS[name][0](self, x if everyone else x.index_select(0, index), stream, s[rows], row)
            if name == "geometry":
                moved = index, part.clone() if everyone else part
            if everyone:
                x = part
            else:
                _put(x, index, part)
        return x, moved

    def tensor(self, values: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        return to_device(values, dtype, self.device)

    def column(self, values: np.ndarray) -> Tensor:
        """(N,) drawn numbers → (N, 1, 1), to go with pictures (N, H, W)."""
        return self.tensor(values)[:, None, None]


def to_device(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host on the device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _put(pictures: Tensor, index: Tensor, part: Tensor) -> None:
    """pictures[index] = part, all contiguous (·, H, W): copied as pairs of numbers, which takes half the time."""
    pictures.view(torch.float64).index_copy_(0, index, part.view(torch.float64))


class _Fields:
    """Random fields as wide as a picture and twelve times as high, from which windows are cut; from fixed seeds.

    A window is whole rows of a field, so that to cut it is to copy one piece of memory.
    """

    HEIGHT = 12
    LENGTHS = np.array([7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 60.0])  # of the ragged layers; the one after them is streaked
    STREAKS = len(LENGTHS)
    KINDS = {  # layers: (correlation length in pixels at 224, how much longer it is downwards, slope of the octaves above)
        "white": [(0.0, 1, None)],
        "fine": [(2.2, 1, None)],
        "coarse": [(40.0, 1, None)],
        "ragged": [(length, 1, 1.0) for length in LENGTHS] + [(14.0, 8, 1.0)],
    }
    _made: dict = {}

    def __init__(self, side: int, device: torch.device):
        self.side, self.device = side, device

    def windows(self, kind: str, place: np.ndarray, layer: np.ndarray | int = 0) -> Tensor:
        """(N, side, side) windows at places (N,) in [0, 1) of a layer; ragged ones are uniform, the others normal."""
        side, key = self.side, (kind, self.side, self.device)
        if key not in self._made:
            self._made[key] = torch.cat([self._make(*layer) for layer in self.KINDS[kind]]).to(self.device)
        rows = self._made[key]
        top = (place * ((self.HEIGHT - 1) * side)).astype(np.int64) + self.HEIGHT * side * np.asarray(layer)
        windows = rows.as_strided((len(rows) - side + 1, side, side), (side, side, 1))
        return windows.index_select(0, to_device(top, torch.int64, self.device))

    def _make(self, length: float, longer: int, slope: float | None) -> Tensor:
        height, width = self.HEIGHT * self.side, 2 * self.side  # the second half is left out: the field is periodic
        rng = np.random.default_rng([round(10 * length), longer])
        noise = rng.standard_normal((height, width), dtype=np.float32)
        if length:
            frequency = np.hypot(np.fft.fftfreq(height)[:, None] * longer, np.fft.rfftfreq(width)[None])
            base = 1 / (length * self.side / 224)
            if slope is None:  # Gaussian smoothing, sigma = length
                gain = np.exp(-2 * (np.pi * frequency / base) ** 2)
            else:  # a patch and the gap beside it make a period; each octave above it has 1/f of the amplitude, spread over
                # f times the area: ragged at every scale
                gain = np.maximum(frequency / (base / 2), 1) ** -(1 + slope)
            noise = np.fft.irfft2(np.fft.rfft2(noise) * gain, s=noise.shape)
        noise = noise[:, : self.side]
        if slope:  # each value becomes its rank, so that a threshold of c covers the share c
            ranks = np.empty(noise.size, np.float32)
            ranks[np.argsort(noise, axis=None)] = np.arange(noise.size) / noise.size
            return torch.from_numpy(ranks.reshape(noise.shape))
        return torch.from_numpy(((noise - noise.mean()) / noise.std()).astype(np.float32))


def _beta_quantiles(a: float, b: float, n: int = 1025) -> np.ndarray:
    """Quantiles 0, 1/(n-1), … 1 of the Beta(a, b) distribution, by summing its density."""
    x = (np.arange(65536) + 0.5) / 65536
    mass = np.cumsum(np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x)))
    return np.interp(np.linspace(0, 1, n), mass / mass[-1], x)


# --- helpers on pictures (N, H, W) -----------------------------------------------------------------------------------


def gaussian_blur(x: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Each picture with its own sigma (N,) in pixels; the kernel ends `reach` pixels from its centre.

    A sum of shifted pictures, on a CPU of as few at a time as stay in its second-level cache: quicker there than a convolution.
    """
    weights = torch.exp(-0.5 * (torch.arange(reach + 1, device=x.device) / sigma[:, None].clamp_min(1e-3)) ** 2)
    weights = (weights / (2 * weights.sum(1, keepdim=True) - 1))[:, :, None, None]
    at_once, out = 3 if x.device.type == "cpu" else len(x), torch.empty_like(x)
    for piece, weight, result in zip(*(v.split(at_once) for v in (x, weights, out))):
        piece = F.pad(piece, (reach,) * 4, mode="replicate")
        for axis in (1, 2):
            size = piece.shape[axis] - 2 * reach
            total = torch.mul(piece.narrow(axis, reach, size), weight[:, 0], out=result if axis == 2 else None)
            for k in range(1, reach + 1):
                for start in (reach - k, reach + k):
                    total.addcmul_(piece.narrow(axis, start, size), weight[:, k])
            piece = total
    return out


def _dilate(x: Tensor, radius: int, pick=torch.maximum) -> Tensor:
    """The maximum, or what `pick` gives, over the square of 2 radius + 1 pixels around each pixel, in windows that double."""
    size = 2 * radius + 1
    x = F.pad(x, (radius,) * 4, mode="replicate")
    for axis in (1, 2):
        done = 1
        while done < size:
            step = min(done, size - done)
            length = x.shape[axis] - step
            x = pick(x.narrow(axis, 0, length), x.narrow(axis, step, length))
            done += step
    return x


def _per_value(x: Tensor, values: np.ndarray, function) -> Tensor:
    """function(pictures, value) on each group of pictures that share a value: a call per value, not per picture."""
    out = torch.empty_like(x)
    for value in np.unique(values):
        rows = to_device(np.flatnonzero(values == value), torch.int64, x.device)
        _put(out, rows, function(x.index_select(0, rows), value.item()))
    return out


def _ragged(d: "Degradation", stream: Stream, lengths: list[float], streaked: np.ndarray | bool = False) -> Tensor:
    """(N, H, W) uniform 1/f fields, each of a drawn base length, or streaked along the lines."""
    wanted, place = stream.uniform(*lengths), stream.uniform()
    layer = np.abs(_Fields.LENGTHS[:, None] - wanted).argmin(0)
    return d.noise.windows("ragged", place, np.where(streaked, _Fields.STREAKS, layer))


def _ramp(d: "Degradation", angle: np.ndarray, height: np.ndarray) -> tuple[Tensor, Tensor]:
    """(N, 1, W) and (N, H, 1), whose sum runs from -height to height (N,) across the picture along each angle."""
    half = (d.side - 1) / 2
    return (d.x - half) * d.column(np.cos(angle) * height / half), (d.y - half) * d.column(np.sin(angle) * height / half)


def _stamp(d: "Degradation", x: Tensor, count: np.ndarray, spots: tuple, wobble=None, level=1.0, dark=False) -> Tensor:
    """Draws ellipses with soft edges over pictures (N, H, W), in place.

    count (N,): how many of the K ellipses of a picture are drawn; spots: centre x and y, semi-axes (pixels) and angle, each
    (N, K); wobble (N, K): phase of an uneven outline, None for a smooth one; level (N,): of bright ones; dark ones are 0.
    """
    used = np.arange(spots[0].shape[1]) < count[:, None]
    if not used.any():
        return x
    picture = np.nonzero(used)[0]
    cx, cy, rx, ry, angle = (np.broadcast_to(spot, used.shape)[used] for spot in spots)
    rx, ry = np.maximum(rx, 0.4), np.maximum(ry, 0.4)
    left, top, steep = np.floor(cx), np.floor(cy), np.minimum(rx, ry)
    reach = math.ceil((1 if wobble is None else 1.3) * (np.maximum(rx, ry) * (1 + 0.5 / steep)).max())  # beyond it all is 0
    corner = (picture * d.side + top) * d.side + left
    numbers = [cx - left, cy - top, np.cos(angle) / rx, np.sin(angle) / rx, np.cos(angle) / ry, np.sin(angle) / ry, steep]
    ox, oy, cos_x, sin_x, cos_y, sin_y, steep = d.tensor(np.stack(numbers))[:, :, None, None]
    step = torch.arange(-reach, reach + 1, device=d.device)
    dx, dy = step - ox, step[:, None] - oy  # (M, 1, R), (M, R, 1)
    u, v = dx * cos_x + dy * sin_x, dy * cos_y - dx * sin_y
    distance = torch.hypot(u, v)
    if wobble is not None:
        theta, phase = torch.atan2(v, u), d.column(wobble[used])
        distance /= 1 + 0.18 * torch.sin(3 * theta + phase) + 0.12 * torch.sin(7 * theta + 2 * phase)
    value = ((1 - distance) * steep + 0.5).clamp_(0, 1)
    left, top = d.tensor(np.stack([left, top]), torch.int64)[:, :, None, None]
    across, down = left + step, top + step[:, None]
    value *= ((across >= 0) & (across < d.side)) * ((down >= 0) & (down < d.side))
    place = (d.tensor(corner, torch.int64)[:, None, None] + step[:, None] * d.side + step).clamp_(0, x.numel() - 1)
    value = 1 - value if dark else value * d.column(np.broadcast_to(level, len(x))[picture])
    x.view(-1).scatter_reduce_(0, place.flatten(), value.flatten(), "amin" if dark else "amax")
    return x


# --- the operations ---------------------------------------------------------------------------------------------------
# Each takes (degradation, pictures (N, H, W) in [0, 1], which it may change, stream, severities (N,), its row of the preset's
# table) and returns pictures in [0, 1].


def geometry(d, x, stream, s, row):
    """Rotation (sd in degrees), scale (±), shift (± of the side) and a smooth warp (sd in pixels)."""
    n, side = len(x), d.side
    angle, scale = np.radians(row["rotate"]) * stream.normal(), 1 + stream.uniform(-row["scale"], row["scale"])
    shift = stream.uniform(-2 * row["shift"], 2 * row["shift"], 2)
    bends = stream.normal(k=32).reshape(n, 2, 4, 4) * (row["warp"] * 2 / 224)  # a control point every 67 px
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    # where each pixel comes from, as a product: (B-splines, 1, y) · numbers · (B-splines, 1, x)
    numbers = np.zeros((n, 2, 6, 6))
    numbers[:, :, :4, :4], numbers[:, :, 4, 4] = bends, shift
    numbers[:, :, 4, 5], numbers[:, :, 5, 4] = np.stack([cos, sin], 1), np.stack([-sin, cos], 1)
    basis = d.tensor(_grid_basis(side), torch.float64)  # so that how a product is summed cannot be seen in the picture
    grid = (basis @ d.tensor(numbers, torch.float64) @ basis.T).float().permute(0, 2, 3, 1)
    return F.grid_sample(x[:, None], grid, align_corners=False)[:, 0]


@functools.cache
def _grid_basis(side: int) -> np.ndarray:
    """(side, 6): at each pixel the weights of four control points by cubic interpolation (Keys, a = -3/4), 1, and its
    coordinate in [-1, 1]."""
    at = np.arange(side) * 3 / (side - 1)
    gap = np.abs(at[:, None] - np.arange(-2, 6))
    near, far = (1.25 * gap - 2.25) * gap**2 + 1, ((-0.75 * gap + 3.75) * gap - 6) * gap + 3
    weights = np.where(gap <= 1, near, np.where(gap < 2, far, 0))
    weights[:, 2] += weights[:, :2].sum(1)  # points beyond the outermost repeat it
    weights[:, 5] += weights[:, 6:].sum(1)
    return np.column_stack([weights[:, 2:6], np.ones(side), (2 * np.arange(side) + 1) / side - 1])


def vanish(d, x, stream, s, row):
    """Strokes thinner than a drawn width go where the paper bridged the groove, on a fifth to four fifths of the picture."""
    radius = np.round(stream.uniform(*row["width"]) * d.px / 2).astype(int)
    thick = _per_value(x, radius, lambda pictures, r: _dilate(_dilate(pictures, r, torch.minimum), r + round(2 * d.px)))
    kept = _ragged(d, stream, [20, 60]).mul_(10).add_(d.column(0.5 - 10 * stream.uniform(0.2, 0.8))).clamp_(0, 1)
    return torch.minimum(x, torch.maximum(thick, kept, out=thick), out=x)


def edges(d, x, stream, s, row):
    """Edges weather: rounded by a blur, ragged by noise, the stroke thicker or, offset above 0, thinner."""
    sigma = stream.uniform(*row["blur"]) * d.px
    level = 0.5 + stream.uniform(*row["offset"]) * (1 + s)
    strength, place = stream.uniform(*row["noise"]), stream.uniform()
    soft = gaussian_blur(x, d.tensor(sigma), math.ceil(2.5 * row["blur"][1] * d.px))
    noise = d.noise.windows("fine", place).mul_(d.column(4 * strength))
    edge = torch.addcmul(soft, soft, soft, value=-1, out=x)  # soft (1 - soft): most where an edge is
    return torch.add(d.column(0.5 - 2.5 * level), soft.addcmul_(noise, edge), alpha=2.5, out=x).clamp_(0, 1)


def bleed(d, x, stream, s, row):
    """Ink runs: strokes grow and soften."""
    radius = np.round(stream.uniform(*row["grow"]) * d.px).astype(int)
    sigma = stream.uniform(*row["blur"]) * d.px
    return gaussian_blur(_per_value(x, radius, _dilate), d.tensor(sigma), math.ceil(2.5 * row["blur"][1] * d.px))


def _area(d, stream, s, row) -> Tensor:
    """(N, H, W) ragged areas in [0, 1] over a share of the picture drawn between cover[0] and, at severity 1, cover[1]."""
    cover = row["cover"][0] + (row["cover"][1] - row["cover"][0]) * s * stream.uniform()
    one_sided, angle = stream.chance(row["one_sided"]), stream.uniform(0, 2 * np.pi)
    # a uniform field exceeds 1 - c on the share c; with a ramp added, the sum is triangular over [-.5, 1.5]
    level = np.where(one_sided, 1.5 - np.sqrt(2 * cover), 1 - cover)
    across, down = _ramp(d, angle, 20 * one_sided)
    area = _ragged(d, stream, row["length"]).mul_(40).add_(across + d.column(0.5 - 40 * level))
    return (area.add_(down) if one_sided.any() else area).clamp_(0, 1)


def loss(d, x, stream, s, row):
    """Lost stone takes no ink: in a rubbing it has the colour of the strokes and fuses with them."""
    return torch.maximum(x, _area(d, stream, s, row), out=x)


def missing(d, x, stream, s, row):
    """Parts of the strokes are gone, in the colour of the ground; with probability `strokes` also a whole one."""
    area = _area(d, stream, s, row)
    rows, place = np.flatnonzero(stream.chance(row["strokes"])), stream.uniform()
    if len(rows):
        index = d.tensor(rows, torch.int64)
        part = x[index]
        _put(x, index, part * (1 - _one_stroke(part, d.noise.windows("white", place[rows]))))
    return x.addcmul_(x, area, value=-1)


def _one_stroke(x: Tensor, lot: Tensor) -> Tensor:
    """(N, H, W) → 1 on one connected stroke of each picture, drawn by lot (N, H, W), and 0 elsewhere.

    Nothing is drawn where a stroke holds more than half of the ink: it is not a part of the character but the character. Strokes
    are told apart at a quarter of the resolution, by labels that spread to all of their neighbours' trees and down them (as
    FastSV; Zhang, Azad & Hu, SIAM PP 2020): a fixed number of steps that doubles the distance, so that the device is never asked.
    """
    n, h, w = len(x), x.shape[1] // 4, x.shape[2] // 4
    ink = F.max_pool2d(x, 4).gt(0.5)
    flat = ink.flatten(1)
    label = F.pad(flat * torch.arange(1, h * w + 1, device=x.device), (1, 0))  # 0 is ground; a label is a position
    for _ in range(math.ceil(math.log2(h * w))):
        spread = F.max_pool2d(label[:, 1:].view(n, h, w).float(), 3, 1, 1).long().flatten(1) * flat
        label = label.scatter_reduce(1, label, F.pad(spread, (1, 0)), "amax")
        label = label.gather(1, label)
    size = torch.zeros_like(label).scatter_add_(1, label, F.pad(flat, (1, 0)).long())
    small = flat & (2 * size.gather(1, label)[:, 1:] <= flat.sum(1, keepdim=True))
    drawn = (lot[:, ::4, ::4].flatten(1).exp() * small).argmax(1, keepdim=True)
    drawn = label[:, 1:].gather(1, drawn) * small.any(1, keepdim=True)  # 0 where none is small
    stroke = ((label[:, 1:] == drawn) & flat).view(n, h, w).float()
    return stroke.repeat_interleave(4, 1).repeat_interleave(4, 2)


def cut(d, x, stream, s, row):
    """A side is cut off along a ragged line."""
    share = stream.uniform(*row["share"])
    across, down = _ramp(d, stream.uniform(0, 2 * np.pi), np.full(len(x), -20.0))
    kept = _ragged(d, stream, [10, 26]).mul_(-3).add_(across + d.column(20 * (1 - 2 * share) + 0.5)).add_(down)
    return x.mul_(kept.clamp_(0, 1))


def fade(d, x, stream, s, row):
    """A dry brush or worn ink: strokes pale where a field is high; along the fibres of bamboo with probability `streaks`."""
    to, share, streaked = stream.uniform(*row["to"]), stream.uniform(0.2, 0.8), stream.chance(row["streaks"])
    field = _ragged(d, stream, [10, 26], streaked).mul_(4).add_(d.column(0.5 - 4 * (1 - share))).clamp_(0, 1)
    return x.addcmul_(x, field.mul_(d.column(to - 1)))


def cracks(d, x, stream, s, row):
    """A crack wanders (sd of the turn .25 rad a step), a scratch is straight; dark ones have the colour of the ground."""
    steps, between = 40, 4
    start, heading = stream.uniform(0, d.side, 2), stream.uniform(0, 2 * np.pi)
    turns = 0.25 * stream.normal(k=steps) * ~stream.chance(row["straight"])[:, None]
    heading = np.repeat(heading[:, None] + np.cumsum(turns, axis=1), between, axis=1)
    stride = np.repeat(stream.uniform(3, 7, steps), between, axis=1) * d.px / between
    cx = start[:, :1] + np.cumsum(stride * np.cos(heading), axis=1)
    cy = start[:, 1:] + np.cumsum(stride * np.sin(heading), axis=1)
    radius = stream.uniform(*row["width"])[:, None] * d.px / 2 * stream.uniform(0.6, 1.2, steps * between)
    dark = stream.chance(row["dark"])
    for side in (False, True):
        _stamp(d, x, np.where(dark == side, steps * between, 0), (cx, cy, radius, radius, 0.0), dark=side)
    return x


def _spots(d, x, stream, count, most, area, level=1.0, dark=False, uneven=False) -> Tensor:
    """Draws `count` (N,) spots of at most `most`, at random places, of log-uniform area in pixels."""
    k = max(1, math.ceil(most))  # not count.max(): how many numbers are drawn must not depend on the batch
    radius = np.sqrt(stream.log_uniform(*area, k) / np.pi) * d.px
    stretch = np.sqrt(stream.log_uniform(0.6, 1.6, k))
    place = [stream.uniform(0, d.side, k) for _ in range(2)]
    angle, phase = stream.uniform(0, np.pi, k), stream.uniform(0, 2 * np.pi, k)
    return _stamp(d, x, count, (*place, radius * stretch, radius / stretch, angle), phase if uneven else None, level, dark)


def specks(d, x, stream, s, row):
    """Fine bright specks everywhere; the number is log-uniform from count[0] to, at severity 1, count[1]."""
    low, high = row["count"]
    count = np.round(stream.log_uniform(low, low + (high - low) * s)).astype(int)
    return _spots(d, x, stream, count, row["count"][1], row["area"], level=stream.uniform(0.5, 1.2).clip(max=1))


def pits(d, x, stream, s, row):
    """Small holes in the strokes; their places are drawn over the whole picture, and most fall on ground: `count` counts all."""
    count = np.round(stream.uniform(0, row["count"])).astype(int)
    return _spots(d, x, stream, count, row["count"], row["area"], dark=True)


def sheet_loss(d, x, stream, s, row):
    """Holes in the sheet, in the colour of the ground; `size` is their diameter."""
    count, area = np.ceil(stream.uniform(0, row["count"])).astype(int), [math.pi / 4 * size**2 for size in row["size"]]
    return _spots(d, x, stream, count, row["count"], area, dark=True, uneven=True)


def blot(d, x, stream, s, row):
    """Blots of ink, in the colour of the strokes; `size` is their diameter."""
    count, area = np.ceil(stream.uniform(0, row["count"])).astype(int), [math.pi / 4 * size**2 for size in row["size"]]
    return _spots(d, x, stream, count, row["count"], area, uneven=True)


def surroundings(d, x, stream, s, row):
    """A slice of a neighbouring character, a grid line or a frame band within the outer `width` of one side."""
    n, reach = len(x), max(1, round(row["width"] * d.side))
    vertical, far = stream.chance(0.5), stream.chance(0.5)
    width, has_slice, has_line = stream.uniform(0.3, 1) * reach, stream.chance(row["slices"]), stream.chance(row["lines"])
    at, thick, bright = stream.uniform(0, 1) * reach, stream.uniform(0.7, 2.5) * d.px, stream.uniform(0.3, 1)
    band, jump = at * stream.chance(row["bands"]), np.round(stream.uniform(0.35, 0.65) * d.side)
    away = np.arange(reach)[None]  # distance from the side that is crossed
    line = np.maximum(np.clip(thick[:, None] - np.abs(away - at[:, None]) + 0.5, 0, 1), away < band[:, None])
    line = d.tensor(line * (bright * has_line)[:, None])[:, :, None]
    # the neighbour is the character's own ink from further in, so that no picture depends on its batch
    near, source = np.where(far[:, None], d.side - 1 - away, away), away + jump[:, None]
    source = np.where(far[:, None], d.side - 1 - source, source).clip(0, d.side - 1)
    along = np.arange(d.side)
    across = vertical[:, None, None]
    pixels = [np.where(across, along * d.side + at[:, :, None], at[:, :, None] * d.side + along) for at in (near, source)]
    here, there = (d.tensor(p.reshape(n, -1), torch.int64) for p in pixels)
    flat, slice_ = x.view(n, -1), d.tensor((away < width[:, None]) * has_slice[:, None])[:, :, None]
    strip = torch.maximum(flat.gather(1, here), (flat.gather(1, there).view(n, reach, -1) * slice_).flatten(1))
    return flat.scatter_(1, here, torch.maximum(strip.view(n, reach, -1), line).flatten(1)).view_as(x)


def tone(d, x, stream, s, row):
    """Strokes and ground get their levels, and a gradient lies over the picture."""
    ground, level = stream.uniform(*row["ground"]), stream.uniform(*row["stroke"])
    across, down = _ramp(d, stream.uniform(0, 2 * np.pi), stream.uniform(-1, 1) * row["gradient"])
    return x.mul_(d.column(level - ground)).add_(across + d.column(ground)).add_(down).clamp_(0, 1)


def texture(d, x, stream, s, row):
    """Fibres and stains of the paper, and with probability `laid` the lines of laid paper."""
    for kind, sd in (("fine", row["fibre"]), ("coarse", row["stain"])):
        x.addcmul_(d.noise.windows(kind, stream.uniform()), d.column(stream.uniform(*sd)))
    pitch, phase, vertical = stream.uniform(5, 12) * d.px, stream.uniform(0, 2 * np.pi), stream.chance(0.5)
    strength, laid = stream.uniform(*row["fibre"])[:, None], stream.chance(row["laid"])[:, None]
    if laid.any():
        lines = strength * laid * np.sin(2 * np.pi / pitch[:, None] * np.arange(d.side) + phase[:, None])
        x.add_(d.tensor(lines * vertical[:, None])[:, None, :]).add_(d.tensor(lines * ~vertical[:, None])[:, :, None])
    return x.clamp_(0, 1)


def resolution(d, x, stream, s, row):
    """Few pixels: down to a drawn height and back."""
    heights = np.geomspace(*row["height"], 6) * d.px  # six steps, so that pictures of one height are worked on together
    height = np.round(heights[(stream.uniform() * 6).astype(int)]).astype(int)

    def down_and_up(pictures, h):
        small = F.interpolate(pictures[:, None], (h, h), mode="area")
        return F.interpolate(small, (d.side, d.side), mode="bilinear", align_corners=False)[:, 0]

    return _per_value(x, height, down_and_up)


def blur(d, x, stream, s, row):
    """Out of focus."""
    return gaussian_blur(x, d.tensor(stream.uniform(*row["sigma"]) * d.px), math.ceil(2.5 * row["sigma"][1] * d.px))


def noise(d, x, stream, s, row):
    """Noise of the sensor, normal."""
    return x.addcmul_(d.noise.windows("white", stream.uniform()), d.column(stream.uniform(*row["sd"]))).clamp_(0, 1)


def _dct_matrix() -> np.ndarray:
    k, n = np.mgrid[:8, :8]
    return np.sqrt(np.where(k == 0, 1, 2) / 8) * np.cos(np.pi * (2 * n + 1) * k / 16)


# luminance quantisation of the JPEG standard (ITU-T T.81, table K.1)
_JPEG = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip


def jpeg_loss(x: Tensor, quality: np.ndarray) -> Tensor:
    """(N, H, W) in [0, 1], sides multiples of 8, quality (N,) in 1 … 100 → what a grey JPEG of that quality gives back.

    The loss of JPEG is the rounding of each 8×8 block's cosine coefficients; the entropy coding that follows loses nothing. What
    rounding the pixels to 8 bits loses is left out.
    """
    n, h, w = x.shape
    scale = np.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    table = np.clip(np.floor((_JPEG * scale[:, None] + 50) / 100), 1, 255)
    transform = to_device(np.kron(_dct_matrix(), _dct_matrix()), torch.float32, x.device)
    step = to_device(table, torch.float32, x.device)[:, None, :]
    blocks = x.view(n, h // 8, 8, w // 8, 8).transpose(2, 3).reshape(-1, 64)
    coefficients = torch.addmm(-128 * transform.sum(1), blocks, transform.T, alpha=255).view(n, -1, 64)
    coefficients.div_(step).round_().mul_(step)
    level = transform.new_full((64,), 128 / 255)
    blocks = torch.addmm(level, coefficients.view(-1, 64), transform, alpha=1 / 255).clamp_(0, 1)
    return blocks.view(n, h // 8, w // 8, 8, 8).transpose(2, 3).reshape(n, h, w)


def jpeg(d, x, stream, s, row):
    """Saved as a JPEG file of low quality."""
    return jpeg_loss(x, np.round(stream.uniform(*row["quality"])))


def binarise(d, x, stream, s, row):
    """A cleaned scan: contrast is raised, at 255 to two levels, about Otsu's threshold or, with probability `local`, about the
    mean of the neighbourhood and .05 to .15 more."""
    local, above, contrast = stream.chance(row["local"]), stream.uniform(0.05, 0.15), stream.log_uniform(*row["contrast"])
    threshold = otsu_threshold(x[:, None, ::2, ::2])[:, None, None].expand_as(x)  # a quarter of the pixels says as much
    rows = np.flatnonzero(local)
    if len(rows):
        index = d.tensor(rows, torch.int64)
        coarse = F.avg_pool2d(x[index], 8)  # the mean over 9 × 9 of these cells, a window of 72 pixels
        coarse = F.avg_pool2d(F.pad(coarse, (4,) * 4, mode="replicate"), 9, 1)[:, None]
        mean = F.interpolate(coarse, (d.side, d.side), mode="bilinear", align_corners=False)[:, 0]
        threshold = threshold.index_copy(0, index, mean + d.column(above[rows]))
    # never steeper than one grey level: a step would blow the last bit of a number up to a pixel
    return x.sub_(threshold).mul_(d.column(contrast)).add_(0.5).clamp_(0, 1)


def grow_or_shrink(d, x, stream, s, row):
    """Classic: erosion or dilation by a rectangle (`size` in pixels)."""
    size = [np.round(stream.uniform(*row["size"]) * d.px).astype(int) // 2 for _ in range(2)]
    grow = stream.chance(0.5)
    code = size[0] + 100 * size[1] + 10000 * grow

    def one(pictures, value):
        sign = 1 if value >= 10000 else -1
        across, down = value % 100, value // 100 % 100
        kernel, padding = (2 * down + 1, 2 * across + 1), (down, across)
        return sign * F.max_pool2d(sign * pictures[:, None], kernel, 1, padding)[:, 0]

    return _per_value(x, code, one)


def _boxes(d, stream, count: int, size, weights: np.ndarray) -> Tensor:
    """(N, H, W): the sum over `count` boxes at random places, each of its weight (N, count)."""
    sides = []
    for axis in (d.y, d.x):
        at, length = stream.uniform(0, d.side, count), stream.uniform(*size, count) * d.px
        line = axis.reshape(1, 1, -1)
        sides.append(((line >= d.tensor(at)[:, :, None]) & (line < d.tensor(at + length)[:, :, None])).float())
    return torch.bmm(sides[0].transpose(1, 2), sides[1] * d.tensor(weights)[:, :, None])


def rectangles(d, x, stream, s, row):
    """Classic: filled rectangles; dark ones darken, bright ones brighten."""
    count = int(row["count"])
    bright = (stream.uniform(k=count) < row["bright"]).astype(float)
    return x.add_(_boxes(d, stream, count, row["size"], 2 * bright - 1)).clamp_(0, 1)


def squares(d, x, stream, s, row):
    """Classic: squares whose level is off by up to ±`by`."""
    count = int(row["count"])
    return x.add_(_boxes(d, stream, count, [row["size"]] * 2, stream.uniform(-row["by"], row["by"], count))).clamp_(0, 1)


# operation → (function, bounds of each parameter: in brackets of a range, else of a number)
OPERATIONS = {
    "geometry": (geometry, {"rotate": (0, 45), "scale": (0, 0.5), "shift": (0, 0.5), "warp": (0, 20)}),
    "edges": (edges, {"blur": [0.1, 8], "offset": [-0.2, 0.2], "noise": [0, 1]}),
    "vanish": (vanish, {"width": [1, 60]}),
    "bleed": (bleed, {"grow": [1, 20], "blur": [0.1, 8]}),
    "loss": (loss, {"cover": [0, 0.9], "length": [4, 80], "one_sided": (0, 1)}),
    "missing": (missing, {"cover": [0, 0.9], "length": [4, 80], "one_sided": (0, 1), "strokes": (0, 1)}),
    "cut": (cut, {"share": [0, 0.9]}),
    "fade": (fade, {"to": [0, 1], "streaks": (0, 1)}),
    "cracks": (cracks, {"width": [0.5, 20], "straight": (0, 1), "dark": (0, 1)}),
    "specks": (specks, {"count": [1, 500], "area": [1, 400]}),
    "pits": (pits, {"count": (0, 500), "area": [1, 400]}),
    "sheet_loss": (sheet_loss, {"count": (1, 20), "size": [2, 100]}),
    "blot": (blot, {"count": (1, 20), "size": [2, 100]}),
    "surroundings": (surroundings, {"width": (0, 0.4), "slices": (0, 1), "lines": (0, 1), "bands": (0, 1)}),
    "tone": (tone, {"stroke": [0, 1], "ground": [0, 1], "gradient": (0, 0.5)}),
    "texture": (texture, {"fibre": [0, 0.5], "stain": [0, 0.5], "laid": (0, 1)}),
    "resolution": (resolution, {"height": [16, 224]}),
    "blur": (blur, {"sigma": [0.1, 8]}),
    "noise": (noise, {"sd": [0, 0.5]}),
    "jpeg": (jpeg, {"quality": [1, 100]}),
    "binarise": (binarise, {"local": (0, 1), "contrast": [1, 255]}),
    "grow_or_shrink": (grow_or_shrink, {"size": [1, 49]}),
    "rectangles": (rectangles, {"count": (1, 100), "size": [1, 224], "bright": (0, 1)}),
    "squares": (squares, {"count": (1, 100), "size": (1, 224), "by": (0, 1)}),
}
