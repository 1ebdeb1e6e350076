"""A reader who follows a page in a folder of their own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from asvd_q import cli
from tests.docs.blocks import REPOSITORY, Block
from tests.docs.checking import check
from tests.docs.console import Step, is_plain, matches, steps, words_of
from tests.docs.interpreter import Interpreter
from tests.docs.patching import apply_diff
from tests.docs.recipes import check_recipe, file_name, write
from tests.third_party import install

__all__ = ["Session"]

_COMMAND = "import sys; sys.argv[0] = 'asvd-q'; from asvd_q.cli import main; main()"
_BIN, _PACKAGES, _MODULES = ".bin", ".packages", ".modules"


class Session:
    """Runs blocks, one after another, in a folder that looks like the repository to a reader.

    Attributes:
        has_source: the folder has packages of its own, and commands run those.
    """

    def __init__(self, folder: Path, *, has_source: bool = False) -> None:
        self.folder = folder
        self.has_source = has_source
        self._printed = ""
        self._interpreter = Interpreter(folder, self._environment())

    @classmethod
    def new(cls, folder: Path, *, has_source: bool) -> Session:
        """In a new folder with recipes, examples and the bundled model."""
        shutil.copytree(REPOSITORY / "recipes", folder / "recipes")
        shutil.copytree(REPOSITORY / "examples", folder / "examples")
        (folder / "tests" / "data").mkdir(parents=True)
        (folder / "tests" / "data" / "wren").symlink_to(REPOSITORY / "tests" / "data" / "wren")
        if has_source:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / "asvd_q", folder / "asvd_q", ignore=ignored)
            shutil.copytree(REPOSITORY / "exporters", folder / "exporters", ignore=ignored)
        (folder / _BIN).mkdir()
        (folder / _PACKAGES).mkdir()
        for name, arguments in (("asvd-q", f'-c "{_COMMAND}"'), ("python", "")):
            program = folder / _BIN / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return cls(folder, has_source=has_source)

    def copied(self, folder: Path) -> Session:
        """Another reader, who goes on from here."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Session(folder, has_source=self.has_source)

    def close(self) -> None:
        """End what is still running."""
        self._interpreter.close()

    def follow(self, block: Block, page: str) -> None:
        """Do what a block says; a test fails where that does not do what the page says."""
        where = f"{page}, line {block.line}"
        if not block.runs:
            check(block, self.folder, where)
            return
        match block.language:
            case "console" | "bash":
                for step in steps(block.language, block.body):
                    self._give(step, where)
            case "python" | "yaml" if self.has_source and (name := _name(block)):
                write(self.folder, name, block.body)  # for commands that know more than we do here
            case "python":
                self._printed = self._interpreter.run(block.body, page, block.line)
            case "text":
                shown = tuple(block.body.splitlines())
                assert matches(shown, self._printed), f"{where}: printed was\n{self._printed}"
            case "yaml":
                check_recipe(block.body, self.folder, where)
            case "diff":
                apply_diff(block.body, self.folder)
            case "toml":
                tomllib.loads(block.body)
            case "math":
                pass
            case other:
                pytest.fail(f"{where}: nobody knows what to do with {other!r}")

    def _give(self, step: Step, where: str) -> None:
        words = words_of(step.command)
        where = f"{where}: {step.command}"
        if words[:2] == ["pip", "install"]:
            install(self.folder / words[2], self.folder / _PACKAGES)
            output = ""
        elif words[0] == "asvd-q" and is_plain(step.command) and not self.has_source:
            output = self._in_process(words, where, fails=step.fails)
        else:
            output = self._shell(step.command, where, fails=step.fails)
        if step.expected:
            assert matches(step.expected, output), f"{where}\nprinted\n{output}"
        self._printed = output

    def _in_process(self, words: list[str], where: str, *, fails: bool) -> str:
        """What a command of ours prints; what it says on the side too where it fails."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.syspath_prepend(self.folder / _PACKAGES)
            patch.setattr("sys.argv", words)
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                pytest.raises(SystemExit) as ended,
            ):
                cli.main()
        code = ended.value.code or 0
        assert code == (2 if fails else 0), f"{where}\nended with {code}:\n{err.getvalue()}"
        return out.getvalue() + (err.getvalue() if fails else "")

    def _shell(self, command: str, where: str, *, fails: bool = False) -> str:
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
        )
        assert (ended.returncode != 0) == fails, (
            f"{where}\nended with {ended.returncode}:\n{ended.stdout}{ended.stderr}"
        )
        return ended.stdout + (ended.stderr if fails else "")

    def _environment(self) -> dict[str, str]:
        own = [self.folder, self.folder / "exporters"] if self.has_source else []
        found = [*own, self.folder / _PACKAGES, *filter(None, sys.path)]
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(self.folder / _BIN), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(map(str, found)),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(self.folder / _MODULES),
            "TOKENIZERS_PARALLELISM": "false",
        }


def _name(block: Block) -> str:
    return file_name(block.body, ".py") or file_name(block.body, ".yaml")
