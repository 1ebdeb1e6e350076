"""What the sensitivity sweeps cost, and how well the fast one orders what the exact one measures.

Claims: the exact sweep gives the losses of the published procedure in a fraction of its time; the
fast one orders the candidates alike for a few forward passes.

    python -m benchmarks.sensitivity --data DIR [--samples 32] [--scaling whitening]

A candidate is a layer of the blocks at one of the ratios 0.4 … 0.9, ranks rounded down. All sweeps
run on the same tokens with the same number of threads. A forward pass is one of the whole
transformers model over all calibration windows, to the logits, measured before every sweep; the
median counts.

The published procedure (benchmarks/_naive.py) is timed once, the pass that collects its statistics
left out; the other sweeps several times, in turns with it, with all that they need. Each of these
runs in a process of its own, whose largest resident set, imports included, is its peak memory.

The published procedure is then repeated on some layers with an exact SVD and the scaling of the
exact sweep, since only there the two must give the same losses.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console

from asvd_q.recipe import DecomposeSection
from asvd_q.report.tables import Table, print_table, size
from asvd_q.statistics.labels import Labels
from benchmarks._agreement import Difference, Losses, compare_losses, rank_agreement
from benchmarks._sweeps import Measured
from benchmarks._trial import Trial
from benchmarks.common import Bench, finish, parse_options

__all__ = ["Report", "Runs", "main", "run_all", "summarize"]


@dataclass(frozen=True)
class Runs:
    """All that was measured, raw."""

    published_seconds: float
    published: Losses
    exact: list[Measured]
    divergence: Measured
    fast: Mapping[Labels, list[Measured]]
    checked: Losses
    dense: float


def run_all(
    trial: Trial, *, labels: Labels, exact_repeats: int, fast_repeats: int, check_layers: int
) -> Runs:
    """Measure everything, the sweeps that are compared in turns.

    Args:
        labels: of the fast sweep that is repeated; the other one is run once.
        check_layers: how many layers the published sweep goes over with an exact SVD.
    """
    fast: dict[Labels, list[Measured]] = {"corpus": [], "sampled": []}
    exact: list[Measured] = []
    for turn in range(max(exact_repeats, fast_repeats)):
        if turn < fast_repeats:
            fast[labels].append(trial.sweep(sensitivity="fast", labels=labels))
        if turn < exact_repeats:
            exact.append(trial.sweep(sensitivity="exact"))
        if turn == 0:
            published_seconds, published = trial.published()
    divergence = trial.sweep(sensitivity="exact", metric="kl")
    for other, runs in fast.items():
        if not runs:
            runs.append(trial.sweep(sensitivity="fast", labels=other))
    return Runs(
        published_seconds=published_seconds,
        published=published,
        exact=exact,
        divergence=divergence,
        fast=fast,
        checked=trial.published_exactly(check_layers),
        dense=trial.dense(),
    )


@dataclass(frozen=True)
class Report:
    """What the JSON holds. Seconds are medians; bytes are peaks of processes of their own.

    Attributes:
        exact_speedup, fast_speedup: the published sweep's seconds over theirs.
        exact_forwards_per_candidate: in forward passes over all calibration windows.
        exact_max_relative_difference: of the loss with a layer truncated, against the published
            procedure with an exact SVD; `difference` has the same for the loss increase.
        fast_forward_equivalents: of the whole sweep, statistics and decompositions included.
        fast_spearman: prediction from sampled labels against the measured divergence.
        fast_spearman_corpus: prediction from the corpus' labels against the measured loss.
        peak_memory_bytes: of the exact sweep; what the sweep itself added to the process is in
            `exact_added_memory_bytes`.
        losses: one row per candidate; increases over the dense model, nats per token. Those of
            the published procedure are for its own scaling.
    """

    exact_speedup: float
    exact_forwards_per_candidate: float
    exact_max_relative_difference: float
    fast_speedup: float
    fast_forward_equivalents: float
    fast_spearman: float
    fast_spearman_corpus: float
    peak_memory_bytes: int
    exact_added_memory_bytes: int
    fast_peak_memory_bytes: int
    fast_added_memory_bytes: int
    candidates: int
    forward_seconds: float
    published_seconds: float
    exact_seconds: float
    exact_kl_seconds: float
    fast_seconds: float
    difference: Difference
    settings: dict[str, Any]
    losses: list[dict[str, Any]]


def summarize(trial: Trial, runs: Runs, labels: Labels) -> Report:
    """From what was measured to what is reported."""
    forward, exact, fast = median(trial.forwards), runs.exact[0].losses, runs.fast
    exact_seconds, fast_seconds = _seconds(runs.exact), _seconds(fast[labels])
    difference = compare_losses(exact, runs.checked, runs.dense)
    rows = [
        {
            "layer": name,
            "rank": rank,
            "exact": loss,
            "exact_kl": runs.divergence.losses[name][rank],
            "fast_corpus": fast["corpus"][0].losses[name][rank],
            "fast_sampled": fast["sampled"][0].losses[name][rank],
            "published": runs.published[name][rank] - runs.dense,
        }
        for name, losses in exact.items()
        for rank, loss in losses.items()
    ]
    return Report(
        exact_speedup=runs.published_seconds / exact_seconds,
        exact_forwards_per_candidate=exact_seconds / trial.candidates / forward,
        exact_max_relative_difference=difference.loss,
        fast_speedup=runs.published_seconds / fast_seconds,
        fast_forward_equivalents=fast_seconds / forward,
        fast_spearman=rank_agreement(runs.divergence.losses, fast["sampled"][0].losses),
        fast_spearman_corpus=rank_agreement(exact, fast["corpus"][0].losses),
        peak_memory_bytes=max(run.peak_memory_bytes for run in runs.exact),
        exact_added_memory_bytes=max(run.added_memory_bytes for run in runs.exact),
        fast_peak_memory_bytes=max(run.peak_memory_bytes for run in fast[labels]),
        fast_added_memory_bytes=max(run.added_memory_bytes for run in fast[labels]),
        candidates=trial.candidates,
        forward_seconds=forward,
        published_seconds=runs.published_seconds,
        exact_seconds=exact_seconds,
        exact_kl_seconds=runs.divergence.seconds,
        fast_seconds=fast_seconds,
        difference=difference,
        settings=trial.settings() | {"labels": labels},
        losses=rows,
    )


def _seconds(runs: Sequence[Measured]) -> float:
    return median(run.seconds for run in runs)


def _times(report: Report, runs: Runs) -> Table:
    def row(name: str, seconds: float, *memory: int) -> tuple[str, ...]:
        return (
            name,
            f"{seconds:.2f}",
            f"{seconds / report.forward_seconds:.1f}",
            f"{seconds / report.forward_seconds / report.candidates:.3f}",
            f"{report.published_seconds / seconds:.1f}×",
            *(map(size, memory) if memory else ("", "")),
        )

    costs = ("seconds", "forward passes", "per candidate", "faster")
    columns = ("sweep", *costs, "peak memory", "added by the sweep")
    kl, exact = runs.divergence, (report.peak_memory_bytes, report.exact_added_memory_bytes)
    fast = (report.fast_peak_memory_bytes, report.fast_added_memory_bytes)
    rows = (
        row("published procedure", report.published_seconds),
        row("exact", report.exact_seconds, *exact),
        row("exact, metric kl", kl.seconds, kl.peak_memory_bytes, kl.added_memory_bytes),
        row("fast", report.fast_seconds, *fast),
    )
    title = f"{report.candidates} candidates; one forward pass: {report.forward_seconds:.2f} s"
    return Table(title, columns, rows)


def _agreement(report: Report, runs: Runs) -> Table:
    found = report.difference
    where = f"{len(runs.checked)} layers, {found.candidates} candidates"
    rows = (
        (f"exact / published with an exact SVD ({where}): loss, relative", f"{found.loss:.1e}"),
        ("  the same: loss increase, relative", f"{found.increase:.1e}"),
        ("  the same: nats per token", f"{found.absolute:.1e}"),
        ("fast, sampled labels / exact, metric kl: Spearman", f"{report.fast_spearman:.4f}"),
        ("fast, corpus labels / exact: Spearman", f"{report.fast_spearman_corpus:.4f}"),
    )
    return Table("\nAgreement", ("between", ""), rows)


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="calibration windows, at most 32")
    parser.add_argument(
        "--scaling",
        default=DecomposeSection().scaling,
        choices=("whitening", "abs_mean", "abs_max", "rms", "none"),
        help="of all but the published procedure, which has abs_mean",
    )
    parser.add_argument("--labels", default="sampled", choices=("sampled", "corpus"))
    parser.add_argument("--batch-size", type=int, default=4, help="windows per forward pass")
    parser.add_argument("--check-layers", type=int, help="by default a third of the layers")
    parser.add_argument("--exact-repeats", type=int, default=2)
    parser.add_argument("--fast-repeats", type=int, default=3)
    options = parse_options(__doc__ or "", parser)
    bench = Bench(options)
    windows = bench.calibration()[: options.samples].contiguous()
    section = DecomposeSection(scaling=options.scaling)
    trial = Trial(bench, windows, section, options.batch_size)
    runs = run_all(
        trial,
        labels=options.labels,
        exact_repeats=options.exact_repeats,
        fast_repeats=options.fast_repeats,
        check_layers=options.check_layers or len(trial.weights) // 3,
    )
    report = summarize(trial, runs, options.labels)
    print_table(Console(), _times(report, runs))
    finish(options, _agreement(report, runs), asdict(report))


if __name__ == "__main__":
    main()
