"""The model without its weights: structure, blocks, and the weights there are to compress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from asvd_q.errors import ModelError, first_line
from asvd_q.models.buffers import load_buffers
from asvd_q.models.refs import WeightRef
from asvd_q.models.source import SourceModel
from asvd_q.models.support import require_attention, require_decoder, require_weights

__all__ = ["Skeleton", "build_skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """A model whose parameters are on the meta device.

    Attributes:
        model: the causal language model; buffers are those of the files, parameters hold no
            memory.
        blocks_path: dotted path of the list of transformer blocks.
        weights: every weight of a linear layer inside the blocks, then the head's.
        embedding: of the tokens; None where the model has something else in its place.
        head: name of the output projection; None when there is none.
        head_is_tied: whether the head's weight is the embedding's.
        untouched: parameters of two or more dimensions inside the blocks that are no linear
            layer's weight, such as experts in one tensor: name → number of values.
    """

    model: nn.Module
    blocks_path: str
    weights: tuple[WeightRef, ...]
    head: str | None
    head_is_tied: bool
    untouched: Mapping[str, int]
    embedding: WeightRef | None = None

    @property
    def by_name(self) -> dict[str, WeightRef]:
        """All weights, the embedding's first."""
        first = () if self.embedding is None else (self.embedding,)
        return {weight.name: weight for weight in (*first, *self.weights)}

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in the order in which they are run."""
        found = self.model.get_submodule(self.blocks_path)
        assert isinstance(found, nn.ModuleList)
        return found

    def block_name(self, index: int) -> str:
        """Dotted path of a block."""
        return f"{self.blocks_path}.{index}"

    def untouched_kinds(self) -> tuple[list[str], float]:
        """Names that untouched parameters have within a block, and their share of its weights."""
        prefix = f"{self.blocks_path}."
        kinds = {name.removeprefix(prefix).partition(".")[2] for name in self.untouched}
        left = sum(self.untouched.values())
        inside = (weight.shape for weight in self.weights if weight.block is not None)
        return sorted(kinds), left / (left + sum(rows * columns for rows, columns in inside))


def build_skeleton(source: SourceModel, *, whole: bool = True) -> Skeleton:
    """Build a model's structure without reading a single weight.

    Args:
        whole: the files hold every parameter; False where others stand in for some of them.

    Raises:
        ModelError: transformers cannot build it, it is no decoder with attention, it has no list
            of like blocks, or the files do not hold what it needs.
    """
    require_decoder(source)
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                source.config, trust_remote_code=source.trust_remote_code
            )
    except (ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"model.path: transformers cannot build a causal language model from "
            f"{source.path}: {first_line(error)}"
        ) from error
    model.tie_weights()  # registering a parameter on the meta device had torn them apart
    model.eval()
    require_attention(source, model)
    blocks_path = _find_blocks(model)
    if whole:
        require_weights(source, model)
    load_buffers(model, source)
    head = _name_of(model, model.get_output_embeddings())
    tied = head is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    weights = tuple(_weights(model, blocks_path, head))
    return Skeleton(
        model=model,
        blocks_path=blocks_path,
        weights=weights,
        head=head,
        head_is_tied=tied,
        untouched=_untouched(model, blocks_path, {weight.tensor_name for weight in weights}),
        embedding=_embedding(model, head if tied else None),
    )


def _find_blocks(model: nn.Module) -> str:
    """The list of modules of one class that holds most of the parameters."""
    best, most = "", 0
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(child) for child in module}) != 1:
            continue
        count = sum(parameter.numel() for parameter in module.parameters())
        if count > most:
            best, most = path, count
    if not best:
        raise ModelError(
            f"model.path: {type(model).__name__} has no list of transformer blocks, and models "
            "without one are not supported"
        )
    return best


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _embedding(model: nn.Module, tied: str | None) -> WeightRef | None:
    """The embedding of tokens; positions and the like have others."""
    module = model.get_input_embeddings()  # type: ignore[operator]
    name = _name_of(model, module)
    if name is None or not isinstance(module, nn.Embedding):
        return None
    rows, columns = module.weight.shape
    subclass = None if type(module) is nn.Embedding else type(module).__name__
    return WeightRef(
        name, name, (rows, columns), None, subclass=subclass, role="embedding", tied=tied
    )


def _weights(model: nn.Module, blocks_path: str, head: str | None) -> Iterable[WeightRef]:
    prefix = blocks_path + "."
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        transposed = isinstance(module, Conv1D)
        rows, columns = module.weight.shape
        shape = (columns, rows) if transposed else (rows, columns)
        block: int | None = None
        if name.startswith(prefix):
            block = int(name.removeprefix(prefix).split(".", 1)[0])
        elif name != head:
            continue
        exact = type(module) in (nn.Linear, Conv1D)
        subclass = None if exact else type(module).__name__
        yield WeightRef(name, name, shape, block, transposed=transposed, subclass=subclass)


def _untouched(model: nn.Module, blocks_path: str, covered: set[str]) -> dict[str, int]:
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith(f"{blocks_path}.") and parameter.dim() > 1 and name not in covered
    }
