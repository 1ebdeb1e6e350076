"""Choice of forms by time, against a look at every choice there is."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from asvd_q.budget.choice import Choice, Offering, choose, is_within, make_target
from asvd_q.budget.contest import Tried, contest, undominated
from asvd_q.budget.offers import Offer
from asvd_q.budget.sweep import LayerTried
from asvd_q.budget.timing import KernelTimes
from asvd_q.errors import RankError
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.recipe import BudgetSection
from tests.budget.timed import Timed, count_of

HEAD = (512, 64)


def layer(name: str, rank: int | None, *bits: int | None) -> LayerPlan:
    specs = [None if width is None else QuantSpec(bits=width, group_size=32) for width in bits]
    return LayerPlan(
        name=name,
        kind=name,
        block=0,
        shape=(96, 64),
        form="dense" if rank is None else "factors",
        rank=rank,
        quantization={"weight": specs[0]} if rank is None else {"B": specs[0], "A": specs[1]},
    )


def forms(name: str) -> list[LayerPlan]:
    """Two bits are the smallest codes, and in this runtime the slowest."""
    return [
        *(layer(name, None, bits) for bits in (None, 2, 4, 8)),
        *(layer(name, rank, 4, bits) for rank in (16, 32) for bits in (2, 8)),
    ]


def tried_at_random(seed: int, names: str, exporter: Timed) -> dict[str, LayerTried]:
    numbers = random.Random(seed)
    return {
        name: LayerTried(
            [
                (Offer(form, exporter.stored_bytes(form)), loss)
                for form in forms(name)
                for loss in [
                    0.0 if form.quantization.get("weight", 1) is None else numbers.random()
                ]
            ]
        )
        for name in names
    }


def base_plan(names: str) -> Plan:
    return Plan(
        float_type="float32",
        layers=tuple(layer(name, None, None) for name in names),
        other_bytes=1000,
    )


def offering(seed: int, folder: Path, names: str = "abcd") -> tuple[Offering, KernelTimes]:
    exporter = Timed()
    count = count_of(exporter)
    times = KernelTimes(count, folder, head=HEAD)
    tried = tried_at_random(seed, names, exporter)
    return Offering.of(base_plan(names), tried, count, {}, times), times


def every_choice(seed: int, times: KernelTimes, names: str = "abcd") -> Iterator[tuple[int, float]]:
    """Nanoseconds with the head, and loss, of every combination of all that was tried."""
    tried = tried_at_random(seed, names, Timed())
    for pairs in itertools.product(*(found.tried for found in tried.values())):
        time = sum(times.nanoseconds(offer.layer) for offer, _ in pairs) + times.head
        yield time, math.fsum(loss for _, loss in pairs)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all_that_are_fast_enough(seed: int, tmp_path: Path) -> None:
    offered, times = offering(seed, tmp_path)
    everything = list(every_choice(seed, times))
    fastest, slowest = min(everything)[0], max(everything)[0]
    for share in (0.0, 0.05, 0.2, 0.5, 0.9, 1.0):
        limit = fastest + share * (slowest - fastest)
        budget = BudgetSection(decode_speed=1e9 / limit * (1 - 1e-12), format="onnx")
        choice = choose(offered, make_target(budget, offered))
        best = min(loss for time, loss in everything if time <= limit)
        assert choice.loss == pytest.approx(best, abs=1e-12)
        assert times.total(choice.plan) <= limit
        assert is_within(budget, offered.count, choice.plan, times)


def test_a_little_less_than_what_a_model_takes_is_not_within(tmp_path: Path) -> None:
    offered, times = offering(0, tmp_path)
    plan = base_plan("abcd")
    speed = 1e9 / times.total(plan)
    for factor, within in ((0.999, True), (1.001, False)):
        budget = BudgetSection(decode_speed=speed * factor, format="onnx")
        assert is_within(budget, offered.count, plan, times) is within


def test_what_is_small_and_slow_is_chosen_by_bytes_and_not_by_time(tmp_path: Path) -> None:
    exporter = Timed()
    count = count_of(exporter)
    losses = {None: 0.0, 2: 0.2, 8: 0.1}
    tried = {
        "a": LayerTried(
            [
                (Offer(form, exporter.stored_bytes(form)), losses[bits])
                for bits in losses
                for form in [layer("a", None, bits)]
            ]
        )
    }
    times = KernelTimes(count, tmp_path, head=HEAD)
    timed = Offering.of(base_plan("a"), tried, count, {}, times)
    plain = Offering.of(base_plan("a"), tried, count, {})

    def bits(choice: Choice) -> int | None:
        spec = choice.plan.layer("a").quantization["weight"]
        return None if spec is None else spec.bits

    fast = BudgetSection(decode_speed=1e9 / (times.nanoseconds(layer("a", None, 8)) + times.head))
    small = BudgetSection(size=f"{exporter.stored_bytes(layer('a', None, 2)) + 1000} B")
    assert bits(choose(timed, make_target(fast, timed))) == 8
    assert bits(choose(plain, make_target(small, plain))) == 2
    assert [one.nanoseconds for one in timed.candidates["a"]] == sorted(
        (one.nanoseconds for one in timed.candidates["a"]), reverse=True
    )
    assert len(plain.candidates["a"]) == 3
    assert len(timed.candidates["a"]) == 2  # two bits lose more and take longer than eight
    assert all(one.nanoseconds == 0 for one in plain.candidates["a"])


def test_a_pinned_layer_takes_its_time(tmp_path: Path) -> None:
    exporter = Timed()
    count = count_of(exporter)
    times = KernelTimes(count, tmp_path, head=HEAD)
    tried = tried_at_random(3, "ab", exporter)
    pinned = {"a": layer("a", None, None)}
    offered = Offering.of(base_plan("ab"), tried, count, pinned, times)
    (only,) = offered.candidates["a"]
    assert only.nanoseconds == times.nanoseconds(pinned["a"])
    limit = times.head + only.nanoseconds + min(map(times.nanoseconds, forms("b")))
    budget = BudgetSection(decode_speed=1e9 / limit * (1 - 1e-12))
    choice = choose(offered, make_target(budget, offered))
    assert choice.plan.layer("a") == pinned["a"]
    assert times.total(choice.plan) <= limit


def test_a_speed_out_of_reach_is_told_in_tokens_per_second(tmp_path: Path) -> None:
    offered, times = offering(0, tmp_path)
    everything = list(every_choice(0, times))
    fastest = 1e9 / min(everything)[0]
    # Slowest among those that are offered: nothing that both takes longer and loses more.
    dense = 1e9 / times.total(base_plan("abcd"))
    speed = fastest * 1.01
    with pytest.raises(RankError) as error:
        choose(offered, make_target(BudgetSection(decode_speed=speed), offered))
    message = str(error.value)
    assert f"the target of {speed:.1f} tokens per second cannot be reached" in message
    assert f"from {fastest:.1f} tokens per second to {dense:.1f} tokens per second" in message


def test_a_contest_by_time_tries_what_one_by_bytes_does_not(tmp_path: Path) -> None:
    exporter = Timed()
    times = KernelTimes(count_of(exporter), tmp_path)
    # Coarse codes of the whole layer are smaller than the factors and lose less, but are slow.
    slow, fast = layer("a", None, 2), layer("a", 32, 4, 4)
    offers = [Offer(form, exporter.stored_bytes(form)) for form in (slow, fast)]
    assert offers[0].bytes < offers[1].bytes
    assert times.cost(offers[0]) > times.cost(offers[1])

    def names(found: list[Tried]) -> list[int | None]:
        return [offer.layer.rank for offer, _ in found]

    def loss(form: LayerPlan) -> float:
        return 0.1 if form.rank is None else 0.5

    by_bytes = contest(offers, loss, lambda form: 0.4)
    by_time = contest(offers, loss, lambda form: 0.4, times.cost)
    assert names(by_bytes) == [None]
    assert names(by_time) == [None, 32]
    assert names(undominated(by_time, times.cost)) == [None, 32]
    assert names(undominated(by_time)) == [None]
