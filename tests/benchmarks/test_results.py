"""The results: kept with what one needs to judge them, and turned into tables and sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results as script
from benchmarks._claims import CLAIM_FAILED
from benchmarks.page import running
from benchmarks.page.blocks import block_text, fill
from benchmarks.page.grid import grid, percent
from benchmarks.page.machine import this_machine
from benchmarks.page.picture import Series, draw, fingerprint, series_of
from benchmarks.page.registry import BLOCKS, ENTRIES, Entry, entry_named
from benchmarks.page.rendering import render
from benchmarks.page.result import MissingResultError, Results
from benchmarks.page.running import ScriptError, command_of, run_all, run_entry
from tests.benchmarks.samples import DEMO, FRONTIER, MACHINE, NUMBERS, result


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A folder with small results of every script."""
    for name, found in NUMBERS.items():
        found.write(tmp_path / f"{name}.json")
    return Results(tmp_path)


def test_every_entry_is_rendered_here() -> None:
    assert NUMBERS.keys() == {entry.name for entry in ENTRIES}


@pytest.mark.parametrize("entry", [pytest.param(one, id=one.name) for one in ENTRIES])
def test_what_is_said_of_a_script_is_a_sentence(entry: Entry, results: Results) -> None:
    found = entry.finding(results)
    assert found.endswith(".")
    assert any(character.isdigit() for character in found)
    assert "  " not in found


CELLS = {
    "allocation": ("kept", "| 0.800 | 40.40 | 40.40 | 40.40 | 40.40 |"),
    "budget": (
        "budget",
        "| 3 | **41.20** | **41.20** | **41.20** | **41.20** | 52.00 (GPTQ 2, 2.50) |",
    ),
    "beaten": (
        "budget",
        "| 4.62 | **40.20** | **40.20** | **40.20** | **40.20** | 40.40 (GPTQ 4, 4.50) |",
    ),
    "parts": ("budget-parts", "statistics of the dense model | +8.0 % |"),
    "frontier": ("frontier", "| 3.60 | ASVD 0.8 + GPTQ 4 | **40.80** |"),
    "peer": ("frontier", "| 4.50 | gptqmodel: GPTQ 4 | 40.80 |"),
    "choices": ("factor-choices", "| Σ in A, no rotation | +10.0 % |"),
    "nothing": ("factor-choices", "(`clip: minmax`) | 0.0 % |"),
    "decode": ("decode", "| wide | 0.99 | 1.02 | 0.938 | 9 | 1.00 MiB |"),
    "claims": ("decode", "1 of 2 claims of the script hold. Not so: wide: memory, 0.970 where"),
    "forms": ("decode-forms", "| ASVD 0.8 + int4 | 1.13 | 1.20 | 1.13 | 1.20 |"),
    "widths": ("decode-widths", "| 1024 | 0.95 | 1.50 | 1.50 | 1.50 |"),
    "pays": (
        "decode-widths",
        "pays at none of these widths at kept 0.8, and from a width of 512 on at kept 0.5.",
    ),
    "sweep": ("decode-sweep", "| 4 × 512 | 12.3 ms | 0.99× | 100 | 1.01× |"),
    "parity": ("parity", "| ASVD | `onnx` | torch | 1.0e-02 | 1.0e-04 | 99.50 % | 60, 90 % |"),
    "exact": ("parity", "| ASVD | `transformers` | torch | 0 | 0 |"),
    "families": ("families", "| ASVD | `onnx` | torch | 2 | 1.0e-03 to 2.0e-03 | 1.0e-05 |"),
    "stacking": ("stacking", "| ASVD 0.8 + GPTQ 4 | – | 44.00 |"),
    "browser": ("browser", "| RTN 4 bits, level 0 | 5 of 6 | 2 of 3 | 65 (60 to 70) | 10 |"),
    "optimum": (
        "optimum",
        "| wren | ASVD, float16 | guessed | 0 | 8 of 8 | 7 of 8 | 0.125 | transformers |",
    ),
    "optimum families": (
        "optimum",
        "| gemma2 | ASVD and ASVD + RTN 4 | set | 2.0e-06 | 8 of 8 | 8 of 8 | – | – |",
    ),
    "optimum failures": ("optimum", "| opt | ASVD | failed: ValueError: no | – |"),
    "openvino": ("openvino", "| by default | 1.0e-02 | 97.5 % | 2 f32, 40 i4 |"),
    "demo": ("demo", "| ASVD | 1.00 MiB | 1.00 MiB | 1.000 | 91.50 | 1.0e-06 | 1.25× |"),
    "onnx": ("budget-onnx", "| budget 4 | 1.00 MiB | 1.00 MiB | 90.90 | 0.90× |"),
    "gptq": ("gptq-speed", "| 4 × 8 | 1.000 s | 2.000 s | 2.00 | 100.00 % | 1.0000 |"),
    "latency": ("latency", "| ONNX Runtime | ASVD | 1 × 32 | 12.3 ms | 0.90 | 125 | 1.25 | 1.20 |"),
    "tasks": ("tasks", "| continuation | dense | 90 | acc 0.700 ± 0.050 | – | – |"),
    **{
        name: (name, "| whitening | 0.6 | none | docs | +30.0 % | **+10.0 %** |")
        for name in ("cross-domain", "cross-domain-fast")
    },
    **{
        name: (name, "| 0.8 | abs_mean | +10.0 % | +20.0 % |")
        for name in ("scaling", "scaling-fast")
    },
    **{
        name: (name, "| 1 | +30.00 % | 14.14 % | 2 |")
        for name in ("scaling-samples", "scaling-fast-samples")
    },
    "kernels": ("kernels", "| 4 × 8 | 3.0 | 1.0 | 3.00 |"),
}


