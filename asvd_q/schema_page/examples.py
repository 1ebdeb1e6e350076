"""One example of every section of a recipe, as the reference shows it."""

from __future__ import annotations

__all__ = ["EXAMPLES", "STUDY"]

EXAMPLES = {
    "model": """\
model:
  path: models/my-model           # a folder, or a name on the hub
  dtype: float16                  # of everything that is not quantized
""",
    "calibration": """\
calibration:
  corpora:
    - generated                   # text that the model writes itself
    - {source: "notes.{split}.jsonl", field: body, weight: 2}
  samples: 64
  sequential: true
""",
    "decompose": """\
decompose:
  kept_ratio: 0.8
  rank_multiple: 64
  refit: true
  exclude: [down_proj, "model.layers.0.*"]
""",
    "search": """\
decompose: {refit: true}
search:
  perplexity: "+2 %"              # or kept_ratio, size, max_loss_increase
""",
    "budget": """\
decompose: {refit: true}          # layers may become factors,
correct: {}                       # or codes with a correction beside them
quantize: {method: gptq, refit: true}
budget:
  size: 3.2 GiB
  format: onnx
""",
    "quantize": """\
quantize:
  method: gptq
  bits: 4
  group_size: 64
  head: {bits: 8}
  overrides:
    - {match: down_proj, bits: 8}
    - {match: "model.layers.0.*", skip: true}
""",
    "correct": """\
quantize: {method: gptq, bits: 3, group_size: 64, factors: {A: {bits: 8}, B: {bits: 8}}}
correct:
  rank: 32
  exclude: [k_proj, v_proj]
""",
    "export": """\
export:
  - format: onnx
  - {format: onnx, name: half, dtype: float16}
  - format: gptq
""",
    "evaluate": """\
evaluate:
  corpora: [python-docs, python-source]
  tasks: [python-docs-continuation]
""",
}
"""By section; a section that needs another one to be a recipe shows that too."""

STUDY = """\
recipe: recipes/wren-rtn8.yaml
vary:
  quantize.bits: [8, 4]
  quantize.clip: [minmax, mse]
plot: {kind: lines, x: quantize.bits, series: quantize.clip}
"""
