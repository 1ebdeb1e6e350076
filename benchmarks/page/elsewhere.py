"""What is said of runtimes in environments of their own: optimum and OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.page.grid import grid
from benchmarks.page.result import Results

__all__ = ["openvino_finding", "openvino_table", "optimum_finding", "optimum_table"]

Row = dict[str, Any]

_GIVEN = "wren"
_NAMED = ("optimum-onnx", "transformers", "onnxruntime")


def optimum_table(results: Results) -> str:
    """The bundled model by form, random ones by family; both ways of binding in one row."""
    rows: list[Row] = results["optimum"].numbers["rows"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        form = row["form"] if row["model"] == _GIVEN else ""
        groups.setdefault((row["model"], form), []).append(row)
    heads = ("model", "form", "empty past", "logits", "greedy", "in a batch", "tie", "pipelines")
    return grid(heads, (_cells(group) for group in groups.values()))


def optimum_finding(results: Results) -> str:
    """How many artefacts compute the same, and with which packages."""
    rows: list[Row] = results["optimum"].numbers["rows"]
    found: dict[tuple[str, str], bool] = {}
    for row in rows:
        key = row["model"], row["form"]
        found[key] = found.get(key, True) and row["agrees"]
    errors = [row["logits_error"] for row in rows if row["logits_error"] is not None]
    alone = sum(row["alone_equal"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    versions: dict[str, str] = results["optimum"].numbers["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in _NAMED)
    return (
        f"{sum(found.values())} of {len(found)} artefacts compute in optimum what they compute "
        f"here ({packages}): logits differ by {_small(max(errors, default=0.0))} at most, and "
        f"{alone:,} of {tokens:,} greedy tokens are the same."
    )


def openvino_table(results: Results) -> str:
    """Either treatment of activations, beside ONNX Runtime."""
    found: list[Row] = results["openvino"].numbers["found"]
    return grid(
        ("activations", "error of the logits", "arg max", "weights of its products"),
        (
            (
                row["activations"],
                _small(row["error"]),
                f"{100 * row['same']:.1f} %",
                ", ".join(f"{count} {kind}" for kind, count in sorted(row["weights"].items())),
            )
            for row in found
        ),
    )


def openvino_finding(results: Results) -> str:
    """The error with activations as they are, and which weights it reads."""
    content = results["openvino"].numbers
    first: Row = content["found"][0]
    codes = sum(count for kind, count in first["weights"].items() if kind in ("i4", "u4"))
    return (
        f"OpenVINO {content['version']} reads 4-bit codes in {codes} products; with activations as "
        f"they are its logits differ from ONNX Runtime's by {_small(first['error'])}."
    )


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    failed = next((row["failed"] for row in rows if row["failed"] is not None), None)
    forms = " and ".join(dict.fromkeys(row["form"] for row in rows))
    if failed is not None:
        return rows[0]["model"], forms, f"failed: {failed}", *("–" for _ in range(5))
    ties = [row["tie"] for row in rows if row["tie"] is not None]
    return (
        rows[0]["model"],
        forms,
        "set" if any(row["shapes_set"] for row in rows) else "guessed",
        _small(max(row["logits_error"] for row in rows)),
        _share(rows, "alone_equal"),
        _share(rows, "batch_equal"),
        f"{max(ties):.3f}" if ties else "–",
        _pipelines(rows),
    )


def _share(rows: Sequence[Row], name: str) -> str:
    return f"{sum(row[name] for row in rows)} of {sum(row['tokens'] for row in rows)}"


def _pipelines(rows: Sequence[Row]) -> str:
    """Those whose tokens are the same in all rows."""
    names = dict.fromkeys(name for row in rows for name in row["pipelines"])
    same = [name for name in names if all(row["pipelines"][name] for row in rows)]
    return ", ".join(same) or "–"


def _small(value: float) -> str:
    return f"{value:.1e}" if value else "0"
