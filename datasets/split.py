"""The split by character: which code points belong together, and on which side each group stands.

A character's simplified, traditional, Japanese and compatibility forms are one *group*, named by its smallest code
point. The side of a group is a hash of that name: it depends neither on the data nor on any order.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from functools import cache

import opencc

SIDES = ("train", "val", "test")
TEST_SHARE, VAL_SHARE = 0.10, 0.05

# Blocks whose code points can be a form of a Han character: radicals, unified ideographs (with extensions A to H),
# compatibility ideographs.
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
    """The forms in which `char` is written: simplified, traditional (OpenCC s2t), Japanese (t2jp), each once.

    `char` itself is always among them. ValueError if `char` is not one character.
    """
    if len(char) != 1:
        raise ValueError(f"one character is expected, not {char!r}")
    traditional = _converter("s2t").convert(char)
    simplified = _converter("t2s").convert(char)
    japanese = _converter("t2jp").convert(traditional)
    return [form for form in dict.fromkeys((simplified, char, traditional, japanese)) if len(form) == 1]


@cache
def _canonical() -> dict[str, str]:
    """{character: smallest member of its group}, for every character that has a form other than itself."""
    everything = [chr(code) for first, last in _BLOCKS for code in range(first, last + 1)]
    # One call for all: a line break keeps OpenCC from reading neighbours as a phrase.
    text = "\n".join(everything)
    parent: dict[str, str] = {}

    def root(char: str) -> str:
        while (above := parent.get(char, char)) != char:
            parent[char] = char = parent.get(above, above)
        return char

    def join(first: str, second: str) -> None:
        if len(second) == 1 and first != second:
            low, high = sorted((root(first), root(second)))
            parent[high] = low

    for char in everything:
        join(char, unicodedata.normalize("NFKC", char))
    for name in ("s2t", "t2s", "t2jp", "jp2t"):
        for char, other in zip(everything, _converter(name).convert(text).split("\n"), strict=True):
            join(char, other)
    return {char: root(char) for char in list(parent)}


def group_of(char: str) -> str:
    """The smallest member of the group of `char`: what NFKC and OpenCC's tables (s2t, t2s, t2jp, jp2t) join.

    ValueError if `char` is not one character.
    """
    if len(char) != 1:
        raise ValueError(f"one character is expected, not {char!r}")
    return _canonical().get(char, char)


def side_of(group: str) -> str:
    """The side of a group, "train", "val" or "test", by its name: the first 64 bits of its SHA-256, as a number in [0, 1)."""
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if position < TEST_SHARE:
        return "test"
    return "val" if position < TEST_SHARE + VAL_SHARE else "train"


def check_no_leak(forms_by_side: dict[str, Iterable[str]]) -> None:
    """ValueError that lists the characters standing, in whatever form, on more than one side."""
    seen: dict[str, dict[str, set[str]]] = {}
    for side, chars in forms_by_side.items():
        for char in chars:
            seen.setdefault(group_of(char), {}).setdefault(side, set()).add(char)
    leaks = [sides for _, sides in sorted(seen.items()) if len(sides) > 1]
    if leaks:
        told = [" / ".join(f"{''.join(sorted(chars))} in {side}" for side, chars in sides.items()) for sides in leaks]
        more = f" and {len(told) - 20} more" if len(told) > 20 else ""
        raise ValueError(f"{len(told)} characters stand on more than one side of the split: {'; '.join(told[:20])}{more}")


def split_hash(groups: Iterable[str]) -> str:
    """12 hexadecimal digits that name a split: the groups and the side of each, in whatever order they come."""
    lines = "".join(f"{group} {side_of(group)}\n" for group in sorted(set(groups)))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]
