"""Whether a run's report is one whole page, in a headless browser that reaches no network.

Claim: `report.html` opens from the disk without a message on the console and without a request for
anything but itself, is nowhere wider than the screen, from a phone's 390 pixels on, in the light
and in the dark colour scheme, and its table of layers sorts by every column, by mouse and by
keyboard.

    python -m benchmarks.report_page RUN [--screenshots DIR]

Ends with status 1 where the claim does not hold, and with status 2 where there is no Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asvd_q.report.page import REPORT_HTML
from benchmarks._chromium import BrowserError, Page, find_browser, open_page

__all__ = ["complaints", "is_sorted", "main"]

_SCHEMES = ("light", "dark")
_WIDTHS = (1280, 390)
_HEIGHT = 844
_SECONDS = 60.0
_NO_NETWORK = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking")

_BUTTONS = "document.querySelectorAll('#layer-table thead button')"
_COLUMN = """[...document.querySelectorAll('#layer-table tbody tr')].map((row) => {
  const cell = row.cells[%d];
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  return cell.textContent === '–' ? null : cell.textContent;
})"""
_WIDEST = """[...document.querySelectorAll('body *')]
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll'))
  .slice(0, 3).map((one) => one.tagName.toLowerCase() + '.' + one.className)"""


def main() -> None:
    options = _parse()
    browser = find_browser()
    if browser is None:
        print("not run: no chromium", file=sys.stderr)
        sys.exit(2)
    url = (options.run / REPORT_HTML).resolve().as_uri()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_page(browser, Path(folder) / "profile", _NO_NETWORK) as page,
    ):
        page.watch()
        page.go_offline()
        found = list(_looks(page, url, options.screenshots))
        found += _sorting(page)
    for complaint in found:
        print(complaint, file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"{options.run / REPORT_HTML}: whole, at {' and '.join(map(str, _WIDTHS))} pixels")


def complaints(events: Sequence[dict[str, Any]], url: str) -> Iterator[str]:
    """What a page at `url` wrote to its console, and what it asked for beside itself."""
    for event in events:
        values = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                asked = values["request"]["url"]
                if asked != url and not asked.startswith("data:"):
                    yield f"asks for {asked}"
            case "Runtime.exceptionThrown":
                yield f"exception: {values['exceptionDetails'].get('text')}"
            case "Runtime.consoleAPICalled":
                words = " ".join(str(one.get("value")) for one in values.get("args", []))
                yield f"console: {words}"
            case "Log.entryAdded":
                yield f"console: {values['entry'].get('text')}"


def is_sorted(values: Sequence[float | str | None], *, rising: bool) -> bool:
    """Whether values are in order, those that are missing last."""
    known = [value for value in values if value is not None]
    if any(value is not None for value in values[len(known) :]):
        return False
    ordered = sorted(known, reverse=not rising)  # type: ignore[type-var]
    return known == ordered


def _parse() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the whole page")
    return parser.parse_args()


def _looks(page: Page, url: str, pictures: Path | None) -> Iterator[str]:
    """What is wrong at any width and in either scheme."""
    for width in _WIDTHS:
        for scheme in _SCHEMES:
            place = f"{width}, {scheme}"
            phone = width < 500
            page.look(
                width=width, height=_HEIGHT, scheme=scheme, mobile=phone, scale=2 if phone else 1
            )
            _open(page, url)
            yield from (f"{place}: {words}" for words in complaints(page.events(), url))
            wide = page.value("document.documentElement.scrollWidth")
            if wide > width or page.value("innerWidth") > width:
                yield f"{place}: the page is {wide} wide, because of {page.value(_WIDEST)}"
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                page.screenshot(pictures / f"report-{width}-{scheme}.png", whole=True)


def _open(page: Page, url: str) -> None:
    page.go(url)
    deadline = time.monotonic() + _SECONDS
    while page.value("[location.href, document.readyState]") != [url, "complete"]:
        if time.monotonic() > deadline:
            raise BrowserError(f"{url} is not loaded after {_SECONDS:.0f} s")
        time.sleep(0.05)


def _sorting(page: Page) -> Iterator[str]:
    """Columns that do not sort, pressed twice by mouse and once by the keyboard."""
    count = page.value(f"{_BUTTONS}.length")
    if not count:
        yield "the table of layers has no heads to press"
    for column in range(count):
        button = f"{_BUTTONS}[{column}]"
        name = page.value(f"{button}.textContent")
        for rising in (True, False):
            page.value(f"{button}.click()")
            if not is_sorted(page.value(_COLUMN % column), rising=rising):
                yield f"{name} is not sorted, {'rising' if rising else 'falling'}"
        page.value(f"{button}.focus()")
        page.press("Enter", 13, "\r")
        if not is_sorted(page.value(_COLUMN % column), rising=True):
            yield f"{name} is not sorted by the Enter key"


if __name__ == "__main__":
    main()
