"""Statistics of the inputs against numpy on activations caught in the plain model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from asvd_q.errors import NumericsError
from asvd_q.models import Site, SourceModel
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.statistics.collectors import SiteCollector, SiteStatistics, collecting
from tests.models.families import FAMILIES, TOKENS, plain_model, save_family
from tests.statistics.activations import captured_inputs


def collect(model: BlockwiseModel, batch_size: int) -> dict[str, SiteStatistics]:
    """Statistics of every layer inside the blocks, as the loop would collect them."""
    names = {ref.name for ref in model.skeleton.weights}
    found: dict[str, SiteStatistics] = {}
    with torch.no_grad(), model.outside() as outside:
        states = [model.embed(outside, batch) for batch in TOKENS.split(batch_size)]
        for index in range(len(model)):
            block = model.load_block(index)
            sites = find_sites(model, block, index, states[0], names)
            with collecting(block, model.skeleton.block_name(index), sites, "cpu") as collectors:
                states = [model.run_block(block, index, state) for state in states]
            for site in sites:
                found |= dict.fromkeys(site.modules, collectors[site.name].result())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_the_plain_models_activations(family: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path)
    found = collect(BlockwiseModel(SourceModel.open(str(folder))), batch_size=2)
    caught = captured_inputs(plain_model(folder), found, TOKENS.split(2))
    assert len(found) >= 8
    for name, inputs in caught.items():
        x, statistics = inputs.numpy(), found[name]
        assert statistics.tokens == len(x) == TOKENS.numel()
        np.testing.assert_allclose(statistics.abs_mean, np.abs(x).mean(0), rtol=1e-9)
        np.testing.assert_array_equal(statistics.abs_max, np.abs(x).max(0))
        np.testing.assert_allclose(statistics.rms, np.sqrt((x**2).mean(0)), rtol=1e-9)
        gram = np.einsum("ti,tj->ij", x, x) / len(x)
        np.testing.assert_allclose(statistics.gram, gram, rtol=0, atol=1e-9 * gram.max())


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=["double", "single"]
)
def test_gram_matrices_of_any_width(width: int, dtype: torch.dtype, error: float) -> None:
    """They are added up in strips; one channel is a thousand times as large as the others."""
    inputs = torch.randn(5, 40, width, generator=torch.Generator().manual_seed(width))
    inputs[..., -1] *= 1000
    site = Site(name="layer", block=0, modules=("layer",), features=width)
    collector = SiteCollector(site, "cpu", dtype)
    for part in inputs:
        collector.add(part)
    found = collector.result().gram
    rows = inputs.reshape(-1, width).double().numpy()
    expected = torch.from_numpy(rows.T @ rows / len(rows))
    size = expected.diagonal().sqrt()
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert float(((found - expected).abs() / (size[:, None] * size)).max()) < error


def test_means_are_over_tokens_whatever_the_batch_size(tmp_path: Path) -> None:
    model = BlockwiseModel(SourceModel.open(str(save_family("llama", tmp_path))))
    whole = collect(model, batch_size=3)
    for size in (1, 2):
        split = collect(model, batch_size=size)
        for name, expected in whole.items():
            # Batched matrix products round differently in float32, no more than that.
            for part in ("abs_mean", "abs_max", "rms", "gram"):
                torch.testing.assert_close(
                    getattr(split[name], part), getattr(expected, part), rtol=1e-4, atol=1e-5
                )


def test_sums_are_in_float64_whatever_the_activations_type() -> None:
    """A sum in bfloat16 would stop growing at 256 additions of 1."""
    collector = SiteCollector(Site("site", 0, ("site",), 2), "cpu")
    for _ in range(50):
        collector.add(
            torch.ones(1, 20, 2, dtype=torch.bfloat16) * torch.tensor([1.0, -3.0]).bfloat16()
        )
    result = collector.result()
    assert result.tokens == 1000
    assert result.abs_mean.tolist() == [1, 3]
    assert result.abs_max.tolist() == [1, 3]
    assert result.gram.tolist() == [[1, -3], [-3, 9]]
    assert result.gram.dtype == torch.float64


def test_no_tokens_give_zeros_and_not_nan() -> None:
    result = SiteCollector(Site("site", 0, ("site",), 2), "cpu").result()
    assert result.tokens == 0
    assert not result.gram.any()
    assert not result.abs_mean.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_names_the_site(bad: float) -> None:
    collector = SiteCollector(Site("model.layers.1.mlp.up_proj", 1, (), 3), "cpu")
    inputs = torch.zeros(1, 4, 3)
    inputs[0, 2, 1] = bad
    with pytest.raises(
        NumericsError, match=r"model\.layers\.1\.mlp\.up_proj holds NaN or infinity"
    ):
        collector.add(inputs)


def test_hooks_are_gone_after_the_context_even_after_an_error() -> None:
    block = torch.nn.ModuleDict({"up": torch.nn.Linear(3, 3)})
    site = Site("blocks.0.up", 0, ("blocks.0.up",), 3)

    def fail() -> None:
        with collecting(block, "blocks.0", [site], "cpu") as collectors:
            block["up"](torch.ones(2, 3))
            assert collectors[site.name].result().tokens == 2
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert not block["up"]._forward_pre_hooks
