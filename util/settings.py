"""Settings: argparse holds names, types, bounds and defaults; a YAML file overrides the defaults, flags override the file."""

import argparse
import difflib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the known name most like it, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean '{near[0]}'?" if near else f": one of {', '.join(known)}"


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite int or float within [low, high]."""

    def convert(text: str) -> float:
        value = kind(text)
        if not (low <= value <= high and value < math.inf):  # False for NaN
            raise argparse.ArgumentTypeError(f"must be in [{low}, {high}{']' if high < math.inf else ')'}, not {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return convert


def add_run_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Adds the flags that both training scripts share. `output_dir`: the default run folder."""
    add = parser.add_argument_group("run").add_argument
    add("--output_dir", default=output_dir, help="the run folder")
    add("--resume", help="'auto': resume from the newest checkpoint in output_dir, if there is one; or a checkpoint's path")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--threads", type=number(int, 0, 1024), default=0, help="CPU threads per process; 0 divides the cores evenly")
    add("--log_every", type=number(int, 1), default=20,
        help="log and check signals every N updates; more often if updates are slow, after each update on a CPU")  # fmt: skip
    add("--save_minutes", type=number(float, 0), default=10, help="minutes between checkpoints within an epoch")
    add("--max_minutes", type=number(float, 0), default=0, help="save and end after N minutes, for --resume auto; 0 disables")
    add("--keep_every", type=number(int, 0), default=0, help="also keep a checkpoint every N epochs; 0 disables")
    add("--local_rank", "--local-rank", type=number(int, 0), help=argparse.SUPPRESS)  # from torch.distributed.launch


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parses flags, with `--config FILE.yaml` read between the defaults and the flags.

    An unknown key, or a value that its flag would refuse, exits as a wrong flag does, with the file named.
    """
    file = parser.parse_known_args(argv)[0].config
    if file:
        actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
        for key, value in _read(parser, file).items():
            if key not in actions:
                parser.error(f"{file}: no setting '{key}'{nearest(str(key), actions)}")
            parser.set_defaults(**{key: _convert(parser, actions[key], value, file)})
    return parser.parse_args(argv)


def _read(parser: argparse.ArgumentParser, file: str) -> dict:
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"{file} cannot be read: {error}")
    if not isinstance(settings, dict):
        parser.error(f"{file} is not a table of settings")
    return settings


def _convert(parser: argparse.ArgumentParser, action: argparse.Action, value: object, file: str) -> object:
    """The value in the type of its flag: YAML reads 1e-3 as a string, and does not check bounds and choices."""
    if value is None:
        if action.default is not None:
            parser.error(f"{file}: {action.dest} has no value")
        return None
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            parser.error(f"{file}: {action.dest} must be true or false, not {value!r}")
        return value
    if action.nargs == "+":
        return [str(part) for part in (value if isinstance(value, list) else [value])]
    try:
        value = (action.type or str)(str(value))
    except argparse.ArgumentTypeError as error:
        parser.error(f"{file}: {action.dest} {error}")
    except ValueError:
        parser.error(f"{file}: {action.dest} cannot be {value!r}")
    if action.choices and value not in action.choices:
        parser.error(f"{file}: {action.dest} must be one of {', '.join(map(str, action.choices))}, not {value!r}")
    return value
