"""What pages name in passing is there: links, modules, recipes."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec

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
    """Raise AttributeError where no module, class or function has the name; imports nothing."""
    top = REPOSITORY / "exporters" if name.startswith("asvd_q_exporters") else REPOSITORY
    path, *rest = top, *name.split(".")
    while rest and (path / rest[0]).is_dir():
        path /= rest.pop(0)
    file = path / f"{rest[0]}.py" if rest else path / "__init__.py"
    if rest and file.is_file():
        rest.pop(0)
    elif rest:
        file = path / "__init__.py"
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in rest:
        found = [one for one in body if part in _names(one)]
        if not found:
            raise AttributeError(f"{file.relative_to(REPOSITORY)} has no {part}")
        body = getattr(found[0], "body", [])


def _names(statement: ast.stmt) -> list[str]:
    """What a statement gives a name to."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [one.id for one in targets if isinstance(one, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.ImportFrom(names=names):
            return [one.asname or one.name for one in names]
    return []


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


@pytest.mark.parametrize(
    "name", ["asvd_q.no_such_room", "asvd_q.plan.NoSuchClass", "asvd_q.plan.Plan.no_such"]
)
def test_a_member_that_is_not_there_is_noticed(name: str) -> None:
    with pytest.raises(AttributeError):
        look_up(name)
