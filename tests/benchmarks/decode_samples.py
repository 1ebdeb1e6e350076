"""What `benchmarks.decode` could have written: of two models, two batches and three widths."""

from __future__ import annotations

__all__ = ["CLAIMS", "DECODE", "SWEEP", "WIDTHS"]

DECODE = [
    {
        "name": name,
        "model": model,
        "kept_ratio": kept,
        "bits": 4,
        "bytes": 10,
        "decode_tokens_per_second": 9.0,
        "prefill_tokens_per_second": 99.0,
        "token_bytes": 10,
        "peak_memory_bytes": memory,
        "rounds": 5,
        "allowed_ratio": 1.2,
        "ratio_to_genai_int4": 0.99,
        "prefill_ratio_to_genai_int4": 1.02,
        "ratio_to_int4": ratio,
    }
    for model in ("wren", "wide")
    for name, kept, ratio, memory in (
        ("torch float32", 1.0, 0.3, 2**22),
        ("int4", 1.0, 1.0, 2**20),
        ("ASVD 0.8 + int4", 0.8, 1.13, 2**20),
        ("GenAI int4", 1.0, 1.01, 2**20 - 2**16),
    )
]

CLAIMS = [
    {"text": f"{model}: memory", "value": value, "least": 1.0, "granted": 0.02}
    for model, value in (("wren", 0.98), ("wide", 0.97))
]

SWEEP = [
    {
        "name": name,
        "batch": batch,
        "context": context,
        "first_token_seconds": 0.0123,
        "decode_tokens_per_second": 100.0,
        "first_token_ratio_to_genai_int4": first,
        "decode_ratio_to_genai_int4": decode,
    }
    for batch, context in ((1, 32), (4, 512))
    for name, first, decode in (("int4", 0.99, 1.01), ("GenAI int4", 1.0, 1.0))
]

WIDTHS = [
    {
        "width": width,
        "kept_ratio": kept,
        "ratio": ratio,
        "allowed_ratio": 1.5,
        "dense_tokens_per_second": 9.0,
    }
    for width, ratios in ((256, (1.1, 0.9)), (512, (0.9, 1.25)), (1024, (0.95, 1.5)))
    for kept, ratio in zip((0.8, 0.5), ratios, strict=True)
]
