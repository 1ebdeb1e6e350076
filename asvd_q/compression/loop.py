"""The block-major loop: statistics → factors → codes → store → inputs of the next block.

One block's weights and Gram matrices are alive at a time; what lives through the loop are the
hidden states of the calibration windows. The embedding, where the plan has one, comes before the
first block, and the head after the last. A block that the store already holds is not compressed
again, only run, so an interrupted loop goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from asvd_q.compression.layer import compress_layer, keep_layer
from asvd_q.compression.pairs import site_by_site
from asvd_q.compression.shared import SharedStatistics
from asvd_q.compression.spectra import SpectraFile
from asvd_q.errors import NumericsError
from asvd_q.methods import METHODS
from asvd_q.models.assemble import nothing_replaced
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site, WeightRef
from asvd_q.plan import LayerPlan, Part, Slot
from asvd_q.progress import Progress
from asvd_q.recipe import CorrectSection, DecomposeSection, QuantizeSection
from asvd_q.statistics.collectors import SiteStatistics, collecting, collecting_pairs
from asvd_q.statistics.fisher import fisher_information
from asvd_q.store import Store, StoredLayer

__all__ = ["Calibration", "check_weights", "compress"]


@dataclass(frozen=True)
class Calibration:
    """What the statistics are collected on.

    Attributes:
        windows: int64 (samples, tokens).
        batch_size: windows per forward pass.
        sequential: a block's statistics come from the compressed blocks before it.
        folder: where hidden states are kept; None keeps them in memory.
    """

    windows: Tensor
    batch_size: int
    sequential: bool = False
    folder: Path | None = None

    def batches(self) -> tuple[Tensor, ...]:
        """The windows, `batch_size` at a time."""
        return torch.split(self.windows, self.batch_size)


def check_weights(model: BlockwiseModel, progress: Progress) -> None:
    """See that every tensor of the model is finite, before anything is written.

    Embeddings and norms too: they travel into every artefact as they are.

    Raises:
        NumericsError: naming the first layer that is not.
    """
    names = list(model.source.tensors)
    for done, name in enumerate(names):
        if not torch.isfinite(model.source.tensor(name)).all():
            layer = name.removesuffix(".weight")
            raise NumericsError(f"{layer}: the weight holds NaN or infinity; the model is damaged")
        progress("checking weights", done + 1, len(names))


@torch.no_grad()
def compress(
    model: BlockwiseModel,
    store: Store,
    *,
    section: DecomposeSection | None,
    quantization: QuantizeSection | None,
    correction: CorrectSection | None = None,
    seed: int,
    calibration: Calibration | None,
    progress: Progress,
    spectra: SpectraFile | None = None,
    shared: SharedStatistics | None = None,
) -> None:
    """Carry out the store's plan, block by block.

    Args:
        model: the dense model; it is not changed.
        section: how to decompose; None when the plan holds no factors.
        quantization: what goes beyond the plan's settings of single matrices; None: nothing.
        correction: how to correct; None takes that section's defaults.
        seed: of all that is random in a layer, together with the layer's name.
        calibration: None when nothing needs statistics; errors are then those of the weights.
        spectra: keeps the singular values that factors are cut from.
        shared: statistics that an earlier call on the same model and windows has left, and
            where this one leaves its own; of no use where they follow the compressed model.

    Raises:
        NumericsError: NaN or infinity in a weight or an activation, naming the layer.
    """
    sequential = calibration is not None and calibration.sequential
    loop = _Loop(
        model, store, section, quantization, correction, seed, progress, sequential, spectra
    )
    if shared is not None and not sequential and not loop.refit:
        loop.shared = shared
    if calibration is None:
        for done, block in enumerate(store.blocks()):
            if not store.is_finished(block):
                loop.write(block, {})
            progress("compressing", done + 1, len(store.blocks()))
    else:
        loop.run(calibration)


class _Loop:
    def __init__(
        self,
        model: BlockwiseModel,
        store: Store,
        section: DecomposeSection | None,
        quantization: QuantizeSection | None,
        correction: CorrectSection | None,
        seed: int,
        progress: Progress,
        sequential: bool,
        spectra: SpectraFile | None,
    ) -> None:
        self.model = model
        self.store = store
        self.section = section
        self.quantization = quantization
        self.correction = correction
        self.seed = seed
        self.progress = progress
        self.sequential = sequential
        self.spectra = spectra
        self.weights = model.skeleton.by_name
        self.fisher: dict[str, Tensor] = {}
        self.shared: SharedStatistics | None = None

    @property
    def refit(self) -> bool:
        return any(part is not None and part.refit for part in (self.section, self.quantization))

    def run(self, calibration: Calibration) -> None:
        parts = self.store.blocks()
        pending = [part for part in parts if not self.store.is_finished(part)]
        inside = [part for part in pending if isinstance(part, int)]
        last = len(self.model) - 1 if None in pending else max(inside, default=-1)
        first = int("embedding" in parts)
        total = first + last + 1 + (None in pending)
        if "embedding" in pending:
            self._compress_embedding(calibration)
            self.progress("compressing", first, total)
            pending.remove("embedding")
        if not pending:
            return
        if self.section is not None and self.section.scaling == "fisher":
            self.fisher = self._fisher(calibration, pending)
        if self.shared is not None and self.shared.covers(pending):
            for index in inside:
                self.write(index, self.shared.blocks[index])
                self.progress("compressing", first + index + 1, total)
            return
        hidden = HiddenStates(calibration.folder)
        self._embed(calibration, hidden, compressed=self.sequential)
        dense = HiddenStates.named(calibration.folder, "dense") if self.refit else None
        if dense is not None and any(plan.part == "embedding" for plan in self.store.plan):
            self._embed(calibration, dense, compressed=False)
        elif dense is not None:
            for position in range(len(hidden)):
                dense.append(hidden[position])
        for index in range(last + 1):
            advance = index < last or None in pending
            if dense is not None:
                self._refit_block(index, dense, hidden, write=index in inside, advance=advance)
            elif index in inside:
                self._compress_block(index, hidden, advance=advance)
            else:
                self._advance(self._load(index, compressed=self.sequential), index, hidden)
            self.progress("compressing", first + index + 1, total)
        if None in pending:
            self._compress_head(dense, hidden)
            self.progress("compressing", total, total)

    def write(self, part: Part, statistics: dict[str, SiteStatistics]) -> None:
        """Compress and store the planned layers of one part."""
        layers = [plan for plan in self.store.plan if plan.part == part]
        self._keep(
            part,
            [self._layer(plan, statistics.get(plan.name), bool(statistics)) for plan in layers],
        )

    def _keep(self, part: Part, layers: list[StoredLayer]) -> None:
        """Spectra first: a block that the store has sealed is not compressed again."""
        if self.spectra is not None:
            self.spectra.add({layer.record.name: layer.spectrum for layer in layers})
        self.store.write_block(part, layers)

    def _layer(
        self, plan: LayerPlan, statistics: SiteStatistics | None, calibrated: bool
    ) -> StoredLayer:
        weight = self._weight(self.weights[plan.name])
        if not plan.changed:
            return keep_layer(weight, plan, self.store.float_type, plan.reason)
        if calibrated and statistics is None:
            reason = "no calibration token reaches it"
            return keep_layer(weight, plan, self.store.float_type, reason)
        return compress_layer(
            weight,
            plan,
            self.store.float_type,
            section=self.section,
            quantization=self.quantization,
            correction=self.correction,
            statistics=statistics,
            fisher=self.fisher.get(plan.name),
            seed=self.seed,
        )

    def _weight(self, ref: WeightRef) -> Tensor:
        return self.model.source.matrix(ref).to(self.model.device)

    def _compress_block(self, index: int, hidden: HiddenStates, *, advance: bool) -> None:
        block = self._load(index, compressed=False)
        names = {plan.name for plan in self.store.plan if plan.block == index}
        sites = find_sites(self.model, block, index, hidden[0], names)
        prefix = self.model.skeleton.block_name(index)
        with collecting(block, prefix, sites, self.model.device) as collectors:
            # Sequential: the next block sees this one compressed, so it is run a second time.
            self._advance(block, index, hidden, keep=advance and not self.sequential)
        del block
        statistics = {
            name: result
            for site in sites
            for result in [collectors.pop(site.name).result()]
            for name in site.modules
        }
        self.write(index, statistics)
        if self.shared is None:
            statistics.clear()
        else:
            self.shared.blocks[index] = statistics
        if advance and self.sequential:
            self._advance(self._load(index, compressed=True), index, hidden)

    def _refit_block(
        self, index: int, dense: HiddenStates, hidden: HiddenStates, *, write: bool, advance: bool
    ) -> None:
        """The block's sites in order, each behind the compressed layers before it."""
        block = self._load(index, compressed=False)
        if write:
            plans = {plan.name: plan for plan in self.store.plan if plan.block == index}
            sites = find_sites(self.model, block, index, hidden[0], set(plans))
            done: dict[str, StoredLayer] = {}

            def replaced(name: str) -> dict[Slot, Tensor] | None:
                return done[name].replacement() if name in done else None

            def compressed() -> nn.Module:
                return self.model.load_block(index, replaced=replaced)

            for site, statistics in site_by_site(
                self.model, index, sites, block, compressed, dense, hidden
            ):
                for name in site.modules:
                    done[name] = self._layer(plans[name], statistics, True)
            self._keep(
                index,
                [done.get(name) or self._layer(plan, None, True) for name, plan in plans.items()],
            )
        if advance:
            self._advance(block, index, dense)
            self._advance(self._load(index, compressed=True), index, hidden)

    def _embed(self, calibration: Calibration, hidden: HiddenStates, *, compressed: bool) -> None:
        embedding = self.model.skeleton.embedding

        def replaced(name: str) -> dict[Slot, Tensor] | None:
            """Of the embedding alone: a head that is to be made again may be damaged."""
            wanted = compressed and embedding is not None and name == embedding.name
            return self.store.replaced(name) if wanted else None

        with self.model.outside(replaced=replaced) as outside:
            for batch in calibration.batches():
                hidden.append(self.model.embed(outside, batch))
        del outside  # embedding and head: not alive through the loop

    def _compress_embedding(self, calibration: Calibration) -> None:
        """From its values alone, but for one that is to be good as a head.

        That one is told what reaches the head in the dense model: the compressed model begins with
        its codes, so there is none yet.
        """
        [plan] = [plan for plan in self.store.plan if plan.part == "embedding"]
        spec = plan.quantization["weight"]
        if spec is None or not METHODS[spec.method].needs_gram:
            self.write("embedding", {})
            return
        hidden = HiddenStates(calibration.folder)
        self._embed(calibration, hidden, compressed=False)
        for index in range(len(self.model)):
            self._advance(self._load(index, compressed=False), index, hidden)
        self.write("embedding", {plan.name: self._head_inputs(hidden)})

    def _head_site(self) -> Site:
        head = self.model.skeleton.head
        assert head is not None
        return Site(name=head, block=None, modules=(head,), features=self.weights[head].shape[1])

    def _head_inputs(self, hidden: HiddenStates) -> SiteStatistics:
        """Of what reaches the head from these outputs of the last block."""
        site = self._head_site()
        with (
            self.model.outside() as outside,
            collecting(outside, "", [site], self.model.device) as collectors,
        ):
            for position in range(len(hidden)):
                self.model.logits(outside, hidden[position])
        return collectors[site.name].result()

    def _compress_head(self, dense: HiddenStates | None, hidden: HiddenStates) -> None:
        site = self._head_site()
        head, device = site.name, self.model.device
        if dense is None:
            statistics = self._head_inputs(hidden)
        else:
            with (
                self.model.outside() as outside,
                self.model.outside() as twin,
                collecting_pairs(outside, twin, "", [site], device) as pairs,
            ):
                for position in range(len(hidden)):
                    self.model.logits(outside, dense[position])
                    self.model.logits(twin, hidden[position])
            statistics = pairs()[head]
        self.write(None, {head: statistics})

    def _load(self, index: int, *, compressed: bool) -> nn.Module:
        lookup = self.store.replaced if compressed else nothing_replaced
        return self.model.load_block(index, replaced=lookup)

    def _advance(
        self, block: nn.Module, index: int, hidden: HiddenStates, *, keep: bool = True
    ) -> None:
        """Run a block on all batches; `keep` makes its outputs the new hidden states."""
        for position in range(len(hidden)):
            output = self.model.run_block(block, index, hidden[position])
            if keep:
                hidden[position] = output

    def _fisher(self, calibration: Calibration, pending: list[Part]) -> dict[str, Tensor]:
        wanted = {
            plan.name for plan in self.store.plan if plan.form == "factors" and plan.part in pending
        }
        if self.shared is not None:
            if self.shared.fisher is not None and wanted <= self.shared.fisher.keys():
                return self.shared.fisher
            # Another compression may factorise other layers.
            wanted |= {name for name, weight in self.weights.items() if weight.block is not None}
        total = 2 * len(self.model)
        found = fisher_information(
            self.model,
            calibration.windows,
            [weight for name, weight in self.weights.items() if name in wanted],
            folder=calibration.folder,
            progress=lambda done: self.progress("Fisher information", done, total),
        )
        if self.shared is not None:
            self.shared.fisher = found
        return found
