"""Degrades clean handwriting, in batches, on any device.

A preset (configs/damage/*.yaml) is a table: operation → probability and ranges. A mixture of presets draws one of them for each
picture. All random numbers are drawn on the host, from the picture's key alone, by a counter-based generator. So they depend on
neither batch nor process, and the host knows which pictures an operation changes without a synchronisation. The pixels are then
computed in batches on the device that holds them.

Noise is cut from fields that are made once per image size: a window at a random place is a copy, not a computation.

Lengths are pixels at img_size 224 and scale with it. docs/damage.md has the measurements of real characters and the sources of the
physical models.
"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from datasets import exemplars
from datasets.rng import Stream
from util.binarise import otsu_threshold
from util.settings import nearest

VERSION = 4  # of the generator; increase it when the same preset and key give another picture. Part of the benchmark's name.
PRESETS = Path(__file__).parent.parent / "configs" / "damage"
SHARED = {"clean": (0, 1), "severity": [0.1, 100]}  # bounds of what a preset has beside its operations
CPU_CHUNK = 32  # pictures processed at once on a CPU, so that memory does not grow with the batch


class Operation(NamedTuple):
    """One kind of damage.

    function: (degradation, pictures (N, H, W) in [0, 1], which it may change, stream, severities (N,), the operation's row of the
    preset) → pictures in [0, 1]. bounds: of each parameter, a list for a range, a tuple for a number, `str` for a file. stream: the
    name that its random numbers are drawn under. optional: the parameters that a row may omit. moves: it is no damage, but moves or
    changes the character, so the target as well, and must be the first one.
    """

    function: Callable
    bounds: dict[str, list[float] | tuple[float, float] | type]
    stream: str
    optional: tuple[str, ...]
    moves: bool


OPERATIONS: dict[str, Operation] = {}


def operation(
    *,
    stream: str | None = None,
    optional: tuple[str, ...] = (),
    moves: bool = False,
    **bounds: list[float] | tuple[float, float] | type,
) -> Callable:
    """Registers the decorated function as the operation of its name; `stream` defaults to the name. See `Operation`."""

    def register(function: Callable) -> Callable:
        OPERATIONS[function.__name__] = Operation(function, bounds, stream or function.__name__, optional, moves)
        return function

    return register


# --- presets ------------------------------------------------------------------------------------------------------------


def load_preset(preset: str | Path | dict) -> dict:
    """Returns the table of a preset: the name of one in configs/damage, the path of a YAML file, a dict, or a mixture.

    A mixture is a text, "mixed:.6,classic:.4", or a table {"mixture": {name or path: weight}}, which may also have `clean` and
    `severity`, to replace those of all its presets, and the tables of presets of its own, by name. Its loaded table has weights
    that sum to 1, and the table of each preset.

    Raises ValueError, with the name of the operation and parameter, for an unknown name or a value out of bounds.
    """
    table, where = (preset, "preset") if isinstance(preset, dict) else _read(preset)
    if not isinstance(table, dict):
        raise ValueError(f"{where}: a preset is a table of operations")
    if "mixture" in table:
        return _load_mixture(table, where)
    table = {"clean": 0.0, "severity": [1.2, 2.2], **table}
    for name, row in table.items():
        if name in SHARED:
            _check(f"{where}: {name}", row, SHARED[name])
            continue
        if name not in OPERATIONS:
            raise ValueError(f"{where}: no operation '{name}'" + nearest(name, OPERATIONS))
        bounds = {"p": (0, 1), **OPERATIONS[name].bounds}
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {name} is a table of {', '.join(bounds)}")
        for key, value in row.items():
            if key not in bounds:
                raise ValueError(f"{where}: {name} has no '{key}'" + nearest(key, bounds))
            _check(f"{where}: {name}.{key}", value, bounds[key])
        missing = [key for key in bounds if key not in row and key not in OPERATIONS[name].optional]
        if missing:
            raise ValueError(f"{where}: {name} lacks {', '.join(missing)}")
    for name in [name for name in table if name not in SHARED][1:]:
        if OPERATIONS[name].moves:
            raise ValueError(f"{where}: {name} moves the target as well: make it the first operation")
    return table


def _read(preset: str | Path) -> tuple[dict, str]:
    """The content of a preset that is a name, a path or a mixture as a text, and what error messages call it."""
    path = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        if ":" in str(preset):
            return {"mixture": mixture_of(str(preset))}, str(preset)
        path = PRESETS / f"{preset}.yaml"
    if not path.is_file():
        raise ValueError(f"no damage preset '{preset}', nor such a YAML file" + nearest(str(preset), preset_names()))
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")), str(preset)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def mixture_of(text: str) -> dict[str, float]:
    """The weights of a mixture as a text, "mixed:.6,classic:.4". Raises ValueError for what is none."""
    weights = {}
    for entry in text.split(","):
        name, _, weight = entry.strip().rpartition(":")
        try:
            weights[name] = weights.get(name, 0) + float(weight)
        except ValueError:
            raise ValueError(f"{text}: '{entry}' is not NAME:WEIGHT") from None
    return weights


def _load_mixture(table: dict, where: str) -> dict:
    weights = table["mixture"]
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{where}: mixture is a table of presets and their weights")
    for name, value in table.items():
        if name in SHARED:
            _check(f"{where}: {name}", value, SHARED[name])
        elif name != "mixture" and name not in weights:
            raise ValueError(f"{where}: '{name}' is not in the mixture" + nearest(name, [*SHARED, *weights]))
    tables = {}
    for name, weight in weights.items():
        _check(f"{where}: mixture.{name}", weight, (0, 1e6))
        tables[name] = load_preset(table[name] if isinstance(table.get(name), dict) else name)
        if "mixture" in tables[name]:
            raise ValueError(f"{where}: {name} is a mixture itself")
    total = sum(weights.values())
    if not total:
        raise ValueError(f"{where}: all weights of the mixture are 0")
    return {**table, "mixture": {name: weight / total for name, weight in weights.items()}, **tables}


def scored_preset(preset: str | Path | dict) -> dict:
    """The preset for validation and scoring: no picture stays clean, because each would score the upper limit of the PSNR."""
    return {**load_preset(preset), "clean": 0.0}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _check(name: str, value, bounds: tuple[float, float] | list[float]) -> None:
    if bounds is str:
        if not isinstance(value, str) or not Path(value).is_file():
            raise ValueError(f"{name} is {value}, not a file")
        return
    (low, high), is_pair = bounds, isinstance(bounds, list)
    if isinstance(value, list) != is_pair or (is_pair and len(value) != 2):
        raise ValueError(f"{name} is {value}, not " + ("two numbers [low, high]" if is_pair else "one number"))
    if not all(isinstance(v, int | float) and low <= v <= high for v in (value if is_pair else [value])):
        raise ValueError(f"{name} is {value}, outside {low} … {high}")
    if is_pair and value[0] > value[1] and not name.endswith(" severity"):
        raise ValueError(f"{name} is {value}: a range is [low, high]")


# --- the generator ------------------------------------------------------------------------------------------------------


class Degradation:
    """Degrades clean pictures.

    Args:
        preset: see `load_preset`.
        img_size: height and width of the pictures in pixels, a multiple of 8.
        device: where the pictures are.

    `degradation(clean, keys, severity=None)`: clean (N, 1, img_size, img_size) float in [0, 1], strokes bright; keys (N,) uint64
    of `sample_keys`; severity in [0, 1] for all pictures, or None to draw each from its preset's Beta distribution. Returns
    (degraded, target), both like `clean`; the target is `clean` with the same geometry as the degraded picture (rotation, shift,
    warp) and otherwise unchanged.

    Raises ValueError for a bad preset, img_size, shape or severity.
    """

    def __init__(self, preset: str | Path | dict = "mixed", img_size: int = 224, device: torch.device | str = "cpu"):
        if img_size < 8 or img_size % 8:
            raise ValueError(f"img_size {img_size} is not a multiple of 8")
        self.table, self.img_size, self.device = load_preset(preset), img_size, torch.device(device)
        self.px = img_size / 224
        self.noise = _Fields(img_size, self.device)
        mixture, replaced = self.table.get("mixture"), {key: self.table[key] for key in SHARED if key in self.table}
        self.presets = {name: {**self.table[name], **replaced} for name in mixture} if mixture else {"": self.table}
        self._bounds = np.cumsum(list(mixture.values()))[:-1] if mixture else np.empty(0)
        ramp = torch.arange(img_size, dtype=torch.float32, device=self.device)
        self.y, self.x = ramp[None, :, None], ramp[None, None, :]  # pixel coordinates

    def drawn(self, keys: np.ndarray) -> np.ndarray:
        """(N,) keys → the position of each picture's preset in `presets`, drawn with the weights of the mixture."""
        if not len(self._bounds):
            return np.zeros(len(keys), dtype=int)
        return np.searchsorted(self._bounds, Stream(keys, "mixture").uniform(), side="right")

    def _by_preset(self, keys: np.ndarray) -> Iterator[tuple[dict, np.ndarray]]:
        """(table, positions in `keys`) of each preset."""
        drawn = self.drawn(keys)
        return ((table, np.flatnonzero(drawn == position)) for position, table in enumerate(self.presets.values()))

    def severities(self, keys: np.ndarray) -> np.ndarray:
        """(N,) keys → (N,) severities in [0, 1], drawn from the Beta distribution of each picture's preset."""
        s = Stream(keys, "severity").uniform()
        for table, rows in self._by_preset(keys):
            beta = _beta_quantiles(*table["severity"])
            s[rows] = np.interp(s[rows], np.linspace(0, 1, len(beta)), beta)
        return s

    @torch.no_grad()
    def __call__(self, clean: Tensor, keys: np.ndarray, severity: float | None = None) -> tuple[Tensor, Tensor]:
        if clean.shape[1:] != (1, self.img_size, self.img_size) or len(keys) != len(clean):
            raise ValueError(f"expected ({len(keys)}, 1, {self.img_size}, {self.img_size}) pictures, got {tuple(clean.shape)}")
        if severity is not None and not 0 <= severity <= 1:
            raise ValueError(f"severity {severity} is outside 0 … 1")
        s = self.severities(keys) if severity is None else np.full(len(keys), float(severity))
        degraded, target = (clean.clone(memory_format=torch.contiguous_format) for _ in range(2))
        at_once = CPU_CHUNK if self.device.type == "cpu" else max(len(keys), 1)
        for table, changed in self._by_preset(keys):
            changed = changed[~Stream(keys[changed], "clean").chance(table["clean"])]
            for start in range(0, len(changed), at_once):
                rows = changed[start : start + at_once]
                index = self.tensor(rows, torch.int64)
                x, moved = self._damage(table, clean[:, 0].index_select(0, index), keys[rows], s[rows])
                _put(degraded[:, 0], index, x)
                if moved is not None:
                    _put(target[:, 0], index[moved[0]], moved[1])
        return degraded, target

    def _damage(self, table: dict, x: Tensor, keys: np.ndarray, s: np.ndarray) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Degrades pictures (N, H, W) in place. Returns them, and (indices, moved clean pictures) where geometry was applied."""
        moved = None
        for name, row in table.items():
            if name in SHARED:
                continue
            stream = Stream(keys, OPERATIONS[name].stream)
            rows = np.flatnonzero(stream.chance(row["p"]))
            if not len(rows):
                continue
            is_all, index = len(rows) == len(keys), self.tensor(rows, torch.int64)
            if not is_all:
                stream = stream.rows(rows)
            part = OPERATIONS[name].function(self, x if is_all else x.index_select(0, index), stream, s[rows], row)
            if OPERATIONS[name].moves:
                moved = index, part.clone() if is_all else part
            if is_all:
                x = part
            else:
                _put(x, index, part)
        return x, moved

    def tensor(self, values: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        return to_device(values, dtype, self.device)

    def column(self, values: np.ndarray) -> Tensor:
        """(N,) numbers → (N, 1, 1), to broadcast over pictures (N, H, W)."""
        return self.tensor(values)[:, None, None]


def to_device(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copies an array to the device without a synchronisation."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _put(pictures: Tensor, index: Tensor, part: Tensor) -> None:
    """pictures[index] = part, all contiguous (·, H, W); copied as pairs of floats, which takes half the time."""
    pictures.view(torch.float64).index_copy_(0, index, part.view(torch.float64))


class _Fields:
    """Random fields from fixed seeds, as wide as a picture and twelve times as high, from which windows are cut.

    A window is a number of whole rows, so it is one contiguous piece of memory.
    """

    HEIGHT = 12
    LENGTHS = np.array([7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 60.0])  # of the ragged layers; the layer after them is streaked
    STREAKS = len(LENGTHS)
    KINDS = {  # layers: (correlation length in pixels at 224, ratio of the vertical to this length, slope of the octaves above)
        "white": [(0.0, 1, None)],
        "fine": [(2.2, 1, None)],
        "coarse": [(40.0, 1, None)],
        "ragged": [(length, 1, 1.0) for length in LENGTHS] + [(14.0, 8, 1.0)],
    }
    _made: dict = {}

    def __init__(self, img_size: int, device: torch.device):
        self.img_size, self.device = img_size, device

    def windows(self, kind: str, place: np.ndarray, layer: np.ndarray | int = 0) -> Tensor:
        """(N, img_size, img_size) windows at places (N,) in [0, 1) of a layer; "ragged" is uniform, the others are normal."""
        img_size, key = self.img_size, (kind, self.img_size, self.device)
        if key not in self._made:
            self._made[key] = torch.cat([self._make(*layer) for layer in self.KINDS[kind]]).to(self.device)
        rows = self._made[key]
        top = (place * ((self.HEIGHT - 1) * img_size)).astype(np.int64) + self.HEIGHT * img_size * np.asarray(layer)
        windows = rows.as_strided((len(rows) - img_size + 1, img_size, img_size), (img_size, img_size, 1))
        return windows.index_select(0, to_device(top, torch.int64, self.device))

    def _make(self, length: float, longer: int, slope: float | None) -> Tensor:
        height, width = self.HEIGHT * self.img_size, 2 * self.img_size  # half of it is dropped, because the field is periodic
        rng = np.random.default_rng([round(10 * length), longer])
        noise = rng.standard_normal((height, width), dtype=np.float32)
        if length:
            frequency = np.hypot(np.fft.fftfreq(height)[:, None] * longer, np.fft.rfftfreq(width)[None])
            base = 1 / (length * self.img_size / 224)
            if slope is None:  # Gaussian smoothing, sigma = length
                gain = np.exp(-2 * (np.pi * frequency / base) ** 2)
            else:  # a patch and the gap next to it are one period; each octave above it has 1/f of the amplitude, spread over
                # f times the area, so the edge is ragged at every scale
                gain = np.maximum(frequency / (base / 2), 1) ** -(1 + slope)
            noise = np.fft.irfft2(np.fft.rfft2(noise) * gain, s=noise.shape)
        noise = noise[:, : self.img_size]
        if slope:  # each value becomes its rank, so that a threshold of c covers a fraction c
            ranks = np.empty(noise.size, np.float32)
            ranks[np.argsort(noise, axis=None)] = np.arange(noise.size) / noise.size
            return torch.from_numpy(ranks.reshape(noise.shape))
        return torch.from_numpy(((noise - noise.mean()) / noise.std()).astype(np.float32))


@functools.cache
def _beta_quantiles(a: float, b: float, n: int = 1025) -> np.ndarray:
    """Quantiles 0, 1/(n-1), … 1 of the Beta(a, b) distribution, by numerical integration of its density."""
    x = (np.arange(65536) + 0.5) / 65536
    mass = np.cumsum(np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x)))
    return np.interp(np.linspace(0, 1, n), mass / mass[-1], x)


# --- helpers on pictures (N, H, W) -----------------------------------------------------------------------------------


def gaussian_blur(x: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blurs each picture with its own sigma (N,) in pixels; the kernel ends `reach` pixels from its centre.

    It sums shifted pictures, on a CPU as few at a time as fit into the L2 cache; this is faster there than a convolution.
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
    """The maximum (or another `pick`) over the square of 2 radius + 1 pixels around each pixel, by windows of doubling size."""
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
    """Applies function(pictures, value) to each group of pictures with the same value: one call per value, not per picture."""
    out = torch.empty_like(x)
    for value in np.unique(values):
        rows = to_device(np.flatnonzero(values == value), torch.int64, x.device)
        _put(out, rows, function(x.index_select(0, rows), value.item()))
    return out


def _ragged(d: Degradation, stream: Stream, lengths: list[float], streaked: np.ndarray | bool = False) -> Tensor:
    """(N, H, W) uniform 1/f fields, each of a random base length, or streaked along the vertical."""
    wanted, place = stream.uniform(*lengths), stream.uniform()
    layer = np.abs(_Fields.LENGTHS[:, None] - wanted).argmin(0)
    return d.noise.windows("ragged", place, np.where(streaked, _Fields.STREAKS, layer))


def _ramp(d: Degradation, angle: np.ndarray, height: np.ndarray) -> tuple[Tensor, Tensor]:
    """(N, 1, W) and (N, H, 1), whose sum goes from -height to height (N,) across the picture in the direction of each angle."""
    half = (d.img_size - 1) / 2
    return (d.x - half) * d.column(np.cos(angle) * height / half), (d.y - half) * d.column(np.sin(angle) * height / half)


def _stamp(d: Degradation, x: Tensor, count: np.ndarray, spots: tuple, wobble=None, level=1.0, dark=False) -> Tensor:
    """Draws ellipses with soft edges over pictures (N, H, W), in place.

    Args:
        count: (N,), the number of a picture's K ellipses that are drawn.
        spots: centre x and y, semi-axes in pixels, and angle, each (N, K).
        wobble: (N, K), the phase of an uneven outline; None for a smooth one.
        level: (N,), of bright ellipses; dark ones are 0.
    """
    used = np.arange(spots[0].shape[1]) < count[:, None]
    if not used.any():
        return x
    picture = np.nonzero(used)[0]
    cx, cy, rx, ry, angle = (np.broadcast_to(spot, used.shape)[used] for spot in spots)
    rx, ry = np.maximum(rx, 0.4), np.maximum(ry, 0.4)
    left, top, steep = np.floor(cx), np.floor(cy), np.minimum(rx, ry)
    reach = math.ceil((1 if wobble is None else 1.3) * (np.maximum(rx, ry) * (1 + 0.5 / steep)).max())  # 0 beyond it
    corner = (picture * d.img_size + top) * d.img_size + left
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
    value *= ((across >= 0) & (across < d.img_size)) * ((down >= 0) & (down < d.img_size))
    place = (d.tensor(corner, torch.int64)[:, None, None] + step[:, None] * d.img_size + step).clamp_(0, x.numel() - 1)
    value = 1 - value if dark else value * d.column(np.broadcast_to(level, len(x))[picture])
    x.view(-1).scatter_reduce_(0, place.flatten(), value.flatten(), "amin" if dark else "amax")
    return x


# --- operations: see `Operation` ----------------------------------------------------------------------------------------


@operation(moves=True, rotate=(0, 45), scale=(0, 0.5), shift=(0, 0.5), warp=(0, 20))
def geometry(d, x, stream, s, row):
    """Rotation (sd in degrees), scale (±), shift (± of img_size) and a smooth warp (sd in pixels)."""
    n, img_size = len(x), d.img_size
    angle, scale = np.radians(row["rotate"]) * stream.normal(), 1 + stream.uniform(-row["scale"], row["scale"])
    shift = stream.uniform(-2 * row["shift"], 2 * row["shift"], 2)
    bends = stream.normal(k=32).reshape(n, 2, 4, 4) * (row["warp"] * 2 / 224)  # a control point every 67 px
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    # the source of each pixel, as a product: (B-splines, 1, y) · numbers · (B-splines, 1, x)
    numbers = np.zeros((n, 2, 6, 6))
    numbers[:, :, :4, :4], numbers[:, :, 4, 4] = bends, shift
    numbers[:, :, 4, 5], numbers[:, :, 5, 4] = np.stack([cos, sin], 1), np.stack([-sin, cos], 1)
    basis = d.tensor(_grid_basis(img_size), torch.float64)  # so that the order of summation does not show in the picture
    grid = (basis @ d.tensor(numbers, torch.float64) @ basis.T).float().permute(0, 2, 3, 1)
    return F.grid_sample(x[:, None], grid, align_corners=False)[:, 0]


@functools.cache
def _grid_basis(img_size: int) -> np.ndarray:
    """(img_size, 6): for each pixel the weights of four control points by cubic interpolation (Keys, a = -3/4), 1, and the pixel's
    coordinate in [-1, 1]."""
    at = np.arange(img_size) * 3 / (img_size - 1)
    gap = np.abs(at[:, None] - np.arange(-2, 6))
    near, far = (1.25 * gap - 2.25) * gap**2 + 1, ((-0.75 * gap + 3.75) * gap - 6) * gap + 3
    weights = np.where(gap <= 1, near, np.where(gap < 2, far, 0))
    weights[:, 2] += weights[:, :2].sum(1)  # points beyond the outermost repeat it
    weights[:, 5] += weights[:, 6:].sum(1)
    return np.column_stack([weights[:, 2:6], np.ones(img_size), (2 * np.arange(img_size) + 1) / img_size - 1])


@operation(width=[1, 60])
def vanish(d, x, stream, s, row):
    """Strokes thinner than a random width disappear where the paper bridged the groove, on 20 to 80 % of the picture."""
    radius = np.round(stream.uniform(*row["width"]) * d.px / 2).astype(int)
    thick = _per_value(x, radius, lambda pictures, r: _dilate(_dilate(pictures, r, torch.minimum), r + round(2 * d.px)))
    kept = _ragged(d, stream, [20, 60]).mul_(10).add_(d.column(0.5 - 10 * stream.uniform(0.2, 0.8))).clamp_(0, 1)
    return torch.minimum(x, torch.maximum(thick, kept, out=thick), out=x)


@operation(optional=("moved",), blur=[0.1, 8], offset=[-0.2, 0.2], noise=[0, 1], moved=(0, 1))
def edges(d, x, stream, s, row):
    """Weathered edges: rounded by a blur, ragged by noise. With probability `moved` (default 1) the stroke becomes thicker or, with
    an offset above 0, thinner."""
    sigma = stream.uniform(*row["blur"]) * d.px
    offset = stream.uniform(*row["offset"]) * (1 + s)
    strength, place = stream.uniform(*row["noise"]), stream.uniform()
    level = 0.5 + offset * stream.chance(row.get("moved", 1))
    soft = gaussian_blur(x, d.tensor(sigma), math.ceil(2.5 * row["blur"][1] * d.px))
    noise = d.noise.windows("fine", place).mul_(d.column(4 * strength))
    edge = torch.addcmul(soft, soft, soft, value=-1, out=x)  # soft (1 - soft) is largest at an edge
    return torch.add(d.column(0.5 - 2.5 * level), soft.addcmul_(noise, edge), alpha=2.5, out=x).clamp_(0, 1)


@operation(grow=[1, 20], blur=[0.1, 8])
def bleed(d, x, stream, s, row):
    """Ink runs: strokes grow and soften."""
    radius = np.round(stream.uniform(*row["grow"]) * d.px).astype(int)
    sigma = stream.uniform(*row["blur"]) * d.px
    return gaussian_blur(_per_value(x, radius, _dilate), d.tensor(sigma), math.ceil(2.5 * row["blur"][1] * d.px))


def _area(d, stream, s, row) -> Tensor:
    """(N, H, W) ragged areas in [0, 1] over a fraction of the picture between cover[0] and, at severity 1, cover[1]."""
    cover = row["cover"][0] + (row["cover"][1] - row["cover"][0]) * s * stream.uniform()
    one_sided, angle = stream.chance(row["one_sided"]), stream.uniform(0, 2 * np.pi)
    # a uniform field exceeds 1 - c on a fraction c; with a ramp added, the sum is triangular over [-.5, 1.5]
    level = np.where(one_sided, 1.5 - np.sqrt(2 * cover), 1 - cover)
    across, down = _ramp(d, angle, 20 * one_sided)
    area = _ragged(d, stream, row["length"]).mul_(40).add_(across + d.column(0.5 - 40 * level))
    return (area.add_(down) if one_sided.any() else area).clamp_(0, 1)


@operation(stream="loss", cover=[0, 0.9], length=[4, 80], one_sided=(0, 1))
def spalling(d, x, stream, s, row):
    """Lost stone takes no ink: in a rubbing it has the colour of the strokes and merges with them."""
    return torch.maximum(x, _area(d, stream, s, row), out=x)


@operation(cover=[0, 0.9], length=[4, 80], two=(0, 1), cell=(0, 1), close=(0, 1))
def breakage(d, x, stream, s, row):
    """One large piece, or with probability `two` a smaller one as well, broke off at the sides of the character: it is one with the
    strokes.

    It covers a fraction of the box of the ink between cover[0] and, at severity 1, cover[1]. With probability `cell` it ends with
    the character's cell, as where the neighbours were removed, else with the picture; with probability `close` near the strokes.
    """
    box, cell, close = _ink_box(x), stream.chance(row["cell"]), np.flatnonzero(stream.chance(row["close"]))
    margins = np.where(cell[:, None], stream.uniform(0, 26, 4) * d.px, d.img_size)
    strip = _ragged(d, stream, [14, 40])  # the borders of the loss are uneven
    inside = (0.5 - _outside(d, box, d.tensor(margins)) - 8 * d.px * strip).clamp_(0, 1)
    reach, area, two = stream.uniform(6, 14) * d.px / 4, _broken(d, box, stream, s, row), np.flatnonzero(stream.chance(row["two"]))
    if len(close):
        index = d.tensor(close, torch.int64)
        near = gaussian_blur(F.avg_pool2d(x[index], 4), d.tensor(reach[close]), math.ceil(9 * d.px))[:, None]
        near = F.interpolate(near, (d.img_size, d.img_size), mode="bilinear", align_corners=False)[:, 0]
        _put(inside, index, inside[index] * near.sub_(0.22).mul_(20).addcmul_(strip[index], near.new_tensor(3.0)).clamp_(0, 1))
    if len(two):
        index = d.tensor(two, torch.int64)
        _put(area, index, torch.maximum(area[index], _broken(d, box[index], stream.rows(two), s[two] / 2, row)))
    return torch.maximum(x, area.mul_(inside), out=x)


def _ink_box(x: Tensor) -> Tensor:
    """(N, H, W) → (N, 4): left, top, right and bottom of the ink in pixels, or of the picture if it has none."""
    ink, last = x > 0.3, x.shape[1] - 1
    sides = [ink.any(axis).byte() for axis in (1, 2)]
    first, final = ([line.argmax(1) for line in sides], [last - line.flip(1).argmax(1) for line in sides])
    return torch.stack([*first, *final], 1).float()


def _outside(d: Degradation, box: Tensor, margins: Tensor) -> Tensor:
    """(N, H, W): how many pixels each pixel is outside the boxes (N, 4), widened by margins (N, 4); negative inside."""
    left, top, right, bottom = (box + margins * box.new_tensor([-1, -1, 1, 1])).T[:, :, None, None]
    return torch.maximum(torch.maximum(left - d.x, d.x - right), torch.maximum(top - d.y, d.y - bottom))


def _broken(d: Degradation, box: Tensor, stream: Stream, s: np.ndarray, row: dict) -> Tensor:
    """(N, H, W) areas in [0, 1] around a place on or beyond the border of each box, over a fraction of it; see `breakage`."""
    cover = row["cover"][0] + (row["cover"][1] - row["cover"][0]) * s * stream.uniform(0.4, 1)
    angle, distance, ragged = stream.uniform(0, 2 * np.pi), stream.log_uniform(0.9, 4), stream.uniform(0.2, 0.75)
    half, middle = (box[:, 2:] - box[:, :2]).div(2).clamp_min(max(16 * d.px, 4)), (box[:, 2:] + box[:, :2]) / 2
    box = torch.cat([middle - half, middle + half], 1)
    place = middle + half * d.tensor(np.stack([np.cos(angle), np.sin(angle)], 1) * distance[:, None])
    (cx, cy), (rx, ry) = place.T[:, :, None, None], half.T[:, :, None, None]
    noise = gaussian_blur(_ragged(d, stream, row["length"]), d.tensor(stream.uniform(0.6, 2.4) * d.px), math.ceil(6 * d.px))
    field = torch.hypot((d.x - cx) / rx, (d.y - cy) / ry).addcmul_(noise, d.column(ragged))
    # the threshold is the quantile `cover` of the field within the box, at a sixteenth of the pixels
    coarse = field.masked_fill(_outside(d, box, torch.zeros_like(box)) > 0, torch.inf)[:, ::4, ::4].flatten(1).sort(1).values
    rank = coarse.isfinite().sum(1).mul(d.tensor(cover)).long().clamp_max(coarse.shape[1] - 1)
    level = coarse.gather(1, rank[:, None])[:, :, None]
    return field.sub_(level).mul_(-half.amin(1)[:, None, None]).add_(0.5).clamp_(0, 1)


@operation(cover=[0, 0.9], length=[4, 80], one_sided=(0, 1), strokes=(0, 1))
def missing(d, x, stream, s, row):
    """Parts of the strokes have the colour of the ground; with probability `strokes` one whole stroke as well."""
    area = _area(d, stream, s, row)
    rows, place = np.flatnonzero(stream.chance(row["strokes"])), stream.uniform()
    if len(rows):
        index = d.tensor(rows, torch.int64)
        part = x[index]
        _put(x, index, part * (1 - _one_stroke(part, d.noise.windows("white", place[rows]))))
    return x.addcmul_(x, area, value=-1)


def _one_stroke(x: Tensor, lot: Tensor) -> Tensor:
    """(N, H, W) → 1 on one connected stroke of each picture, chosen by `lot` (N, H, W), and 0 elsewhere.

    A stroke with more than half of the ink is never chosen: it is not a part of the character but the character. Strokes are
    separated at a quarter of the resolution, by labels that spread through their neighbours' trees (like FastSV; Zhang, Azad & Hu,
    SIAM PP 2020): each step doubles the distance, so their number is fixed and needs no synchronisation.
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
    drawn = label[:, 1:].gather(1, drawn) * small.any(1, keepdim=True)  # 0 if none is small
    stroke = ((label[:, 1:] == drawn) & flat).view(n, h, w).float()
    return stroke.repeat_interleave(4, 1).repeat_interleave(4, 2)


