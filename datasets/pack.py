"""The packed handwriting set: one file with every glyph, one bit per pixel, its labels and its checksum.

The file is a ZIP archive that stores (without compressing again):

- `meta.json`: format, side, checksum, hands, versions of what drew the glyphs;
- `index.xz`: a NumPy file with a row per glyph, `character`, `form`, `group` (code points) and `hand` (position);
- `glyphs/000.xz` …: `CHUNK` glyphs each, LZMA-compressed; independent of each other, so that they open in threads.

Inside a chunk the bytes of a glyph go column by column: downwards, eight pixels of a stroke's edge change slowly, and
LZMA takes 30 % less than for rows. (XOR with the row above takes 14 % more.)
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from util.files import replacing

if TYPE_CHECKING:  # who wants a single glyph need not wait for torch
    import torch

FORMAT = "zi-pack 1"
CHUNK = 2048  # glyphs
ROLES = ("train", "held_out", "guide")
# What zipfile, lzma, NumPy and json raise, each in its own way, over bytes that are not what they were.
_BROKEN = (
    zipfile.BadZipFile,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
)
INDEX = np.dtype([("character", "<u4"), ("form", "<u4"), ("group", "<u4"), ("hand", "u1")])


@dataclass(frozen=True)
class Hand:
    """One writer or font. `family`: hands of one family count as one and stand on one side. `role`: one of `ROLES`."""

    name: str
    family: str
    style: str
    role: str
    source: str
    licence: str


@dataclass(frozen=True)
class Pack:
    """An open pack of n glyphs.

    character, form, group: (n,) uint32, code points: whose it is, what is drawn, where the split puts it.
    hand: (n,) uint8, positions in `hands`. bits: (n, side * side / 8) uint8, rows of `np.packbits`, strokes 1.
    checksum: SHA-256 (hexadecimal) over hands, index and bits. meta: versions of what drew the glyphs.
    """

    side: int
    hands: list[Hand]
    meta: dict
    character: np.ndarray
    form: np.ndarray
    group: np.ndarray
    hand: np.ndarray
    bits: np.ndarray
    checksum: str

    def __len__(self) -> int:
        return len(self.bits)

    def glyphs(self, ids: np.ndarray | torch.Tensor | Iterable[int]) -> torch.Tensor:
        """The glyphs of N ids: (N, 1, side, side) uint8 on the CPU, strokes 1, ground 0. IndexError past the end."""
        import torch

        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        pixels = np.unpackbits(self.bits[ids], axis=1)
        return torch.from_numpy(pixels).view(len(ids), 1, self.side, self.side)


def _checksum(side: int, hands: list[Hand], index: np.ndarray, chunk_digests: list[bytes]) -> str:
    digest = hashlib.sha256(json.dumps([side, [asdict(hand) for hand in hands]]).encode())
    digest.update(index.tobytes())
    for chunk_digest in chunk_digests:
        digest.update(chunk_digest)
    return digest.hexdigest()


def _member(name: str) -> zipfile.ZipInfo:
    """An archive member without a clock, an owner or an operating system in it: the same bytes everywhere."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o644 << 16
    return info


