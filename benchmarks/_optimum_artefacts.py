"""The artefacts that optimum opens: the bundled model in several forms, random ones of families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asvd_q.exporting import ARTEFACTS, export_store, make_exporter
from asvd_q.opening import open_anything
from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe
from benchmarks._families import random_tokens, save_family
from benchmarks._points import tell
from benchmarks.common import Bench, Options

__all__ = ["FORMS", "Made", "bundled", "given", "random_families"]

_ROOT = Path(__file__).resolve().parent.parent

_PROMPTS = (
    "Once upon a time",
    "def read_lines(path):\n",
    "The string method returns a copy of the string in which each character has been mapped, and",
)
"""Of different lengths: a batch of them is padded."""

_LENGTHS = 4, 9, 21
"""Tokens of the prompts of random models, whose tokenizers know no words."""

_COMMON = (
    "evaluate=null",
    "search=null",
    "calibration.corpora=[python-docs]",
    "calibration.samples=8",
    "calibration.window=256",
)
_KEPT = "decompose.kept_ratio=0.8"


def _export(**options: str) -> str:
    words = ", ".join(f"{key}: {value}" for key, value in {"format": "onnx", **options}.items())
    return f"export=[{{{words}}}]"


_RTN = "wren-asvd-rtn4.yaml"
FORMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ASVD": ("wren-asvd.yaml", (*_COMMON, _KEPT, _export())),
    "ASVD + RTN 4": (_RTN, (*_COMMON, _KEPT, _export())),
    "ASVD + RTN 4, float16": (_RTN, (*_COMMON, _KEPT, _export(dtype="float16"))),
    "ASVD + RTN 4, external data": (_RTN, (*_COMMON, _KEPT, _export(external_data="true"))),
    "ASVD + RTN 4, standard operators": (_RTN, (*_COMMON, _KEPT, _export(operators="standard"))),
    "GPTQ 4": ("wren-gptq4.yaml", (*_COMMON, _export())),
    "GPTQ 4, embedding and head in 8 bits": ("wren-gptq4-whole.yaml", (*_COMMON, _export())),
    "NF4": ("wren-nf4.yaml", ("evaluate=null", _export())),
    "NF4, float16": ("wren-nf4.yaml", ("evaluate=null", _export(dtype="float16"))),
}
"""By what the table calls them: a shipped recipe and what is changed of it, for a quick run."""

_FACTORS: Mapping[str, Any] = {"decompose": {"scaling": "whitening", "kept_ratio": 0.8}}
_RANDOM: Mapping[str, Mapping[str, Any]] = {
    "ASVD": _FACTORS,
    "ASVD + RTN 4": _FACTORS | {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}},
}
_WINDOWS, _WINDOW, _PROOF = 8, 128, 96


@dataclass(frozen=True)
class Made:
    """An artefact, and what it continues.

    Attributes:
        texts: of the prompts; none where there are only ids, and then no pipeline is run.
        ids: tokens of every prompt.
    """

    model: str
    form: str
    folder: Path
    texts: tuple[str, ...]
    ids: list[list[int]]


def given(folder: Path) -> Made:
    """One that lies somewhere already."""
    tokenizer = open_anything(folder).tokenizer
    ids = [tokenizer(text)["input_ids"] for text in _PROMPTS]
    return Made(str(folder), "", folder, _PROMPTS, ids)


def bundled(model: Path, folder: Path) -> Iterator[Made]:
    """A model in every form of `FORMS`."""
    for form, (recipe, overrides) in FORMS.items():
        tell(f"{model.name}: {form}")
        output = folder / form.replace(" ", "-")
        settings = (*overrides, f"model.path={model}", f"output={output}")
        run(load_recipe(_ROOT / "recipes" / recipe, settings), silent)
        made = given(output / ARTEFACTS / "onnx")
        yield Made(model.name, form, made.folder, made.texts, made.ids)


def random_families(names: Sequence[str], folder: Path) -> Iterator[Made]:
    """Two forms of a small random model of every family, see `_families`."""
    calibration = random_tokens(_WINDOWS, _WINDOW, seed=2)
    ids = [random_tokens(1, length, seed=length)[0].tolist() for length in _LENGTHS]
    for name in names:
        model = save_family(name, folder / name / "model")
        bench = Bench(Options(model, folder, (), (), _WINDOW, None))
        for form, sections in _RANDOM.items():
            tell(f"{name}: {form}")
            place = folder / name / form.replace(" ", "-")
            store = bench.compress(dict(sections), place / "store", calibration)
            export_store(
                store,
                make_exporter("onnx", {}, where="options", file="optimum_runtime"),
                name="onnx",
                run_folder=place,
                tokens=calibration[:2, :_PROOF],
                options={},
            )
            yield Made(name, form, place / ARTEFACTS / "onnx", (), ids)