@operation(share=[0, 0.9])
def cut(d, x, stream, s, row):
    """One side of the picture is cut off along a ragged line."""
    share = stream.uniform(*row["share"])
    across, down = _ramp(d, stream.uniform(0, 2 * np.pi), np.full(len(x), -20.0))
    kept = _ragged(d, stream, [10, 26]).mul_(-3).add_(across + d.column(20 * (1 - 2 * share) + 0.5)).add_(down)
    return x.mul_(kept.clamp_(0, 1))


@operation(to=[0, 1], streaks=(0, 1))
def fade(d, x, stream, s, row):
    """A dry brush or worn ink: pale strokes where a field is high; along the fibres of bamboo with probability `streaks`."""
    to, share, streaked = stream.uniform(*row["to"]), stream.uniform(0.2, 0.8), stream.chance(row["streaks"])
    field = _ragged(d, stream, [10, 26], streaked).mul_(4).add_(d.column(0.5 - 4 * (1 - share))).clamp_(0, 1)
    return x.addcmul_(x, field.mul_(d.column(to - 1)))


@operation(width=[0.5, 20], straight=(0, 1), dark=(0, 1))
def cracks(d, x, stream, s, row):
    """A crack wanders (sd of the turn 0.25 rad per step), a scratch is straight; dark ones have the colour of the ground."""
    steps, between = 40, 4
    start, heading = stream.uniform(0, d.img_size, 2), stream.uniform(0, 2 * np.pi)
    turns = 0.25 * stream.normal(k=steps) * ~stream.chance(row["straight"])[:, None]
    heading = np.repeat(heading[:, None] + np.cumsum(turns, axis=1), between, axis=1)
    stride = np.repeat(stream.uniform(3, 7, steps), between, axis=1) * d.px / between
    cx = start[:, :1] + np.cumsum(stride * np.cos(heading), axis=1)
    cy = start[:, 1:] + np.cumsum(stride * np.sin(heading), axis=1)
    radius = stream.uniform(*row["width"])[:, None] * d.px / 2 * stream.uniform(0.6, 1.2, steps * between)
    dark = stream.chance(row["dark"])
    for is_dark in (False, True):
        _stamp(d, x, np.where(dark == is_dark, steps * between, 0), (cx, cy, radius, radius, 0.0), dark=is_dark)
    return x


