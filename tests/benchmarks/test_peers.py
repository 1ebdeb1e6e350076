"""Other packages' compressions: what is read of their files, how it is counted and put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from asvd_q.plan import QuantSpec
from benchmarks import frontier
from benchmarks._adapters import Adapter, read_adapters
from benchmarks._compressions import Case, CasePoint
from benchmarks._peers import PEERS, Coding, Found, Peer
from benchmarks.common import Bench, Options

RANK = 3
SHAPES = {"model.layers.0.mlp.BLinear": (7, 10), "model.layers.1.self_attn.q_proj": (6, 5)}


def saved(folder: Path, tensors: dict[str, Tensor], *, alpha: int = RANK) -> Path:
    """A folder as PEFT has it, names of layers in lower case as gptqmodel writes them."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    keys = {}
    for key, tensor in tensors.items():
        layer, _, side = key.partition("/")
        keys[f"base_model.model.{layer.lower()}.lora_{side}.weight"] = tensor
    save_file(keys, folder / "adapter_model.safetensors")
    return folder


def matrices(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Random lora_A (rank, in) and lora_B (out, rank) of the layers, with an outlier in each."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for name, (rows, columns) in SHAPES.items():
        found[f"{name}/A"] = torch.randn(RANK, columns, generator=generator).to(dtype)
        found[f"{name}/B"] = torch.randn(rows, RANK, generator=generator).to(dtype)
        found[f"{name}/A"][0, 0] *= 1000
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_adapters_are_read_as_they_were_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = matrices(dtype)
    found = read_adapters(saved(tmp_path, stored), SHAPES)
    assert set(found) == set(SHAPES)
    for name, (rows, columns) in SHAPES.items():
        expected = stored[f"{name}/B"].double() @ stored[f"{name}/A"].double()
        torch.testing.assert_close(found[name].product.double(), expected, rtol=1e-5, atol=1e-4)
        assert found[name].stored_bytes == RANK * (rows + columns) * dtype.itemsize


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "ranks", "infinite", "scale"])
def test_what_is_wrong_with_an_adapter_is_said(tmp_path: Path, change: str) -> None:
    stored, alpha = matrices(), RANK
    name = "model.layers.1.self_attn.q_proj"
    message = f"no adapter of {name}"
    if change == "missing":
        del stored[f"{name}/B"]
    elif change == "extra":
        stored["lm_head/A"] = torch.zeros(RANK, 4)
        message = "lm_head.lora_a.weight belongs to no layer"
    elif change == "shape":
        stored[f"{name}/A"] = torch.zeros(RANK, 6)
        message = rf"\(6, 3\) times \(3, 6\) does not fit {name} \(6, 5\)"
    elif change == "ranks":
        stored[f"{name}/A"] = torch.zeros(RANK + 1, 5)
        message = rf"\(6, 3\) times \(4, 5\) does not fit {name}"
    elif change == "infinite":
        stored[f"{name}/B"][1, 1] = torch.inf
        message = f"the adapter of {name} is not finite"
    else:
        alpha = 16
        message = "lora_alpha 16 differs from r 3"
    with pytest.raises(ValueError, match=message):
        read_adapters(saved(tmp_path, stored, alpha=alpha), SHAPES)


def test_an_adapter_is_counted_and_evaluated_beside_its_codes(place: Path) -> None:
    """Codes off by just what the adapters add: the dense model, at the bytes of both."""
    bench = Bench(Options(place / "model", place, ("notes",), ("lines",), 24, None))
    wanted = Case(
        model="m", window=24, name="n", calibration=("notes",), method="gptq", bits=3, rank=2
    )
    generator = torch.Generator().manual_seed(3)
    spec = QuantSpec(method="gptq", bits=3, group_size=16)

    def run(bench: Bench, case: Case, group_size: int, folder: Path) -> Found:
        assert case.rank is not None
        weights, adapters = {}, {}
        for layer in bench.plan({"decompose": {"kept_ratio": 1.0}}):
            rows, columns = layer.shape
            adapter = Adapter(
                torch.randn(rows, case.rank, generator=generator).half(),
                torch.randn(case.rank, columns, generator=generator).half(),
            )
            weight = bench.source.tensor(f"{layer.name}.weight").float()
            weights[layer.name] = weight - adapter.product
            adapters[layer.name] = adapter
        return Found(weights, dict.fromkeys(weights, spec), 1, adapters)

    point = Peer((Coding("gptq", 3, 2),), run).measure(bench, wanted, 16)
    shapes = [layer.shape for layer in bench.plan({"decompose": {"kept_ratio": 1.0}})]
    codes = sum(rows * columns * 3 // 8 + rows * (columns // 16) * 2 for rows, columns in shapes)
    assert point.layer_bytes == codes + sum(2 * (rows + columns) * 2 for rows, columns in shapes)
    assert point.perplexity["lines"] == pytest.approx(bench.perplexities()["lines"], rel=1e-4)
    assert point.rank == 2


def test_points_from_before_ranks_still_read() -> None:
    old = {
        "model": "wren",
        "window": 512,
        "name": "gptqmodel: GPTQ 3",
        "calibration": ["wikitext2"],
        "method": "gptq",
        "bits": 3,
        "kept": None,
        "kept_ratio": 1.0,
        "layer_bytes": 10,
        "bytes": 20,
        "parameters": 30,
        "perplexity": {"ptb": 2.0},
    }
    point = CasePoint.model_validate(old)
    assert point.rank is None
    assert point.setting != point.setting.model_copy(update={"rank": 16})


def test_every_coding_of_every_peer_is_a_case_of_its_own(place: Path) -> None:
    options = Options(place / "model", place, ("notes",), ("lines",), 24, None)
    asked = type("Asked", (), {**vars(options), "peers": tuple(PEERS), "kept": ()})
    cases = frontier.cases_of(asked, "m")
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    found = {case.name: case for case in cases}["gptqmodel + EoRA: GPTQ 3 rank 32"]
    assert (found.method, found.bits, found.rank) == ("gptq", 3, 32)
    assert found.name.partition(": ")[0] in PEERS


@pytest.mark.slow
def test_gptqmodel_makes_an_adapter_for_every_layer(place: Path, tmp_path: Path) -> None:
    """Its whole pipeline; an adapter of half the width takes back some of what codes lost."""
    bench = Bench(Options(place / "model", place, ("notes",), ("lines",), 24, None))
    wanted = Case(
        model="m", window=24, name="n", calibration=("notes",), method="gptq", bits=2, rank=16
    )
    found = PEERS["gptqmodel + EoRA"].run(bench, wanted, 16, tmp_path)
    layers = list(bench.plan({"decompose": {"kept_ratio": 1.0}}))
    assert {layer.name for layer in layers} == set(found.weights) == set(found.adapters)
    for layer in layers:
        weight = bench.source.tensor(f"{layer.name}.weight").float()
        replaced = found.replaced(layer.name)
        assert replaced is not None
        lost = torch.linalg.norm(weight - found.weights[layer.name])
        assert torch.linalg.norm(weight - replaced["weight"]) < 0.9 * lost
        beside = found.adapters[layer.name].stored_bytes
        assert beside == 2 * 16 * sum(layer.shape)  # in 16 bits, whatever the model is in
    stored = sum(found.layer_bytes(layer.name, layer.shape, "float32") for layer in layers)
    assert found.disk_bytes > stored
