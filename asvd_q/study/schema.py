"""The study's YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from asvd_q.recipe.base import Bool, Section, Text

__all__ = ["LinesPlot", "MatrixPlot", "Metric", "StudySection"]

Metric = Literal["change", "perplexity", "kl", "agreement"]
"""What a plot shows: the perplexity's change against the dense model, the perplexity itself, the KL
divergence from the dense model, or how often both rank the same token first."""

Values = Annotated[list[Any] | dict[str, Any], Field(min_length=1)]
"""Values of one key: a list, or a mapping of names to values."""

Panels = tuple[Text, ...]


class _Plot(Section):
    metric: Metric = "change"
    """What is shown: change, perplexity, kl or agreement."""

    panel: Panels = ()
    """Varied keys with a panel of their own for every value; a single one may be given alone."""

    @field_validator("panel", mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class LinesPlot(_Plot):
    """A line for every value of `series`; a row of panels for every corpus."""

    kind: Literal["lines"]
    """Lines over a varied key."""

    x: Text
    """Varied key along the axis."""

    series: Text | None = None
    """Varied key with a line for every value."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The varied keys that it tells apart."""
        return (self.x, *(() if self.series is None else (self.series,)), *self.panel)


class MatrixPlot(_Plot):
    """A row for every value of a key, a column for every corpus of the evaluation."""

    kind: Literal["matrix"]
    """A table of numbers, coloured."""

    rows: Text
    """Varied key with a row for every value, such as calibration.corpora."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The varied keys that it tells apart."""
        return (self.rows, *self.panel)


class StudySection(Section):
    """One recipe at all combinations of some values, each compressed and evaluated.

    Nothing is exported, and no tasks are done. Keys are those of `--set`: `decompose.alpha`.
    """

    version: Literal[1] = 1
    """Version of this schema."""

    name: Text | None = None
    """Title."""

    recipe: Text
    """Recipe file, relative to the study or to the current directory; it has to evaluate."""

    set: dict[Text, Any] = Field(default_factory=dict)
    """Values that all points have in place of the recipe's."""

    vary: Annotated[dict[Text, Values], Field(min_length=1)]
    """Key → its values, as a list, or as a mapping that names them; every combination is a
    point."""

    without: tuple[Annotated[dict[Text, Any], Field(min_length=1)], ...] = ()
    """Combinations to leave out: key → value or list of values. Points that come to the same model
    need not be listed: they are computed once."""

    repeat: dict[Text, Values] = Field(default_factory=dict)
    """Keys whose values repeat a point, such as seeds; the table has mean and spread."""

    distances: Bool = True
    """Measure KL divergence and agreement with the dense model too; perplexity alone is faster."""

    output: Text = "runs/studies/study"
    """Folder, relative to the current directory; runs/studies/<name of the file> unless given."""

    plot: Annotated[LinesPlot | MatrixPlot, Field(discriminator="kind")] | None = None
    """How to draw it."""

    @model_validator(mode="after")
    def _one_place_for_a_key(self) -> StudySection:
        for key in self.vary:
            for name, others in (("set", self.set), ("repeat", self.repeat)):
                if key in others:
                    raise ValueError(f"{key} is in `vary` and in `{name}`: leave it out of one")
        for key in self.repeat:
            if key in self.set:
                raise ValueError(f"{key} is in `repeat` and in `set`: leave it out of one")
        return self

    @model_validator(mode="after")
    def _left_out_keys_are_varied(self) -> StudySection:
        known = {**self.vary, **self.repeat}
        for combination in self.without:
            for key in combination:
                if key not in known:
                    raise ValueError(f"without: {key} is not varied, so no point can be left out")
        return self

    @model_validator(mode="after")
    def _plot_shows_all(self) -> StudySection:
        if self.plot is None:
            return self
        for key in self.plot.keys:
            if key not in self.vary:
                raise ValueError(f"plot: {key} is not in `vary`, which has {', '.join(self.vary)}")
        hidden = [key for key in self.vary if key not in self.plot.keys]
        if hidden:
            where = "x, series or panel" if self.plot.kind == "lines" else "rows or panel"
            raise ValueError(
                f"plot: nothing tells the values of {hidden[0]} apart: name it in {where}"
            )
        if len(set(self.plot.keys)) < len(self.plot.keys):
            raise ValueError("plot: names one key twice")
        if self.plot.metric in ("kl", "agreement") and not self.distances:
            raise ValueError(f"plot.metric {self.plot.metric} needs `distances: true`")
        return self

    def values(self, key: str) -> Mapping[str, Any] | list[Any]:
        """What a varied or repeated key goes through."""
        return self.vary[key] if key in self.vary else self.repeat[key]