def _spots(d, x, stream, count, most, area, level=1.0, dark=False, uneven=False) -> Tensor:
    """Draws `count` (N,) spots, at most `most` each, at random places, with a log-uniform area in pixels."""
    k = max(1, math.ceil(most))  # not count.max(): the number of draws must not depend on the batch
    radius = np.sqrt(stream.log_uniform(*area, k) / np.pi) * d.px
    stretch = np.sqrt(stream.log_uniform(0.6, 1.6, k))
    place = [stream.uniform(0, d.img_size, k) for _ in range(2)]
    angle, phase = stream.uniform(0, np.pi, k), stream.uniform(0, 2 * np.pi, k)
    return _stamp(d, x, count, (*place, radius * stretch, radius / stretch, angle), phase if uneven else None, level, dark)


@operation(count=[1, 500], area=[1, 400])
def specks(d, x, stream, s, row):
    """Fine bright specks everywhere; their number is log-uniform between count[0] and, at severity 1, count[1]."""
    low, high = row["count"]
    count = np.round(stream.log_uniform(low, low + (high - low) * s)).astype(int)
    return _spots(d, x, stream, count, row["count"][1], row["area"], level=stream.uniform(0.5, 1.2).clip(max=1))


@operation(count=(0, 500), area=[1, 400])
def pits(d, x, stream, s, row):
    """Small holes in the strokes. `count` includes those that fall on the ground, which are most."""
    count = np.round(stream.uniform(0, row["count"])).astype(int)
    return _spots(d, x, stream, count, row["count"], row["area"], dark=True)


