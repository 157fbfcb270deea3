"""The repository itself: imports go one way, documented commands and recipes are accepted, the version is in one place."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import evaluate
import export
import main_denoise_cae
import main_recogniser
import prepare_data
import restore
import restore_page
from util import settings
from util.version import VERSION

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "util": {"util"},
    "models": {"models", "util"},
    "datasets": {"datasets", "util"},
    "restoration": {"restoration", "models", "datasets", "util"},
    "evaluation": {"evaluation", "restoration", "models", "datasets", "util"},
    "engine": {"engine", "models", "datasets", "util"},
}
OWN = {*MAY_IMPORT, *(path.stem for path in ROOT.glob("*.py")), "tools", "tests"}
PARSERS = {
    "main_denoise_cae.py": lambda words: settings.parse(main_denoise_cae.build_parser(), words),
    "main_recogniser.py": lambda words: settings.parse(main_recogniser.build_parser(), words),
    "evaluate.py": evaluate.parse_args,
    "restore.py": restore.parse_args,
    "restore_page.py": restore_page.parse_args,
    "prepare_data.py": prepare_data.parse_args,
    "export.py": export.parse_args,
}


def imported(file: Path) -> set[str]:
    """The top-level names of this project that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names & OWN


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    files = [ROOT / f"{package}.py"] if package == "engine" else sorted((ROOT / package).glob("*.py"))
    assert files
    for file in files:
        assert imported(file) <= MAY_IMPORT[package], file


def documented_commands() -> list[tuple[str, str]]:
    """(document, command) of each call of one of our scripts in a document or a recipe's header."""
    patterns = ("README.md", "Makefile", "*/README.md", "docs/*.md", "configs/*.yaml", "*.py")
    found = []
    for document in (path for pattern in patterns for path in ROOT.glob(pattern)):
        for line in document.read_text(encoding="utf-8").splitlines():
            command = re.match(r"[#\s]*((OMP_NUM_THREADS=1 )?(\$\(BIN\)/)?(python|torchrun)\s.*\.py\b.*)", line)
            if command:
                found.append((document.name, command[1].split("#")[0].strip()))
    return found


def test_documented_commands_are_accepted():
    commands = documented_commands()
    assert len(commands) > 25
    checked = 0
    for document, command in commands:
        words = shlex.split(command)
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        if words[at] not in PARSERS:
            continue
        arguments = [word for word in words[at + 1 :] if word not in (">", "restored.png")]
        try:
            PARSERS[words[at]](arguments)
        except SystemExit:
            pytest.fail(f"{document}: {command}")
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_recipes_are_accepted(recipe):
    main = main_recogniser if recipe.startswith(("recogniser", "reader")) else main_denoise_cae
    assert settings.parse(main.build_parser(), ["--config", str(ROOT / "configs" / recipe)]).epochs > 0


def test_the_changelog_starts_with_the_version():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1] == VERSION
