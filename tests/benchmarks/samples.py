"""Small results of every script, with numbers that one can follow by hand."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.page.grid import CORPORA
from benchmarks.page.machine import Machine
from benchmarks.page.result import Result
from tests.benchmarks.decode_samples import CLAIMS, DECODE, SWEEP, WIDTHS

__all__ = ["DEMO", "FRONTIER", "MACHINE", "NUMBERS", "result"]

MACHINE = Machine(cpu="a processor", cores=2, memory_bytes=2**33, system="Linux x86_64")


def result(numbers: Any, rest: Any = None, **changed: Any) -> Result:
    fields: dict[str, Any] = {
        "command": "python -m benchmarks.x --data DIR",
        "date": "2026-01-02",
        "seconds": 120,
        "load": 0.1,
        "machine": MACHINE,
        "versions": {"torch": "2"},
        "printed": "a table\n",
    }
    return Result(numbers=numbers, rest=rest, **(fields | changed))


def perplexity(factor: float) -> dict[str, float]:
    return dict.fromkeys(CORPORA, 40 * factor)


def case(name: str, size: float, factor: float, **changed: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": "m",
        "window": 8,
        "name": name,
        "calibration": ["generated"],
        "method": "gptq",
        "bits": 4,
        "kept": None,
        "rank": None,
        "kept_ratio": 1.0,
        "layer_bytes": round(1000 * size),
        "bytes": 9999,
        "parameters": 8000,
        "disk_bytes": None,
    }
    return fields | {"perplexity": perplexity(factor)} | changed


def chosen(name: str, target: float | None, factor: float, loss: float) -> dict[str, Any]:
    return {
        "model": "m",
        "window": 8,
        "name": name,
        "calibration": ["a"],
        "format": "store",
        "target": target,
        "bytes": 9999,
        "layer_bytes": round(1000 * (target or 16)),
        "linear_bits_per_weight": target or 16,
        "predicted_loss": loss,
        "forms": {},
        "forms_by_kind": {},
        "perplexity": perplexity(factor),
    }


FRONTIER = [
    case("dense", 16, 1, method=None, bits=None),
    case("GPTQ 4", 4.5, 1.01),
    case("gptqmodel: GPTQ 4", 4.5, 1.02),
    case("bitsandbytes: NF4", 4.5, 1.03, method="nf4"),
    case("RTN 4", 4.5, 1.05, method="rtn"),
    case("ASVD 0.8", 12.8, 1.005, method=None, bits=None, kept=0.8),
    case("ASVD 0.8 + GPTQ 4", 3.6, 1.02, kept=0.8),
    case("GPTQ 3", 3.5, 1.04, bits=3),
    case("GPTQ 2", 2.5, 1.3, bits=2),
]

BUDGET = [
    chosen("dense", None, 1, 0),
    chosen("all", 4.62, 1.005, math.log(1.005)),
    chosen("all", 3.0, 1.03, math.log(1.03) / 2),
    chosen("mixed", 3.0, 1.08, math.log(1.08)),
]

ABLATION = [
    case("default", 3, 1, bits=3, kept=0.8),
    case("u", 3, 1.1, bits=3, kept=0.8),
    case("minmax", 3, 0.9996, bits=3, kept=0.8),
]


def loaded(model: str, format: str, error: float, kl: float) -> dict[str, Any]:
    return {
        "model": model,
        "case": "ASVD",
        "format": format,
        "loader": "torch",
        "failed": None,
        "relative_error": error,
        "kl": kl,
        "agreement": 0.995,
        "greedy_before": 60.0,
        "greedy_equal": 0.9,
        "load_seconds": 0.1,
        "peak_memory_bytes": 2**20,
        "bytes": 2**20,
        "predicted_bytes": 2**20,
    }


PARITY = {
    "rows": [
        loaded("wren", "transformers", 0, 0),
        loaded("wren", "onnx", 1e-2, 1e-4),
        loaded("llama", "onnx", 1e-3, 1e-5),
        loaded("opt", "onnx", 2e-3, 1e-6),
    ]
}

STACKING = [
    {"model": "dense", "disk_bytes": 2**20, "perplexity": perplexity(1)},
    {"model": "ASVD 0.8 + GPTQ 4", "disk_bytes": None, "perplexity": perplexity(1.1)},
    {"model": "ASVD 0.8, then optimum GPTQ 4", "disk_bytes": 1, "perplexity": perplexity(1.2)},
]

BROWSER = {
    "rows": [
        {
            "case": "level 0",
            "title": "RTN 4 bits, level 0",
            "exact": True,
            "expected": [1, 2],
            "prompt_tokens": length,
            "long": length > 64,
            "tokens": tokens,
            "before": before,
            "tokens_per_second": speed,
        }
        for tokens, before, length, speed in (
            ([1, 2], 2, 5, 70.0),
            ([1, 3], 1, 7, 60.0),
            ([1, 2], 2, 900, 10.0),
        )
    ]
}


def optimum(model: str, form: str, **changed: Any) -> dict[str, Any]:
    fields = {
        "model": model,
        "form": form,
        "binding": True,
        "failed": None,
        "logits_error": 0.0,
        "tokens": 4,
        "alone_equal": 4,
        "batch_equal": 4,
        "tie": None,
        "pipelines": {},
        "shapes_set": False,
        "agrees": True,
    }
    return fields | changed


OPTIMUM = {
    "versions": {"optimum-onnx": "0.1.0", "transformers": "4", "onnxruntime": "1"},
    "rows": [
        optimum("wren", "ASVD, float16", pipelines={"transformers": True, "optimum": True}),
        optimum(
            "wren",
            "ASVD, float16",
            pipelines={"transformers": True, "optimum": False},
            batch_equal=3,
            tie=0.125,
            agrees=False,
        ),
        optimum("gemma2", "ASVD", shapes_set=True),
        optimum("gemma2", "ASVD + RTN 4", shapes_set=True, logits_error=2e-6),
        optimum("opt", "ASVD", failed="ValueError: no", logits_error=None, agrees=False),
    ],
}

OPENVINO = {
    "version": "2026.4.1",
    "tokens": 96,
    "found": [
        {
            "activations": activations,
            "error": error,
            "same": same,
            "seconds": 0.01,
            "weights": {"i4": 40, "f32": 2},
            "version": "2026.4.1",
        }
        for activations, error, same in (("as they are", 1e-6, 1.0), ("by default", 1e-2, 0.975))
    ],
}

DEMO = [
    {
        "name": name,
        "recipe": "x.yaml",
        "bytes": size,
        "layer_bytes": size,
        "kept_ratio": 1,
        "perplexity": {"docs": value},
        "logit_error": 1e-6,
        "decode_ratio": ratio,
        "decode_tokens_per_second": 100 * ratio,
    }
    for name, size, value, ratio in (("dense", 2**21, 90.0, 1.0), ("ASVD", 2**20, 91.5, 1.25))
]

ONNX = [
    {
        "name": name,
        "bytes": size,
        "peak_memory_bytes": size,
        "perplexity": {"docs": value},
        "ratio_to_gptq4": ratio,
    }
    for name, size, value, ratio in (("GPTQ 4", 2**21, 90.0, 1.0), ("budget 4", 2**20, 90.9, 0.9))
]

LATENCY = [
    {
        "model": model,
        "runtime": "ONNX Runtime",
        "batch": 1,
        "prompt": prompt,
        "tokens": 32,
        "first_token_seconds": 0.0123,
        "decode_tokens_per_second": 100 * ratio,
        "first_token_ratio": 0.9,
        "decode_ratio": ratio,
        "total_ratio": 1.2,
    }
    for model, prompt, ratio in (("dense", 32, 1.0), ("ASVD", 32, 1.25), ("ASVD", 512, 1.5))
]

TASKS = {
    "rows": [
        {
            "model": model,
            "result": {
                "task": "continuation",
                "samples": 90,
                "metrics": {"acc": {"value": score, "error": 0.05}},
            },
            "same_as_dense": dense,
            "same_as_store": store,
        }
        for model, score, dense, store in (
            ("dense", 0.7, None, None),
            ("store", 0.68, 0.95, None),
            ("level-4", 0.67, 0.94, 89),
        )
    ]
}


def qualities(*perplexities: float) -> list[dict[str, Any]]:
    pairs = zip(("wikitext2", "docs"), perplexities, strict=True)
    return [{"corpus": corpus, "perplexity": value} for corpus, value in pairs]


def point(found: tuple[float, float] | None, **settings: str) -> dict[str, Any]:
    return {
        "settings": {key.replace("__", "."): value for key, value in settings.items()},
        "dense": qualities(10.0, 20.0),
        "result": None if found is None else {"quality": qualities(*found)},
    }


def crossed(calibration: str, found: tuple[float, float] | None) -> dict[str, Any]:
    scaling = {"decompose__scaling": "whitening", "decompose__kept_ratio": "0.6"}
    return point(found, calibration=calibration, quantize="none", **scaling)


def powered(scaling: str, alpha: str, found: tuple[float, float]) -> dict[str, Any]:
    ratio = {"decompose__kept_ratio": "0.8"}
    return point(found, decompose__scaling=scaling, decompose__alpha=alpha, **ratio)


CROSSING = [
    crossed("wikitext2", (11.0, 26.0)),
    crossed("docs", (13.0, 22.0)),
    crossed("generated", (12.0, 24.0)),
    crossed("all", None),
]

GRID = [
    powered("abs_mean", "0.5", (11.0, 22.0)),
    powered("abs_mean", "1", (12.0, 24.0)),
    powered("whitening", "0.5", (10.5, 21.0)),
    powered("whitening", "1", (10.5, 21.0)),
]

SAMPLED = [
    point((10 * (1 + share), 20 * (1 + share)), calibration__samples=count)
    for count, share in (("1", 0.2), ("1", 0.4), ("32", 0.1))
]

SPEED = [{"shape": [4, 8], "ours": [1.0], "gptqmodel": [2.0]}]

ALLOCATION = [
    {
        "model": "m",
        "window": 8,
        "method": method,
        "sensitivity": None,
        "scaling": None,
        "sequential": refit,
        "refit": refit,
        "calibration": calibration,
        "target": kept,
        "perplexity": perplexity(factor),
        "kept_ratio": kept,
    }
    for method, refit, calibration, kept, factor in (
        ("dense", False, [], 1.0, 1.0),
        ("optimal", True, ["generated"], 0.8, 1.01),
        ("optimal", False, ["generated"], 0.8, 1.5),
    )
]

NUMBERS: dict[str, Result] = {
    "allocation": result(ALLOCATION),
    "browser": result(BROWSER),
    "budget": result(BUDGET),
    "budget-parts": result([*BUDGET, chosen("codes", 3.0, 1.09, 0.1)]),
    "budget_cost": result({"costs": [{"model": "m", "passes": 35.2, "trials": 4160}]}),
    "budget_onnx": result(ONNX),
    **dict.fromkeys(
        ("cross_domain", "cross_domain-fast"), result({"cross_domain": {"points": CROSSING}})
    ),
    **dict.fromkeys(
        ("scaling", "scaling-fast"),
        result({"grid": {"points": GRID}, "samples": {"points": SAMPLED}}),
    ),
    "decode": result(DECODE, {"claims": CLAIMS, "sweep": SWEEP, "sizes": WIDTHS}),
    "demo": result(DEMO),
    "factor_ablation": result(ABLATION),
    "frontier": result(FRONTIER),
    "gptq_speed": result(
        {"points": [s | {"ratio": 2.0, "equal_codes": 1, "error": 1} for s in SPEED]}
    ),
    "kernel_times": result(
        {"points": [{"shape": [4, 8], "seconds": {"float": 3e-6, "4 bits": 1e-6}, "ratio": 3.0}]}
    ),
    "latency": result(LATENCY),
    "openvino": result(OPENVINO),
    "optimum": result(OPTIMUM),
    "parity": result(PARITY),
    "tasks": result(TASKS),
    "stacking": result(STACKING),
}
