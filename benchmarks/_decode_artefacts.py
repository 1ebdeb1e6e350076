"""Makes what decodes, once: a second run of the benchmark finds it where the first one left it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asvd_q.compressing import make_store
from asvd_q.files import atomic_folder, write_text
from asvd_q.models import SourceModel
from asvd_q.preparation import prepare
from asvd_q.progress import silent
from asvd_q.recipe import Recipe
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from benchmarks._decode_driver import Decoder, GraphFacts, OrtDecoder
from benchmarks._decode_graph import graph_facts
from benchmarks._decode_models import Llama, model_folder
from benchmarks._decode_peer import GenaiDecoder, build, peer_options
from benchmarks._decode_torch import TorchDecoder
from benchmarks._decode_variants import Variant

__all__ = ["Artefact", "Workshop"]

_GRAPH, _KEY = "model.onnx", "made_from.json"

_OPTIONS = OnnxOptions(external_data=True)
"""Weights outside the graph, as GenAI's builder has them, for small models too."""


@dataclass(frozen=True)
class Artefact:
    """A model in one form.

    Attributes:
        folder: of the checkpoint for torch, else of the graph.
        facts: of the graph; None for torch.
        bytes: of its weights: parameters in float32, or the graph's files.
        kept_ratio: parameters of the blocks' linear layers, after / before, with whole ranks.
    """

    variant: Variant
    model: str
    folder: Path
    facts: GraphFacts | None
    bytes: int
    kept_ratio: float = 1.0

    @property
    def runs_in_genai(self) -> bool:
        return (self.folder / "genai_config.json").is_file()

    def decoder(self, threads: int, runtime: str = "ort") -> Decoder:
        """Open it.

        Args:
            runtime: "genai" for that runtime's own loop, where the artefact says how.
        """
        if self.facts is None:
            return TorchDecoder(self.folder, threads=threads)
        if runtime == "genai":
            return GenaiDecoder(self.folder, threads=threads)
        return OrtDecoder(self.folder / _GRAPH, facts=self.facts, threads=threads)


@dataclass(frozen=True)
class Workshop:
    """Makes artefacts below a folder.

    Attributes:
        group: weights per scale, of the peer's codes too.
        export_again: stores are kept, graphs are written anew.
    """

    folder: Path
    group: int
    export_again: bool = False

    def artefact(self, name: str, model: Path | Llama, variant: Variant) -> Artefact:
        """Make one, or find it.

        Args:
            name: of the model's folder.
        """
        source = model_folder(model, self.folder / name / "model")
        if variant.maker == "torch":
            opened = SourceModel.open(str(source))
            return Artefact(variant, name, source, None, _float_bytes(opened))
        place = self.folder / name / variant.name.replace(" ", "-")
        kept = 1.0
        if variant.maker == "genai":
            folder = self._peer(source, place)
        else:
            folder, kept = self._ours(source, variant, place)
        facts = graph_facts(folder / _GRAPH)
        size = sum(path.stat().st_size for path in folder.glob(f"{_GRAPH}*"))
        return Artefact(variant, name, folder, facts, size, kept)

    def _ours(self, source: Path, variant: Variant, place: Path) -> tuple[Path, float]:
        """The graph's folder, and what the plan keeps of the parameters."""
        _claim(place, {"model": str(source.resolve()), **variant.sections})
        folder = place / "onnx"
        if self.export_again:
            shutil.rmtree(folder, ignore_errors=True)
        fields = {"model": {"path": str(source)}, "output": str(place)}
        prepared = prepare(Recipe.model_validate(fields | dict(variant.sections)))
        if not folder.is_dir():
            print(f"making {folder}", flush=True)
            store = make_store(prepared, place, None, silent)
            with atomic_folder(folder) as partial:
                options = _OPTIONS.model_copy(update=dict(variant.options))
                OnnxExporter(options).write(store, partial)
        return folder, prepared.plan.kept_ratio

    def _peer(self, source: Path, place: Path) -> Path:
        import onnxruntime_genai

        asked = peer_options(self.group)
        version = onnxruntime_genai.__version__
        _claim(place, {"model": str(source.resolve()), "version": version, **asked})
        folder = place / "onnx"
        if not folder.is_dir():
            print(f"making {folder}", flush=True)
            build(source, folder, self.group)
        return folder


def _claim(place: Path, made_from: Mapping[str, Any]) -> None:
    """Empty a folder whose content was made from something else."""
    text = json.dumps(made_from, indent=1, sort_keys=True)
    key = place / _KEY
    if not key.is_file() or key.read_text(encoding="utf-8") != text:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write_text(key, text)


def _float_bytes(source: SourceModel) -> int:
    return 4 * sum(math.prod(tensor.shape) for tensor in source.tensors.values())
