"""The runner of pages: what it reads of them, and what it lets pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.errors import RecipeError
from tests.docs.blocks import Page
from tests.docs.checking import check_command
from tests.docs.console import Step, is_plain, matches, steps, words_of
from tests.docs.interpreter import Interpreter
from tests.docs.patching import apply_diff

TEXT = """\
<!-- test: after guide/first-run.md -->
<!-- test: run
$ mkdir models
-->

# Page

```console
$ asvd-q plan recipe.yaml
kept …
```

- an item

  ```python
  x = 1
  ```

```bash no-run: needs a GPU
nvidia-smi
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Page:
    path = tmp_path / "page.md"
    path.write_text(TEXT, encoding="utf-8")
    return Page(path)


def test_blocks_of_a_page(page: Page) -> None:
    hidden, console, python, bash = page.blocks
    assert (hidden.language, hidden.body, hidden.line) == ("console", "$ mkdir models\n", 3)
    assert (console.language, console.line, console.runs) == ("console", 9, True)
    assert (python.language, python.body) == ("python", "x = 1\n")
    assert (bash.note, bash.runs) == ("no-run: needs a GPU", False)
    assert page.says == {"after": "guide/first-run.md"}
    assert page.is_slow
    assert not page.has_indented_code


@pytest.mark.parametrize(
    ("added", "found"),
    [
        ("\nText:\n\n    asvd-q plan recipe.yaml\n", True),
        ("\n- an item\n\n      deep\n\n  and its end\n", False),
        ("\n```text\n\n    deep\n```\n", False),
    ],
)
def test_code_without_a_language_is_noticed(page: Page, added: str, found: bool) -> None:
    page.path.write_text(TEXT + added, encoding="utf-8")
    assert Page(page.path).has_indented_code is found


def test_commands_of_a_block() -> None:
    body = "$ one \\\n    --two\nout\n\n$ three\n"
    assert steps("console", body) == [Step("one      --two", ("out", "")), Step("three")]
    assert steps("bash", "# says\none\n\ntwo\n") == [Step("one"), Step("two")]
    with pytest.raises(ValueError, match="no command before 'out'"):
        steps("console", "out\n")
    assert words_of("asvd-q run 'a b' # says") == ["asvd-q", "run", "a b"]


@pytest.mark.parametrize(
    ("command", "plain"),
    [
        ("asvd-q run recipe.yaml --set 'export=[{format: onnx}]'", True),
        ('asvd-q run recipe.yaml --size "5.7 MiB"', True),
        ("asvd-q schema > schema.json", False),
        ("asvd-q inspect runs/*", False),
        ("one && two", False),
    ],
)
def test_what_needs_a_shell(command: str, plain: bool) -> None:
    assert is_plain(command) is plain


@pytest.mark.parametrize(
    ("expected", "output", "equal"),
    [
        (["one", "two"], "one\ntwo\n", True),
        (["a  b"], "a b", True),
        (["one"], "one\ntwo", False),
        (["one", "…"], "one\ntwo\nthree", True),
        (["one", "…"], "one", True),
        (["…", "three"], "one\ntwo\nthree", True),
        (["…", "two"], "one\ntwo\nthree", False),
        (["size … MiB"], "size 3.2 MiB", True),
        (["size … MiB"], "size 3.2 GiB", False),
        (["a (b) [c]"], "a (b) [c]", True),
        (["a.b"], "axb", False),
        (["…"], "", True),
        (["one"], "", False),
    ],
)
def test_output_is_compared_loosely(expected: list[str], output: str, equal: bool) -> None:
    assert matches(tuple(expected), output) is equal


@pytest.mark.parametrize(
    "command",
    [
        "asvd-q plan recipes/wren-rtn8.yaml --set quantize.bits=4 --json",
        "asvd-q generate runs/x --prompt one --prompt two",
        "python -m benchmarks.demo",
        "python examples/genai_stream.py folder prompt",
        "pip install '.[gptq,nf4]' -c constraints.txt",
        "make demo test",
        "npm ci",
    ],
)
def test_commands_that_are_right_pass(command: str) -> None:
    check_command(words_of(command), Path(), command)


@pytest.mark.parametrize(
    "command",
    [
        "asvd-q plan recipes/wren-rtn8.yaml --jason",
        "asvd-q plan",
        "asvd-q plant recipes/wren-rtn8.yaml",
        "asvd-q plan recipes/no-such.yaml",
        "asvd-q plan recipes/wren-rtn8.yaml --set quantize.bitts=4",
        "python -m benchmarks.no_such",
        "python examples/no_such.py",
        "pip install '.[no-such]'",
        "make no-such",
    ],
)
def test_commands_that_are_wrong_do_not(command: str) -> None:
    with pytest.raises((AssertionError, RecipeError)):
        check_command(words_of(command), Path(), command)


def test_python_is_one_session(tmp_path: Path) -> None:
    interpreter = Interpreter(tmp_path, {})
    assert interpreter.run("import os\nx = 1\nprint(x)", "page", 3) == "1\n"
    assert interpreter.run("print(x + 1, os.getcwd())", "page", 9) == f"2 {tmp_path}\n"
    with pytest.raises(AssertionError, match=r'(?s)page, line 7:.*File "page", line 8.*Division'):
        interpreter.run("y = 0\n1 / y", "page", 7)
    with pytest.raises(AssertionError, match="EOFError"):
        interpreter.run("input('trust? ')", "page", 1)
    interpreter.close()


DIFF = """\
--- a/one.txt
+++ b/one.txt
@@ -9 +9,2 @@
 b
-c
+C
+D
@@ -1 +1 @@
-a
+A
--- a/two.txt
+++ b/two.txt
@@ -1 +1,2 @@
 x
+y
"""


def test_a_diff_is_applied_where_its_lines_are(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a\nb\nc\n")
    two.write_text("x\n")
    apply_diff(DIFF, tmp_path)
    assert (one.read_text(), two.read_text()) == ("A\nb\nC\nD\n", "x\ny\n")


@pytest.mark.parametrize("text", ["a\nb\nC\n", "a\nb\nc\nb\nc\n"])
def test_a_diff_that_fits_nowhere_or_twice_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(text)
    with pytest.raises(ValueError, match=r"one.txt has [02] times"):
        apply_diff(DIFF, tmp_path)
