"""The model card's header and text, from records made by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from asvd_q.models.card import SourceCard
from asvd_q.plan import QuantSpec
from asvd_q.report.card import card_text
from asvd_q.report.run import ArtefactRecord, RunRecord
from asvd_q.usage import Snippet, Usage
from tests.report.measured import artefact, layer, quality, record, task

USAGE = Usage(
    (Snippet("A runtime", ("one", "two"), "print('loaded')\n", "Mind the gap."),),
    "transformers",
    ("gptq",),
)
RECIPE: dict[str, Any] = {
    "name": None,
    "model": {"path": "/home/somebody/models/wren"},
    "output": "/home/somebody/runs/small",
    "calibration": {
        "corpora": [
            {"source": "hub:owner/texts:plain", "split": "train"},
            {"source": "/home/somebody/own.txt", "split": "train"},
        ],
        "samples": 32,
        "window": 512,
    },
    "decompose": {"alpha": 0.5},
}
HUB: dict[str, Any] = RECIPE | {"model": {"path": "owner/wren"}}
MEASURED = record(
    {"docs": 100.0},
    [quality("docs", 105.0, kl=0.0423, agreement=0.9)],
    warnings=("model.layers.0.mlp.down_proj stayed dense: why",),
)

# What the hub's documentation has for a card's header, and the one relation that is never ours.
FIELDS = {
    "license",
    "license_name",
    "license_link",
    "language",
    "library_name",
    "pipeline_tag",
    "base_model",
    "base_model_relation",
    "datasets",
    "tags",
}


def card(
    run: RunRecord = MEASURED,
    made: ArtefactRecord | None = None,
    usage: Usage = USAGE,
    recipe: dict[str, Any] | None = RECIPE,
    source: SourceCard | None = None,
) -> str:
    return card_text(run, made or artefact(), usage, recipe, source or SourceCard())


def header(text: str) -> dict[str, Any]:
    """What the hub would read, after the checks that can be made without it."""
    found = ModelCard(text).data.to_dict()
    assert set(found) <= FIELDS
    assert ModelCardData(**found).to_dict() == found
    assert found["pipeline_tag"] == "text-generation"
    assert len(set(found["tags"])) == len(found["tags"])
    for word in (*found["tags"], *found.get("language", ())):
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", word), word
    assert found.get("base_model_relation", "quantized") in ("quantized", "adapter")
    assert "base_model" in found or "base_model_relation" not in found
    return found


def named(run: RunRecord) -> RunRecord:
    """The run of a hub model."""
    source = run.source.model_copy(update={"name": "owner/wren", "revision": "main"})
    return run.model_copy(update={"source": source})


def test_the_card_is_what_the_hubs_library_reads_and_writes() -> None:
    text = card(named(MEASURED), recipe=HUB, source=SourceCard(license="mit", language=("en",)))
    found = ModelCard(text)
    assert str(found) == text
    assert yaml.safe_load(text.split("---\n")[1]) == found.data.to_dict()
    assert header(text) == {
        "license": "mit",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "owner/wren",
        "base_model_relation": "quantized",
        "datasets": ["owner/texts"],
        "tags": ["asvd-q", "asvd", "low-rank", "quantized", "rtn", "4-bit", "gptq"],
    }
    assert "[owner/wren](https://huggingface.co/owner/wren)" in text


def test_a_folder_is_no_base_model() -> None:
    found = header(card())
    assert not {"base_model", "base_model_relation", "license", "language"} & set(found)
    assert "names none" in card().split("## Licence")[1]


def test_without_the_recipe_a_name_with_an_owner_is_the_hubs() -> None:
    found = header(card(named(MEASURED), recipe=None))
    assert found["base_model"] == "owner/wren"
    assert "datasets" not in found
    assert "base_model" not in header(card(recipe=None))
    assert "no longer there" in card(recipe=None)


def test_a_model_without_codes_is_not_called_quantized() -> None:
    layers = (layer("a.up_proj", 16, None), layer("a.down_proj", None, None))
    found = header(card(named(MEASURED.model_copy(update={"layers": layers})), recipe=HUB))
    assert "base_model_relation" not in found
    assert "quantized" not in found["tags"]
    assert "low-rank" in found["tags"]


def test_an_adapter_is_one() -> None:
    usage = Usage(USAGE.snippets, "peft", ("lora",), relation="adapter")
    assert (
        header(card(named(MEASURED), usage=usage, recipe=HUB))["base_model_relation"] == "adapter"
    )


@pytest.mark.parametrize(
    ("link", "run", "recipe", "expected"),
    [
        ("LICENSE", named(MEASURED), HUB, "https://huggingface.co/owner/wren/blob/main/LICENSE"),
        ("LICENSE", MEASURED, RECIPE, None),
        ("https://example.org/l", MEASURED, RECIPE, "https://example.org/l"),
    ],
)
def test_the_link_of_a_licence_leads_to_the_source(
    link: str, run: RunRecord, recipe: dict[str, Any], expected: str | None
) -> None:
    source = SourceCard(license="other", license_name="own", license_link=link)
    found = header(card(run, recipe=recipe, source=source))
    assert found["license"] == "other"
    assert found["license_name"] == "own"
    assert found.get("license_link") == expected


def test_no_place_and_no_time_is_told() -> None:
    text = card()
    assert "somebody" not in text
    assert "path: wren\n" in text
    assert "output: small\n" in text
    assert "source: own.txt\n" in text
    assert "calibrated on | hub:owner/texts:plain (train), own.txt (train): 32 windows" in text
    later = MEASURED.model_copy(
        update={"stages": (), "source_path": "/elsewhere", "store_key": "another"}
    )
    assert card(later) == text


def test_what_was_done_and_measured() -> None:
    text = card()
    for words in (
        "| layers | 2: 1 as factors, 1 dense |",
        "| ranks of factors | 16 |",
        "| codes | RTN, 4 bits, groups of 32, symmetric: 2 of 3 matrices |",
        "| parameters kept | 0.7500 of those of the layers |",
        "| bits per weight of the layers | 4.000 |",
        f"`{'a' * 64}`",
        "| docs | test | 4 × 64 | 252 | 100.000 | 105.000 | +5.00% | 0.0423 | 90.00% | `docs` |",
        "relative logit error 1.25e-02, KL divergence 8.00e-04",
        "onnxruntime 1.31.1 CPU on 128 tokens",
        "Needs `one`, `two`.\n\nMind the gap.\n\n```python\nprint('loaded')\n```\n",
        "asvd-q 0.1.0, python 3.11.7.",
    ):
        assert words in text, words
    assert "gptqmodel" not in text


def test_how_the_text_was_cut_is_told() -> None:
    assert "| 4 × 64 |" in card(record({}, [quality("docs", 9.0)]))
    standard = record({}, [quality("docs", 9.0, protocol="standard")])
    assert "| 4 × 64, standard protocol |" in card(standard)


def test_options_are_told_where_there_are_some() -> None:
    made = artefact(options={"operators": "contrib", "accuracy_level": 4})
    words = "| options of the onnx format | operators: contrib, accuracy_level: 4 |"
    assert words in card(record(), made)
    assert "options of the" not in card(record(), artefact())


def test_what_was_not_measured_and_not_run_is_said() -> None:
    unproven = artefact().proof.model_copy(
        update={"status": "not run", "detail": "gptqmodel is not installed"}
    )
    text = card(record(), artefact(proof=unproven))
    assert "No perplexity had been measured" in text
    assert "was not run: gptqmodel is not installed" in text
    assert "+0" not in text


def test_tasks_are_told_where_there_are_some() -> None:
    text = card(MEASURED.model_copy(update={"tasks": (task(0.4),), "dense_tasks": (task(0.5),)}))
    assert "| quiz | 2 | 10 | acc | 0.5000 ± 0.1000 | 0.4000 ± 0.1000 | -0.1000 | – |" in text
    assert "lm-eval" not in card()


def test_limits_are_those_of_this_artefact_and_of_the_run() -> None:
    mine, other = artefact("a", notes=("slow here",)), artefact("b", notes=("slow there",))
    first = card(MEASURED, mine)
    again = card(MEASURED.with_artefact(mine).with_artefact(other), mine)
    assert first == again
    limits = first.split("## Limits")[1].split("##")[0]
    assert "- slow here\n- model.layers.0.mlp.down_proj stayed dense: why\n" in limits
    assert "slow there" not in again
    assert "nothing in particular" in card(record())


def test_many_settings_are_cut_short() -> None:
    layers = tuple(
        layer(f"l{bits}.{group}", None, QuantSpec(bits=bits, group_size=group))
        for bits in (2, 3, 4)
        for group in (16, 32, 64, 128)
    )
    text = card(MEASURED.model_copy(update={"layers": layers}))
    assert text.count("| codes |") == 9
    assert "and 4 other settings" in text
    assert "codes of 2 to 4 bits" in text


def test_nothing_from_outside_breaks_a_table_or_ends_a_block() -> None:
    odd = record({"a|b\nc": 10.0}, [quality("a|b\nc", 11.0)])
    text = card(odd, recipe={"name": "```"})
    assert "| a\\|b c | test |" in text
    assert "\n````yaml\nname: '```'\n````\n" in text
