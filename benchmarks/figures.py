"""The figures of README, rendered from what the benchmarks wrote: nothing there is typed by hand.

``python -m benchmarks.figures FOLDER`` reads every ``FOLDER/*.json`` that a benchmark wrote with ``--json``, renders a
compact table of each with the line that says what ran where, and puts them between the markers ``figures:begin`` and
``figures:end`` of README. ``make bench`` says how the files are made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
#: Order of the benchmarks in README; others follow by name.
ORDER = ("additivity", "drift", "budget", "throughput", "kill_resume")
#: Parts that say how a figure came about, not what it is: they stay in the JSON file.
DETAILS = frozenset({"kinds", "calibration", "statistics_tried", "tuning", "runs", "n", "archs", "table_per_s_by_turn"})
#: Facts of the provenance that the line under a table names.
FACTS = ("date", "machine", "load", "commit", "python", "numpy", "onnxruntime", "seed")
#: Values that are fractions, by a part of their name.
FRACTIONS = ("rmspe", "mape", "within", "coverage", "width", "worst", "floor", "limit", "overhead", "level", "share")


def main() -> None:
    """Write README's section from a folder of JSON files."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="where the benchmarks' JSON files lie, e.g. docs/figures")
    p.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file to write into")
    args = p.parse_args()
    files = sorted(args.folder.glob("*.json"))
    if not files:
        raise SystemExit(f"{args.folder}: no JSON files; write some with python -m benchmarks.NAME --json FILE")
    text = args.readme.read_text("utf-8")
    args.readme.write_text(replaced(text, render(files)), "utf-8")
    print(f"wrote the figures of {len(files)} benchmarks into {args.readme}")


def replaced(text: str, section: str) -> str:
    """``text`` with ``section`` between the markers. Ends the program where they are absent."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise SystemExit(f"the text must hold {BEGIN} and, after it, {END}, each once")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + section + text[text.index(END) :]


def section_of(text: str) -> str:
    """What stands between the markers."""
    return text[text.index(BEGIN) + len(BEGIN) + 1 : text.index(END)]


def render(files: Sequence[Path]) -> str:
    """The Markdown of all benchmarks in these files; "" for none."""
    read = [json.loads(f.read_text("utf-8")) for f in files]
    rank = {name: i for i, name in enumerate(ORDER)}
    read.sort(key=lambda d: (rank.get(d["benchmark"], len(ORDER)), d["benchmark"]))
    return "".join(map(_benchmark, read))


def _benchmark(d: Mapping[str, Any]) -> str:
    parts = [f"\n**{d['benchmark']}**\n", *_tables("", d["figures"])]
    facts = d["provenance"]
    named = [f"{k} {facts[k]}" for k in FACTS if k in facts]
    named += [f"{k} {v}" for k, v in facts.items() if k not in FACTS and not isinstance(v, (dict, list))]
    return "\n".join([*parts, f"<sub>{_cell(' · '.join(named))}</sub>\n"])


def _tables(name: str, figures: Mapping[str, Any]) -> list[str]:
    """A table for the numbers at this level, one for rows with the same columns, and those of what lies deeper."""
    shown = {k: v for k, v in figures.items() if k not in DETAILS}
    plain = {k: v for k, v in shown.items() if not isinstance(v, (Mapping, list)) and v is not None}
    nested = {k: v for k, v in shown.items() if isinstance(v, Mapping)}
    # Rows of one table have a column in common; what has none stands alone.
    common = set.intersection(*(set(_columns(v)) for v in nested.values())) if nested else set()
    rows = nested if common and all(map(_flat, nested.values())) else {}
    deeper = {} if rows else nested
    out = []
    if rows:
        columns = list(dict.fromkeys(c for v in rows.values() for c in _columns(v)))
        body = [[k, *(_value(c, v.get(c)) for c in columns)] for k, v in rows.items()]
        out.append(_table([name, *map(_words, columns)], body))
    if plain:
        out.append(
            _table(
                [name if not rows else "", ""],
                [[_words(k), _value(name if name == "met" else k, v)] for k, v in plain.items()],
            )
        )
    for k, v in deeper.items():
        out += _tables(_words(k), v)
    return out


def _flat(v: Mapping[str, Any]) -> bool:
    return bool(_columns(v)) and not any(isinstance(x, Mapping) for k, x in v.items() if k not in DETAILS)


def _columns(v: Mapping[str, Any]) -> list[str]:
    return [k for k, x in v.items() if k not in DETAILS and not isinstance(x, (Mapping, list))]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _value(name: str, v: Any) -> str:
    if v is None:
        return ""
    if isinstance(v, bool):
        return ("met" if v else "missed") if name == "met" else ("yes" if v else "no")
    if not isinstance(v, (int, float)):
        return str(v)
    if not isfinite(v):
        return "–"
    if any(part in name for part in FRACTIONS) and isinstance(v, float):
        return f"{100 * v:.3g} %"
    return f"{v:,}" if isinstance(v, int) or v == int(v) else f"{v:.4g}" if abs(v) < 1e4 else f"{v:,.0f}"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
