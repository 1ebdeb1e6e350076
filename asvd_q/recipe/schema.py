"""The whole recipe."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from asvd_q.plan import FloatType
from asvd_q.recipe.base import Section, Text
from asvd_q.recipe.budget import BudgetSection
from asvd_q.recipe.corpora import CalibrationSection, EvaluateSection
from asvd_q.recipe.correct import CorrectSection
from asvd_q.recipe.decompose import DecomposeSection
from asvd_q.recipe.export import ExportSection
from asvd_q.recipe.model import ModelSection
from asvd_q.recipe.quantize import QuantizeSection
from asvd_q.recipe.search import SearchSection
from asvd_q.recipe.tasks import CONTINUATION
from asvd_q.recipe.text import dump_yaml

__all__ = ["SCHEMA_ID", "Recipe", "json_schema"]

SCHEMA_ID = "urn:asvd-q:recipe:1"


class Recipe(Section):
    """What to compress, how, into which formats, and what to measure afterwards.

    Every stage may be left out; without `decompose` and `quantize` it is a dense export.
    """

    version: Literal[1] = 1
    """Version of this schema."""

    name: Text | None = None
    """Title of the run in its report."""

    model: ModelSection
    """The model to compress."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes the GPU if there is one."""

    compute_dtype: FloatType = "float32"
    """Type of the forward passes; factorisations are in float64 whatever it is."""

    seed: Annotated[int, Field(strict=True)] = 0
    """Of everything random that has no seed of its own."""

    output: Text = "runs/recipe"
    """Run folder, relative to the current directory; runs/<name of the recipe file>."""

    calibration: CalibrationSection | None = None
    """Text that activation statistics are collected on."""

    decompose: DecomposeSection | None = None
    """Low-rank decomposition."""

    search: SearchSection | None = None
    """Which rank for which layer; without it decompose says so itself."""

    budget: BudgetSection | None = None
    """Which form, rank and width of codes for which layer, under one target for the model."""

    quantize: QuantizeSection | None = None
    """Quantization of the factors and of dense layers."""

    correct: CorrectSection | None = None
    """Low-rank corrections beside the codes of quantized layers."""

    export: tuple[ExportSection, ...] = ()
    """Artefacts to write, each in a folder of its own."""

    evaluate: EvaluateSection | None = None
    """Text that perplexity is measured on, and tasks."""

    @model_validator(mode="after")
    def _calibrated(self) -> Recipe:
        decompose = self.decompose
        if decompose is not None and decompose.needs_calibration and self.calibration is None:
            why = (
                f"decompose.scaling is {decompose.scaling!r}"
                if decompose.scaling != "none"
                else "decompose.refit is true"
            )
            raise ValueError(
                f"{why} and needs activation statistics: add a `calibration` section, for "
                "example `calibration: {corpus: python-docs}`"
            )
        return self

    @model_validator(mode="after")
    def _calibrated_codes(self) -> Recipe:
        method = None if self.quantize is None else self.quantize.needs_calibration
        if method is not None and self.calibration is None:
            raise ValueError(
                f"quantize: the method {method} needs the Gram matrices of its layers' inputs: "
                "add a `calibration` section, for example `calibration: {corpus: python-docs}`"
            )
        return self

    @model_validator(mode="after")
    def _something_to_correct(self) -> Recipe:
        if self.correct is None:
            return self
        if self.budget is None and not self.correct.has_target:
            raise ValueError("correct: needs `rank` or `ranks`, or the recipe a `budget` section")
        if self.quantize is None:
            raise ValueError(
                "correct makes up for what quantization loses: add a `quantize` section, for "
                "example `quantize: {method: gptq, bits: 3}`"
            )
        if self.calibration is None:
            raise ValueError(
                "correct needs the Gram matrices of its layers' inputs: add a `calibration` "
                "section, for example `calibration: {corpus: python-docs}`"
            )
        return self

    @model_validator(mode="after")
    def _refit_follows_the_compressed_model(self) -> Recipe:
        for name, section in (("decompose", self.decompose), ("quantize", self.quantize)):
            if section is None or not section.refit:
                continue
            if self.calibration is None or not self.calibration.sequential:
                raise ValueError(
                    f"{name}.refit fits layers to the inputs that the compressed model gives "
                    "them: set calibration.sequential: true"
                )
        return self

    @model_validator(mode="after")
    def _one_source_of_ranks(self) -> Recipe:
        if self.search is None:
            explicit = self.decompose is None or self.decompose.has_target
            if not explicit and self.budget is None:
                raise ValueError(
                    "decompose: needs `kept_ratio` or `ranks`, or the recipe a `search` or "
                    "`budget` section"
                )
            return self
        if self.decompose is None or self.calibration is None:
            missing = "decompose" if self.decompose is None else "calibration"
            raise ValueError(f"search needs a `{missing}` section")
        if self.decompose.has_target:
            raise ValueError(
                "search chooses the ranks: leave kept_ratio and ranks out of `decompose`, and "
                "give `search` the target"
            )
        return self

    @model_validator(mode="after")
    def _budget_has_its_sections(self) -> Recipe:
        if self.budget is None:
            return self
        if self.search is not None:
            raise ValueError("search and budget both choose ranks: leave one of them out")
        for name in ("calibration", "quantize"):
            if getattr(self, name) is None:
                raise ValueError(f"budget needs a `{name}` section")
        if self.decompose is not None and self.decompose.has_target:
            raise ValueError(
                "budget chooses the ranks: leave kept_ratio and ranks out of `decompose`"
            )
        if self.correct is not None and self.correct.has_target:
            raise ValueError("budget chooses the ranks: leave rank and ranks out of `correct`")
        if self.decompose is not None and self.decompose.lm_head:
            raise ValueError("budget chooses for layers inside the blocks: leave lm_head out")
        return self

    @model_validator(mode="after")
    def _distinct_exports(self) -> Recipe:
        names = [export.name for export in self.export]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(
                    f"export.{index}: another export is called {name!r} already: give this one "
                    "a `name`"
                )
        return self

    @model_validator(mode="after")
    def _no_overlap(self) -> Recipe:
        if self.calibration is None or self.evaluate is None or self.evaluate.allow_overlap:
            return self
        calibrated = {corpus.identity for corpus in self.calibration.corpora}
        for corpus in self.evaluate.corpora:
            if corpus.identity in calibrated:
                raise ValueError(
                    f"calibration and evaluate both read {corpus.name} ({corpus.split}), which "
                    "would flatter the result: choose another split or corpus for one of them, "
                    "or set evaluate.allow_overlap: true"
                )
        if ("python-docs", "test") in calibrated and any(
            task.task == CONTINUATION for task in self.evaluate.tasks
        ):
            raise ValueError(
                f"calibration reads python-docs (test), which {CONTINUATION} is made of: choose "
                "another split or task, or set evaluate.allow_overlap: true"
            )
        return self

    @property
    def refits(self) -> bool:
        """Whether layers are fitted to what the dense model makes of the same tokens."""
        return any(part is not None and part.refit for part in (self.decompose, self.quantize))

    @property
    def searches(self) -> bool:
        """Whether the forms of the layers are still to be found."""
        return self.search is not None or self.budget is not None

    def resolved_yaml(self) -> str:
        """The recipe with every default written out; loading it gives an equal recipe."""
        return dump_yaml(self.model_dump(mode="json"))

    def compression_fields(self) -> dict[str, Any]:
        """The part of the recipe that the bytes of a store depend on, as plain JSON values.

        Two recipes with equal fields, on models with equal weights, corpora with equal text and
        one kind of device, give equal stores. So the caller adds the hashes of those: here a
        local corpus is only its file name, and the model's path is left out, so that a store
        does not depend on the place its inputs lie at.
        """
        fields = self.model_dump(
            mode="json",
            include={
                "version": True,
                "model": {"revision", "dtype"},
                "compute_dtype": True,
                "seed": True,
                "calibration": True,
                "decompose": True,
                "quantize": True,
                "correct": True,
            },
        )
        if self.calibration is not None:
            fields["calibration"].pop("hidden_states")
            for dumped, corpus in zip(
                fields["calibration"]["corpora"], self.calibration.corpora, strict=True
            ):
                if corpus.is_file:
                    dumped["source"] = PurePath(corpus.source).name
        return fields


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **Recipe.model_json_schema(mode="validation"),
    }
