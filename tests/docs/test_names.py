"""What pages name in passing is there: links, modules, recipes."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest

from benchmarks.page.picture import PICTURE
from tests.docs.blocks import PAGES, REPOSITORY, Page

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_MEMBER = re.compile(r"asvd_q(?:_exporters)?(?:\.\w+)+")
_SCRIPT = re.compile(r"python -m\s+([\w.]+)")
_RECIPE = re.compile(r"recipes/[\w-]+\.yaml")

NO_MEMBERS = {"asvd_q.exporters", "asvd_q.buffers", "asvd_q.positions", "asvd_q.json"}
"""A group of entry points, keys of an ONNX model's metadata, and a file."""

pages = pytest.mark.parametrize("page", [Page(path) for path in PAGES], ids=lambda page: page.name)


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them, and those it sets itself."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    own = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
    return own | set(re.findall(r'<a (?:id|name)="([^"]+)">', text))


def look_up(name: str) -> None:
    """Raise AttributeError where no module, class or function has the name."""
    with suppress(ModuleNotFoundError):
        if find_spec(name) is not None:  # a module, which need not be imported
            return
    resolve_name(name)


@pages
def test_links_lead_somewhere(page: Page) -> None:
    for link in _LINK.findall(page.prose):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        if target == PICTURE:  # is drawn from results, and tested beside them
            continue
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name}: {link}"


@pages
def test_members_of_the_packages_are_there(page: Page) -> None:
    for code in _CODE.findall(page.prose):
        if _MEMBER.fullmatch(code) and code not in NO_MEMBERS:
            look_up(code)


@pages
def test_scripts_and_recipes_are_there(page: Page) -> None:
    for name in _SCRIPT.findall(page.prose):
        if name.endswith(".NAME"):
            continue
        assert find_spec(name) is not None, f"{page.name}: {name}"
    for name in _RECIPE.findall(page.text):
        assert (REPOSITORY / name).is_file(), f"{page.name}: {name}"


def test_every_page_is_in_the_index() -> None:
    index = Page(REPOSITORY / "docs" / "README.md")
    listed = {(index.path.parent / link).resolve() for link in _LINK.findall(index.text)}
    assert {path.resolve() for path in PAGES[1:]} - listed == {index.path}


@pytest.mark.parametrize("name", ["asvd_q.no_such_room", "asvd_q.plan.NoSuchClass"])
def test_a_member_that_is_not_there_is_noticed(name: str) -> None:
    with pytest.raises(AttributeError):
        look_up(name)
