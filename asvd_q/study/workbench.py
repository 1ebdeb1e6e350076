"""Computes points, one after another; what they have in common is done once.

<study>/work/store             of the point in work, whose key is in point.txt
<study>/work/search            sensitivities, under keys of their own
<study>/work/calibration       sampled text, likewise
<study>/work/dense             logits of the dense model, while a study runs
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from asvd_q.compressing import make_store
from asvd_q.compression.shared import SharedStatistics, statistics_bytes
from asvd_q.evaluation.quality import Quality, TokenWindows, distant_quality, evaluate_quality
from asvd_q.evaluation.runners import model_runner
from asvd_q.files import make_folder, write_text
from asvd_q.models import SourceModel
from asvd_q.opening import STORE
from asvd_q.preparation import Prepared, Tokens, prepare, read_tokens
from asvd_q.progress import Progress
from asvd_q.quantization import TORCH_TYPES
from asvd_q.recipe import Recipe
from asvd_q.report.resources import StageMeter
from asvd_q.rounds import search_and_compress
from asvd_q.statistics.reading import CorpusReader
from asvd_q.store import Store
from asvd_q.study.dense import DenseLogits
from asvd_q.study.keys import dense_key, point_key, statistics_key
from asvd_q.study.results import PointResult

__all__ = ["Ready", "Workbench"]

_WORK = "work"
_DENSE = "dense"
_IN_WORK = "point.txt"
_SHARE_OF_MEMORY = 0.25
"""Statistics that need more of the free memory than this are collected for every point anew."""


@dataclass(frozen=True)
class Ready:
    """A point that can be computed.

    Attributes:
        key: of all that its numbers depend on.
    """

    prepared: Prepared
    tokens: Tokens
    key: str

    @property
    def batch_size(self) -> int:
        """Of the evaluation."""
        assert self.prepared.recipe.evaluate is not None
        return self.prepared.recipe.evaluate.batch_size


class Workbench:
    """The models, texts, statistics and logits that points share."""

    def __init__(self, folder: Path, *, distances: bool, progress: Progress) -> None:
        """
        Args:
            folder: the study's.
            distances: measure how far points are from the dense model too.
            progress: called as work goes on.
        """
        self._folder = folder / _WORK
        self._distances = distances
        self._progress = progress
        self._sources: dict[str, tuple[SourceModel, CorpusReader]] = {}
        self._tokens: dict[str, Tokens] = {}
        self._dense: dict[str, DenseLogits] = {}
        self._shared: tuple[str, SharedStatistics] | None = None

    def ready(self, recipe: Recipe) -> Ready:
        """Open the model and read the texts, if that has not been done yet.

        Raises:
            AsvdQError: whatever is wrong with either.
        """
        source, reader = self._source(recipe)
        prepared = prepare(recipe, source)
        tokens = self._read(prepared, reader)
        return Ready(prepared, tokens, point_key(prepared, tokens, distances=self._distances))

    def dense(
        self, ready: Ready, known: Callable[[str], Quality | None]
    ) -> list[tuple[str, Quality]]:
        """Quality of the dense model by key, text by text; what is known is not measured again."""
        found = []
        for text in ready.tokens.texts:
            key = dense_key(ready.prepared, text)
            quality = known(key) or self._logits(ready.prepared).quality(
                key, text, ready.batch_size, self._progress, keep=self._distances
            )
            found.append((key, quality))
        return found

    def compute(self, ready: Ready) -> PointResult:
        """Search, compress and evaluate.

        Raises:
            AsvdQError: the target cannot be reached, a number is not finite, …
        """
        start = time.perf_counter()
        self._claim(ready.key)
        prepared, store = self._compressed(ready)
        quality = self._evaluated(ready, store)
        records = store.records()
        layer_bytes = sum(record.bytes_after for record in records)
        result = PointResult(
            kept_ratio=store.finished_plan.kept_ratio,
            layer_bytes=layer_bytes,
            total_bytes=layer_bytes + prepared.plan.other_bytes,
            quality=tuple(quality),
            setbacks=tuple({**prepared.pinned, **store.setbacks}),
            seconds=round(time.perf_counter() - start, 2),
        )
        shutil.rmtree(self._folder / STORE, ignore_errors=True)
        return result

    def close(self) -> None:
        """Remove the logits, which are large."""
        for dense in self._dense.values():
            dense.clear()

    def _claim(self, key: str) -> None:
        """Leave the store in the work folder only if it is what this point has begun."""
        make_folder(self._folder)
        note = self._folder / _IN_WORK
        if not note.is_file() or note.read_text(encoding="utf-8").strip() != key:
            shutil.rmtree(self._folder / STORE, ignore_errors=True)
            write_text(note, key + "\n")

    def _compressed(self, ready: Ready) -> tuple[Prepared, Store]:
        prepared, windows = ready.prepared, ready.tokens.calibration
        shared = self._statistics(ready)
        if not prepared.recipe.searches:
            store = make_store(prepared, self._folder, windows, self._progress, shared=shared)
            return prepared, store
        assert windows is not None  # the recipe's own check: a search needs calibration
        return search_and_compress(
            prepared, windows, self._folder, StageMeter(), self._progress, shared=shared
        )

    def _evaluated(self, ready: Ready, store: Store) -> list[Quality]:
        recipe, prepared = ready.prepared.recipe, ready.prepared
        runner = model_runner(
            prepared.source,
            store.replaced,
            device=prepared.device,
            dtype=TORCH_TYPES[recipe.compute_dtype],
        )
        found = []
        for text in ready.tokens.texts:

            def advance(done: int, total: int, text: TokenWindows = text) -> None:
                self._progress(f"evaluating on {text.corpus}", done, total)

            size = ready.batch_size
            if self._distances:
                key = dense_key(prepared, text)
                logits = self._logits(prepared).logits(key, text, size)
                quality = distant_quality(logits, runner, text, batch_size=size, progress=advance)
            else:
                quality = evaluate_quality(runner, text, batch_size=size, progress=advance)
            found.append(quality)
        return found

    def _source(self, recipe: Recipe) -> tuple[SourceModel, CorpusReader]:
        model = recipe.model
        key = model.model_copy(update={"dtype": "auto"}).model_dump_json()
        if key not in self._sources:
            source = SourceModel.open(
                model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
            self._sources[key] = source, CorpusReader()
        return self._sources[key]

    def _read(self, prepared: Prepared, reader: CorpusReader) -> Tokens:
        recipe = prepared.recipe
        parts = [recipe.model, recipe.calibration, recipe.evaluate]
        key = "\n".join("" if part is None else part.model_dump_json() for part in parts)
        key += f"{prepared.device} {recipe.compute_dtype}"
        if key not in self._tokens:
            self._tokens[key] = read_tokens(prepared, self._folder, self._progress, reader=reader)
        return self._tokens[key]

    def _logits(self, prepared: Prepared) -> DenseLogits:
        dtype = prepared.recipe.compute_dtype
        key = f"{prepared.source.identity.weights_sha256[:16]}-{prepared.device}-{dtype}"
        if key not in self._dense:
            self._dense[key] = DenseLogits(
                lambda: model_runner(
                    prepared.source, device=prepared.device, dtype=TORCH_TYPES[dtype]
                ),
                len(prepared.source.tokenizer),
                self._folder / _DENSE / key,
            )
        return self._dense[key]

    def _statistics(self, ready: Ready) -> SharedStatistics | None:
        """Those that an earlier point on the same tokens has left; only the last ones are kept."""
        key = statistics_key(ready.prepared, ready.tokens)
        if key is None:
            self._shared = None
            return None
        if self._shared is None or self._shared[0] != key:
            self._shared = None
            room = _SHARE_OF_MEMORY * psutil.virtual_memory().available
            if statistics_bytes(ready.prepared.skeleton.weights) > room:
                return None
            self._shared = key, SharedStatistics()
        return self._shared[1]
