"""Quality numbers against torch's own loss, and a model's distance from itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from asvd_q.errors import ModelError, NumericsError
from asvd_q.evaluation.quality import (
    Quality,
    TokenWindows,
    compare_quality,
    distant_quality,
    evaluate_quality,
)
from asvd_q.evaluation.runners import model_runner
from asvd_q.models import SourceModel
from tests.models.families import TOKENS, plain_logits, save_family

TEXT = TokenWindows(corpus="prose", split="test", sha256="0", tokens=TOKENS)


class Fixed:
    """A Runner that gives the same logits for every batch."""

    runtime = "none"

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def forward(self, input_ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        return self.logits.expand(*input_ids.shape, -1), cache

    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            yield self.forward(batch)[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [save_family("llama", folder / str(seed), seed=seed) for seed in (0, 1)]


def runner(folder: Path) -> Any:
    return model_runner(SourceModel.open(str(folder)), stream=False)


def direct_perplexity(folder: Path) -> float:
    loss = torch.nn.functional.cross_entropy(
        plain_logits(folder)[:, :-1].double().flatten(0, 1), TOKENS[:, 1:].flatten()
    )
    return math.exp(float(loss))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_perplexity_is_that_of_torchs_loss_over_all_predictions(
    batch_size: int, folders: list[Path]
) -> None:
    calls: list[tuple[int, int]] = []
    found = evaluate_quality(
        runner(folders[0]),
        TEXT,
        batch_size=batch_size,
        progress=lambda *call: calls.append(call),
    )
    assert found.perplexity == pytest.approx(direct_perplexity(folders[0]), rel=1e-5)
    assert (found.windows, found.window, found.tokens) == (3, 11, 30)
    assert (found.corpus, found.split) == ("prose", "test")
    assert found.kl is None
    batches = -(-3 // batch_size)
    assert calls == [(done, batches) for done in range(1, batches + 1)]


def test_a_model_is_at_no_distance_from_itself(folders: list[Path]) -> None:
    same = compare_quality(runner(folders[0]), runner(folders[0]), TEXT, batch_size=2)
    assert same[0].perplexity == same[1].perplexity
    assert same[1].kl == 0
    assert same[1].agreement == 1


def test_the_distance_of_two_models_is_their_mean_divergence(folders: list[Path]) -> None:
    before, after = compare_quality(runner(folders[0]), runner(folders[1]), TEXT, batch_size=2)
    log_p, log_q = (
        log_softmax(plain_logits(folder).double().numpy(), axis=-1) for folder in folders
    )
    kl = (torch.from_numpy(log_p).exp().numpy() * (log_p - log_q)).sum(-1).mean()
    assert after.kl == pytest.approx(kl, rel=1e-4)
    assert after.kl is not None
    assert after.kl > 0
    assert after.agreement == (log_p.argmax(-1) == log_q.argmax(-1)).mean()
    assert before.perplexity == pytest.approx(direct_perplexity(folders[0]), rel=1e-5)
    assert after.perplexity == pytest.approx(direct_perplexity(folders[1]), rel=1e-5)
    assert (before.kl, before.agreement) == (None, None)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    found = evaluate_quality(Fixed(torch.zeros(64)), TEXT, batch_size=2)
    assert found.perplexity == pytest.approx(64, rel=1e-12)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(NumericsError, match="NaN logits"):
        evaluate_quality(Fixed(torch.full((64,), float("nan"))), TEXT, batch_size=2)


def test_a_reference_of_another_vocabulary() -> None:
    runners = (Fixed(torch.zeros(60)), Fixed(torch.zeros(64)))
    with pytest.raises(ModelError, match=r"reference has a vocabulary of 60 .* one of 64"):
        compare_quality(*runners, TEXT, batch_size=2)


def test_the_distance_from_kept_logits_is_that_from_the_model(folders: list[Path]) -> None:
    reference, other = map(runner, folders)
    kept = list(reference.score(torch.split(TOKENS, 2)))
    found = distant_quality(kept, other, TEXT, batch_size=2)
    assert found == compare_quality(reference, other, TEXT, batch_size=2)[1]
    with pytest.raises(ValueError, match="argument 2"):
        distant_quality(kept[:-1], other, TEXT, batch_size=2)


def test_an_infinite_perplexity_survives_json(folders: list[Path]) -> None:
    found = evaluate_quality(runner(folders[0]), TEXT, batch_size=2)
    found = found.model_copy(update={"perplexity": math.inf})
    assert Quality.model_validate_json(found.model_dump_json()) == found
