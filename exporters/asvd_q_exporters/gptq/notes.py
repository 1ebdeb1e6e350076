"""What a user of a GPTQ-format checkpoint should know before it is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from asvd_q_exporters.gptq.kernels import FAST, MARLIN, TILES, aten_fails, marlin_rank_multiple
from asvd_q_exporters.gptq.names import compact
from asvd_q_exporters.gptq.settings import Matrix, matrices, settings_of

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan

__all__ = ["notes"]


def notes(layers: Iterable[LayerPlan]) -> list[str]:
    """Sentences about layers that the format can hold; loads neither torch nor a runtime."""
    layers = list(layers)
    quantized = [matrix for matrix in matrices(layers) if matrix.spec is not None]
    return [
        *_of_loaders(layers),
        *_of_zero_points(quantized),
        *_of_kernels(quantized),
        *_of_the_cpu(quantized),
        *_of_order(quantized),
    ]


def _of_loaders(layers: Iterable[LayerPlan]) -> Iterator[str]:
    if len(set(settings_of(layers).values())) > 1:
        yield (
            "layers have settings of their own, which stand under `dynamic`: GPTQModel's loader "
            "reads them; transformers does not, and is no loader for this checkpoint"
        )


def _of_zero_points(quantized: list[Matrix]) -> Iterator[str]:
    found = [matrix for matrix in quantized if matrix.spec and not matrix.spec.symmetric]
    if not found:
        return
    yield (
        f"asymmetric codes ({_names(found)}) make it checkpoint_format gptq_v2: transformers and "
        "GPTQModel read it; ONNX Runtime GenAI's builder takes every checkpoint for the first "
        "version, and is silently wrong"
    )
    if any(matrix.spec and matrix.spec.bits == 4 for matrix in found):
        yield (
            "gptqmodel's TORCH_FUSED kernel is silently wrong for asymmetric 4-bit codes: do not "
            "choose it"
        )


def _of_kernels(quantized: list[Matrix]) -> Iterator[str]:
    """Matrices that no fast kernel takes, by what is in the way; and those that Marlin leaves."""
    slow: dict[str, list[Matrix]] = {}
    tiles: dict[bool, list[Matrix]] = {}
    for matrix in quantized:
        assert matrix.spec is not None
        missed = [kernel.misses(matrix.shape, matrix.spec) for kernel in FAST]
        fast = None in missed
        if MARLIN.misses(matrix.shape, matrix.spec) == TILES:
            tiles.setdefault(fast, []).append(matrix)
        elif not fast:
            # Of the kernels that have codes of this width, the first tells.
            wide = [kernel for kernel in FAST if matrix.spec.bits in kernel.bits]
            reason = str(missed[FAST.index(wide[0]) if wide else 0])
            slow.setdefault(reason, []).append(matrix)
    names = " and ".join(kernel.name for kernel in FAST)
    for reason, found in slow.items():
        yield (
            f"on a GPU only gptqmodel's slow portable kernels take {_names(found)}: {names} take "
            f"no {reason}"
        )
    for fast, found in tiles.items():
        others = "ExLlama is left" if fast else "slow portable kernels are left"
        yield (
            f"on a GPU {others} for {_names(found)}: Marlin, the fastest that gptqmodel has, "
            f"wants one side a multiple of 64 and the other of 128{_advice(found)}"
        )


def _advice(found: list[Matrix]) -> str:
    """The rank with which Marlin takes the factors among matrices."""
    multiples = {marlin_rank_multiple(matrix) for matrix in found}
    useful = {multiple for multiple in multiples if multiple is not None}
    if not useful:
        return ""
    some = " for some" if None in multiples else ""
    return f", which decompose.rank_multiple {max(useful)} gives{some}"


def _of_the_cpu(quantized: list[Matrix]) -> Iterator[str]:
    found = [matrix for matrix in quantized if aten_fails(matrix)]
    if found:
        yield (
            f"torch's 4-bit kernels for CPUs fail on {_names(found)}: the checkpoint asks "
            'transformers for gptqmodel\'s portable kernel; give GPTQModel.load backend="torch"'
        )


def _of_order(quantized: list[Matrix]) -> Iterator[str]:
    found = [
        matrix for matrix in quantized if matrix.spec and matrix.spec.permutes(matrix.shape[1])
    ]
    if found:
        yield (
            "act_order makes it desc_act for all layers: kernels reorder every activation, and "
            f"those without act order, such as BitBLAS, refuse it ({_names(found)}); "
            "static_groups: true keeps the order"
        )


def _names(found: list[Matrix]) -> str:
    return compact(matrix.module for matrix in found)
