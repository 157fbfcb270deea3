"""Settings: an argparse parser holds names, types and defaults; a YAML file overrides the defaults, the command line the file."""

import argparse
import difflib
from pathlib import Path

import yaml


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """The parser's settings, with `--config FILE.yaml` read between the defaults and the command line.

    An unknown key, or a value that the command line would refuse, ends the program as a mistyped flag does, naming the file.
    """
    file = parser.parse_known_args(argv)[0].config
    if file:
        actions = {action.dest: action for action in parser._actions}
        for key, value in _read(parser, file).items():
            if key not in actions:
                near = difflib.get_close_matches(key, actions, n=1)
                parser.error(f"{file}: no setting '{key}'" + (f", did you mean '{near[0]}'?" if near else ""))
            parser.set_defaults(**{key: _as_typed(parser, actions[key], value, file)})
    return parser.parse_args(argv)


def _read(parser: argparse.ArgumentParser, file: str) -> dict:
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"{file} cannot be read: {error}")
    if not isinstance(settings, dict):
        parser.error(f"{file} is not a table of settings")
    return settings


def _as_typed(parser: argparse.ArgumentParser, action: argparse.Action, value: object, file: str) -> object:
    """The value as the flag's own type: YAML reads 1e-3 as a string, and takes any string for a choice."""
    if value is None or isinstance(action, argparse.BooleanOptionalAction):
        if value is not None and not isinstance(value, bool):
            parser.error(f"{file}: {action.dest} is true or false, not {value!r}")
        return value
    try:
        value = (action.type or str)(str(value))
    except (ValueError, argparse.ArgumentTypeError):
        parser.error(f"{file}: {action.dest} cannot be {value!r}")
    if action.choices and value not in action.choices:
        parser.error(f"{file}: {action.dest} is one of {', '.join(map(str, action.choices))}, not {value!r}")
    return value