@operation(cover=[0, 1], share=[0, 1], level=[0, 1])
def veins(d, x, stream, s, row):
    """Rough stone or creased paper in patches that fill `cover` of the picture, more at high severity: bright lines that wander and
    fill `share` of a patch, like fragments of thin strokes. `level` is their brightness."""
    cover, share, level = (stream.uniform(*row[key]) for key in ("cover", "share", "level"))
    patch = _ragged(d, stream, [28, 60]).sub_(d.column(cover * (0.5 + s))).mul_(-6).add_(0.5).clamp_(0, 1)
    lines = _ragged(d, stream, [7, 14]).sub_(0.5).abs_().sub_(d.column(share / 2)).mul_(-12).add_(0.5).clamp_(0, 1)
    return torch.maximum(x, lines.mul_(patch).mul_(d.column(level)))


@operation(count=(1, 20), size=[2, 100])
def sheet_loss(d, x, stream, s, row):
    """Holes in the sheet, in the colour of the ground; `size` is their diameter in pixels."""
    count, area = np.ceil(stream.uniform(0, row["count"])).astype(int), [math.pi / 4 * size**2 for size in row["size"]]
    return _spots(d, x, stream, count, row["count"], area, dark=True, uneven=True)


@operation(count=(1, 20), size=[2, 100])
def blot(d, x, stream, s, row):
    """Blots of ink, in the colour of the strokes; `size` is their diameter in pixels."""
    count, area = np.ceil(stream.uniform(0, row["count"])).astype(int), [math.pi / 4 * size**2 for size in row["size"]]
    return _spots(d, x, stream, count, row["count"], area, uneven=True)