def _squeeze(bits: np.ndarray, side: int) -> tuple[bytes, bytes]:
    """(SHA-256, compressed) of some glyphs' bits (n, side * side / 8)."""
    columns = bits.reshape(len(bits), side, side // 8).transpose(0, 2, 1)
    # The extreme preset takes 8 % less space and thrice the time of the default; its own dictionary, four times as large
    # as a chunk, would only take memory.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}]
    return hashlib.sha256(bits.tobytes()).digest(), lzma.compress(columns.tobytes(), filters=filters)


def write_pack(
    path: str | Path,
    *,
    side: int,
    hands: list[Hand],
    character: np.ndarray,
    form: np.ndarray,
    group: np.ndarray,
    hand: np.ndarray,
    bits: np.ndarray,
    meta: dict,
) -> str:
    """Writes a pack (arrays as in `Pack`) beside its place, flushes it, renames it, and returns its checksum.

    The same input gives the same bytes. ValueError if the arrays do not fit together.
    """
    n = len(bits)
    if side % 8 or bits.shape != (n, side * side // 8) or bits.dtype != np.uint8:
        raise ValueError(f"bits must be uint8 of (n, {side * side // 8}) for side {side}, not {bits.dtype} {bits.shape}")
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
        chunks = pool.map(lambda start: _squeeze(bits[start : start + CHUNK], side), starts)
        squeezed = list(tqdm(chunks, "packing", len(starts), unit="chunk", disable=len(starts) < 4))
    checksum = _checksum(side, hands, index, [digest for digest, _ in squeezed])
    head = {
        "format": FORMAT,
        "side": side,
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
    return checksum


def open_pack(path: str | Path) -> Pack:
    """Opens a pack and verifies it whole.

    FileNotFoundError if there is none; ValueError, naming the file and the way out, if it is damaged, truncated or
    something else.
    """
    with _opened(path) as file:
        return file.read()


def read_guide(path: str | Path, forms: Iterable[str]) -> dict[str, np.ndarray]:
    """The guide's glyphs of those forms that it has: (side, side) uint8, strokes 1, ground 0.

    Opens only the chunks that hold them, which takes a tenth of a second. Errors: see `open_pack`.
    """
    codes = [ord(form) for form in set(forms)]
    with _opened(path) as file:
        of_guide = np.array([hand.role == "guide" for hand in file.hands])[file.index["hand"]]
        ids = np.flatnonzero(of_guide & np.isin(file.index["form"], codes))
        chunks = {number: file.chunk(number) for number in set(ids // file.length)}
        glyphs = (np.unpackbits(chunks[i // file.length][i % file.length]).reshape(file.side, file.side) for i in ids)
        return dict(zip(map(chr, file.index["form"][ids].tolist()), glyphs, strict=True))


@contextmanager
def _opened(path: str | Path) -> Iterator[_File]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no handwriting set at {path}; `make data` builds one, --data names another")
    try:
        with zipfile.ZipFile(path) as archive:
            yield _File(archive)
    except _BROKEN as error:
        raise ValueError(
            f"{path} is damaged, truncated or no handwriting set ({error}); fetch it again, or rebuild it with `make data`"
        ) from error


class _File:
    """A pack's file: what its head says, its index, and its chunks one by one."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive, self.head = archive, json.loads(archive.read("meta.json"))
        if self.head.get("format") != FORMAT:
            raise ValueError(f"format {self.head.get('format')!r}, where this version reads {FORMAT!r}")
        self.side, self.n, self.length = (self.head[key] for key in ("side", "glyphs", "chunk"))
        self.hands = [Hand(**hand) for hand in self.head["hands"]]
        self.index = np.load(io.BytesIO(lzma.decompress(archive.read("index.xz"))), allow_pickle=False)
        self.names = sorted(name for name in archive.namelist() if name.startswith("glyphs/"))
        if self.index.dtype != INDEX or len(self.index) != self.n or len(self.names) != -(-self.n // self.length):
            raise ValueError(f"{len(self.index)} labels and {len(self.names)} chunks for {self.n} glyphs")

    def chunk(self, number: int) -> np.ndarray:
        """The bits of its glyphs: (n, side * side / 8) uint8."""
        columns = np.frombuffer(lzma.decompress(self.archive.read(self.names[number])), np.uint8)
        columns = columns.reshape(-1, self.side // 8, self.side)
        return columns.transpose(0, 2, 1).reshape(len(columns), -1)

    def read(self) -> Pack:
        bits = np.empty((self.n, self.side * self.side // 8), np.uint8)

        def unsqueeze(number: int) -> bytes:
            part = bits[number * self.length : (number + 1) * self.length]
            part[:] = self.chunk(number)
            return hashlib.sha256(part).digest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(pool.map(unsqueeze, range(len(self.names))))
        if _checksum(self.side, self.hands, self.index, digests) != self.head["checksum"]:
            raise ValueError("the checksum does not match")
        columns = {name: np.ascontiguousarray(self.index[name]) for name in INDEX.names}
        return Pack(side=self.side, hands=self.hands, meta=self.head["meta"], bits=bits, checksum=self.head["checksum"], **columns)
