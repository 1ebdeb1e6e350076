"""A compressed model as a NumPy archive of its layers' matrices, in float32."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from asvd_q.artefact import BasicExporter, Runner, read_metadata
from asvd_q.evaluation.runners import model_runner
from asvd_q.exporting import write_rest
from asvd_q.models import SourceModel
from asvd_q.plan import LayerPlan, Slot
from asvd_q.store import Store


class NpzExporter(BasicExporter):
    name = "npz"

    def stored_bytes(self, layer: LayerPlan) -> int:
        return layer.parameters * 4

    def write(self, store: Store, folder: Path) -> None:
        matrices = {
            f"{layer.record.name}/{slot}": weight.dequantize().numpy()
            for layer in store.layers()
            for slot, weight in layer.weights.items()
        }
        np.savez(folder / "matrices.npz", **matrices)
        write_rest(store, folder)

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, torch.Tensor]]]:
        with np.load(folder / "matrices.npz") as archive:
            for layer in read_metadata(folder).layers:
                slots = layer.quantization
                yield layer.name, {s: torch.from_numpy(archive[f"{layer.name}/{s}"]) for s in slots}

    def open(self, folder: Path) -> Runner:
        return model_runner(SourceModel.open(str(folder)), dict(self.read(folder)).get)
