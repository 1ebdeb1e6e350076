"""Running the scripts of the registry, one after the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asvd_q.report.run import versions
from benchmarks._claims import CLAIM_FAILED
from benchmarks.common import write_json
from benchmarks.page.machine import this_machine
from benchmarks.page.registry import Entry
from benchmarks.page.result import Result, Results

__all__ = ["ScriptError", "command_of", "run_all", "run_entry"]

_ROOT = Path(__file__).resolve().parent.parent.parent


class ScriptError(RuntimeError):
    """A script has ended without its numbers; what it has so far is kept."""


def command_of(entry: Entry) -> str:
    """What repeats an entry, with DIR for folders of the user's own."""
    shown = []
    for argument in entry.arguments:
        known = argument == "{data}" or argument.startswith("{work}/")
        shown.append("DIR" if known else argument.replace("{", "").replace("}", ".json"))
    words = ["python", "-m", f"benchmarks.{entry.module}", *_without_cache(shown)]
    return " ".join(words)


def run_entry(entry: Entry, results: Results, work: Path, data: Path | None) -> Result:
    """Run a script and read what it leaves.

    Args:
        work: keeps what an interrupted run has done; another run of the entry goes on with it.
        data: folder of texts; None where the entry needs none.

    Raises:
        ScriptError: it ended with an error.
        MissingResultError: an entry whose numbers this one reads has none.
    """
    folder = work / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "numbers.json"
    rest = raw.with_suffix(".rest.json")
    arguments = [_filled(argument, results, folder, data) for argument in entry.arguments]
    command = [sys.executable, "-m", f"benchmarks.{entry.module}", *arguments, "--json", str(raw)]
    if entry.keeps:
        command.append("--append")
    else:
        raw.unlink(missing_ok=True)
        rest.unlink(missing_ok=True)
    load = os.getloadavg()[0]
    start = time.perf_counter()
    status, printed = _echoed(command)
    seconds = time.perf_counter() - start
    fine = status == 0 or (entry.judges and status == CLAIM_FAILED and raw.exists())
    if not fine:
        raise ScriptError(f"{entry.name}: benchmarks.{entry.module} ended with status {status}")
    numbers = json.loads(raw.read_text(encoding="utf-8"))
    result = Result(
        command=command_of(entry),
        date=datetime.now(UTC).date().isoformat(),
        seconds=round(max(seconds, _seconds_of(numbers))),
        load=round(load, 1),
        machine=this_machine(),
        versions=versions(),
        holds=status == 0,
        numbers=numbers,
        rest=json.loads(rest.read_text(encoding="utf-8")) if rest.exists() else None,
        printed=printed.replace(f"{_ROOT}/", ""),
    )
    result.write(results.path(entry.name))
    shutil.rmtree(folder)
    return result


def run_all(entries: Sequence[Entry], results: Results, work: Path, data: Path | None) -> list[str]:
    """Run those that an interrupted call has not finished; what failed is returned, in words."""
    failed = []
    ordered = sorted(entries, key=lambda entry: bool(_read_by(entry)))
    done = work / "done.json"
    finished: list[str] = json.loads(done.read_text()) if done.exists() else []
    for position, entry in enumerate(ordered, start=1):
        title = f"[{position}/{len(ordered)}] {entry.name}"
        if entry.name in finished:
            print(f"{title}: done before", flush=True)
            continue
        print(f"{title}: {command_of(entry)}", flush=True)
        try:
            result = run_entry(entry, results, work, data)
        except (ScriptError, LookupError) as error:
            failed.append(str(error))
            print(f"{title}: {error}", flush=True)
            continue
        finished.append(entry.name)
        write_json(done, finished)
        verdict = "" if result.holds else "; its claim does not hold here"
        print(f"{title}: {result.seconds:.0f} s{verdict}\n", flush=True)
    if not failed:
        done.unlink(missing_ok=True)
    return failed


def _filled(argument: str, results: Results, folder: Path, data: Path | None) -> str:
    if argument == "{data}":
        if data is None:
            raise LookupError("texts are needed: name their folder with --data")
        return str(data)
    if argument.startswith("{work}"):
        return argument.replace("{work}", str(folder))
    if argument.startswith("{"):
        other = argument.strip("{}")
        path = folder / f"{other}.json"
        write_json(path, results[other].numbers)
        return str(path)
    return argument


def _read_by(entry: Entry) -> list[str]:
    """Entries whose numbers this one reads."""
    return [
        argument.strip("{}")
        for argument in entry.arguments
        if argument.startswith("{") and argument != "{data}" and not argument.startswith("{work}")
    ]


def _without_cache(arguments: list[str]) -> list[str]:
    """A cache changes the time alone, and is no part of what repeats a result."""
    if "--cache" not in arguments:
        return arguments
    place = arguments.index("--cache")
    return arguments[:place] + arguments[place + 2 :]


def _echoed(command: list[str]) -> tuple[int, str]:
    """Run a command; what it prints is shown at once and returned, its errors are shown."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    lines = []
    with subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def _seconds_of(numbers: Any) -> float:
    """What points say of their own time; those that were known before count too."""
    if isinstance(numbers, dict):
        own = numbers.get("seconds")
        return own if isinstance(own, int | float) else sum(map(_seconds_of, numbers.values()))
    return sum(map(_seconds_of, numbers)) if isinstance(numbers, list) else 0.0
