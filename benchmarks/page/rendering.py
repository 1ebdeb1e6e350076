"""The results page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asvd_q.files import write_text
from benchmarks.page.blocks import RESULTS, section_of
from benchmarks.page.grid import grid
from benchmarks.page.machine import Machine
from benchmarks.page.registry import BLOCKS, ENTRIES, Entry, claim_of, title_of
from benchmarks.page.result import MissingResultError, Result, Results

__all__ = ["render", "write_page"]

_HEAD = """\
# Results

Written by `python -m benchmarks.results` from the files in [`results/`](results); every number
comes from a script. `make bench` runs what needs nothing but this repository, in under an hour on
two idle cores, and writes this page and the tables of README and docs anew.
`make bench-all DATA=DIR` runs everything; DIR holds NAME.train.txt and NAME.test.txt of WikiText-2,
PTB, TinyStories and Python source. What was not run again stands with its own date and machine.
"""


def write_page(results: Results, path: Path = RESULTS) -> None:
    """Replace the page."""
    write_text(path, render(results))


def render(results: Results) -> str:
    """The page: machines, versions, what was found in short, then script by script."""
    known = [entry for entry in ENTRIES if entry.name in set(results)]
    machines = list(dict.fromkeys(results[entry.name].machine for entry in known))
    versions = results[known[0].name].versions if known else {}
    parts = [
        _HEAD,
        _machines(machines),
        _versions(versions),
        _contents(known, results),
        *(_section(entry, results, machines, versions) for entry in known),
    ]
    return "\n".join(part for part in parts if part)


def _machines(machines: list[Machine]) -> str:
    lines = [f"- {_letter(index)}: {machine}" for index, machine in enumerate(machines)]
    return "## Machines\n\n" + "\n".join(lines) + "\n"


def _versions(versions: dict[str, str]) -> str:
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"## Versions\n\n{words}.\n"


def _contents(entries: list[Entry], results: Results) -> str:
    rows = [
        (f"[{_title(entry)}](#{section_of(entry.name)})", _finding(entry, results))
        for entry in entries
    ]
    return f"## In short\n\n{grid(('script', 'what it finds'), rows)}\n"


def _section(
    entry: Entry, results: Results, machines: list[Machine], versions: dict[str, str]
) -> str:
    result = results[entry.name]
    paragraphs = [
        f'<a id="{section_of(entry.name)}"></a>\n\n## {_title(entry)}',
        claim_of(entry),
        _finding(entry, results),
        _source(entry, result, machines, versions),
        *_tables(entry, results),
        _printed(result),
    ]
    return "\n\n".join(part for part in paragraphs if part) + "\n"


def _finding(entry: Entry, results: Results) -> str:
    try:
        found = entry.finding(results)
    except MissingResultError as error:
        found = f"{error.args[0].partition(':')[0]}."
    return (
        found if results[entry.name].holds else f"{found} **What is claimed does not hold here.**"
    )


def _tables(entry: Entry, results: Results) -> Iterator[str]:
    for name in entry.blocks:
        try:
            table = BLOCKS[name].render(results)
        except MissingResultError:
            continue
        if BLOCKS[name].note:
            yield BLOCKS[name].note
        yield table


def _source(entry: Entry, result: Result, machines: list[Machine], versions: dict[str, str]) -> str:
    others = [
        f"{name} {version}"
        for name, version in result.versions.items()
        if versions.get(name) != version
    ]
    words = [
        f"`{result.command}`",
        result.date,
        f"machine {_letter(machines.index(result.machine))}",
        _time(result.seconds),
        f"load before it {result.load:.1f}",
        *(["with " + ", ".join(others)] if others else []),
        *([f"needs {entry.needs}"] if entry.needs else []),
        f"[numbers](results/{entry.name}.json)",
    ]
    return " · ".join(words)


def _printed(result: Result) -> str:
    text = result.printed.strip("\n")
    return f"<details><summary>Everything it prints</summary>\n\n```\n{text}\n```\n\n</details>"


def _title(entry: Entry) -> str:
    return f"{title_of(entry)}, {entry.setting}" if entry.setting else title_of(entry)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _letter(index: int) -> str:
    return chr(ord("A") + index)
