"""Runners for the dense model, a store, and any artefact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.artefact import Runner, read_metadata
from asvd_q.errors import ArtefactError
from asvd_q.exporter_registry import build_exporter

if TYPE_CHECKING:
    import torch

    from asvd_q.models import SourceModel
    from asvd_q.models.assemble import Replaced

__all__ = ["artefact_runner", "model_runner"]

_SHARE_OF_MEMORY = 0.6
"""A model that needs more of the free memory than this is streamed block by block."""


def model_runner(
    source: SourceModel,
    replaced: Replaced | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    stream: bool | None = None,
) -> Runner:
    """A torch Runner of the source model, or of a store over it.

    Args:
        replaced: `store.replaced`; None runs the dense model.
        dtype: of weights and activations; float32 when None.
        stream: load block by block; None does so when the whole does not fit into memory.
    """
    import psutil
    import torch

    from asvd_q.evaluation.streaming import StreamingRunner
    from asvd_q.evaluation.torch_runner import TorchRunner
    from asvd_q.models.assemble import assemble, nothing_replaced
    from asvd_q.models.blockwise import BlockwiseModel
    from asvd_q.models.skeleton import build_skeleton

    dtype = dtype or torch.float32
    lookup = replaced or nothing_replaced
    skeleton = build_skeleton(source, whole=replaced is None)
    if stream is None:
        needed = sum(info.numel for info in source.tensors.values()) * dtype.itemsize
        stream = needed > _SHARE_OF_MEMORY * psutil.virtual_memory().available
    if stream:
        blocks = BlockwiseModel(
            source, replaced=lookup, device=device, dtype=dtype, skeleton=skeleton
        )
        return StreamingRunner(blocks)
    model = assemble(skeleton.model, "", source, lookup, device=device, dtype=dtype)
    return TorchRunner(model, runtime=f"torch {torch.__version__} {device}", device=device)


def artefact_runner(folder: Path) -> Runner:
    """Open an exported artefact in its own runtime.

    Raises:
        ArtefactError: the folder is not an artefact, or is damaged.
        MissingExtraError: its runtime is not installed.
    """
    metadata = read_metadata(folder)
    if metadata.format == "store":
        raise ArtefactError(f"{folder} is a store: it runs through the run folder it lies in")
    return build_exporter(metadata.format, metadata.options).open(folder)
