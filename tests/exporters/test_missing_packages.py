"""An artefact whose runtime is not installed says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.errors import MissingExtraError
from asvd_q.exporter_registry import build_exporter
from asvd_q_exporters import _exporter


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("bitsandbytes", "bitsandbytes", "nf4"),
        ("compressed-tensors", "compressed-tensors", "compressed-tensors"),
        ("gptq", "gptqmodel", "gptq"),
        ("peft", "gptqmodel", "peft"),
        ("peft", "peft", "peft"),
    ],
)
def test_what_to_install(
    format: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = package.replace("-", "_")
    monkeypatch.setattr(_exporter, "find_spec", lambda name: None if name == module else name)
    message = rf"{package} is not installed.*asvd-q\[{extra}\]"
    with pytest.raises(MissingExtraError, match=message):
        build_exporter(format, {}).open(tmp_path)
