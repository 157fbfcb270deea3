"""The flags that the scripts that restore share: of the network and of the drawing."""

import argparse
from collections.abc import Callable
from pathlib import Path

from restoration.drawing import GUIDANCE, PASSES
from restoration.pipeline import WEIGHTS
from util.settings import number


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, --runtime, --device and --overwrite."""
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE",
        help=f"a run's checkpoint, a .safetensors or an .onnx file (default: weights/{WEIGHTS.name})")  # fmt: skip
    add("--runtime", choices=("auto", "onnx", "torch"), default="auto",
        help="onnx: CPU, starts fast; torch: CPU or GPU (default: torch with --device cuda, else onnx)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for torch (default: a GPU if there is one)")
    add("--overwrite", action="store_true", help="replace existing outputs")


def add_drawing_flags(parser: argparse.ArgumentParser) -> Callable:
    """Adds --steps and --guidance in a group of their own; returns what adds more to it."""
    add = parser.add_argument_group("drawing what is lost").add_argument
    add("--steps", type=number(int, 1, 64), metavar="N",
        help=f"steps of a drawing; 1 gives the mean (default: {PASSES // 2}; from noise without a guide {PASSES})")  # fmt: skip
    add("--guidance", type=number(float, 0, 10), default=GUIDANCE, metavar="W",
        help=f"weight of the guide where the picture leaves it open; 1 as learnt (default: {GUIDANCE:g})")  # fmt: skip
    return add
