"""The split by character: which code points belong together, and which split each group is in.

A character's simplified, traditional, Japanese and compatibility forms are one *group*, named by its smallest code point. A hash of
that name decides its split, which therefore depends neither on the data nor on any order.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from functools import cache

import opencc

SPLITS = ("train", "val", "test")
TEST_SHARE, VAL_SHARE = 0.10, 0.05

# Blocks with forms of Han characters: radicals, unified ideographs (with extensions A to H), compatibility ideographs.
_BLOCKS = (
    (0x2E80, 0x2FD5),
    (0x3005, 0x3007),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAD9),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBE0),
    (0x2F800, 0x2FA1D),
    (0x30000, 0x323AF),
)


@cache
def _converter(name: str) -> opencc.OpenCC:
    return opencc.OpenCC(name)


def forms(char: str) -> list[str]:
    """The forms of a character: simplified, itself, traditional (OpenCC s2t) and Japanese (t2jp), without duplicates.

    Raises ValueError if `char` is not one character.
    """
    _check_one(char)
    traditional = _converter("s2t").convert(char)
    simplified = _converter("t2s").convert(char)
    japanese = _converter("t2jp").convert(traditional)
    return [form for form in dict.fromkeys((simplified, char, traditional, japanese)) if len(form) == 1]


@cache
def _canonical() -> dict[str, str]:
    """{character: smallest member of its group} for every character with a form other than itself, by union-find."""
    chars = [chr(code) for first, last in _BLOCKS for code in range(first, last + 1)]
    text = "\n".join(chars)  # one call converts all; the line breaks keep OpenCC from finding phrases
    parent: dict[str, str] = {}

    def root(char: str) -> str:
        while (above := parent.get(char, char)) != char:
            parent[char] = char = parent.get(above, above)
        return char

    def join(first: str, second: str) -> None:
        if len(second) == 1 and first != second:
            low, high = sorted((root(first), root(second)))
            parent[high] = low

    for char in chars:
        join(char, unicodedata.normalize("NFKC", char))
    for name in ("s2t", "t2s", "t2jp", "jp2t"):
        for char, other in zip(chars, _converter(name).convert(text).split("\n"), strict=True):
            join(char, other)
    return {char: root(char) for char in list(parent)}


def group_of(char: str) -> str:
    """The smallest member of the group of `char`: of all that NFKC and OpenCC's tables (s2t, t2s, t2jp, jp2t) join to it.

    Raises ValueError if `char` is not one character.
    """
    _check_one(char)
    return _canonical().get(char, char)


def _check_one(char: str) -> None:
    if len(char) != 1:
        raise ValueError(f"expected one character, got {char!r}")


def split_of(group: str) -> str:
    """The split of a group, "train", "val" or "test", by the first 64 bits of its name's SHA-256 as a number in [0, 1)."""
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if position < TEST_SHARE:
        return "test"
    return "val" if position < TEST_SHARE + VAL_SHARE else "train"


def check_no_leak(forms: Iterable[str], groups: Iterable[str]) -> None:
    """Raises ValueError, listing the forms, if a form is in several splits. groups: the group stored with each form."""
    splits: dict[str, set[str]] = {}
    for form, group in set(zip(forms, groups, strict=True)):
        splits.setdefault(form, set()).add(split_of(group))
    leaks = [f"{form} in {' and '.join(sorted(names))}" for form, names in sorted(splits.items()) if len(names) > 1]
    if leaks:
        more = f" and {len(leaks) - 20} more" if len(leaks) > 20 else ""
        raise ValueError(f"{len(leaks)} forms are in several splits: {'; '.join(leaks[:20])}{more}")


def split_hash(groups: Iterable[str]) -> str:
    """12 hexadecimal digits that identify the groups and the split of each; their order does not matter."""
    lines = "".join(f"{group} {split_of(group)}\n" for group in sorted(set(groups)))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]
