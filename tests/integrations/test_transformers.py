"""Plain transformers with our architectures registered: no remote code, nothing of ours by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

from asvd_q.errors import ModelError
from asvd_q.integrations.transformers import FAMILIES, register
from asvd_q.metrics import relative_error
from asvd_q.models import modeling_asvd_q as modeling
from tests.models.test_modeling import FAMILIES as MODELS
from tests.models.test_modeling import SMALL, TOKENS, factorised


def saved(folder: Path, name: str, options: dict[str, Any]) -> torch.Tensor:
    """A checkpoint with factors and without the file of our classes; its logits."""
    model = factorised(name, options)
    model.save_pretrained(folder)
    (folder / "modeling_asvd_q.py").unlink()
    logits: torch.Tensor = model(TOKENS).logits
    return logits.detach()


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_every_family_loads(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    expected = saved(tmp_path, name, options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model).__module__ == modeling.__name__
    assert torch.equal(model(TOKENS).logits, expected)
    assert type(AutoModel.from_pretrained(tmp_path)).__module__ == modeling.__name__
    assert model.config.model_type.removeprefix("asvd_q_") in FAMILIES


def test_the_families_are_those_that_are_tested() -> None:
    tested = {getattr(transformers, name).config_class.model_type for name, _ in MODELS}
    assert tested == set(FAMILIES)


@pytest.mark.parametrize("said", ["gemma", "asvd_q_gemma"])
def test_another_architecture_is_registered_by_name(said: str, tmp_path: Path) -> None:
    assert register(said) == "asvd_q_gemma"
    expected = saved(tmp_path, "GemmaForCausalLM", SMALL)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits, expected)


@pytest.mark.parametrize("said", ["t5", "no_such_model"])
def test_what_is_no_causal_language_model_is_refused(said: str) -> None:
    with pytest.raises(ModelError, match=rf"no causal language model called '{said}'"):
        register(said)


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = (
        "import asvd_q, asvd_q.integrations, sys; "
        "assert not {'torch', 'transformers', 'gptqmodel'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_registering_is_all_that_a_process_needs(tmp_path: Path) -> None:
    saved(tmp_path, *MODELS[0])
    code = (
        "import sys, asvd_q.integrations.transformers; from transformers import AutoConfig; "
        "print(AutoConfig.from_pretrained(sys.argv[1]).model_type)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "asvd_q_llama"
    assert AutoConfig.from_pretrained(tmp_path).model_type == "asvd_q_llama"


def test_bitsandbytes_quantizes_factors_and_keeps_corrections(tmp_path: Path) -> None:
    """`load_in_4bit` of a checkpoint, saved and loaded again: the same codes, all of them ours."""
    torch.manual_seed(1)
    ranks = {"model.layers.0.mlp.down_proj": 24}
    corrections = {"model.layers.1.mlp.up_proj": 8}
    config = modeling.AsvdQLlamaConfig(
        **SMALL, truncation_ranks=ranks, correction_ranks=corrections
    )
    model = modeling.AsvdQLlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "float")
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
        ),
        device_map="cpu",
    )
    quantized.save_pretrained(tmp_path / "nf4")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4", device_map="cpu")
    for name, module in again.named_modules():
        if type(module).__name__ == "Linear4bit":
            # What its kernels for new CPUs make of the weights, they make at the first call.
            module.support_avx512bf16_for_cpu = False
            twin = quantized.get_submodule(name)
            assert torch.equal(module.weight.data, twin.weight.data)
            assert torch.equal(module.weight.quant_state.absmax, twin.weight.quant_state.absmax)
    kinds = {name: type(module).__name__ for name, module in again.named_modules()}
    assert kinds["model.layers.0.mlp.down_proj.BLinear"] == "Linear4bit"
    assert kinds["model.layers.0.mlp.down_proj.ALinear"] == "Linear4bit"
    assert kinds["model.layers.1.mlp.up_proj"] == "CorrectedLinear"
    corrected = again.get_submodule("model.layers.1.mlp.up_proj")
    dense = model.get_submodule("model.layers.1.mlp.up_proj")
    inputs = torch.randn(5, SMALL["hidden_size"])
    with torch.no_grad():
        whole, coarse = dense(inputs), inputs @ dense.weight.T
        assert relative_error(whole, corrected(inputs)) < 0.2
        assert relative_error(whole, coarse) > 0.5
