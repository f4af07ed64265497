"""Small pieces of HTML; every text that comes from outside is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite
from typing import Any

from latbench.visit import Interval


def section(parts: Iterable[str]) -> str:
    return "<section>" + "\n".join(p for p in parts if p) + "</section>"


def notices(texts: Sequence[str]) -> str:
    return "".join(f'<p class="notice">{escape(t)}</p>' for t in texts)


def pairs(pairs: Iterable[tuple[str, Any]]) -> str:
    rows = [(k, _text(v)) for k, v in pairs]
    cells = "".join(f'<tr><td class="key">{escape(k)}</td><td>{escape(v)}</td></tr>' for k, v in rows if v)
    return f"<table>{cells}</table>"


def _text(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
        return ", ".join(map(_text, value))
    if isinstance(value, dict) and all(isinstance(v, (str, int, float)) for v in value.values()):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)
    head = "".join(f"<th{' class=n' * (i in right)}>{escape(c)}</th>" for i, c in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' * (i in right)}>{escape(str(v))}</td>" for i, v in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def span(i: Interval) -> str:
    """An interval; that of a single Visit has no upper end, and says so."""
    return f"{i.low:#.4g} – {i.high:#.4g}" if isfinite(i.high) else "unknown: one Visit"
