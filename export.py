"""Exports a trained network: to ONNX, for use without torch and this project, or to safetensors, its weights alone.

    python export.py --checkpoint runs/demo/best.pth --output restorer.onnx
    python export.py --checkpoint runs/a/best.pth runs/b/best.pth --output weights/restorer_convnext_atto.safetensors

Several checkpoints that started from the same weights give the mean of theirs. --bias makes strokes heavier where validation
pictures come back too thin. The metadata of both formats hold the settings as JSON ("network"), with the bias; those of an ONNX
file also describe its "input" and "output". restore.py and load_restorer accept both.
"""

import argparse
from pathlib import Path

from models.files import export_onnx, load_mean, save_network
from restoration.pipeline import WEIGHTS
from util import script

FORMATS = {"onnx": export_onnx, "safetensors": save_network}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Exports a trained network.", allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[WEIGHTS], metavar="FILE",
                        help="a run's checkpoint or a .safetensors file, or several of which the mean is taken "
                             f"(default: weights/{WEIGHTS.name})")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="default: that of the output's suffix, or onnx")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: next to the last checkpoint, in the format")
    parser.add_argument("--bias", type=float, default=0.0, help="add to the logits of ink (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> None:
    suffix = args.output.suffix.lstrip(".").lower() if args.output else ""
    kind = args.format or suffix or "onnx"
    output = args.output or args.checkpoint[-1].with_suffix(f".{kind}")
    if kind not in FORMATS:
        raise ValueError(f"{output}: the suffix is none of {', '.join(FORMATS)}; pass --format or another --output")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output}: exists already; pass --overwrite or another --output")
    model, settings = load_mean(args.checkpoint)
    model.to_logits.bias.data += args.bias
    FORMATS[kind](model, {**settings, "bias": settings.get("bias", 0.0) + args.bias}, output)
    print(f"{output}, {output.stat().st_size / 1e6:.1f} MB")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    return script.run(export, parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
