"""The packed handwriting set: one file with every glyph at one bit per pixel, its labels and a checksum.

The file is a ZIP archive with uncompressed members:

- `meta.json`: format, side (img_size), number of glyphs, checksum, hands, versions of the programs that drew the glyphs;
- `index.xz`: a NumPy file with a row per glyph: `character`, `form`, `group` (code points) and `hand` (position);
- `glyphs/000.xz` …: `CHUNK` glyphs each, LZMA-compressed independently, so that threads can decompress them;
- `medians.xz`, if there are any: a NumPy archive with the stroke medians of some characters.

The bytes of a glyph are ordered by columns: the next eight pixels downwards differ little, which makes the file 30 % smaller than
order by rows. (With an additional XOR of neighbouring rows it would be 14 % larger.)
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from util.files import replacing

if TYPE_CHECKING:  # reading a single glyph does not need torch, which takes seconds to import
    import torch

FORMAT = "zi-pack 1"
CHUNK = 2048  # glyphs
ROLES = ("train", "held_out", "guide")
# What zipfile raises for corrupt bytes: RuntimeError for flags, ValueError for offsets, KeyError for names.
_ZIP_ERRORS = (zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError, KeyError)
Medians = dict[int, list[np.ndarray]]
INDEX = np.dtype([("character", "<u4"), ("form", "<u4"), ("group", "<u4"), ("hand", "u1")])


@dataclass(frozen=True)
class Hand:
    """One writer or font. `family`: hands of one family count as one and are in one split. `role`: one of `ROLES`."""

    name: str
    family: str
    style: str
    role: str
    source: str
    licence: str


@dataclass(frozen=True)
class Pack:
    """An open pack of n glyphs.

    character, form, group: (n,) uint32 code points: the character, the form of it that is drawn, and the group that sets its split.
    hand: (n,) uint8, positions in `hands`. bits: (n, img_size * img_size / 8) uint8, rows of `np.packbits`, strokes 1.
    checksum: SHA-256 (hexadecimal) over hands, index, bits and medians. meta: versions of the programs that drew the glyphs.
    medians: {form: the median of each stroke in order, (points, 2) int16, x to the right, y up}; empty in most packs.
    """

    img_size: int
    hands: list[Hand]
    meta: dict
    character: np.ndarray
    form: np.ndarray
    group: np.ndarray
    hand: np.ndarray
    bits: np.ndarray
    checksum: str
    medians: Medians = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.bits)

    def glyphs(self, ids: np.ndarray | torch.Tensor | Iterable[int]) -> torch.Tensor:
        """The glyphs of N ids: (N, 1, img_size, img_size) uint8 on the CPU, strokes 1, ground 0. Raises IndexError."""
        import torch

        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        pixels = np.unpackbits(self.bits[ids], axis=1)
        return torch.from_numpy(pixels).view(len(ids), 1, self.img_size, self.img_size)


def _checksum(img_size: int, hands: list[Hand], index: np.ndarray, chunk_digests: list[bytes], medians: bytes) -> str:
    digest = hashlib.sha256(json.dumps([img_size, [asdict(hand) for hand in hands]]).encode())
    for data in (index.tobytes(), *chunk_digests, medians):
        digest.update(data)
    return digest.hexdigest()


def _medians_to_bytes(medians: Medians) -> bytes:
    """The medians as a NumPy archive: forms, strokes of each, points of each stroke, and the points of all; b"" for none."""
    if not medians:
        return b""
    forms, file = sorted(medians), io.BytesIO()
    strokes = [stroke for form in forms for stroke in medians[form]]
    counts, points = ([len(part) for part in parts] for parts in ((medians[form] for form in forms), strokes))
    arrays = {"forms": np.array(forms, np.uint32), "strokes": np.array(counts, np.uint8), "points": np.array(points, np.uint8)}
    np.savez(file, **arrays, xy=np.concatenate(strokes).astype(np.int16))
    return file.getvalue()


def _medians_from_bytes(data: bytes) -> Medians:
    if not data:
        return {}
    with np.load(io.BytesIO(data)) as arrays:
        forms, counts, points, xy = (arrays[name] for name in ("forms", "strokes", "points", "xy"))
    strokes = np.split(xy, points.cumsum()[:-1])
    ends = counts.astype(int).cumsum()
    return {int(form): strokes[end - count : end] for form, count, end in zip(forms, counts.astype(int), ends, strict=True)}


def _member(name: str) -> zipfile.ZipInfo:
    """An archive member with a fixed date, owner and operating system, so that the bytes are the same everywhere."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16
    return info


