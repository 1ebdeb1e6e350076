"""A model run block by block against the same model run by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from asvd_q.errors import ModelError
from asvd_q.models import SourceModel
from asvd_q.models.assemble import Replaced, assemble, nothing_replaced
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import Slot
from tests.models.families import (
    FAMILIES,
    SITES,
    TOKENS,
    plain_logits,
    plain_model,
    save_family,
)


def blockwise_logits(model: BlockwiseModel, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad(), model.outside() as outside:
        hidden = model.embed(outside, tokens)
        for index in range(len(model)):
            hidden = model.run_block(model.load_block(index), index, hidden)
        return model.logits(outside, hidden)


class Replacement:
    """Random factors for every second layer and a random dense matrix for the others."""

    def __init__(self, source: SourceModel) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weights = build_skeleton(source).weights
        self.matrices: dict[str, dict[Slot, Tensor]] = {}
        for index, ref in enumerate(ref for ref in self.weights if ref.block is not None):
            rows, columns = ref.shape
            if index % 2:
                self.matrices[ref.name] = {
                    "weight": torch.randn(rows, columns, generator=generator) * 0.3
                }
            else:
                self.matrices[ref.name] = {
                    "B": torch.randn(5, columns, generator=generator) * 0.3,
                    "A": torch.randn(rows, 5, generator=generator) * 0.3,
                }

    def __call__(self, name: str) -> dict[Slot, Tensor] | None:
        return self.matrices.get(name)

    def write_into(self, model: nn.Module) -> None:
        """Overwrite a plain model's weights with the products."""
        for ref in self.weights:
            found = self.matrices.get(ref.name)
            if found is not None:
                product = found["weight"] if "weight" in found else found["A"] @ found["B"]
                ref.take(model.get_parameter(ref.tensor_name)).copy_(product)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_bit_for_bit(
    family: str, tied: bool, tmp_path: Path
) -> None:
    folder = save_family(family, tmp_path, tied=tied)
    model = BlockwiseModel(SourceModel.open(str(folder)))
    assert model.skeleton.head_is_tied is tied
    assert torch.equal(blockwise_logits(model), plain_logits(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_several_shapes_do_not_get_in_each_others_way(
    family: str, tmp_path: Path
) -> None:
    folder = save_family(family, tmp_path)
    model = BlockwiseModel(SourceModel.open(str(folder)))
    batches = [TOKENS, TOKENS[:1, :5], TOKENS[:2]]
    with torch.no_grad(), model.outside() as outside:
        hidden = [model.embed(outside, batch) for batch in batches]
        for index in range(len(model)):
            block = model.load_block(index)
            hidden = [model.run_block(block, index, states) for states in hidden]
        for batch, states in zip(batches, hidden, strict=True):
            assert torch.equal(model.logits(outside, states), plain_logits(folder, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_replaced_weights_act_as_their_product_in_the_plain_model(
    family: str, tmp_path: Path
) -> None:
    folder = save_family(family, tmp_path, tied=True)
    source = SourceModel.open(str(folder))
    replacement = Replacement(source)
    plain = plain_model(folder)
    replacement.write_into(plain)
    with torch.no_grad():
        expected = plain(TOKENS, use_cache=False).logits
    assert not torch.allclose(expected, plain_logits(folder), rtol=0.1)
    found = blockwise_logits(BlockwiseModel(source, replaced=replacement))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_assembled_whole(family: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path, tied=True)
    source = SourceModel.open(str(folder))

    def run(replaced: Replaced) -> Tensor:
        skeleton = build_skeleton(source)
        whole = assemble(skeleton.model, "", source, replaced, device="cpu", dtype=torch.float32)
        assert all(parameter.is_meta for parameter in skeleton.model.parameters())
        with torch.no_grad():
            logits: Tensor = whole(TOKENS, use_cache=False).logits
        return logits

    assert torch.equal(run(nothing_replaced), plain_logits(folder))
    replacement = Replacement(source)
    blockwise = blockwise_logits(BlockwiseModel(source, replaced=replacement))
    torch.testing.assert_close(run(replacement), blockwise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_fed_by_one_activation_share_a_site(family: str, tmp_path: Path) -> None:
    source = SourceModel.open(str(save_family(family, tmp_path)))
    model = BlockwiseModel(source)
    wanted = {ref.name for ref in model.skeleton.weights}
    for index in range(2):
        with torch.no_grad(), model.outside() as outside:
            hidden = model.embed(outside, TOKENS)
            sites = find_sites(model, model.load_block(index), index, hidden, wanted)
        prefix = model.skeleton.block_name(index)
        assert [site.modules for site in sites] == [
            tuple(f"{prefix}.{part}" for part in parts) for parts in SITES[family]
        ]
        assert all(site.name == site.modules[0] and site.block == index for site in sites)
        widths = {ref.name: ref.shape[1] for ref in model.skeleton.weights}
        assert all(site.features == widths[name] for site in sites for name in site.modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_listed_as_out_by_in(family: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path)
    source, plain = SourceModel.open(str(folder)), plain_model(folder)
    weights = build_skeleton(source).weights
    inside = [ref.name for ref in weights if ref.block is not None]
    assert len(inside) == 2 * sum(len(parts) for parts in SITES[family])
    assert weights[-1].block is None
    for ref in weights:
        layer, weight = plain.get_submodule(ref.module), ref.take(source.tensor(ref.tensor_name))
        inputs = torch.randn(2, ref.shape[1])
        bias = getattr(layer, "bias", None)
        expected = inputs @ weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_family("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"no weight called model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        build_skeleton(SourceModel.open(str(folder)))


def test_a_weight_of_another_shape_than_configured_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_family("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(47, 32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight has shape \(47, 32\)"):
        build_skeleton(SourceModel.open(str(folder)))
