"""What a script has found, with all that one needs to judge it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from asvd_q.files import write_text
from benchmarks.page.machine import Machine

__all__ = ["FOLDER", "MissingResultError", "Result", "Results"]

FOLDER = Path(__file__).resolve().parent.parent / "results"


class MissingResultError(LookupError):
    """A script whose numbers are asked for has not been run."""


class Result(BaseModel):
    """One run of a script.

    Attributes:
        command: that repeats it; DIR stands for folders of the user's own.
        date: on which it ended, YYYY-MM-DD.
        seconds: that it took, or that the points took which it did not compute anew.
        load: processes that wanted a core in the minute before, on average: what else was going on.
        holds: False where the script says that what it claims does not hold here.
        numbers: what it wrote as JSON.
        rest: what it wrote beside that (see `benchmarks.decode`).
        printed: what it printed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    date: str
    seconds: float
    load: float
    machine: Machine
    versions: dict[str, str]
    holds: bool = True
    numbers: Any
    rest: Any = None
    printed: str

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.model_dump_json(indent=1) + "\n")


class Results(Mapping[str, Result]):
    """The results of a folder, by name; each is read when it is asked for."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._read: dict[str, Result] = {}

    def __getitem__(self, name: str) -> Result:
        """
        Raises:
            MissingResultError: there is none.
            ValueError: its file is damaged or of another version.
        """
        if name not in self._read:
            path = self.path(name)
            if not path.is_file():
                raise MissingResultError(f"{name} has no results: {path} is missing")
            try:
                self._read[name] = Result.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise ValueError(f"{path} holds no result: {error}") from error
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("*.json")))

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.json")))

    def path(self, name: str) -> Path:
        """Where a result lies, or would."""
        return self.folder / f"{name}.json"