@operation(width=(0, 0.4), slices=(0, 1), lines=(0, 1), bands=(0, 1))
def surroundings(d, x, stream, s, row):
    """A slice of a neighbouring character, a grid line or a frame band at one side, within `width`, a fraction of img_size."""
    n, reach = len(x), max(1, round(row["width"] * d.img_size))
    vertical, far = stream.chance(0.5), stream.chance(0.5)
    width, has_slice, has_line = stream.uniform(0.3, 1) * reach, stream.chance(row["slices"]), stream.chance(row["lines"])
    at, thick, bright = stream.uniform(0, 1) * reach, stream.uniform(0.7, 2.5) * d.px, stream.uniform(0.3, 1)
    band, jump = at * stream.chance(row["bands"]), np.round(stream.uniform(0.35, 0.65) * d.img_size)
    away = np.arange(reach)[None]  # distance from the edge
    line = np.maximum(np.clip(thick[:, None] - np.abs(away - at[:, None]) + 0.5, 0, 1), away < band[:, None])
    line = d.tensor(line * (bright * has_line)[:, None])[:, :, None]
    # the neighbour is the character's own ink from further inside, so that no picture depends on its batch
    near, source = np.where(far[:, None], d.img_size - 1 - away, away), away + jump[:, None]
    source = np.where(far[:, None], d.img_size - 1 - source, source).clip(0, d.img_size - 1)
    along = np.arange(d.img_size)
    across = vertical[:, None, None]
    pixels = [np.where(across, along * d.img_size + at[:, :, None], at[:, :, None] * d.img_size + along) for at in (near, source)]
    here, there = (d.tensor(p.reshape(n, -1), torch.int64) for p in pixels)
    flat, slice_ = x.view(n, -1), d.tensor((away < width[:, None]) * has_slice[:, None])[:, :, None]
    strip = torch.maximum(flat.gather(1, here), (flat.gather(1, there).view(n, reach, -1) * slice_).flatten(1))
    return flat.scatter_(1, here, torch.maximum(strip.view(n, reach, -1), line).flatten(1)).view_as(x)


