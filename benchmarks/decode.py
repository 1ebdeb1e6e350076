"""How fast a compressed model decodes in ONNX Runtime, beside ONNX Runtime GenAI's own graph.

Claims: our dense 4-bit graph decodes and prefills at least as fast as the one that GenAI's builder
makes of the same model, in no more memory; and on a wide model factors in 4 bits decode faster than
dense codes in 4 bits, by at least 0.85 of what the bytes allow that a token reads.

    python -m benchmarks.decode --artefacts DIR [--model DIR] [--models given,wide]
                                [--parts speed,sweep,sizes] [--variants "int4;GenAI int4"]
                                [--group 32] [--threads N] [--rounds 5] [--tokens 16]
                                [--seconds 20] [--processes 3] [--runtime ort|genai]
                                [--float-head] [--export-again] [--json FILE]

`wide` has random weights in the layer shapes of a Llama of 1.1 billion parameters: 2048 wide, MLP
5632, vocabulary 32,000, four blocks. Artefacts are made in DIR, which takes some minutes, and found
there by later runs. One driver runs all graphs with the same settings. A process holds a variant
and the two that it is compared with, our dense codes and GenAI's graph; in each round each of them
takes a prompt of 128 tokens and decodes after it, in random order. Speeds are medians over the
rounds of all processes, ratios medians of the rounds' own ratios, memory the median of three
processes for each variant.

    speed   every variant, on every model; the claims are judged here
    sweep   time to the first token, and tokens per second over all sequences, as batch and context
            grow, on two blocks of width 1024
    sizes   from which width on factors decode faster than dense codes do, on two blocks

FILE is a list with the numbers of the first part; what it was measured with, the claims, and the
other parts are beside it in FILE.rest.json (of FILE.json). GenAI's builder comes with the extra
`genai`. The script ends with status 3 where a claim does not hold, everything written; "at least as
fast" is granted 2 percent, and "no more memory" 0.5, by which the same graph differs from itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console

from asvd_q.process import settle_process
from asvd_q.report.run import versions
from asvd_q.report.tables import print_table
from benchmarks._claims import end_claim_failed
from benchmarks._decode_artefacts import Workshop
from benchmarks._decode_claims import claims
from benchmarks._decode_models import WIDE, WREN
from benchmarks._decode_parts import sizes, speed, sweep
from benchmarks._decode_peer import peer_options
from benchmarks._decode_tables import size_table, speed_table, sweep_table
from benchmarks._decode_variants import variants
from benchmarks.common import known_names, write_json

__all__ = ["main"]

_MODELS = ("given", "wide")
_PARTS = ("speed", "sweep", "sizes")


def main() -> None:
    settle_process()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = _options()
    forms = variants(options.group, float_head=options.float_head)
    unknown = [name for name in options.variants or () if name not in forms]
    if unknown:
        sys.exit(f"{unknown[0]!r} is none of {'; '.join(forms)}")
    workshop = Workshop(options.artefacts, options.group, options.export_again)
    print(f"GenAI's builder: {peer_options(options.group)}, otherwise its defaults")
    content: dict[str, Any] = {
        "runtime": f"onnxruntime {onnxruntime.__version__} CPU",
        "versions": versions(),
        "threads": options.threads,
        "group": options.group,
        "loop": options.runtime,
        "processes": options.processes,
        "peer": peer_options(options.group),
    }
    console, failed = Console(), []
    if "speed" in options.parts:
        points = []
        chosen = {name: forms[name] for name in options.variants or forms}
        for name in options.models:
            model = options.model if name == "given" else WIDE
            title = options.model.name if name == "given" else name
            found = speed(title, model, chosen, workshop, options)
            print_table(console, speed_table(title, found))
            points += found
        judged = claims(points)
        for claim in judged:
            print(claim)
        failed = [claim for claim in judged if not claim.holds]
        if options.json is not None:
            write_json(options.json, [point.model_dump() for point in points])
        content["claims"] = [claim.model_dump() for claim in judged]
        _write(options, content)
    if "sweep" in options.parts:
        steps = sweep(forms, workshop, options)
        print_table(console, sweep_table(steps))
        content["sweep"] = [step.model_dump() for step in steps]
        _write(options, content)
    if "sizes" in options.parts:
        widths = sizes(forms, workshop, options)
        print_table(console, size_table(widths))
        content["sizes"] = [width.model_dump() for width in widths]
        _write(options, content)
    if failed:
        end_claim_failed("; ".join(str(claim) for claim in failed))


def _write(options: Namespace, content: dict[str, Any]) -> None:
    """After every part, so that the last one's failure loses nothing."""
    if options.json is not None:
        write_json(options.json.with_suffix(".rest.json"), content)


def _options() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artefacts", type=Path, required=True, help="folder that keeps them")
    parser.add_argument("--model", type=Path, default=WREN, help="the given one")
    parser.add_argument("--models", type=lambda text: known_names(text, _MODELS), default=_MODELS)
    parser.add_argument("--parts", type=lambda text: known_names(text, _PARTS), default=_PARTS)
    parser.add_argument(
        "--variants",
        type=lambda text: tuple(filter(None, map(str.strip, text.split(";")))),
        help="names with ; of those that part speed measures",
    )
    parser.add_argument("--group", type=int, default=32, help="weights per scale")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="decoded per round")
    parser.add_argument(
        "--seconds", type=float, default=20, help="that a comparison lasts at least"
    )
    parser.add_argument("--processes", type=int, default=3, help="for each comparison")
    parser.add_argument("--runtime", choices=("ort", "genai"), default="ort")
    parser.add_argument("--float-head", action="store_true", help="embedding and head, in ours")
    parser.add_argument("--export-again", action="store_true", help="from the stores in the folder")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
