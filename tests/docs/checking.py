"""What is asked of a block that cannot be run here: that everything it names is there."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from asvd_q.cli import app
from asvd_q.recipe import load_recipe
from asvd_q.study.load import load_study
from tests.docs.blocks import REPOSITORY, Block
from tests.docs.console import steps, words_of

__all__ = ["check", "check_command"]

_OF_RECIPES = {"validate", "plan", "search", "frontier", "run"}
_EXTRAS = re.compile(r"\[([\w,-]+)\]")


def check(block: Block, folder: Path, where: str) -> None:
    """Fail a test where a block is at fault, or does not say why it is not run."""
    assert re.fullmatch(r"no-run: \S.*", block.note), f"{where}: say why it cannot be run"
    match block.language:
        case "console" | "bash":
            for step in steps(block.language, block.body):
                check_command(words_of(step.command), folder, where)
        case "python":
            _check_imports(block.body, where)
        case "yaml":
            yaml.safe_load(block.body)
        case other:
            raise AssertionError(f"{where}: {other} is never run; leave no-run out")


def check_command(words: list[str], folder: Path, where: str) -> None:
    """Options that are there, recipes that are there and valid, modules, extras, targets."""
    match words:
        case ["asvd-q", *arguments]:
            _check_options(arguments, where)
            _check_recipe(arguments, folder)
        case ["python", "-m", module, *_]:
            assert find_spec(module) is not None, f"{where}: no module {module}"
        case ["python", file, *_] if file != "-c":
            assert (REPOSITORY / file).is_file(), f"{where}: no file {file}"
        case ["pip", "install", *packages]:
            known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
            for extra in _EXTRAS.findall(" ".join(packages)):
                for name in extra.split(","):
                    assert name in known["optional-dependencies"], f"{where}: no extra {name}"
        case ["make", *targets]:
            makefile = (REPOSITORY / "Makefile").read_text()
            for target in (one for one in targets if "=" not in one):
                assert re.search(rf"^{target}:", makefile, re.M), f"{where}: no target {target}"
        case _:
            pass  # another's program


def _check_options(arguments: list[str], where: str) -> None:
    """Parse, and call nothing."""
    program = get_command(app)
    try:
        context = program.make_context("asvd-q", list(arguments))
        name, command, rest = program.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        command.make_context(name, rest, parent=context)
    except Exception as error:
        raise AssertionError(f"{where}: asvd-q {' '.join(arguments)}: {error}") from None


def _check_recipe(arguments: list[str], folder: Path) -> None:
    """A file that is named exists, and is valid with what is set on the command line."""
    command, *words = arguments
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    for word in words:
        if command in _OF_RECIPES and word.endswith(".yaml"):
            load_recipe(folder / word, settings)
        elif command == "study" and word.endswith(".yaml"):
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                load_study(word, settings)


def _check_imports(code: str, where: str) -> None:
    for node in ast.walk(ast.parse(code, where)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asvd_q"):
            module = import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), f"{where}: {node.module} has no {name.name}"
