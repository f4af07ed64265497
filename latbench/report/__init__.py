"""The report page: one self-contained HTML file that says how fast, how far to trust it, and which networks are best.

:class:`Report` holds what is shown, in plain values; :func:`collect` gathers it from a store, predictors and a search
result; :func:`write_report` writes the page, which opens with no network.
"""

from __future__ import annotations

from latbench.report.collect import collect
from latbench.report.data import (
    Control,
    DriftCurve,
    DriftReport,
    Found,
    ModelReport,
    OpCost,
    Point,
    Report,
    SearchReport,
)
from latbench.report.page import render, write_report

__all__ = [
    "Control", "DriftCurve", "DriftReport", "Found", "ModelReport", "OpCost", "Point", "Report", "SearchReport",
    "collect", "render", "write_report",
]  # fmt: skip
