"""A block with one of its layers truncated, run again from what its dense run recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from asvd_q.errors import ModelError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import Site, WeightRef

__all__ = ["TruncatedLayer"]


class TruncatedLayer:
    """A block with one of its layers truncated."""

    def __init__(
        self,
        model: BlockwiseModel,
        block: nn.Module,
        index: int,
        ref: WeightRef,
        sites: Sequence[Site],
    ) -> None:
        """Args: sites: all of the block's."""
        self.model = model
        self.block = block
        self.index = index
        self._prefix = model.skeleton.block_name(index) + "."
        self._name = ref.name
        self._names = [name for site in sites for name in site.modules]
        self._siblings = next(site.modules for site in sites if ref.module in site.modules)

    def run(self, hidden: Tensor, left: Tensor, ranks: Sequence[int]) -> Iterator[Tensor]:
        """Outputs of the block, rank by rank, for inputs (windows, tokens, hidden).

        The layer's weight becomes U_r U_rᵀ W, so its output y (without the bias) becomes
        U_r U_rᵀ y. Layers that cannot tell the difference, those called before it and those
        with the same input, give the outputs that they gave to the dense block.
        """
        recorded = self._record(hidden)
        output = recorded.pop(self._name)
        bias = cast(Tensor | None, self._module(self._name).bias)
        dtype = torch.promote_types(output.dtype, torch.float32)
        y = output.to(dtype) if bias is None else output.to(dtype) - bias.to(dtype)
        left = left.to(dtype)
        projected = y @ left
        for rank in ranks:
            truncated = projected[..., :rank] @ left[:, :rank].T
            if bias is not None:
                truncated += bias
            with _answering(
                {self._module(name): value for name, value in recorded.items()}
                | {self._module(self._name): truncated.to(output.dtype)}
            ):
                yield self.model.run_block(self.block, self.index, hidden)

    def _record(self, hidden: Tensor) -> dict[str, Tensor]:
        """Dense outputs of the layer and of those whose inputs do not depend on it."""
        seen: dict[str, Tensor] = {}
        repeated: set[str] = set()

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if name in seen:
                    repeated.add(name)
                seen[name] = output

            return hook

        handles = [self._module(name).register_forward_hook(note(name)) for name in self._names]
        try:
            self.model.run_block(self.block, self.index, hidden)
        finally:
            for handle in handles:
                handle.remove()
        if self._name in repeated:
            raise ModelError(f"{self._name} runs twice in one pass, which the search cannot vary")
        before = list(seen)[: list(seen).index(self._name) + 1]
        kept = (set(before) | set(self._siblings)) - repeated
        return {name: output for name, output in seen.items() if name in kept}

    def _module(self, name: str) -> nn.Module:
        return self.block.get_submodule(name.removeprefix(self._prefix))


@contextmanager
def _answering(answers: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Modules return given outputs inside the context, and compute nothing."""

    def answer(output: Tensor) -> Callable[..., Tensor]:
        return lambda *args: output

    for module, output in answers.items():
        vars(module)["forward"] = answer(output)
    try:
        yield
    finally:
        for module in answers:
            del vars(module)["forward"]
