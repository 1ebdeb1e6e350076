"""Where the time of a decoded token goes in a decoder's graph, operator by operator.

    python -m benchmarks.profile_decode PATH [--tokens 64] [--prompt 128] [--batch 1] [--threads N]
                                        [--nodes] [--json FILE]

PATH is a graph or a folder with `model.onnx`: an artefact of this package, or what another builder
of decoders has written. The runtime's own profile says how long each node took; shown are the
microseconds per step after the prompt, their share, how many nodes ran, and how many nodes of that
kind the graph has before and after the runtime's own optimization. With --nodes the same for every
node. Profiling itself costs about a microsecond per node, so a step without it is timed as well:
what it takes beyond the sum of its nodes is spent between them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime

from asvd_q.process import settle_process
from asvd_q.report.tables import Table
from asvd_q_exporters.onnx.session import session_options
from asvd_q_exporters.onnx.timing import typical
from benchmarks._decode_driver import OrtDecoder, greedy, prompt
from benchmarks._decode_graph import graph_facts, operator_counts
from benchmarks.common import finish

__all__ = ["Profile", "main", "profile"]

_SUFFIX = "_kernel_time"
_WARM_UP = 2
"""Runs at the start that do not count: the prompt and the step after it."""


@dataclass(frozen=True)
class Profile:
    """Of one step.

    Attributes:
        node_seconds: by operator and node, the mean of the middle half of the steps.
        step_seconds: of a whole step without profiling, the median.
        operators: nodes by operator as they were written.
        optimized: nodes by operator as the runtime runs them.
    """

    node_seconds: dict[tuple[str, str], float]
    step_seconds: float
    operators: dict[str, int]
    optimized: dict[str, int]

    @property
    def seconds(self) -> dict[str, float]:
        """By operator, the slowest first."""
        found: dict[str, float] = {}
        for (operator, _), value in self.node_seconds.items():
            found[operator] = found.get(operator, 0.0) + value
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def profile(path: Path, *, threads: int, batch: int, prompt_tokens: int, tokens: int) -> Profile:
    """Decode twice, first without the profile and then with it."""
    facts = graph_facts(path)
    decoder = OrtDecoder(path, facts=facts, threads=threads)
    ids = prompt(decoder.vocabulary, batch, prompt_tokens)
    best = decoder.prefill(ids, tokens)
    seconds: list[float] = []
    for _ in range(tokens - 1):
        start = time.perf_counter()
        best = decoder.step(best)
        seconds.append(time.perf_counter() - start)
    del decoder
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = _options(Path(folder), optimized)
        profiled = OrtDecoder(path, facts=facts, threads=threads, options=options)
        greedy(profiled, ids, tokens)
        events = json.loads(Path(profiled.session.end_profiling()).read_text(encoding="utf-8"))
        return Profile(
            node_seconds=_node_seconds(events),
            step_seconds=median(seconds),
            operators=operator_counts(path),
            optimized=operator_counts(optimized),
        )


def _options(folder: Path, optimized: Path) -> onnxruntime.SessionOptions:
    """Profiling, and the optimized graph on the disk with its weights beside it."""
    options = session_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "optimized.data"
    )
    return options


def _node_seconds(events: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    begin = sorted(event["ts"] for event in events if event["name"] == "model_run")[_WARM_UP]
    durations: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["name"].endswith(_SUFFIX) and event["ts"] >= begin:
            key = event["args"]["op_name"], event["name"].removesuffix(_SUFFIX)
            durations.setdefault(key, []).append(event["dur"] * 1e-6)
    found = {key: typical(values) for key, values in durations.items()}
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _table(found: Profile, title: str) -> Table:
    total = sum(found.node_seconds.values())
    ran: dict[str, int] = {}
    for operator, _ in found.node_seconds:
        ran[operator] = ran.get(operator, 0) + 1
    names = [*found.seconds, *(set(found.operators) | set(found.optimized)) - set(found.seconds)]
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{1e6 * found.seconds.get(name, 0.0):.1f}",
            f"{found.seconds.get(name, 0.0) / total:.1%}",
            str(ran.get(name, 0)),
            str(found.operators.get(name, 0)),
            str(found.optimized.get(name, 0)),
        )
        for name in names
    ]
    counts = [sum(one.values()) for one in (ran, found.operators, found.optimized)]
    rows.append(("all", f"{1e6 * total:.1f}", "100.0%", *map(str, counts)))
    return Table(title, ("operator", "µs", "share", "ran", "written", "optimized"), tuple(rows))


def _node_table(found: Profile) -> Table:
    total = sum(found.node_seconds.values())
    rows = tuple(
        (name, operator, f"{1e6 * seconds:.1f}", f"{seconds / total:.1%}")
        for (operator, name), seconds in found.node_seconds.items()
    )
    return Table("Nodes", ("node", "operator", "µs", "share"), rows)


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="a graph, or a folder with model.onnx")
    parser.add_argument("--tokens", type=int, default=64, help="decoded after the prompt")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--nodes", action="store_true", help="every node as well")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    if options.tokens <= _WARM_UP:
        parser.error(f"--tokens has to be more than {_WARM_UP}")
    path = options.path / "model.onnx" if options.path.is_dir() else options.path
    found = profile(
        path,
        threads=options.threads,
        batch=options.batch,
        prompt_tokens=options.prompt,
        tokens=options.tokens,
    )
    total = sum(found.node_seconds.values())
    title = (
        f"{path}: {1e6 * found.step_seconds:.0f} µs per step, {1e6 * total:.0f} µs in its nodes "
        f"while profiled; batch {options.batch}, {options.threads} threads"
    )
    content = {
        "runtime": f"onnxruntime {onnxruntime.__version__} CPU",
        "threads": options.threads,
        "step_seconds": found.step_seconds,
        "seconds": found.seconds,
        "operators": found.operators,
        "optimized": found.optimized,
        "nodes": [
            {"node": name, "operator": operator, "seconds": seconds}
            for (operator, name), seconds in found.node_seconds.items()
        ],
    }
    if options.nodes:
        finish(argparse.Namespace(json=None), _node_table(found), None)
    finish(options, _table(found, title), content)


if __name__ == "__main__":
    main()
