"""What is said of speed: kernels, quantization, the search, models chosen for ONNX Runtime."""

from __future__ import annotations

from statistics import median
from typing import Any

from asvd_q.report.tables import size
from benchmarks.page.grid import cells, grid, percent
from benchmarks.page.result import Results

__all__ = [
    "budget_cost_finding",
    "budget_onnx_finding",
    "budget_onnx_table",
    "gptq_finding",
    "gptq_table",
    "kernel_finding",
    "kernel_table",
]


def kernel_table(results: Results) -> str:
    """Microseconds per token of every shape in every form."""
    points: list[dict[str, Any]] = results["kernel_times"].numbers["points"]
    forms = list(points[0]["seconds"])
    return grid(
        ("out × in, µs", *forms, "float / 4 bits"),
        (
            (
                _shape(point["shape"]),
                *(f"{1e6 * point['seconds'][form]:.1f}" for form in forms),
                f"{point['ratio']:.2f}",
            )
            for point in points
        ),
    )


def kernel_finding(results: Results) -> str:
    """By how much codes are faster, for the largest shape and the smallest."""
    points: list[dict[str, Any]] = results["kernel_times"].numbers["points"]
    ordered = sorted(points, key=lambda point: point["shape"][0] * point["shape"][1])
    words = " and ".join(
        f"{point['ratio']:.2f} times as fast for {_shape(point['shape'])}"
        for point in (ordered[-1], ordered[0])
    )
    return f"One row times a matrix of 4-bit codes is {words}, beside floating point."


def gptq_table(results: Results) -> str:
    """Seconds of both, and how equal their results are."""
    points: list[dict[str, Any]] = results["gptq_speed"].numbers["points"]
    return grid(
        ("out × in", "ours", "gptqmodel", "times as fast", "equal codes", "error, ours / its"),
        (
            (
                _shape(point["shape"]),
                f"{median(point['ours']):.3f} s",
                f"{median(point['gptqmodel']):.3f} s",
                f"{point['ratio']:.2f}",
                f"{100 * point['equal_codes']:.2f} %",
                f"{point['error']:.4f}",
            )
            for point in points
        ),
    )


def gptq_finding(results: Results) -> str:
    """The least and the greatest ratio of times."""
    points: list[dict[str, Any]] = results["gptq_speed"].numbers["points"]
    ratios = sorted(point["ratio"] for point in points)
    equal = min(point["equal_codes"] for point in points)
    return (
        f"Our GPTQ is {ratios[0]:.2f} to {ratios[-1]:.2f} times as fast as gptqmodel's, and at "
        f"least {100 * equal:.2f} % of the codes are the same."
    )


def budget_onnx_table(results: Results) -> str:
    """File, memory, quality and speed of models chosen for ONNX Runtime."""
    rows: list[dict[str, Any]] = results["budget_onnx"].numbers
    corpora = list(rows[0]["perplexity"])
    return grid(
        ("model", "ONNX file", "peak memory", *corpora, "decode over GPTQ 4"),
        (
            (
                row["name"],
                size(row["bytes"]),
                size(row["peak_memory_bytes"]),
                *cells(row["perplexity"], corpora),
                f"{row['ratio_to_gptq4']:.2f}×",
            )
            for row in rows
        ),
    )


def budget_onnx_finding(results: Results) -> str:
    """The choice that is nearest below plain codes, beside them."""
    rows: list[dict[str, Any]] = results["budget_onnx"].numbers
    plain = rows[0]
    smaller = [row for row in rows[1:] if row["bytes"] < plain["bytes"]]
    if not smaller:
        return f"No choice is smaller than {plain['name']}."
    best = max(smaller, key=lambda row: row["bytes"])
    changes = ", ".join(
        f"{percent(best['perplexity'][name] / value - 1)} on {name}"
        for name, value in plain["perplexity"].items()
    )
    return (
        f"{best['name']} makes a file of {size(best['bytes'])} where {plain['name']} has "
        f"{size(plain['bytes'])}; its perplexity differs by {changes}, and it decodes "
        f"{best['ratio_to_gptq4']:.2f} times as fast."
    )


def budget_cost_finding(results: Results) -> str:
    """Forward passes and candidates of one search."""
    cost: dict[str, Any] = results["budget_cost"].numbers["costs"][0]
    return (
        f"For {cost['model']} the whole search takes {cost['passes']:.0f} forward passes over the "
        f"calibration text beside the quantization of {cost['trials']:,} candidates."
    )


def _shape(shape: list[int]) -> str:
    return f"{shape[0]} × {shape[1]}"
