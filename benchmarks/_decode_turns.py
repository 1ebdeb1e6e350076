"""Times decoders in turns, in processes that hold few models each.

    python -m benchmarks._decode_turns < ASKED

reads what to measure as JSON, an `_Asked`, and prints times by name. Where a process puts weights
and threads changes speeds by some percent, and so do other models that it holds: each form is
measured beside those that it is compared with and no others, in more than one process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from asvd_q.evaluation.memory import run_apart
from asvd_q.process import settle_process
from benchmarks._decode_artefacts import Artefact
from benchmarks._decode_driver import GraphFacts, prompt
from benchmarks._decode_speed import Times, alternate
from benchmarks._decode_variants import Variant

__all__ = ["Setting", "times_apart"]


class Setting(BaseModel):
    """How decoders are timed.

    Attributes:
        runtime: whose loop: "ort" or "genai".
        context: tokens of the prompt, of one sequence.
        tokens: steps after it.
        rounds: in each process; more of them where a process has seconds left.
        seconds: that all processes together last at least.
    """

    model_config = ConfigDict(frozen=True)

    threads: int
    runtime: str
    context: int
    tokens: int
    rounds: int
    seconds: float
    processes: int


class _Form(BaseModel):
    folder: Path
    facts: GraphFacts | None


class _Asked(BaseModel):
    forms: dict[str, _Form]
    setting: Setting
    seed: int


def times_apart(made: Mapping[str, Artefact], setting: Setting) -> dict[str, Times]:
    """Of artefacts in turns, over some processes one after the other.

    Raises:
        ResourceError: a process failed; with the last line of what it said.
    """
    forms = {name: _Form(folder=one.folder, facts=one.facts) for name, one in made.items()}
    found = {name: Times() for name in made}
    for seed in range(setting.processes):
        asked = _Asked(forms=forms, setting=setting, seed=seed)
        answer = run_apart("benchmarks._decode_turns", given=asked.model_dump_json())
        for name, times in found.items():
            times.prefill += answer[name]["prefill"]
            times.decode += answer[name]["decode"]
    return found


def _measured(asked: _Asked) -> dict[str, Times]:
    setting = asked.setting
    decoders = {
        name: Artefact(Variant(name), "", form.folder, form.facts, 0).decoder(
            setting.threads, setting.runtime
        )
        for name, form in asked.forms.items()
    }
    vocabulary = min(decoder.vocabulary for decoder in decoders.values())
    return alternate(
        decoders,
        prompt(vocabulary, 1, setting.context),
        tokens=setting.tokens,
        rounds=setting.rounds,
        seconds=setting.seconds / setting.processes,
        seed=asked.seed,
    )


if __name__ == "__main__":
    settle_process()
    found = _measured(_Asked.model_validate_json(sys.stdin.read()))
    print(json.dumps({name: vars(times) for name, times in found.items()}))
