"""Which form attention takes in a graph, for every configuration that the README names."""

from __future__ import annotations

import pytest
import torch
import transformers

from asvd_q_exporters.onnx.decoders import AttentionForm, attention_form, example_past
from asvd_q_exporters.onnx.graph import quiet
from tests.families.models import MODELS
from tests.families.test_others import NO_GRAPH, WORKING

_ALL = MODELS | {name: given for name, given in WORKING.items() if name not in NO_GRAPH}
_ROTATES = AttentionForm(fused=True, rotary=True, reads_positions=False)
_FUSED = AttentionForm(fused=True)
_PLAIN = AttentionForm()

FORMS = {
    "llama": _ROTATES,
    "mistral": _ROTATES,
    "qwen2": _ROTATES,
    "qwen3": _ROTATES,
    "gemma2": _ROTATES,
    "phi3": _ROTATES,
    "opt": _FUSED,
    "gpt2": _FUSED,
    "opt-350m": _FUSED,
    "phi3-longrope": _FUSED,
    "gpt-neox": _FUSED,  # rotates 8 of 32 numbers, which the operator does not
    "Llama with biases": _ROTATES,
    "Gemma": _ROTATES,
    "Gemma 3 (text)": _ROTATES,
    "Gemma 4 (text)": _FUSED,  # its rotation takes queries and keys one by one
    "Phi": _FUSED,
    "StableLM": _FUSED,
    "GPT-J": _PLAIN,
    "BLOOM": _PLAIN,
    "Falcon": _PLAIN,
    "Starcoder2": _ROTATES,
    "BERT as a decoder": _FUSED,
}


def _form(name: str, **changes: object) -> AttentionForm:
    model_class, options = _ALL[name]
    base = getattr(transformers, model_class)
    config = base.config_class(**options | changes)
    config._attn_implementation = "eager"
    model = base(config).eval()
    with quiet():
        return attention_form(model, example_past(model, torch.float32))


@pytest.mark.parametrize("name", _ALL)
def test_the_form_of_a_family(name: str) -> None:
    assert _form(name) == FORMS[name]


@pytest.mark.parametrize(("width", "form"), [(12, _PLAIN), (24, _FUSED), (48, _ROTATES)])
def test_widths_of_heads_decide(width: int, form: AttentionForm) -> None:
    assert _form("llama", head_dim=width) == form
