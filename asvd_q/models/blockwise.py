"""Runs a model block by block, with one block's weights in memory at a time.

Works for any decoder of transformers without knowing its family: the model's own forward is run
with every block replaced by a stand-in that passes hidden states through and writes down the
other arguments (masks, rotary embeddings) that the block would have been called with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from asvd_q.models.assemble import Replaced, assemble, nothing_replaced
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site
from asvd_q.models.skeleton import Skeleton, build_skeleton
from asvd_q.models.source import SourceModel

__all__ = ["BlockCall", "BlockwiseModel", "find_sites"]


@dataclass(frozen=True)
class BlockCall:
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Stop(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass once the first block's arguments are known."""


class _StandIn(nn.Module):
    """Takes a block's place, passes the hidden states on, and keeps the call."""

    def __init__(self, block: nn.Module, owner: BlockwiseModel, index: int) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a submodule: its weights stay away
        object.__setattr__(self, "_owner", owner)
        self._index = index

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_owner"]._stand_in(self._index, hidden, BlockCall(args, kwargs))


class BlockwiseModel:
    """A causal language model run as embedding → block 0 → … → head.

    Hidden states are (batch, tokens, hidden). Nothing here needs gradients off or on: the caller
    decides.
    """

    def __init__(
        self,
        source: SourceModel,
        *,
        replaced: Replaced = nothing_replaced,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        skeleton: Skeleton | None = None,
    ) -> None:
        """Args: replaced: the compressed layers; the dense model has none."""
        self.source = source
        self.skeleton = skeleton or build_skeleton(source)
        self.device = torch.device(device)
        self.dtype = dtype
        self._replaced = replaced
        self._calls: dict[torch.Size, list[BlockCall]] = {}
        self._recording: list[BlockCall] = []
        self._tuple_output: bool | None = None
        self._stop_at_first = False
        self._injected: Tensor | None = None
        self._last: Tensor | None = None

    def __len__(self) -> int:
        return len(self.skeleton.blocks)

    @contextmanager
    def outside(self, *, replaced: Replaced | None = None) -> Iterator[nn.Module]:
        """Everything but the blocks (embedding, last norm, head), alive inside the context.

        Args:
            replaced: instead of the model's own lookup.
        """
        model = self.skeleton.model
        blocks = self.skeleton.blocks
        path = self.skeleton.blocks_path
        stand_ins = nn.ModuleList(
            [_StandIn(block, self, index) for index, block in enumerate(blocks)]
        )
        model.set_submodule(path, nn.ModuleList())
        try:
            outside = assemble(
                model,
                "",
                self.source,
                replaced or self._replaced,
                device=self.device,
                dtype=self.dtype,
            )
        finally:
            model.set_submodule(path, blocks)
        outside.set_submodule(path, stand_ins)
        yield outside

    def load_block(self, index: int, *, replaced: Replaced | None = None) -> nn.Module:
        """One block with its weights; the caller drops it.

        Args:
            replaced: instead of the model's own lookup.
        """
        return assemble(
            self.skeleton.blocks[index],
            self.skeleton.block_name(index),
            self.source,
            replaced or self._replaced,
            device=self.device,
            dtype=self.dtype,
        )

    def embed(self, outside: nn.Module, input_ids: Tensor) -> Tensor:
        """Hidden states that enter the first block, (batch, tokens, hidden)."""
        ids = input_ids.to(self.device)
        if self._tuple_output is None:
            self._learn_output(outside, ids)
        self._recording, self._injected = [], None
        outside(input_ids=ids, use_cache=False)
        self._calls[ids.shape] = self._recording
        assert self._last is not None
        return self._last

    def entering(self, outside: nn.Module, input_ids: Tensor) -> Tensor:
        """The same, with nothing behind it run and nothing remembered: the cheap way to it."""
        self._recording, self._injected, self._stop_at_first = [], None, True
        try:
            outside(input_ids=input_ids.to(self.device), use_cache=False)
        except _Stop:
            pass
        finally:
            self._stop_at_first = False
        assert self._last is not None
        return self._last

    def run_block(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """Output of a loaded block for hidden states of a shape that was embedded before."""
        call = self._calls[hidden.shape[:2]][index]
        output = block(hidden.to(self.device), *call.args, **call.kwargs)
        return cast(Tensor, output[0] if isinstance(output, tuple) else output)

    def advance(self, block: nn.Module, index: int, hidden: HiddenStates) -> None:
        """Replace what enters a loaded block by what leaves it, entry by entry."""
        for position in range(len(hidden)):
            hidden[position] = self.run_block(block, index, hidden[position])

    def run_until(self, block: nn.Module, index: int, hidden: Tensor, layer: str) -> None:
        """Run a loaded block for its hooks alone, up to the call of one of its layers.

        Args:
            layer: full name; its own hooks that were registered before still see its input.
        """

        def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Stop

        path = layer.removeprefix(self.skeleton.block_name(index) + ".")
        handle = block.get_submodule(path).register_forward_pre_hook(stop)
        try:
            self.run_block(block, index, hidden)
        except _Stop:
            pass
        finally:
            handle.remove()

    def logits(self, outside: nn.Module, hidden: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of what left the last block."""
        self._recording, self._injected = [], hidden.to(self.device)
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
        try:
            return cast(Tensor, outside(input_ids=ids, use_cache=False).logits)
        finally:
            self._injected = None

    def _learn_output(self, outside: nn.Module, ids: Tensor) -> None:
        """Whether blocks return a tensor or a tuple: seen on the first one, once."""
        entering = self.entering(outside, ids[:1, :2])
        call = self._recording[0]
        self._tuple_output = isinstance(
            self.load_block(0)(entering, *call.args, **call.kwargs), tuple
        )

    def _stand_in(self, index: int, hidden: Tensor, call: BlockCall) -> Any:
        self._recording.append(call)
        if self._stop_at_first:
            self._last = hidden
            raise _Stop
        if index == 0 and self._injected is not None:
            hidden = self._injected
        self._last = hidden
        return (hidden,) if self._tuple_output else hidden


def find_sites(
    model: BlockwiseModel, block: nn.Module, index: int, hidden: Tensor, modules: set[str]
) -> list[Site]:
    """Group a block's layers by the activation that feeds them, by running it once.

    Args:
        block: loaded, and already embedded for the shape of `hidden`.
        modules: full names of the layers that matter.

    Returns:
        Sites in the order they are reached. Layers share one when they are called with the very
        same tensor.
    """
    prefix = model.skeleton.block_name(index)
    seen: dict[int, tuple[Tensor, list[str]]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            # The tensor is kept, so that its id is not given to another one meanwhile.
            seen.setdefault(id(args[0]), (args[0], []))[1].append(name)

        return hook

    handles = []
    for path, module in block.named_modules():
        name = f"{prefix}.{path}"
        if name in modules:
            handles.append(module.register_forward_pre_hook(note(name)))
    try:
        with torch.no_grad():
            model.run_block(block, index, hidden)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Site(name=names[0], block=index, modules=tuple(names), features=tensor.shape[-1])
        for tensor, names in seen.values()
    ]