def _squeeze(bits: np.ndarray, img_size: int) -> tuple[bytes, bytes]:
    """Bits (n, img_size * img_size / 8) → their SHA-256, and the compressed bytes."""
    columns = bits.reshape(len(bits), img_size, img_size // 8).transpose(0, 2, 1)
    # The extreme preset saves 8 % of space and takes three times as long as the default. Its dictionary is four times as large as a
    # chunk and would only take memory.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}]
    return hashlib.sha256(bits.tobytes()).digest(), lzma.compress(columns.tobytes(), filters=filters)


def write_pack(
    path: str | Path,
    *,
    img_size: int,
    hands: list[Hand],
    character: np.ndarray,
    form: np.ndarray,
    group: np.ndarray,
    hand: np.ndarray,
    bits: np.ndarray,
    meta: dict,
    medians: Medians | None = None,
) -> str:
    """Writes a pack (arrays as in `Pack`) atomically and returns its checksum. The same input gives the same bytes.

    Raises ValueError if the arrays do not fit together.
    """
    n = len(bits)
    if img_size % 8 or bits.shape != (n, img_size * img_size // 8) or bits.dtype != np.uint8:
        raise ValueError(
            f"bits must be uint8 of (n, {img_size * img_size // 8}) for img_size {img_size}, not {bits.dtype} {bits.shape}"
        )
    if any(len(column) != n for column in (character, form, group, hand)):
        raise ValueError("character, form, group, hand and bits differ in length")
    if n and int(np.max(hand)) >= len(hands):
        raise ValueError(f"a glyph is by hand {int(np.max(hand))}, but there are {len(hands)} hands")
    if unknown := [item.name for item in hands if item.role not in ROLES]:
        raise ValueError(f"the role of {', '.join(unknown)} is not one of {', '.join(ROLES)}")
    index = np.zeros(n, INDEX)
    index["character"], index["form"], index["group"], index["hand"] = character, form, group, hand

    starts = range(0, n, CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = pool.map(lambda start: _squeeze(bits[start : start + CHUNK], img_size), starts)
        squeezed = list(tqdm(chunks, "packing", len(starts), unit="chunk", disable=len(starts) < 4))
    strokes = _medians_to_bytes(medians or {})
    checksum = _checksum(img_size, hands, index, [digest for digest, _ in squeezed], strokes)
    head = {
        "format": FORMAT,
        "side": img_size,
        "glyphs": n,
        "chunk": CHUNK,
        "checksum": checksum,
        "hands": [asdict(item) for item in hands],
        "meta": meta,
    }
    table = io.BytesIO()
    np.save(table, index)

    with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        archive.writestr(_member("meta.json"), json.dumps(head, indent=1, ensure_ascii=False, sort_keys=True))
        archive.writestr(_member("index.xz"), lzma.compress(table.getvalue()))
        for number, (_, data) in enumerate(squeezed):
            archive.writestr(_member(f"glyphs/{number:03d}.xz"), data)
        if strokes:
            archive.writestr(_member("medians.xz"), lzma.compress(strokes, preset=9 | lzma.PRESET_EXTREME))
    return checksum


def open_pack(path: str | Path, *more: str | Path) -> Pack:
    """Opens a pack and verifies its checksum; several are joined, in their order.

    Raises FileNotFoundError, and ValueError if a file is corrupt, truncated or not a pack, or if packs cannot be joined.
    """
    packs = []
    for file_path in (path, *more):
        with _opened(file_path) as file:
            packs.append(file.read())
    return packs[0] if len(packs) == 1 else _join(packs)


def _join(packs: list[Pack]) -> Pack:
    names = [hand.name for pack in packs for hand in pack.hands]
    if len(set(names)) < len(names) or len({pack.img_size for pack in packs}) > 1:
        raise ValueError("packs with hands of the same name, or glyphs of different sizes, cannot be joined")
    first_hand = np.cumsum([0, *(len(pack.hands) for pack in packs[:-1])])
    return Pack(
        img_size=packs[0].img_size,
        hands=[hand for pack in packs for hand in pack.hands],
        meta={"joined": [pack.meta for pack in packs]},
        hand=np.concatenate([pack.hand + first for pack, first in zip(packs, first_hand, strict=True)]).astype(np.uint8),
        checksum=hashlib.sha256(" ".join(pack.checksum for pack in packs).encode()).hexdigest(),
        medians={form: strokes for pack in packs for form, strokes in pack.medians.items()},
        **{name: np.concatenate([getattr(pack, name) for pack in packs]) for name in ("character", "form", "group", "bits")},
    )


def read_guide(path: str | Path, forms: Iterable[str]) -> dict[str, np.ndarray]:
    """{form: (img_size, img_size) uint8, strokes 1, ground 0} for those of the forms that the guide has.

    Reads only the chunks with these glyphs, which takes 0.1 s. Raises the errors of `open_pack`.
    """
    codes = [ord(form) for form in set(forms)]
    with _opened(path) as file:
        is_guide = np.array([hand.role == "guide" for hand in file.hands])[file.index["hand"]]
        ids = np.flatnonzero(is_guide & np.isin(file.index["form"], codes))
        chunks = {number: file.chunk(number) for number in set(ids // file.length)}
        glyphs = (np.unpackbits(chunks[i // file.length][i % file.length]).reshape(file.img_size, file.img_size) for i in ids)
        return dict(zip(map(chr, file.index["form"][ids].tolist()), glyphs, strict=True))


def guide_forms(path: str | Path) -> dict[int, str]:
    """{group: its forms that the guide has}, the code point of each character group. Raises the errors of `open_pack`."""
    with _opened(path) as file:
        is_guide = np.array([hand.role == "guide" for hand in file.hands])[file.index["hand"]]
        forms: dict[int, str] = {}
        for group, form in zip(file.index["group"][is_guide].tolist(), file.index["form"][is_guide].tolist(), strict=True):
            forms[group] = forms.get(group, "") + chr(form)
        return forms


class _Corrupt(Exception):
    """The bytes of a file are not those of a pack."""


@contextmanager
def _parsing(*errors: type[Exception]) -> Iterator[None]:
    """Raises `_Corrupt` for these errors: only for calls that parse bytes of the file."""
    try:
        yield
    except errors as error:
        raise _Corrupt(str(error) or type(error).__name__) from error


@contextmanager
def _opened(path: str | Path) -> Iterator[_File]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no handwriting set at {path}; `make data` builds one, --data names another")
    try:
        with _parsing(*_ZIP_ERRORS):
            archive = zipfile.ZipFile(path)
        with archive:
            yield _File(archive)
    except _Corrupt as error:
        message = f"{path} is corrupt, truncated or not a handwriting set ({error}); fetch it again, or rebuild it with `make data`"
        raise ValueError(message) from error


class _File:
    """An open file of a pack: its head and index, and its chunks one by one. Raises `_Corrupt`."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        if any(info.compress_type != zipfile.ZIP_STORED or info.header_offset < 0 for info in archive.infolist()):
            raise _Corrupt("bad directory")
        text = self._read("meta.json")
        with _parsing(ValueError):
            head = json.loads(text)
        version = head.get("format") if isinstance(head, dict) else None
        if version != FORMAT:
            raise _Corrupt(f"its format is {version!r}; this version reads {FORMAT!r}")
        with _parsing(KeyError, TypeError):
            self.img_size, self.n, self.length = (head[key] for key in ("side", "glyphs", "chunk"))
            self.hands, self.checksum, self.meta = [Hand(**hand) for hand in head["hands"]], head["checksum"], head["meta"]
        index = io.BytesIO(self._read("index.xz"))
        with _parsing(ValueError):
            self.index = np.lib.format.read_array(index)
        self.names = sorted(name for name in archive.namelist() if name.startswith("glyphs/"))
        if self.index.dtype != INDEX or self.index.shape != (self.n,) or len(self.names) != -(-self.n // self.length):
            raise _Corrupt(f"{self.index.size} labels and {len(self.names)} chunks for {self.n} glyphs")

    def _read(self, name: str) -> bytes:
        with _parsing(*_ZIP_ERRORS):
            data = self.archive.read(name)
        with _parsing(lzma.LZMAError):
            return lzma.decompress(data) if name.endswith(".xz") else data

    def chunk(self, number: int) -> np.ndarray:
        """The bits of its glyphs: (n, img_size * img_size / 8) uint8."""
        columns = np.frombuffer(self._read(self.names[number]), np.uint8)
        n = min(self.length, self.n - number * self.length)
        if columns.size != n * self.img_size * self.img_size // 8:
            raise _Corrupt(f"{self.names[number]} has a wrong length")
        return columns.reshape(n, self.img_size // 8, self.img_size).transpose(0, 2, 1).reshape(n, -1)

    def read(self) -> Pack:
        """All glyphs, once the checksum is verified."""
        bits = np.empty((self.n, self.img_size * self.img_size // 8), np.uint8)

        def decompress(number: int) -> bytes:
            part = bits[number * self.length : (number + 1) * self.length]
            part[:] = self.chunk(number)
            return hashlib.sha256(part).digest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(pool.map(decompress, range(len(self.names))))
        strokes = self._read("medians.xz") if "medians.xz" in self.archive.namelist() else b""
        if _checksum(self.img_size, self.hands, self.index, digests, strokes) != self.checksum:
            raise _Corrupt("the checksum does not match")
        columns = {name: np.ascontiguousarray(self.index[name]) for name in INDEX.names}
        return Pack(img_size=self.img_size, hands=self.hands, meta=self.meta, bits=bits, checksum=self.checksum,
                    medians=_medians_from_bytes(strokes), **columns)  # fmt: skip
