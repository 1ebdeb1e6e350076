"""From a finished store to a proven artefact in a run folder. Imports torch where it proves one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from asvd_q.artefact import METADATA_FILE, AdvisingExporter, ExaminingExporter, Exporter, Refusal
from asvd_q.errors import ExportError, RecipeError
from asvd_q.exporter_registry import build_exporter, exporter_class
from asvd_q.files import atomic_folder, atomic_path, make_folder, write_text
from asvd_q.recipe import ExportSection, Recipe, explain_validation_error
from asvd_q.sizes import footprint, measured_footprint, metadata_text, predict_files
from asvd_q.usage import usage_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import Plan
    from asvd_q.report.run import ArtefactRecord, RunRecord
    from asvd_q.store import Store

__all__ = [
    "ARTEFACTS",
    "advice",
    "export_store",
    "make_exporter",
    "make_exports",
    "refusal_of_model",
    "require_expressible",
    "require_model",
    "write_rest",
]

ARTEFACTS = "artefacts"


def make_exporter(format: str, options: Mapping[str, object], *, where: str, file: str) -> Exporter:
    """An exporter with its options checked.

    Args:
        format: as a recipe names it.
        options: as given by the user.
        where: the key under which they stand ("export.0"), for messages.
        file: what the recipe or command is called, for messages.

    Raises:
        ExportError: no such format.
        RecipeError: an option that the format does not have, or a value it does not take.
    """
    try:
        return build_exporter(format, options)
    except ValidationError as error:
        model = exporter_class(format).options_model
        raise RecipeError(explain_validation_error(error, where, file, model)) from None


def make_exports(recipe: Recipe, file: str) -> tuple[tuple[ExportSection, Exporter], ...]:
    """The recipe's exports with their exporters.

    Args:
        file: what the recipe is called, for messages.

    Raises:
        ExportError: no such format.
        RecipeError: an option that the format does not have, or a value it does not take.
    """
    return tuple(
        (
            section,
            make_exporter(section.format, section.options, where=f"export.{index}", file=file),
        )
        for index, section in enumerate(recipe.export)
    )


def require_expressible(exporter: Exporter, plan: Plan) -> None:
    """Raises ExportError when the format cannot hold the plan, naming the first layer."""
    found: list[Refusal] = exporter.can_express(plan)
    if found:
        more = f" (and {len(found) - 1} more layers)" if len(found) > 1 else ""
        raise ExportError(f"the {exporter.name} exporter cannot hold {found[0]}{more}")


def refusal_of_model(exporter: Exporter, source: SourceModel) -> Refusal | None:
    """What the exporter says against a model, whatever its plan; None where it says nothing."""
    return exporter.refusal_of(source) if isinstance(exporter, ExaminingExporter) else None


def require_model(exporter: Exporter, source: SourceModel) -> None:
    """Raises ExportError when the format cannot hold the model, whatever its plan."""
    refusal = refusal_of_model(exporter, source)
    if refusal is not None:
        raise ExportError(f"the {exporter.name} exporter cannot hold {refusal}")


def advice(exporter: Exporter, plan: Plan) -> list[str]:
    """What the exporter has to say of a plan that it can hold; nothing where it says nothing."""
    return exporter.notes(plan) if isinstance(exporter, AdvisingExporter) else []


def export_store(
    store: Store,
    exporter: Exporter,
    *,
    name: str,
    run_folder: Path,
    tokens: Tensor,
    options: Mapping[str, object],
    run: RunRecord | None = None,
) -> ArtefactRecord:
    """Write one artefact below `artefacts/` and prove it; nothing is left when either fails.

    Args:
        name: of the artefact's folder.
        tokens: int64 (batch, tokens) of real text for the proof.
        options: as given by the user; the metadata has them with every default written out.
        run: what its model card tells; without it there is no card.

    Raises:
        ExportError: the format cannot hold the store.
        ParityError: the artefact is not what the store is.
    """
    from asvd_q.evaluation.proof import prove
    from asvd_q.evaluation.runners import model_runner
    from asvd_q.report.card import CARD_FILE, card_text
    from asvd_q.report.recipes import read_recipe
    from asvd_q.report.run import ArtefactRecord

    require_expressible(exporter, store.finished_plan)
    target = run_folder / ARTEFACTS / name
    make_folder(target.parent)
    resolved = exporter.options_model.model_validate(dict(options)).model_dump(mode="json")
    metadata = store.metadata(exporter.name, resolved)
    predicted = predict_files(exporter, store.plan, store.source)
    with atomic_folder(target) as partial:
        exporter.write(store, partial)
        write_text(partial / METADATA_FILE, metadata_text(metadata))
        reference = model_runner(store.source, store.replaced)
        proof = prove(exporter, partial, store, reference, tokens)
        real = measured_footprint(partial, predicted)
        artefact = ArtefactRecord(
            name=name,
            format=exporter.name,
            folder=str(target.relative_to(run_folder)),
            bytes=real.folder,
            weight_bytes=real.weights,
            predicted=footprint(predicted),
            proof=proof,
            options=resolved,
            notes=tuple(advice(exporter, store.finished_plan)),
        )
        # Last, because it tells of the proof and of all other bytes; it still comes to its place
        # with them, or not at all.
        if run is not None and not (partial / CARD_FILE).exists():
            recipe = read_recipe(run_folder)
            usage = usage_of(exporter, partial)
            text = card_text(run, artefact, usage, recipe, store.source.card)
            write_text(partial / CARD_FILE, text)
    return artefact


def write_rest(store: Store, folder: Path) -> None:
    """Write what a store leaves of its model: all tensors but the layers' weights, and the files.

    For formats that hold the layers' matrices alone. `SourceModel.open` reads the folder, and
    `model_runner` runs it when it is told the matrices.

    Args:
        folder: existing; gets `model.safetensors`, `config.json` and the tokenizer's files.
    """
    from safetensors.torch import save_file

    source = store.source
    covered = {source.resolve(f"{record.name}.weight") for record in store.records()}
    rest = {name: source.tensor(name) for name in source.tensors if name not in covered}
    with atomic_path(folder / "model.safetensors") as partial:
        save_file(rest, partial)
    # Not the source's file, which may speak of codes or factors.
    write_text(folder / "config.json", json.dumps(source.config_fields, indent=2) + "\n")
    for file in source.companion_files():
        shutil.copyfile(file, folder / file.name)