@pytest.mark.parametrize(("block", "text"), CELLS.values(), ids=CELLS)
def test_a_table_has_the_numbers(block: str, text: str, results: Results) -> None:
    assert text in BLOCKS[block].render(results)


def test_every_table_is_tried_here() -> None:
    assert {block for block, _ in CELLS.values()} == BLOCKS.keys()


def test_budget_finding(results: Results) -> None:
    found = entry_named("budget").finding(results)
    assert "At 2 of 2 budgets" in found
    result(FRONTIER[:2]).write(results.path("frontier"))
    assert "At 1 of 1 budgets" in entry_named("budget").finding(Results(results.folder))
    assert (
        "of 3 bits per weight (+3.0 % perplexity) is better than plain GPTQ 3 of 3.50 (+4.0 %)"
        in found
    )
    assert "measured is 1.00 to 2.00 of predicted" in found


def test_a_page_is_filled_and_filled_again(results: Results, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    text = "before\n\n<!-- begin kept -->\nold\n<!-- end -->\n\nafter\n"
    filled, missing = fill(text, results, page)
    assert not missing
    block = block_text("kept", results, page)
    assert filled == f"before\n\n<!-- begin kept -->\n{block}<!-- end -->\n\nafter\n"
    assert fill(filled, results, page) == (filled, [])
    assert "python -m benchmarks.x --data DIR`, 2026-01-02](" in filled
    assert "RESULTS.md#allocation)" in filled


def test_without_results_a_block_stays(tmp_path: Path) -> None:
    text = "<!-- begin kept -->\nold\n<!-- end -->\n"
    assert fill(text, Results(tmp_path), tmp_path / "x.md") == (text, ["kept"])
    with pytest.raises(MissingResultError, match="allocation has no results"):
        Results(tmp_path)["allocation"]


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(ValueError, match=r"demo\.json holds no result"):
        Results(tmp_path)["demo"]


def test_the_page_says_where_and_with_what(results: Results) -> None:
    other = MACHINE.model_copy(update={"cpu": "another"})
    found = result(DEMO, machine=other, versions={"torch": "3"}, holds=False)
    found.write(results.path("demo"))
    page = render(Results(results.folder))
    assert "- A: another, 2 cores" in page
    assert "- B: a processor, 2 cores, 8 GiB" in page
    assert "machine A · 2 min · load before it 0.1" in page
    assert "with torch 2 ·" in page
    assert "**What is claimed does not hold here.**" in page
    assert page.count("```\na table\n```") == len(ENTRIES)


def test_this_machine_can_be_told() -> None:
    found = this_machine()
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_bytes > 2**28


def test_series_and_picture(results: Results, tmp_path: Path) -> None:
    series = series_of(results)
    assert series[0].name.startswith("asvd-q")
    assert len(series[0].points) == 2
    assert series[0].points[0] == pytest.approx((3.0, 3.0))
    draw(series, tmp_path / "images" / "one.svg")
    drawn = (tmp_path / "images" / "one.svg").read_text()
    assert fingerprint(series) in drawn
    assert fingerprint([Series("a", ((1, 2),))]) != fingerprint([Series("a", ((1, 3),))])
    draw(series, tmp_path / "two.svg")
    assert (tmp_path / "two.svg").read_text() == drawn


@pytest.mark.parametrize(
    ("share", "text"), [(0.025, "+2.5 %"), (-0.003, "−0.3 %"), (-0.0001, "0.0 %"), (0, "0.0 %")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_grid_wants_as_many_cells_as_columns() -> None:
    assert grid(("a", "b"), [("1|2", "3")]) == "| a | b |\n|---|---|\n| 1\\|2 | 3 |"
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        grid(("a", "b"), [("1",)])


class Script:
    """Stands for the processes: what they write, and how they end."""

    def __init__(self, numbers: Any, status: int = 0, rest: Any = None) -> None:
        self.numbers, self.status, self.rest = numbers, status, rest
        self.commands: list[list[str]] = []
        self.found: list[str] = []

    def __call__(self, command: list[str]) -> tuple[int, str]:
        self.commands.append(command)
        path = Path(command[command.index("--json") + 1])
        self.found.append(path.read_text() if path.exists() else "")
        if self.numbers is not None:
            path.write_text(json.dumps(self.numbers))
        if self.rest is not None:
            path.with_suffix(".rest.json").write_text(json.dumps(self.rest))
        return self.status, "printed\n"


def entry(**changed: Any) -> Entry:
    fields: dict[str, Any] = {"name": "one", "module": "demo", "finding": lambda _: "It is 1."}
    return Entry(**(fields | changed))


def test_a_script_is_run_and_its_result_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Script([{"seconds": 500.0}, {"seconds": None}])
    monkeypatch.setattr(running, "_echoed", ran)
    results = Results(tmp_path / "results")
    found = run_entry(
        entry(arguments=("--data", "{data}", "--cache", "{work}/cache"), keeps=True),
        results,
        tmp_path / "work",
        tmp_path / "texts",
    )
    assert found == Results(tmp_path / "results")["one"]
    assert found.command == "python -m benchmarks.demo --data DIR"
    assert (found.seconds, found.holds, found.printed) == (500, True, "printed\n")
    [command] = ran.commands
    assert command[3:5] == ["--data", str(tmp_path / "texts")]
    assert command[-1] == "--append"
    assert not (tmp_path / "work" / "one").exists()


def test_an_interrupted_script_goes_on_with_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Script([1], status=1)
    monkeypatch.setattr(running, "_echoed", ran)
    results = Results(tmp_path / "results")
    for _ in range(2):
        with pytest.raises(ScriptError, match=r"benchmarks\.demo ended with status 1"):
            run_entry(entry(keeps=True), results, tmp_path / "work", None)
    assert ran.found == ["", "[1]"]
    assert not list(results)


def test_a_claim_that_does_not_hold_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_echoed", Script([1], status=CLAIM_FAILED))
    results = Results(tmp_path / "results")
    assert not run_entry(entry(judges=True), results, tmp_path / "work", None).holds
    monkeypatch.setattr(running, "_echoed", Script(None, status=CLAIM_FAILED))
    with pytest.raises(ScriptError):
        run_entry(entry(judges=True), results, tmp_path / "work", None)


def test_an_error_after_the_first_numbers_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_echoed", Script([1], status=1))
    results = Results(tmp_path / "results")
    with pytest.raises(ScriptError, match="status 1"):
        run_entry(entry(judges=True), results, tmp_path / "work", None)
    assert not list(results)


def test_what_lies_beside_the_numbers_is_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "work" / "one" / "numbers.rest.json"
    old.parent.mkdir(parents=True)
    old.write_text("[0]")
    monkeypatch.setattr(running, "_echoed", Script([1]))
    results = Results(tmp_path / "results")
    assert run_entry(entry(), results, tmp_path / "work", None).rest is None
    monkeypatch.setattr(running, "_echoed", Script([1], rest=[2]))
    assert run_entry(entry(), results, tmp_path / "work", None).rest == [2]


def test_what_one_script_reads_another_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Script([7])
    monkeypatch.setattr(running, "_echoed", ran)
    results = Results(tmp_path / "results")
    reader = entry(name="reader", arguments=("--beside", "{one}"))
    assert run_all([reader], results, tmp_path / "work", None) == [
        f"one has no results: {results.path('one')} is missing"
    ]
    read: list[str] = []
    monkeypatch.setattr(
        running,
        "_echoed",
        lambda command: (
            read.extend(Path(part).read_text() for part in command if part.endswith("one.json")),
            ran(command),
        )[1],
    )
    assert not run_all([reader, entry()], results, tmp_path / "work", None)
    assert [json.loads(text) for text in read] == [[7]]
    assert command_of(reader).endswith("--beside one.json")


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Script([1])
    monkeypatch.setattr(running, "_echoed", ran)
    results = Results(tmp_path / "results")
    broken = entry(name="two", arguments=("--data", "{data}"))
    for _ in range(2):
        failed = run_all([entry(), broken], results, tmp_path / "work", None)
        assert failed == ["texts are needed: name their folder with --data"]
    assert len(ran.commands) == 1
    assert not run_all([entry(), broken], results, tmp_path / "work", tmp_path)
    assert len(ran.commands) == 2
    run_all([entry()], results, tmp_path / "work", None)
    assert len(ran.commands) == 3


def test_what_is_printed_is_shown_and_kept(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert running._echoed([running.sys.executable, "-c", code]) == (3, "out\n")
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("out\n", "err\n")


def test_an_unknown_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["results", "nothing"])
    with pytest.raises(SystemExit):
        script.main()
    assert "'nothing' is none of demo," in capsys.readouterr().err