@operation(width=[0, 0.5], side=(0, 1), level=[0, 1], line=(0, 1))
def mount(d, x, stream, s, row):
    """What a rubbing is mounted on: beyond straight lines, at each side with probability `side` and within `width`, a fraction of
    img_size, all has one tone, `level`. With probability `line` the lines show, a pixel or two wide, in any tone."""
    inside = []
    for axis in (d.x, d.y):
        first, last = (stream.uniform(*row["width"]) * stream.chance(row["side"]) * d.img_size for _ in range(2))
        inside.append(torch.minimum(axis - d.column(first), d.column(d.img_size - 1 - last) - axis))
    depth = torch.minimum(*inside)  # pixels from the nearest edge, inwards
    edge = (d.column(stream.uniform(0.5, 2) * d.px) - depth.abs()).add_(0.5).clamp_(0, 1).mul_(d.column(stream.chance(row["line"])))
    edge *= depth.amin((1, 2), keepdim=True) < 0
    for tone, where in ((stream.uniform(*row["level"]), (-depth).clamp_(0, 1)), (stream.uniform(), edge)):
        x = torch.lerp(x, d.column(tone).expand_as(x), where)
    return x


@operation(stroke=[0, 1], ground=[0, 1], gradient=(0, 0.5))
def tone(d, x, stream, s, row):
    """Levels of strokes and ground, and a gradient over the picture."""
    ground, level = stream.uniform(*row["ground"]), stream.uniform(*row["stroke"])
    across, down = _ramp(d, stream.uniform(0, 2 * np.pi), stream.uniform(-1, 1) * row["gradient"])
    return x.mul_(d.column(level - ground)).add_(across + d.column(ground)).add_(down).clamp_(0, 1)


