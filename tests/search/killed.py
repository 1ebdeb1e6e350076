"""Run as a program: a search that is left alone, and the same one killed until it is done.

    python -m tests.search.killed SEED FOLDER…

For every FOLDER/recipe.yaml it writes FOLDER/undisturbed and FOLDER/killed, outputs of
`asvd-q search`, and FOLDER/report.json. Every attempt is a fork, so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from asvd_q import cli
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.preparation import prepare
from asvd_q.recipe import load_recipe

FORWARD, TORN, REPLACED, RANKS_TORN = "forward", "torn", "replaced", "ranks.yaml torn"
"""A block is run; half of a file is written; a file has got its name; half of ranks.yaml is."""


@dataclass(frozen=True)
class Moment:
    """The `count`-th time, from 1, that an event happens in a process."""

    event: str
    count: int


@dataclass(frozen=True)
class Death:
    """How an attempt ended: its exit code, and how many layers' losses it left on disk."""

    moment: Moment
    exitcode: int | None
    kept: int


class Watch:
    """Counts events, and sends SIGKILL at one of them."""

    def __init__(self, moment: Moment | None = None) -> None:
        self.moment = moment
        self.seen: Counter[str] = Counter()
        self.before = 0
        """Blocks that were run before anything was written."""

    def install(self) -> None:
        """Watch this process, for good."""
        run_block, write_text, replace = BlockwiseModel.run_block, Path.write_text, os.replace

        def watched_run(model: BlockwiseModel, block: nn.Module, *args: Any) -> Tensor:
            self._happened(FORWARD)
            return run_block(model, block, *args)

        def watched_write(path: Path, text: str, **options: Any) -> int:
            if path.suffix == ".partial":
                write_text(path, text[: len(text) // 2], **options)
                self.before = self.before or self.seen[FORWARD]
                self._happened(TORN)
                if path.stem == "ranks.yaml":
                    self._happened(RANKS_TORN)
            return write_text(path, text, **options)

        def watched_replace(*paths: Any) -> None:
            replace(*paths)
            self._happened(REPLACED)

        BlockwiseModel.run_block = watched_run  # type: ignore[method-assign,assignment]
        Path.write_text = watched_write  # type: ignore[method-assign,assignment]
        os.replace = watched_replace  # type: ignore[assignment]

    def _happened(self, event: str) -> None:
        self.seen[event] += 1
        if self.moment == Moment(event, self.seen[event]):
            os.kill(os.getpid(), signal.SIGKILL)


def search(recipe: Path, output: Path, watch: Watch, counts: Path | None = None) -> None:
    """`asvd-q search` in this process, for which it is the last thing to do.

    Args:
        counts: a file for the number of events.
    """
    watch.install()
    sys.argv = ["asvd-q", "search", str(recipe), "--set", f"output={output}"]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
    if counts is not None:
        counts.write_text(json.dumps({**watch.seen, "before": watch.before}))


def forked(*arguments: Any) -> int | None:
    """Exit code of `search` in a fork of this process; −9 after SIGKILL."""
    process = get_context("fork").Process(target=search, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def draw_moments(seen: dict[str, int], sensitivity: str, seed: int) -> list[Moment]:
    """Ten moments: two before anything is kept, seven in random order, one at the very end.

    Args:
        seen: events of the undisturbed search, and `before`.
    """
    generator = random.Random(seed)
    before = seen["before"]
    if sensitivity == "exact":
        # It goes on where it was killed: so little at a time that it does not end too early.
        run, written = (before, before + (seen[FORWARD] - before) // 8), seen[TORN] // 8
    else:
        # It runs the model before it writes anything, and starts again.
        run, written = (1, before), seen[TORN] // 2
    events = [FORWARD, FORWARD, FORWARD, TORN, TORN, REPLACED, REPLACED]
    ranges = {FORWARD: run, TORN: (1, written), REPLACED: (1, written)}
    middle = [Moment(event, generator.randint(*ranges[event])) for event in events]
    generator.shuffle(middle)
    first = [Moment(FORWARD, generator.randint(1, before)) for _ in range(2)]
    return [*first, *middle, Moment(RANKS_TORN, 1)]


def kill_again_and_again(folder: Path, seed: int) -> None:
    """Search twice, as the recipe in a folder says, and report what happened."""
    recipe, output, counts = folder / "recipe.yaml", folder / "killed", folder / "counts.json"
    section = load_recipe(recipe).search
    assert section is not None
    assert forked(recipe, folder / "undisturbed", Watch(), counts) == 0
    deaths = []
    for moment in draw_moments(json.loads(counts.read_text()), section.sensitivity, seed):
        exitcode = forked(recipe, output, Watch(moment))
        kept = len(list((output / "search").glob("*/*.json")))
        deaths.append(asdict(Death(moment, exitcode, kept)))
    report = {"deaths": deaths, "end": forked(recipe, output, Watch())}
    (folder / "report.json").write_text(json.dumps(report))


def main(seed: int, *folders: Path) -> None:
    # What is imported here, no fork has to import again.
    prepare(load_recipe(folders[0] / "recipe.yaml"))
    import matplotlib.figure  # noqa: F401

    for folder in folders:
        kill_again_and_again(folder, seed)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
