"""What is said of speed: kernels, decoding, quantization, the search."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from asvd_q.report.tables import size
from benchmarks._decode_variants import INT4, PEER
from benchmarks.page.grid import cells, grid, percent
from benchmarks.page.result import Results

__all__ = [
    "budget_cost_finding",
    "budget_onnx_finding",
    "budget_onnx_table",
    "decode_finding",
    "decode_table",
    "gptq_finding",
    "gptq_table",
    "kernel_finding",
    "kernel_table",
    "widths_table",
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


def decode_table(results: Results) -> str:
    """Our dense graph and our factors beside GenAI's graph and each other."""
    points: list[dict[str, Any]] = results["decode"].numbers
    return grid(
        (
            *("model", "form", "decoding over GenAI's", "prompt over GenAI's"),
            *("decoding over dense 4 bits", "bytes allow", "memory"),
        ),
        (
            (
                point["model"],
                point["name"],
                _ratio(point["ratio_to_genai_int4"]),
                _ratio(point["prefill_ratio_to_genai_int4"]),
                _ratio(point["ratio_to_int4"]),
                _ratio(point["allowed_ratio"]),
                size(point["peak_memory_bytes"]),
            )
            for point in points
        ),
    )


def decode_finding(results: Results) -> str:
    """Dense codes beside GenAI's graph, and factors beside dense codes, model by model."""
    points: list[dict[str, Any]] = results["decode"].numbers
    return " ".join(_decode_sentences(points))


def _decode_sentences(points: list[dict[str, Any]]) -> Iterator[str]:
    for point in points:
        if point["name"] == INT4 and point["ratio_to_genai_int4"] is not None:
            yield (
                f"{point['model']}: dense 4-bit codes decode at "
                f"{point['ratio_to_genai_int4']:.2f} of the speed of {PEER}."
            )
    factors = [
        f"{point['ratio_to_int4']:.2f} at kept {point['kept_ratio']:.2f}"
        for point in points
        if point["model"] == "wide" and point["kept_ratio"] < 1 and point["ratio_to_int4"]
    ]
    if factors:
        yield f"wide: factors in 4 bits decode, over dense codes in 4 bits: {', '.join(factors)}."


def widths_table(results: Results) -> str:
    """From which width on factors decode faster than dense codes."""
    widths: list[dict[str, Any]] = results["decode"].rest["sizes"]
    kept = list(dict.fromkeys(one["kept_ratio"] for one in widths))
    found = {(one["width"], one["kept_ratio"]): one["ratio"] for one in widths}
    return grid(
        ("width", *(f"kept {ratio:g}" for ratio in kept)),
        (
            (str(width), *(_ratio(found.get((width, ratio))) for ratio in kept))
            for width in dict.fromkeys(one["width"] for one in widths)
        ),
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


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
