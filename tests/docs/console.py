"""Commands and their output, as a page shows them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

__all__ = ["Step", "is_plain", "matches", "steps", "words_of"]

_ANY = "…"
_SHELL = re.compile(r"[|&;<>$`*?]")


@dataclass(frozen=True)
class Step:
    """One command, and the lines that a page shows below it; none of them: it shows nothing."""

    command: str
    expected: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether the page shows it to fail."""
        return any(line.startswith("error: ") for line in self.expected)


def steps(language: str, body: str) -> list[Step]:
    """The commands of a block: `console` has prompts and output, `bash` has commands alone.

    Raises:
        ValueError: a block of `console` that begins with output.
    """
    lines = body.replace("\\\n", " ").splitlines()
    if language == "bash":
        return [Step(line) for line in lines if line.strip() and not line.startswith("#")]
    found: list[Step] = []
    for line in lines:
        if line.startswith("$ "):
            found.append(Step(line.removeprefix("$ ")))
        elif found:
            found[-1] = Step(found[-1].command, (*found[-1].expected, line))
        elif line.strip():
            raise ValueError(f"no command before {line!r}: begin it with '$ '")
    return found


def words_of(command: str) -> list[str]:
    """A command's words, without a comment at its end."""
    return shlex.split(command, comments=True)


def is_plain(command: str) -> bool:
    """Whether a command needs no shell."""
    unquoted = re.sub(r"'[^']*'|\"[^\"$`]*\"", "", command)
    return not _SHELL.search(unquoted)


def matches(expected: tuple[str, ...], output: str) -> bool:
    """Whether a command has put out the lines that a page shows.

    Lines are equal whatever the width of their blanks; … stands for anything in a line, and in a
    line of its own for any lines.
    """
    wanted = [_pattern(line) for line in expected if line.strip()]
    found = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    return _fits(wanted, found)


def _fits(wanted: list[str], found: list[str]) -> bool:
    if not wanted:
        return not found
    if wanted[0] == _ANY:
        return any(_fits(wanted[1:], found[start:]) for start in range(len(found) + 1))
    return bool(found and re.fullmatch(wanted[0], found[0])) and _fits(wanted[1:], found[1:])


def _pattern(line: str) -> str:
    text = " ".join(line.split())
    return text if text == _ANY else re.escape(text).replace(re.escape(_ANY), ".*")
