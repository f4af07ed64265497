"""The page itself: one file around the sections and the figures that ``page.js`` draws."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from latbench import __version__
from latbench.report import charts, sections
from latbench.report.data import Report


def write_report(path: str | Path, report: Report) -> Path:
    """Write the page as one file that opens with no network; gives its path."""
    p = Path(path)
    p.parent.mkdir(parents=True, exist_ok=True)
    p.write_text(render(report), "utf-8")
    return p


def render(report: Report) -> str:
    """The page as text."""
    page = _Page()
    body = [sections.header(report), sections.tiles(report)]
    order = (
        sections.search, sections.trust, sections.costs, sections.drift, sections.device, sections.provenance,
    )  # fmt: skip
    body += [section(report, page.figure) for section in order]
    body.append(f"<footer>latbench {escape(__version__)} · {escape(report.created)}</footer>")
    values = {
        "version": escape(__version__),
        "title": escape(f"{report.family} on {report.device}"),
        "style": _part("style.css"),
        "script": _part("page.js"),
        "body": "\n".join(body),
        # "</" would end the script element inside which the figures stand.
        "figures": json.dumps(page.figures, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
        "plotly": _plotly() if page.figures else "",
    }
    text = _part("page.html")
    for name, value in values.items():
        # Text first and the 5 MB library last, so that nothing is searched for inside it.
        text = text.replace("{{" + name + "}}", value, 1)
    return text


class _Page:
    """Collects the figures of a page under the ids of the elements that hold them."""

    def __init__(self) -> None:
        self.figures: dict[str, charts.Figure] = {}

    def figure(self, figure: charts.Figure, label: str) -> str:
        """The element in which a figure will be drawn."""
        name = f"figure-{len(self.figures) + 1}"
        self.figures[name] = figure
        height = figure["layout"]["height"]
        return (
            f'<div class="chart" id="{name}" style="height:{height}px" role="img" aria-label="{escape(label)}"></div>'
        )


@cache
def _part(name: str) -> str:
    return (files("latbench.report") / name).read_text("utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