@operation(fibre=[0, 0.5], stain=[0, 0.5], laid=(0, 1))
def texture(d, x, stream, s, row):
    """Fibres and stains of the paper, and with probability `laid` the lines of laid paper."""
    for kind, sd in (("fine", row["fibre"]), ("coarse", row["stain"])):
        x.addcmul_(d.noise.windows(kind, stream.uniform()), d.column(stream.uniform(*sd)))
    pitch, phase, vertical = stream.uniform(5, 12) * d.px, stream.uniform(0, 2 * np.pi), stream.chance(0.5)
    strength, laid = stream.uniform(*row["fibre"])[:, None], stream.chance(row["laid"])[:, None]
    if laid.any():
        lines = strength * laid * np.sin(2 * np.pi / pitch[:, None] * np.arange(d.img_size) + phase[:, None])
        x.add_(d.tensor(lines * vertical[:, None])[:, None, :]).add_(d.tensor(lines * ~vertical[:, None])[:, :, None])
    return x.clamp_(0, 1)


@operation(height=[16, 224])
def resolution(d, x, stream, s, row):
    """Few pixels: resized to a random height and back."""
    heights = np.geomspace(*row["height"], 6) * d.px  # six steps, so that pictures of one height are processed together
    height = np.round(heights[(stream.uniform() * 6).astype(int)]).astype(int)

    def down_and_up(pictures, h):
        small = F.interpolate(pictures[:, None], (h, h), mode="area")
        return F.interpolate(small, (d.img_size, d.img_size), mode="bilinear", align_corners=False)[:, 0]

    return _per_value(x, height, down_and_up)


