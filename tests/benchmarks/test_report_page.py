"""The script that opens a report in a browser, as far as no browser is needed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.report_page import complaints, is_sorted

_URL = "file:///run/report.html"


def _request(url: str) -> dict[str, Any]:
    return {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}


def test_a_page_may_ask_for_itself_and_for_what_is_in_it() -> None:
    events = [_request(_URL), _request("data:,"), {"method": "Page.loadEventFired"}]
    assert list(complaints(events, _URL)) == []


def test_whatever_else_it_asks_for_or_says_is_told() -> None:
    said = {"method": "Runtime.consoleAPICalled", "params": {"args": [{"value": "hm"}]}}
    thrown = {
        "method": "Runtime.exceptionThrown",
        "params": {"exceptionDetails": {"text": "Uncaught"}},
    }
    logged = {"method": "Log.entryAdded", "params": {"entry": {"text": "refused"}}}
    events = [_request("https://example.org/a.css"), said, thrown, logged]
    assert list(complaints(events, _URL)) == [
        "asks for https://example.org/a.css",
        "console: hm",
        "exception: Uncaught",
        "console: refused",
    ]


@pytest.mark.parametrize(
    ("values", "rising", "expected"),
    [
        ([1, 2, 2, 3], True, True),
        ([3, 2, None, None], False, True),
        ([1, 3, 2], True, False),
        ([None, 1, 2], True, False),
        (["a", "b"], True, True),
        (["a", "b"], False, False),
        ([None, None], True, True),
    ],
)
def test_missing_values_come_last_either_way(
    values: list[float | str | None], rising: bool, expected: bool
) -> None:
    assert is_sorted(values, rising=rising) is expected
