"""The page in `examples/browser` and the script that runs it, as far as no browser is needed."""

from __future__ import annotations

import json
import os
import re
import threading
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from asvd_q.models import SourceModel
from asvd_q_exporters.onnx import OnnxOptions
from asvd_q_exporters.onnx.save import DATA_FILE, MODEL_FILE
from benchmarks import browser
from benchmarks._chromium import BrowserError, Page
from tests.support import WREN

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
_EXACT = re.compile(r"\d+\.\d+\.\d+")


def _text(name: str) -> str:
    return (_EXAMPLE / name).read_text(encoding="utf-8")


def test_packages_are_pinned_and_locked_with_digests() -> None:
    wanted = json.loads(_text("package.json"))["dependencies"]
    locked = json.loads(_text("package-lock.json"))["packages"]
    assert all(_EXACT.fullmatch(version) for version in wanted.values())
    assert locked[""]["dependencies"] == wanted
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    packages = [package for path, package in locked.items() if path]
    assert all(package["integrity"].startswith("sha512-") for package in packages)


def test_the_page_imports_what_is_pinned_and_what_is_there() -> None:
    page = _text("index.html")
    found = re.search(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    imports = json.loads(found.group(1))["imports"]
    assert set(imports) == set(json.loads(_text("package.json"))["dependencies"])
    assert all(path.startswith(f"./node_modules/{name}/") for name, path in imports.items())
    modules = [name for name in ("decoder.js", "generate.js") for name in _imported(name)]
    for name in modules:
        assert name in imports or (_EXAMPLE / name).is_file(), name
    for name in re.findall(r'(?:src|href)="([^":]+)"', page):
        assert (_EXAMPLE / name).is_file(), name


def test_the_page_knows_every_element_that_it_asks_for() -> None:
    asked = re.search(r"\] = \[(.*?)\]\.map", _text("generate.js"), re.DOTALL)
    assert asked is not None
    names = re.findall(r'"(\w+)"', asked.group(1))
    assert names
    assert set(names) == set(re.findall(r'\bid="(\w+)"', _text("index.html")))


def test_the_page_names_the_files_and_inputs_of_the_exporter() -> None:
    from asvd_q_exporters.onnx import runner

    script = _text("decoder.js")
    for name in (MODEL_FILE, DATA_FILE, runner._PAST, "present."):
        assert f'"{name}"' in script
    fed = re.search(r"const found = \{(.*?)\n    \};", script, re.DOTALL)
    assert fed is not None
    assert re.findall(r"^ +(\w+):", fed.group(1), re.MULTILINE) == [
        "input_ids",
        "attention_mask",
        "position_ids",
    ]


def test_cases_are_options_of_the_format() -> None:
    for case in browser.CASES.values():
        options = OnnxOptions.model_validate(dict(case.options))
        exact = options.dtype == "float32" and (
            case.quantize == "nf4" or options.accuracy_level < 4
        )
        assert case.exact == exact


@pytest.mark.parametrize(
    ("expected", "tokens", "before"),
    [
        ([], [], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 5, 3], 1),
        ([1, 2, 3], [1, 2], 2),
        ([1], [2], 0),
    ],
)
def test_tokens_before_the_first_that_differs(
    expected: list[int], tokens: list[int], before: int
) -> None:
    assert browser.equal_before(expected, tokens) == before


@pytest.mark.parametrize(
    ("exact", "prompt_equal", "tokens", "holds"),
    [
        (True, True, [1, 2], True),
        (True, True, [1, 3], False),
        (True, True, [1], False),
        (False, True, [1, 3], True),
        (False, False, [1, 2], False),
    ],
)
def test_a_row_holds_where_its_tokens_have_to_be_equal_and_are(
    exact: bool, prompt_equal: bool, tokens: list[int], holds: bool
) -> None:
    row = browser.Row(
        case="",
        title="",
        exact=exact,
        prompt="",
        prompt_tokens=2,
        long=False,
        prompt_equal=prompt_equal,
        expected=[1, 2],
        tokens=tokens,
        before=0,
        text="",
        runtime="",
        threads=1,
        load_seconds=0,
        prefill_seconds=0,
        tokens_per_second=None,
        native_tokens_per_second=None,
    )
    assert row.holds == holds