@operation(optional=("grows",), sigma=[0.1, 8], grows=(0, 1))
def blur(d, x, stream, s, row):
    """Out of focus; `grows` is the share of sigma (default 0) that is proportional to severity, so that it is the whole at 0.5."""
    grows = row.get("grows", 0)
    sigma = stream.uniform(*row["sigma"]) * d.px * (1 + grows * (2 * s - 1))
    return gaussian_blur(x, d.tensor(sigma), math.ceil(2.5 * row["sigma"][1] * (1 + grows) * d.px))


@operation(sd=[0, 0.5])
def noise(d, x, stream, s, row):
    """Normal noise of the sensor."""
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
    """(N, H, W) in [0, 1], H and W multiples of 8, quality (N,) in 1 … 100 → the pictures after a grey JPEG of that quality.

    The loss is the rounding of the cosine coefficients of each 8×8 block; the entropy coding that follows is lossless. The rounding
    of pixels to 8 bits is left out.
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


@operation(quality=[1, 100])
def jpeg(d, x, stream, s, row):
    """Saved as a JPEG file of low quality."""
    return jpeg_loss(x, np.round(stream.uniform(*row["quality"])))


@operation(local=(0, 1), contrast=[1, 255])
def binarise(d, x, stream, s, row):
    """A cleaned scan: contrast is raised (at 255 to two levels) around Otsu's threshold or, with probability `local`, around the
    mean of the neighbourhood plus 0.05 to 0.15."""
    local, above, contrast = stream.chance(row["local"]), stream.uniform(0.05, 0.15), stream.log_uniform(*row["contrast"])
    threshold = otsu_threshold(x[:, None, ::2, ::2])[:, None, None].expand_as(x)  # a quarter of the pixels is enough
    rows = np.flatnonzero(local)
    if len(rows):
        index = d.tensor(rows, torch.int64)
        coarse = F.avg_pool2d(x[index], 8)  # the mean over 9 × 9 of these cells, a window of 72 pixels
        coarse = F.avg_pool2d(F.pad(coarse, (4,) * 4, mode="replicate"), 9, 1)[:, None]
        mean = F.interpolate(coarse, (d.img_size, d.img_size), mode="bilinear", align_corners=False)[:, 0]
        threshold = threshold.index_copy(0, index, mean + d.column(above[rows]))
    # never steeper than one grey level: a step would amplify a rounding error to a full pixel
    return x.sub_(threshold).mul_(d.column(contrast)).add_(0.5).clamp_(0, 1)


@operation(stream="exemplar", moves=True, file=str)
def exemplar_shape(d, x, stream, s, row):
    """In the place, the proportions and the stroke weight of a real character; see `datasets.exemplars`."""
    bank = exemplars.load(row["file"], d.img_size)
    which = (stream.uniform() * len(bank.share)).astype(int)
    return d.tensor(np.stack([exemplars.shaped(one, bank, i) for one, i in zip(x.cpu().numpy(), which, strict=True)]))


@operation(stream="exemplar", file=str)
def exemplar_ground(d, x, stream, s, row):
    """With the tones, the ground, the losses and the texture of the same real character."""
    bank = exemplars.load(row["file"], d.img_size)
    which, flip = ((stream.uniform() * count).astype(int) for count in (len(bank.share), 4))
    return d.tensor(np.stack([exemplars.painted(*one) for one in zip(x.cpu().numpy(), [bank] * len(x), which, flip, strict=True)]))


# The classic operations: their parameters are those at severity 0.5. At severity 0 they change nothing.


@operation(size=[1, 49])
def grow_or_shrink(d, x, stream, s, row):
    """Erosion or dilation with a rectangle of `size` pixels, which grows with severity; less above 0.5, or no stroke is left."""
    scale = np.minimum(2 * s, 0.5 + s) * d.px
    radii = [np.round(scale * stream.uniform(*row["size"])).astype(int) // 2 for _ in range(2)]
    sign = np.where(stream.chance(0.5), 1, -1)
    for radius, kernel in zip(radii, ((1, 2), (2, 1)), strict=True):

        def one(pictures, r, kernel=kernel):
            size = [1 + (k - 1) * 2 * abs(r) for k in kernel]
            return (
                np.sign(r) * F.max_pool2d(np.sign(r) * pictures[:, None], size, 1, [k // 2 for k in size])[:, 0] if r else pictures
            )

        x = _per_value(x, sign * radius, one)
    return x


def _boxes(d, stream, sizes, weights: np.ndarray) -> Tensor:
    """(N, H, W): the sum of K boxes at random places, of random sizes [low, high], (N, 1) each, with weights (N, K)."""
    lines, count = [], weights.shape[1]
    for axis in (d.y, d.x):
        at, length = stream.uniform(0, d.img_size, count), stream.uniform(*sizes, count) * d.px
        line = axis.reshape(1, 1, -1)
        lines.append(((line >= d.tensor(at)[:, :, None]) & (line < d.tensor(at + length)[:, :, None])).float())
    return torch.bmm(lines[0].transpose(1, 2), lines[1] * d.tensor(weights)[:, :, None])


def _used(s: np.ndarray, count: float) -> np.ndarray:
    """(N, K) bool: which of the K = 2 `count` boxes of each picture are drawn, `count` of them at severity 0.5."""
    return np.arange(int(2 * count)) < np.round(2 * s * count)[:, None]


@operation(count=(1, 100), size=[1, 224], bright=(0, 1))
def rectangles(d, x, stream, s, row):
    """Filled rectangles; dark ones darken, bright ones brighten. Number and size grow with severity."""
    used = _used(s, row["count"])
    sign = np.where(stream.uniform(k=used.shape[1]) < row["bright"], 1.0, -1.0)
    sizes = [size * (0.5 + s[:, None]) for size in row["size"]]
    return x.add_(_boxes(d, stream, sizes, sign * used)).clamp_(0, 1)


@operation(count=(1, 100), size=(1, 224), by=(0, 1))
def squares(d, x, stream, s, row):
    """Squares that change the level by up to ±`by`. Number and change grow with severity."""
    used, by = _used(s, row["count"]), row["by"] * 2 * s[:, None]
    return x.add_(_boxes(d, stream, [row["size"]] * 2, stream.uniform(-by, by, used.shape[1]) * used)).clamp_(0, 1)
