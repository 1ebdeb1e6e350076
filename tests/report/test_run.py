"""The run's record as a file."""

from __future__ import annotations

import json
from pathlib import Path

from asvd_q.report.run import RUN_FILE, RunRecord
from tests.report.records import artefact, record


def test_a_record_from_before_options_were_kept_is_read(tmp_path: Path) -> None:
    kept = record(artefacts=(artefact(options={"accuracy_level": 4, "external_data": "auto"}),))
    kept.write(tmp_path)
    assert RunRecord.read(tmp_path) == kept
    content = json.loads((tmp_path / RUN_FILE).read_text(encoding="utf-8"))
    del content["artefacts"][0]["options"]
    (tmp_path / RUN_FILE).write_text(json.dumps(content), encoding="utf-8")
    assert RunRecord.read(tmp_path) == record(artefacts=(artefact(),))
