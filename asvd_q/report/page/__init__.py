"""The report of a run: one page that needs nothing beside it, and the same as Markdown."""

from __future__ import annotations

from pathlib import Path

from asvd_q.files import write_text
from asvd_q.report.page.content import ReportContent, report_content
from asvd_q.report.page.html import html_page
from asvd_q.report.page.markdown import markdown_page
from asvd_q.report.run import RunRecord

__all__ = [
    "REPORT_HTML",
    "REPORT_MARKDOWN",
    "ReportContent",
    "html_page",
    "markdown_page",
    "report_content",
    "write_report",
]

REPORT_HTML = "report.html"
REPORT_MARKDOWN = "report.md"


def write_report(folder: Path, record: RunRecord | None = None) -> Path:
    """Write both files into a run folder.

    Args:
        record: of the run; None reads it from the folder.

    Returns:
        The path of the HTML page.

    Raises:
        ArtefactError: the folder is no finished run, or what is in it is damaged.
    """
    content = report_content(folder, RunRecord.read(folder) if record is None else record)
    write_text(folder / REPORT_MARKDOWN, markdown_page(content))
    write_text(folder / REPORT_HTML, html_page(content))
    return folder / REPORT_HTML
