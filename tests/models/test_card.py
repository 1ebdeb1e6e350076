"""What is taken from a source model's own card."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.models import SourceModel
from asvd_q.models.card import SourceCard, read_source_card
from tests.support import WREN


def read(folder: Path, text: str) -> SourceCard:
    (folder / "README.md").write_text(text, encoding="utf-8")
    return read_source_card(folder)


def test_the_bundled_models() -> None:
    source = SourceModel.open(str(WREN))
    assert source.card == SourceCard(license="apache-2.0", language=("en",))
    assert "README.md" not in {path.name for path in source.companion_files()}


def test_a_licence_with_a_name(tmp_path: Path) -> None:
    text = "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\nlanguage: en\n---\nText"
    assert read(tmp_path, text) == SourceCard(
        license="other", license_name="own", license_link="LICENSE", language=("en",)
    )


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    assert read(tmp_path, "---\nlanguage: [no, de]\n---\n").language == ("no", "de")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# A model\n\n---\nlicense: mit\n---\n",
        "---\nlicense: mit\n",
        "---\n- license\n---\n",
        "---\nlicense: [unclosed\n---\n",
        "---\nlicense: {a: b}\nlanguage: 3\n---\n",
        "---\nlicense: [mit, apache-2.0]\n---\n",
    ],
)
def test_what_says_nothing_plain_is_left_out(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == SourceCard()


def test_no_card_and_one_that_is_no_text(tmp_path: Path) -> None:
    assert read_source_card(tmp_path) == SourceCard()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_source_card(tmp_path) == SourceCard()
