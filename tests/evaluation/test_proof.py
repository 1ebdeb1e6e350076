"""What proves an artefact, and what withdraws it, on an exporter that can be made to fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from asvd_q.artefact import ParityBounds
from asvd_q.errors import MissingExtraError, ParityError
from asvd_q.evaluation.proof import prove, prove_runtime
from asvd_q.quantization import FloatWeight

WEIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
TOKENS = torch.arange(24).view(2, 12)


class Constant:
    """A Runner whose logits follow from the token alone; its cache counts the tokens."""

    runtime = "constant 1.0"

    def __init__(self, change: float = 0.0) -> None:
        self.table = torch.eye(24) + change
        self.calls: list[tuple[int, Any]] = []

    def forward(self, input_ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        self.calls.append((input_ids.shape[1], cache))
        return self.table[input_ids], (cache or 0) + input_ids.shape[1]

    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return (self.forward(batch)[0] for batch in batches)


@dataclass
class Artefact:
    """The exporter and what its artefact turns out to hold."""

    matrices: Mapping[str, Mapping[str, Tensor]] = field(
        default_factory=lambda: {"layer": {"weight": WEIGHT}}
    )
    runner: Constant = field(default_factory=Constant)
    installed: bool = True
    name: str = "made-up"
    float_type: None = None
    bounds: ParityBounds = field(default_factory=lambda: ParityBounds(1e-3, 1e-5, 0.99))
    options_model: type[BaseModel] = BaseModel

    def open(self, folder: Path) -> Constant:
        if not self.installed:
            raise MissingExtraError("engine", "engine", "run it")
        return self.runner

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        yield from self.matrices.items()


def proved(artefact: Artefact, tokens: Tensor = TOKENS) -> Any:
    record = SimpleNamespace(name="layer")
    layer = SimpleNamespace(record=record, weights={"weight": FloatWeight(WEIGHT)})
    store: Any = SimpleNamespace(
        records=lambda: [record], layer=lambda name: layer, finished_plan="the plan"
    )
    exporter: Any = artefact
    return prove(exporter, Path("artefact"), store, Constant(), tokens)


def test_an_equal_artefact_is_proven_on_prefill_and_cached_steps() -> None:
    artefact = Artefact()
    proof = proved(artefact)
    assert (proof.status, proof.layers, proof.runtime) == ("proven", 1, "constant 1.0")
    assert (proof.tokens, proof.decode_steps) == (24, 8)
    assert (proof.relative_error, proof.kl, proof.agreement) == (0.0, 0.0, 1.0)
    assert artefact.runner.calls == [(4, None), *((1, 4 + step) for step in range(8))]


@pytest.mark.parametrize("length", [2, 8])
def test_a_text_of_fewer_tokens_than_steps_still_has_a_prefill(length: int) -> None:
    artefact = Artefact()
    assert proved(artefact, TOKENS[:, :length]).decode_steps == length - 1
    assert artefact.runner.calls[0] == (1, None)


@pytest.mark.parametrize(
    "matrices",
    [
        {"layer": {"weight": WEIGHT.nextafter(torch.tensor(9.0))}},
        {"layer": {"weight": WEIGHT[:1]}},
        {"layer": {"A": WEIGHT}},
        {},
    ],
    ids=["one bit off", "another shape", "another slot", "left out"],
)
def test_other_bytes_name_the_layer(matrices: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(ParityError, match=r"^made-up: layer .*withdrawn"):
        proved(Artefact(matrices=matrices))


@pytest.mark.parametrize("change", [0.5, float("nan")])
def test_other_logits_name_the_bound_and_the_runtime(change: float) -> None:
    with pytest.raises(ParityError, match=r"relative logit error .* in constant 1\.0 is beyond"):
        proved(Artefact(runner=Constant(change)))


def test_bounds_may_depend_on_the_plan() -> None:
    """The same logits, within the exporter's bounds for any plan and beyond those for this one."""

    class Bounded(Artefact):
        def bounds_of(self, plan: str) -> ParityBounds:
            assert plan == "the plan"
            return ParityBounds(1e-6, 1e-5, 0.99)

    assert proved(Artefact(runner=Constant(1e-5))).relative_error == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(ParityError, match=r"relative logit error .* is beyond 1e-06"):
        proved(Bounded(runner=Constant(1e-5)))


def test_a_runtime_that_is_not_installed_is_not_run() -> None:
    proof = proved(Artefact(installed=False))
    assert (proof.status, proof.layers, proof.relative_error) == ("not run", 1, None)
    assert "asvd-q[engine]" in str(proof.detail)


def test_agreement_is_a_bound_of_its_own() -> None:
    other = Constant()
    other.table = other.table.roll(1, 0)
    bounds = ParityBounds(relative_error=9, kl=9, agreement=0.5)
    with pytest.raises(ParityError, match=r"arg-max agreement 0 .*beyond 0\.5"):
        prove_runtime("made-up", bounds, other, Constant(), TOKENS)


@pytest.mark.parametrize(("changed", "passes"), [(2, True), (5, True), (6, False), (24, False)])
def test_a_few_positions_are_judged_as_the_sample_that_they_are(changed: int, passes: bool) -> None:
    """Of 24 positions at a share of 0.93, 1.7 may differ, and three standard errors are 3.7."""
    other = Constant()
    other.table[:changed] = other.table[:changed].roll(1, 1)
    bounds = ParityBounds(relative_error=9, kl=99, agreement=0.93)
    if passes:
        found = prove_runtime("made-up", bounds, other, Constant(), TOKENS)
        assert found.agreement == pytest.approx(1 - changed / 24)
    else:
        with pytest.raises(ParityError, match=r"arg-max agreement .* over 24 tokens"):
            prove_runtime("made-up", bounds, other, Constant(), TOKENS)