def test_a_case_says_what_it_is() -> None:
    titles = [case.title for case in browser.CASES.values()]
    assert titles == [
        "RTN 4 bits, level 0, `external_data: true`",
        "RTN 4 bits, level 4",
        "NF4",
        "RTN 4 bits, embedding and head in 8, level 0",
        "RTN 4 bits, embedding and head in 8, level 0, `external_data: true`",
        "RTN 4 bits, level 0, `operators: standard`",
        "RTN 4 bits, level 0, `dtype: float16`",
    ]


def test_the_long_prompt_leaves_room_for_what_is_generated() -> None:
    options = Namespace(model=WREN, tokens=48)
    length = len(SourceModel.open(str(WREN)).tokenizer(browser._long_prompt(options))["input_ids"])
    context = json.loads((WREN / "config.json").read_text())["max_position_embeddings"]
    assert context - 2 * 48 < length <= context - 48


def test_without_a_browser_the_script_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["browser"])
    with pytest.raises(SystemExit) as ended:
        browser.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "not run: no node, no npm, no chromium\n"


class _Answering:
    """The browser's end of the pipe: answers in pieces, after an event of its own.

    It ends where it has no answer.
    """

    def __init__(self, answers: dict[str, dict[str, Any]]) -> None:
        self.answers = answers
        self.asked: list[dict[str, Any]] = []
        self._read, self.write = os.pipe()
        self.read, self._write = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        rest, known = b"", True
        while known and (chunk := os.read(self._read, 7)):
            rest += chunk
            while b"\0" in rest:
                message, _, rest = rest.partition(b"\0")
                asked = json.loads(message)
                self.asked.append(asked)
                known = asked["method"] in self.answers
                if not known:
                    break
                event = json.dumps({"method": "Some.event", "params": {}}).encode()
                answer = {"id": asked["id"], **self.answers[asked["method"]]}
                for part in (event + b"\0", json.dumps(answer).encode(), b"\0"):
                    os.write(self._write, part)
        os.close(self._write)
        os.close(self._read)

    def end(self) -> None:
        os.close(self.write)
        self._thread.join()


_ATTACHED = {
    "Target.createTarget": {"result": {"targetId": "t"}},
    "Target.attachToTarget": {"result": {"sessionId": "s"}},
    "Page.enable": {"result": {}},
}


def test_a_page_takes_the_answer_to_its_own_question() -> None:
    value = {"result": {"result": {"type": "object", "value": {"a": ["ü", 1]}}}}
    other = _Answering(_ATTACHED | {"Runtime.evaluate": value})
    page = Page(other.read, other.write)
    assert page.value("something") == {"a": ["ü", 1]}
    other.end()
    assert [asked.get("sessionId") for asked in other.asked] == [None, None, "s", "s"]
    assert other.asked[-1]["params"]["expression"] == "something"


def test_what_the_browser_refuses_is_named() -> None:
    failed = {"Runtime.evaluate": {"error": {"code": -1, "message": "no such thing"}}}
    thrown = {"Page.navigate": {"result": {"errorText": "net::ERR_CONNECTION_REFUSED"}}}
    other = _Answering(_ATTACHED | failed | thrown)
    page = Page(other.read, other.write)
    with pytest.raises(BrowserError, match=r"Runtime\.evaluate: no such thing"):
        page.value("x")
    with pytest.raises(BrowserError, match="ERR_CONNECTION_REFUSED"):
        page.go("http://127.0.0.1:1/")
    other.end()


def test_a_browser_that_ends_is_an_error() -> None:
    other = _Answering(_ATTACHED)
    page = Page(other.read, other.write)
    for _ in range(2):  # it ends while it is waited for, then before it is asked
        with pytest.raises(BrowserError, match="the browser has ended"):
            page.value("x")
    other.end()


def _imported(name: str) -> list[str]:
    return [path.removeprefix("./") for path in re.findall(r'from "([^"]+)"', _text(name))]
