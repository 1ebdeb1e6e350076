"""The HTML page: whole, self-contained, safe, the same every time, and small."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from asvd_q.report.page import html_page, report_content
from asvd_q.report.run import RunRecord
from tests.report.page import Read, read
from tests.report.records import artefact, layer, llama, record, run_folder

_HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


def _page(folder: Path, run: RunRecord) -> str:
    return html_page(report_content(run_folder(folder, run), run))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(tmp_path_factory.mktemp("page"), record())


@pytest.fixture(scope="module")
def found(page: str) -> Read:
    return read(page)


def test_nothing_is_fetched(page: str, found: Read) -> None:
    links = [
        value or ""
        for _, attributes in found.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action", "poster", "xlink:href", "data")
    ]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert "@import" not in page
    assert "url(" not in page
    assert "://" not in page


def test_only_its_own_script_may_run(page: str, found: Read) -> None:
    [policy] = [
        one["content"]
        for one in found.named("meta")
        if one.get("http-equiv") == "Content-Security-Policy"
    ]
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [key for _, attributes in found.elements for key in attributes if key[:2] == "on"]


def test_elements_are_closed_and_links_lead_somewhere(found: Read) -> None:
    assert found.unclosed == []
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = {(one["href"] or "")[1:] for one in found.named("a")}
    assert anchors <= set(ids)


def test_every_layer_is_there_and_every_row_has_all_columns(found: Read) -> None:
    head, *rows = found.tables["layer-table"]
    assert [row[0] for row in rows] == [one.name for one in llama()]
    for rows in found.tables.values():
        assert {len(row) for row in rows} == {len(rows[0])}
    assert "kept energy" in head
    assert "predicted loss" not in head


def test_sorted_values_are_numbers_and_not_their_words(found: Read) -> None:
    values = [one["data-v"] for name, one in found.elements if "data-v" in one]
    assert len(values) > 8 * len(llama())
    assert all(float(value or "") >= 0 for value in values)


def test_every_head_of_the_layers_is_a_button(found: Read) -> None:
    assert len(found.named("button")) == len(found.tables["layer-table"][0])


def test_charts_have_names(found: Read) -> None:
    assert len(found.charts) == 1 + 3 + 3  # bytes; maps; kinds in factors
    assert found.charts[0].startswith("Bytes before and after: embedding, head, norms 4.88 KiB")
    assert any(name.startswith("Singular values of q_proj in 2 layers") for name in found.charts)
    assert all(found.charts)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = record(
        [layer(_HOSTILE, rank=8, kind=_HOSTILE, notes=(_HOSTILE,), reason=_HOSTILE)],
        name=_HOSTILE,
        warnings=(_HOSTILE,),
        artefacts=(artefact(_HOSTILE),),
    )
    page = _page(tmp_path, hostile)
    assert page.count("<script>") == 1
    assert "{{ 7" in page
    found = read(page)
    assert found.unclosed == []
    assert found.tables["layer-table"][1][0] == _HOSTILE
    assert sum(_HOSTILE in text for text in found.text) > 6
    assert any(_HOSTILE in name for name in found.charts)


def test_equal_runs_have_equal_pages(page: str, tmp_path: Path) -> None:
    assert _page(tmp_path, record()) == page


def test_a_run_with_next_to_nothing(tmp_path: Path) -> None:
    bare = record(
        [layer("model.layers.0.mlp.up_proj", spec=None, errors={}, reason="it does not pay")],
        dense_quality=(),
        quality=(),
        artefacts=(),
        corpora=(),
        stages=(),
    )
    found = read(_page(tmp_path, bare))
    words = "".join(found.text)
    assert found.unclosed == []
    assert "Nothing was evaluated" in words
    assert "Nothing was exported" in words
    assert "Singular values" not in words
    assert "it does not pay" in words
    assert len(found.charts) == 1


def test_a_large_model_has_a_small_page(tmp_path: Path) -> None:
    layers = llama(blocks=125, rank=512, scale=32)
    page = _page(tmp_path, record(layers))
    assert len(layers) == 500
    assert len(page.encode()) < 1_500_000
    assert all(one.name in page for one in layers)


def test_without_a_colour_of_its_own_a_chart_serves_both_schemes(page: str) -> None:
    body = page.split("</style>")[1]
    assert not re.search(r'(fill|stroke|style)="', body)
    assert "prefers-color-scheme: dark" in page
