"""Every page does what it says: its blocks are run one after another, as a reader would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, PAGES, Page
from tests.docs.session import Session

Follow = Callable[[Page], Session]

CASES = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.is_slow else [])
    for page in map(Page, PAGES)
]


@pytest.fixture(scope="session")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Follow]:
    """Follows a page, and first the one that it goes on from; each of them once."""
    ended: dict[str, Session] = {}

    def follow(page: Page) -> Session:
        if page.name not in ended:
            folder = tmp_path_factory.mktemp("docs") / "folder"
            before = page.says.get("after")
            if before is None:
                folder.mkdir()
                session = Session.new(folder, has_source="source" in page.says)
            else:
                session = follow(Page(DOCS / before)).copied(folder)
            try:
                for block in page.blocks:
                    session.follow(block, page.name)
            finally:
                session.close()
            ended[page.name] = session
        return ended[page.name]

    yield follow
    for session in ended.values():
        session.close()


@pytest.mark.parametrize("page", CASES)
def test_a_page_does_what_it_says(page: Page, followed: Follow) -> None:
    followed(page)


def test_pages_say_how_they_are_tested_in_known_words() -> None:
    pages = [Page(path) for path in PAGES]
    for page in pages:
        assert page.says.keys() <= {"slow", "after", "source"}, page.name
        before = page.says.get("after")
        assert before is None or Path(DOCS / before) in PAGES, page.name


@pytest.mark.parametrize("page", [Page(path) for path in PAGES[1:]], ids=lambda page: page.name)
def test_no_code_is_left_out(page: Page) -> None:
    assert not page.has_indented_code, "put it between ``` with its language, so that it is run"
