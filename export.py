"""Writes a trained network for others: as ONNX, for use without torch or this project, or as safetensors, its weights alone.

    python export.py --checkpoint runs/demo/best.pth --out restorer.onnx
    python export.py --checkpoint runs/demo/best.pth --format safetensors --out weights/restorer_convnext_atto.safetensors

Both say what they are: the metadata hold "network", the settings as JSON, and in an ONNX file, which takes any number of pictures,
"input" and "output". restore.py and load_restorer take both as --checkpoint.
"""

import argparse
import sys
from pathlib import Path

import models
from restoring import WEIGHTS

FORMATS = {"onnx": models.export, "safetensors": models.save_weights}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes a trained network for others.", allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS, metavar="FILE",
                        help=f"a run's checkpoint or a .safetensors file (default: weights/{WEIGHTS.name})")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument("--out", type=Path, help="default: beside the checkpoint, its name with the format's suffix")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    args = parser.parse_args(arguments)
    out = args.out or args.checkpoint.with_suffix(f".{args.format}")
    try:
        if out.exists() and not args.overwrite:
            raise ValueError(f"{out}: exists already; give --overwrite, or another --out")
        FORMATS[args.format](*models.load(args.checkpoint), out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}, {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
