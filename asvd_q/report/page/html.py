"""The report as one HTML page: styles, script and charts are inside it, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import math

from markupsafe import Markup

from asvd_q.report.page.charts import SHADES, heat_chart, size_chart, spectrum_chart
from asvd_q.report.page.content import ReportContent
from asvd_q.report.page.sizes import CONTENTS, size_grid
from asvd_q.report.page.templating import FOLDER, templates

__all__ = ["html_page"]

_MOST_DECADES = 6


def html_page(content: ReportContent) -> str:
    """The page; equal contents give equal text.

    What comes from outside is escaped, and the page's own policy lets no other script run and
    nothing be fetched.
    """
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates(autoescape=True)
        .get_template("report.html.j2")
        .render(
            content=content,
            style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=digest,
            size_chart=size_chart(content.sizes),
            size_grid=size_grid(content.sizes),
            stored=_stored(content),
            spectra=_spectra(content),
            maps=[(one, heat_chart(one)) for one in content.maps],
            shades=range(SHADES),
        )
    )


def _stored(content: ReportContent) -> list[tuple[str, str]]:
    """Class and words of what the size chart shows."""
    found = {key for part in content.sizes for key in part.after}
    return [(key.replace(" ", "-"), words) for key, words in CONTENTS.items() if key in found]


def _spectra(content: ReportContent) -> list[Markup]:
    """A chart for every panel, all with the same vertical axis."""
    lines = [line for panel in content.panels for line in panel.layers]
    lowest = min([1.0, *(min([1.0, *spectrum.values]) for _, _, spectrum in lines)])
    decades = min(max(math.ceil(-math.log10(max(lowest, 10.0**-_MOST_DECADES))), 1), _MOST_DECADES)
    blocks = 1 + max([0, *(block for _, block, _ in lines if block is not None)])
    return [spectrum_chart(panel, blocks, decades) for panel in content.panels]
