"""Fisher information block by block against autograd through the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.statistics.fisher import fisher_information
from tests.models.families import FAMILIES, TOKENS, plain_model, save_family


def by_autograd(folder: Path, model: BlockwiseModel) -> dict[str, Tensor]:
    """√ mean over windows and rows of (∂loss/∂W)², by one backward pass per window."""
    plain = plain_model(folder)
    weights = model.skeleton.weights
    parameters = {ref.name: plain.get_parameter(ref.tensor_name) for ref in weights}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    sums = {ref.name: torch.zeros(ref.shape[1], dtype=torch.float64) for ref in weights}
    for window in TOKENS:
        plain.zero_grad()
        plain(window[None], labels=window[None], use_cache=False).loss.backward()
        for ref in weights:
            gradient = parameters[ref.name].grad
            assert gradient is not None
            sums[ref.name] += ref.take(gradient).double().square().mean(0)
    return {name: (total / len(TOKENS)).sqrt() for name, total in sums.items()}


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_is_that_of_the_whole_model(family: str, where: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "model")
    model = BlockwiseModel(SourceModel.open(str(folder)))
    weights = list(model.skeleton.weights)
    assert weights[-1].block is None
    done: list[int] = []
    found = fisher_information(
        model,
        TOKENS,
        weights,
        folder=tmp_path / "states" if where == "disk" else None,
        progress=done.append,
    )
    expected = by_autograd(folder, model)
    assert set(found) == set(expected)
    assert done == [1, 2, 3, 4]
    for name, reference in expected.items():
        assert found[name].dtype == torch.float64
        assert float(reference.max()) > 0
        error = (found[name] - reference).norm() / reference.norm()
        assert float(error) < 1e-5, name


def test_only_the_layers_asked_for_are_returned(tmp_path: Path) -> None:
    model = BlockwiseModel(SourceModel.open(str(save_family("llama", tmp_path))))
    wanted = [ref for ref in model.skeleton.weights if ref.kind == "v_proj" and ref.block == 1]
    found = fisher_information(model, TOKENS, wanted)
    assert list(found) == ["model.layers.1.self_attn.v_proj"]
    whole = fisher_information(model, TOKENS, list(model.skeleton.weights))
    assert torch.equal(found[wanted[0].name], whole[wanted[0].name])
