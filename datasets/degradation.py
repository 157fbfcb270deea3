"""Damage for clean handwriting, in batches, on any device.

A preset (configs/damage/*.yaml) is a table: operation → probability and ranges. Every draw is made on the host, from the
picture's key alone, by a counter-based generator; so it depends neither on the batch nor on the process, and which pictures an
operation hits is known without asking the device. The pixels are then worked out in batches on the device that holds them.

Noise is cut from fields made once per side: a window at a drawn place costs a copy, not a computation.

Lengths are pixels at side 224 and scale with the side. What was measured on real characters, and where the physical models
come from, stands in docs/damage.md.
"""

import difflib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from util.binarise import otsu

PRESETS = Path(__file__).parent.parent / "configs" / "damage"
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

    def __init__(self, keys: np.ndarray, name: str):
        self.base = splitmix64(keys ^ np.uint64(zlib.crc32(name.encode())))
        self.count = 0

    def __len__(self) -> int:
        return len(self.base)

    def uniform(self, low=0.0, high=1.0, k: int | None = None) -> np.ndarray:
        """(N,) or (N, k) float64 in [low, high); the bounds may be (N,) or (N, 1) arrays."""
        counter = np.arange(self.count, self.count + (k or 1), dtype=np.uint64)
        self.count += k or 1
        with np.errstate(over="ignore"):
            bits = splitmix64(self.base[:, None] + counter * _GAMMA)
        u = (bits >> np.uint64(11)) * 2.0**-53
        return low + (high - low) * (u if k else u[:, 0])

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
        part.base, part.count = self.base[index], self.count
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
            _check(f"{where}: {name}", row, (0, 1) if name == "clean" else (0.1, 100))
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
    return table


def scored_preset(preset: str | Path | dict) -> dict:
    """The preset as scores are taken with: no picture stays clean, for each would count the cap of the PSNR."""
    return {**load_preset(preset), "clean": 0.0}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean '{near[0]}'?" if near else f": one of {', '.join(known)}"


def _check(name: str, value, bounds: tuple[float, float]) -> None:
    low, high = bounds
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int | float) and low <= v <= high for v in numbers):
        raise ValueError(f"{name} is {value}, outside {low} … {high}")
    if isinstance(value, list) and (len(value) != 2 or (name.split()[-1] != "severity" and value[0] > value[1])):
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
        touched = ~Stream(keys, "clean").chance(self.table["clean"])
        target = damaged = clean[:, 0]
        for name, row in self.table.items():
            if name in ("clean", "severity"):
                continue
            stream = Stream(keys, name)
            rows = np.flatnonzero(stream.chance(row["p"]) & touched)
            if not len(rows):
                continue
            everyone = len(rows) == len(keys)
            index = self.tensor(rows, torch.int64)
            before = damaged if everyone else damaged[index]
            after = OPERATIONS[name][0](self, before, stream.rows(rows), s[rows], row).clamp_(0, 1)
            damaged = after if everyone else damaged.index_copy(0, index, after)
            if name == "geometry":
                target = damaged
        return damaged[:, None], target[:, None]

    def tensor(self, values: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        return to_device(values, dtype, self.device)

    def column(self, values: np.ndarray) -> Tensor:
        """(N,) drawn numbers → (N, 1, 1), to go with pictures (N, H, W)."""
        return self.tensor(values)[:, None, None]


def to_device(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host on the device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Fields:
    """Random fields, four times as large as a picture, from which windows are cut; made once per side, from fixed seeds."""

    KINDS = {  # correlation length in pixels at 224, spectral slope over the octaves above it
        "white": (0.0, 0.0),
        "fine": (2.2, None),
        "coarse": (40.0, None),
        **{f"ragged{length}": (length, 1.0) for length in (7, 10, 14, 20, 26)},
        "streaks": (14, 1.0),
    }
    RAGGED = np.array([7, 10, 14, 20, 26])
    _made: dict = {}

    def __init__(self, side: int, device: torch.device):
        self.side, self.device = side, device

    def windows(self, kind: str, place: np.ndarray) -> Tensor:
        """(N, side, side) windows at places (N, 2) in [0, 1); white, fine and coarse ones are normal, the others uniform."""
        key = (kind, self.side, self.device)
        if key not in self._made:
            self._made[key] = self._make(kind).to(self.device)
        field = self._made[key].unfold(0, self.side, 1).unfold(1, self.side, 1)
        corner = to_device(place * field.shape[0], torch.int64, self.device)
        return field[corner[:, 0], corner[:, 1]]

    def _make(self, kind: str) -> Tensor:
        length, slope = self.KINDS[kind]
        size = 4 * self.side
        rng = np.random.default_rng(zlib.crc32(kind.encode()))
        noise = rng.standard_normal((size, size), dtype=np.float32)
        if length:
            frequency = np.hypot(np.fft.fftfreq(size)[:, None] * (8 if kind == "streaks" else 1), np.fft.rfftfreq(size)[None])
            base = 1 / (length * self.side / 224)
            base /= 1 if slope is None else 2  # a patch and the gap beside it make a period
            if slope is None:  # Gaussian smoothing, sigma = length
                gain = np.exp(-2 * (np.pi * frequency / base) ** 2)
            else:  # each octave above the base has 1/f of the amplitude, spread over f times the area: ragged at every scale
                gain = np.maximum(frequency / base, 1) ** -(1 + slope)
            noise = np.fft.irfft2(np.fft.rfft2(noise) * gain, s=noise.shape)
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
    """Each picture with its own sigma (N,) in pixels; the kernel ends `reach` pixels from its centre."""
    taps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None].clamp_min(1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None]
    n = len(x)
    x = F.pad(x[None], (reach,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, :, None, :], groups=n)
    return F.conv2d(x, kernel[:, :, :, None], groups=n)[0]


def _dilate(x: Tensor, radius: int) -> Tensor:
    x = F.max_pool2d(x[:, None], (1, 2 * radius + 1), 1, (0, radius))
    return F.max_pool2d(x, (2 * radius + 1, 1), 1, (radius, 0))[:, 0]


def _per_value(x: Tensor, values: np.ndarray, function) -> Tensor:
    """function(pictures, value) on each group of pictures that share a value: a call per value, not per picture."""
    out = torch.empty_like(x)
    for value in np.unique(values):
        rows = to_device(np.flatnonzero(values == value), torch.int64, x.device)
        out[rows] = function(x[rows], value.item())
    return out


def _ragged(d: Degradation, stream: Stream, lengths: list[float]) -> Tensor:
    """(N, H, W) uniform 1/f fields, each of a drawn base length."""
    wanted, place = stream.uniform(*lengths), stream.uniform(k=2)
    kinds = _Fields.RAGGED[np.abs(_Fields.RAGGED[:, None] - wanted).argmin(0)]
    out = torch.empty(len(wanted), d.side, d.side, device=d.device)
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        out[d.tensor(rows, torch.int64)] = d.noise.windows(f"ragged{kind}", place[rows])
    return out


def _ramp(d: Degradation, angle: np.ndarray) -> Tensor:
    """(N, H, W) ramps from about -1 to 1 across the picture along each angle."""
    half = (d.side - 1) / 2
    return ((d.x - half) * d.column(np.cos(angle)) + (d.y - half) * d.column(np.sin(angle))) / half


def _stamp(d: Degradation, count: np.ndarray, cx, cy, rx, ry, angle, wobble=None) -> Tensor:
    """(N, H, W) coverage in [0, 1] by ellipses with soft edges.

    count (N,): how many of the K ellipses of a picture are drawn; cx, cy (centre), rx, ry (semi-axes, pixels), angle: (N, K);
    wobble (N, K): phase of an uneven outline, None for a smooth one.
    """
    cover = torch.zeros(len(count) * d.side * d.side, device=d.device)
    used = np.arange(cx.shape[1]) < count[:, None]
    if used.any():
        reach = math.ceil(1.3 * max(rx[used].max(), ry[used].max()) + 0.5)
        offsets = torch.arange(-reach, reach + 1, device=d.device)
        dy, dx = (o.reshape(1, -1) for o in torch.meshgrid(offsets, offsets, indexing="ij"))
        cx, cy, rx, ry, cos, sin = (d.tensor(v[used])[:, None] for v in (cx, cy, rx, ry, np.cos(angle), np.sin(angle)))
        px, py = cx.floor().long() + dx, cy.floor().long() + dy
        u, v = px - cx, py - cy
        u, v = (u * cos + v * sin) / rx, (v * cos - u * sin) / ry
        distance = torch.hypot(u, v)
        if wobble is not None:
            theta, phase = torch.atan2(v, u), d.tensor(wobble[used])[:, None]
            distance = distance / (1 + 0.18 * torch.sin(3 * theta + phase) + 0.12 * torch.sin(7 * theta + 2 * phase))
        value = ((1 - distance) * torch.minimum(rx, ry) + 0.5).clamp_(0, 1)
        value *= (px >= 0) & (px < d.side) & (py >= 0) & (py < d.side)
        picture = d.tensor(np.nonzero(used)[0], torch.int64)[:, None]
        place = (picture * d.side + py.clamp_(0, d.side - 1)) * d.side + px.clamp_(0, d.side - 1)
        cover.scatter_reduce_(0, place.flatten(), value.flatten(), "amax")
    return cover.view(len(count), d.side, d.side)


# --- the operations ---------------------------------------------------------------------------------------------------
# Each takes (degradation, pictures (N, H, W), stream, severities (N,), its row of the preset's table) and returns pictures.


def geometry(d, x, stream, s, row):
    """Rotation (sd in degrees), scale (±), shift (± of the side) and a smooth warp (sd in pixels)."""
    n = len(x)
    angle, scale = np.radians(row["rotate"]) * stream.normal(), 1 + stream.uniform(-row["scale"], row["scale"])
    shift = stream.uniform(-2 * row["shift"], 2 * row["shift"], 2)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], axis=1).reshape(n, 2, 3)
    grid = F.affine_grid(d.tensor(matrix), [n, 1, d.side, d.side], align_corners=False)
    bends = d.tensor(stream.normal(k=32).reshape(n, 2, 4, 4) * (row["warp"] * 2 / 224))  # a control point every 67 px
    grid = grid + F.interpolate(bends, (d.side, d.side), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(x[:, None], grid, align_corners=False)[:, 0]


def edges(d, x, stream, s, row):
    """Edges weather: rounded by a blur, ragged by noise, and the whole stroke a little thinner or thicker."""
    sigma = stream.uniform(*row["blur"]) * d.px
    level = 0.5 + stream.uniform(-1, 1) * row["offset"] * (1 + s)
    noise = d.noise.windows("fine", stream.uniform(k=2)) * d.column(stream.uniform(*row["noise"]))
    soft = gaussian_blur(x, d.tensor(sigma), math.ceil(2.5 * row["blur"][1] * d.px))
    return (soft + noise * (soft * (1 - soft) * 4) - d.column(level)) * 2.5 + 0.5


def vanish(d, x, stream, s, row):
    """Strokes thinner than a drawn width go, where the paper bridged the groove: an opening."""
    radius = np.round(stream.uniform(*row["width"]) * d.px / 2).astype(int)
    return _per_value(x, radius, lambda pictures, r: _dilate(-_dilate(-pictures, r), r))


def bleed(d, x, stream, s, row):
    """Ink runs: strokes grow and soften."""
    radius = np.round(stream.uniform(*row["grow"]) * d.px).astype(int)
    sigma = stream.uniform(*row["blur"]) * d.px
    return gaussian_blur(_per_value(x, radius, _dilate), d.tensor(sigma), math.ceil(2.5 * row["blur"][1] * d.px))


def _area(d, stream, s, row) -> Tensor:
    """(N, H, W) ragged areas in [0, 1] over a share of the picture drawn between cover[0] and, at severity 1, cover[1]."""
    cover = row["cover"][0] + (row["cover"][1] - row["cover"][0]) * s * stream.uniform()
    one_sided = stream.chance(row["one_sided"])
    ramp = _ramp(d, stream.uniform(0, 2 * np.pi))
    field = _ragged(d, stream, row["length"]) + ramp * d.column(0.5 * one_sided)
    # a uniform field exceeds 1 - c on the share c; with the ramp added, the sum is triangular over [-.5, 1.5]
    level = np.where(one_sided, 1.5 - np.sqrt(2 * cover), 1 - cover)
    return ((field - d.column(level)) * 40 + 0.5).clamp_(0, 1)


def loss(d, x, stream, s, row):
    """Lost stone takes no ink: in a rubbing it has the colour of the strokes and fuses with them."""
    return torch.maximum(x, _area(d, stream, s, row))


def missing(d, x, stream, s, row):
    """Parts of the strokes are gone, in the colour of the ground."""
    return x * (1 - _area(d, stream, s, row))


def cut(d, x, stream, s, row):
    """A side is cut off along a ragged line."""
    share = stream.uniform(*row["share"])
    ramp = _ramp(d, stream.uniform(0, 2 * np.pi)) + 0.15 * _ragged(d, stream, [10, 26])
    return x * ((d.column(1 - 2 * share) - ramp) * 20 + 0.5).clamp_(0, 1)


def fade(d, x, stream, s, row):
    """A dry brush or worn ink: strokes pale where a field is high; along the fibres of bamboo with probability `streaks`."""
    to, share = stream.uniform(*row["to"]), stream.uniform(0.2, 0.8)
    streaked, place = stream.chance(row["streaks"]), stream.uniform(k=2)
    field = _ragged(d, stream, [10, 26])
    along = np.flatnonzero(streaked)
    if len(along):
        field[d.tensor(along, torch.int64)] = d.noise.windows("streaks", place[along])
    return x * (1 - d.column(1 - to) * ((field - d.column(1 - share)) * 4 + 0.5).clamp_(0, 1))


def cracks(d, x, stream, s, row):
    """A crack wanders (sd of the turn .25 rad a step), a scratch is straight; dark ones have the colour of the ground."""
    steps, between = 40, 4
    start, heading = stream.uniform(0, d.side, 2), stream.uniform(0, 2 * np.pi)
    turns = 0.25 * stream.normal(k=steps) * ~stream.chance(row["straight"])[:, None]
    heading = np.repeat(heading[:, None] + np.cumsum(turns, axis=1), between, axis=1)
    stride = np.repeat(stream.uniform(3, 7, steps), between, axis=1) * d.px / between
    cx = start[:, :1] + np.cumsum(stride * np.cos(heading), axis=1)
    cy = start[:, 1:] + np.cumsum(stride * np.sin(heading), axis=1)
    radius = np.maximum(stream.uniform(*row["width"])[:, None] * d.px / 2 * stream.uniform(0.6, 1.2, steps * between), 0.4)
    crack = _stamp(d, np.full(len(x), steps * between), cx, cy, radius, radius, heading)
    dark = d.column(stream.chance(row["dark"]))
    return torch.where(dark > 0, x * (1 - crack), torch.maximum(x, crack))


def _spots(d, stream, count, most, area, aspect=(0.6, 1.6), uneven=False) -> Tensor:
    """(N, H, W) coverage by `count` (N,) spots of at most `most`, at random places, of log-uniform area in pixels."""
    k = max(1, math.ceil(most))  # not count.max(): how many numbers are drawn must not depend on the batch
    radius = np.sqrt(stream.log_uniform(*area, k) / np.pi) * d.px
    stretch = np.sqrt(stream.log_uniform(*aspect, k))
    place = [stream.uniform(0, d.side, k) for _ in range(2)]
    angle, phase = stream.uniform(0, np.pi, k), stream.uniform(0, 2 * np.pi, k)
    return _stamp(
        d,
        count,
        *place,
        np.maximum(radius * stretch, 0.4),
        np.maximum(radius / stretch, 0.4),
        angle,
        phase if uneven else None,
    )


def specks(d, x, stream, s, row):
    """Fine bright specks everywhere."""
    most = row["count"][0] + (row["count"][1] - row["count"][0]) * s
    count = np.round(stream.log_uniform(1, np.maximum(most, 1))).astype(int)
    return torch.maximum(
        x, _spots(d, stream, count, row["count"][1], row["area"]) * d.column(stream.uniform(0.5, 1.2)).clamp_max(1)
    )


def pits(d, x, stream, s, row):
    """Small holes in the strokes; their places are drawn over the whole picture, and most fall on ground: `count` counts all."""
    count = np.round(stream.uniform(0, row["count"])).astype(int)
    return x * (1 - _spots(d, stream, count, row["count"], row["area"]))


def sheet_loss(d, x, stream, s, row):
    """Holes in the sheet, in the colour of the ground; `size` is their diameter."""
    count, area = np.ceil(stream.uniform(0, row["count"])).astype(int), [math.pi / 4 * size**2 for size in row["size"]]
    return x * (1 - _spots(d, stream, count, row["count"], area, uneven=True))


def blot(d, x, stream, s, row):
    """Blots of ink, in the colour of the strokes; `size` is their diameter."""
    count, area = np.ceil(stream.uniform(0, row["count"])).astype(int), [math.pi / 4 * size**2 for size in row["size"]]
    return torch.maximum(x, _spots(d, stream, count, row["count"], area, uneven=True))


def surroundings(d, x, stream, s, row):
    """A slice of a neighbouring character, a grid line or a frame band within the outer `width` of one side."""
    n, reach = len(x), row["width"] * d.side
    vertical = d.tensor(stream.chance(0.5)).bool()[:, None, None]
    along = torch.where(vertical, d.x, d.y)  # distance from the side that is crossed
    width = stream.uniform(0.3, 1, 2) * reach
    has_slice, has_line = stream.chance(row["slices"]), stream.chance(row["lines"])
    far = stream.chance(0.5)
    away = torch.where(d.tensor(far).bool()[:, None, None], d.side - 1 - along, along)
    # the neighbour is the character's own ink from further in, so that no picture depends on its batch
    jump = d.tensor(stream.uniform(0.35, 0.65) * d.side * np.where(far, -1, 1), torch.int64)[:, None, None]
    here = torch.arange(d.side, device=d.device)
    columns = (here[None, None, :] + jump).clamp(0, d.side - 1).expand(n, d.side, d.side)
    rows = (here[None, :, None] + jump).clamp(0, d.side - 1).expand(n, d.side, d.side)
    other = torch.where(vertical, x.gather(2, columns), x.gather(1, rows))
    x = torch.maximum(x, other * (away < d.column(width[:, 0])) * d.column(has_slice))
    at, thick, bright = stream.uniform(0, 1) * reach, stream.uniform(0.7, 2.5) * d.px, stream.uniform(0.3, 1)
    line = (d.column(thick) - (away - d.column(at)).abs() + 0.5).clamp_(0, 1)
    band = away < d.column(at * stream.chance(row["bands"]))
    return torch.maximum(x, torch.maximum(line, band.float()) * d.column(bright * has_line))


def tone(d, x, stream, s, row):
    """Strokes and ground get their levels, and a gradient lies over the picture."""
    ground, level = stream.uniform(*row["ground"]), stream.uniform(*row["stroke"])
    x = d.column(ground) + d.column(level - ground) * x
    return x + _ramp(d, stream.uniform(0, 2 * np.pi)) * d.column(stream.uniform(-1, 1) * row["gradient"])


def texture(d, x, stream, s, row):
    """Fibres and stains of the paper, and with probability `laid` the lines of laid paper."""
    fibre = d.noise.windows("fine", stream.uniform(k=2)) * d.column(stream.uniform(*row["fibre"]))
    stain = d.noise.windows("coarse", stream.uniform(k=2)) * d.column(stream.uniform(*row["stain"]))
    pitch, phase = stream.uniform(5, 12) * d.px, stream.uniform(0, 2 * np.pi)
    strength = stream.uniform(*row["fibre"]) * stream.chance(row["laid"])
    lines = torch.where(d.tensor(stream.chance(0.5)).bool()[:, None, None], d.x, d.y)
    return x + fibre + stain + torch.sin(lines * d.column(2 * np.pi / pitch) + d.column(phase)) * d.column(strength)


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
    return x + d.noise.windows("white", stream.uniform(k=2)) * d.column(stream.uniform(*row["sd"]))


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

    The loss of JPEG is the rounding of each 8×8 block's cosine coefficients; the entropy coding that follows loses nothing.
    """
    n, h, w = x.shape
    scale = np.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    table = np.clip(np.floor((_JPEG * scale[:, None] + 50) / 100), 1, 255)
    transform = to_device(np.kron(_dct_matrix(), _dct_matrix()), torch.float32, x.device)
    step = to_device(table, torch.float32, x.device)[:, None, :]
    blocks = (x * 255).round().reshape(n, h // 8, 8, w // 8, 8).transpose(2, 3).reshape(n, -1, 64) - 128
    blocks = ((blocks @ transform.T / step).round() * step) @ transform + 128
    return (blocks.round().clamp(0, 255) / 255).reshape(n, h // 8, w // 8, 8, 8).transpose(2, 3).reshape(n, h, w)


def jpeg(d, x, stream, s, row):
    return jpeg_loss(x.clamp(0, 1), np.round(stream.uniform(*row["quality"])))


def binarise(d, x, stream, s, row):
    """A two-level scan: Otsu's threshold, or with probability `local` the mean of the neighbourhood and half the contrast."""
    window = 2 * round(24 * d.px) + 1
    mean = F.avg_pool2d(F.pad(x[:, None], (window // 2,) * 4, mode="reflect"), (window, 1), 1)
    mean = F.avg_pool2d(mean, (1, window), 1)[:, 0]
    local = (x > mean + d.column(stream.uniform(0.05, 0.15))).float()
    return torch.where(d.column(stream.chance(row["local"])) > 0, local, otsu(x[:, None].clamp(0, 1))[:, 0])


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
    return x + _boxes(d, stream, count, row["size"], 2 * bright - 1)


def squares(d, x, stream, s, row):
    """Classic: squares whose level is off by up to ±`by`."""
    count = int(row["count"])
    return x + _boxes(d, stream, count, [row["size"]] * 2, stream.uniform(-row["by"], row["by"], count))


# operation → (function, bounds of each parameter)
OPERATIONS = {
    "geometry": (geometry, {"rotate": (0, 45), "scale": (0, 0.5), "shift": (0, 0.5), "warp": (0, 20)}),
    "edges": (edges, {"blur": (0.1, 8), "offset": (0, 0.2), "noise": (0, 1)}),
    "vanish": (vanish, {"width": (1, 60)}),
    "bleed": (bleed, {"grow": (1, 20), "blur": (0.1, 8)}),
    "loss": (loss, {"cover": (0, 0.9), "length": (4, 40), "one_sided": (0, 1)}),
    "missing": (missing, {"cover": (0, 0.9), "length": (4, 40), "one_sided": (0, 1)}),
    "cut": (cut, {"share": (0, 0.9)}),
    "fade": (fade, {"to": (0, 1), "streaks": (0, 1)}),
    "cracks": (cracks, {"width": (0.5, 20), "straight": (0, 1), "dark": (0, 1)}),
    "specks": (specks, {"count": (0, 500), "area": (1, 400)}),
    "pits": (pits, {"count": (0, 500), "area": (1, 400)}),
    "sheet_loss": (sheet_loss, {"count": (1, 20), "size": (2, 100)}),
    "blot": (blot, {"count": (1, 20), "size": (2, 100)}),
    "surroundings": (surroundings, {"width": (0, 0.4), "slices": (0, 1), "lines": (0, 1), "bands": (0, 1)}),
    "tone": (tone, {"stroke": (0, 1), "ground": (0, 1), "gradient": (0, 0.5)}),
    "texture": (texture, {"fibre": (0, 0.5), "stain": (0, 0.5), "laid": (0, 1)}),
    "resolution": (resolution, {"height": (16, 224)}),
    "blur": (blur, {"sigma": (0.1, 8)}),
    "noise": (noise, {"sd": (0, 0.5)}),
    "jpeg": (jpeg, {"quality": (1, 100)}),
    "binarise": (binarise, {"local": (0, 1)}),
    "grow_or_shrink": (grow_or_shrink, {"size": (1, 49)}),
    "rectangles": (rectangles, {"count": (1, 100), "size": (1, 224), "bright": (0, 1)}),
    "squares": (squares, {"count": (1, 100), "size": (1, 224), "by": (0, 1)}),
}
