"""The figures of README and docs, rendered from what the benchmarks wrote: nothing there is typed by hand.

``python -m benchmarks.figures FOLDER`` reads every ``FOLDER/*.json`` that a benchmark wrote with ``--json``, puts the
few that answer the targets between the markers ``figures:begin`` and ``figures:end`` of README, and all of them, with
the line that says what ran where, between those of ``docs/figures.md``. ``make bench`` says how the files are made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.figure_rows import ROWS

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
#: All benchmarks, in the order of README; `make bench` runs them. Those that no file is there of are left out.
ORDER = (
    "additivity", "drift", "budget", "throughput", "kill_resume", "remote_overhead", "same_number", "opencl_exact",
    "arm_exact", "faults", "tda2x_fit", "tda2x_vs_zigzag", "tda2x_speed", "fixed_point", "fusion_detection",
    "onnx_zoo", "launch_bound", "peak_memory", "nb201_900", "nb201_transfer", "coverage", "phones", "predictor_speed",
    "nb201_search", "nb201_limit", "moga_speed", "gpu_throughput", "supernet_memory", "fairness", "lazy",
    "specialise",
)  # fmt: skip
#: Parts that say how a figure came about, not what it is: they stay in the JSON file.
DETAILS = frozenset(
    {
        "drift", "kinds", "calibration", "statistics_tried", "tuning", "runs", "n", "archs", "table_per_s_by_turn",
        "setting", "by kind", "never struck", "chosen_without", "learning", "errors", "measured_ms",
    }
)  # fmt: skip
#: Facts of the provenance that the line under a table names.
FACTS = ("date", "machine", "load", "commit", "python", "numpy", "onnxruntime", "seed")
#: Values that are fractions, by a part of their name.
FRACTIONS = (
    "rmspe", "mape", "within", "coverage", "width", "worst", "floor", "overhead", "level", "share", "accuracy", "lost",
    "same_answer",
)  # fmt: skip
#: The same, by the whole name: a limit on parameters or milliseconds is no fraction.
WHOLE = frozenset({"median", "p95", "bias", "equal", "limit"})


def main() -> None:
    """Write both sections from a folder of JSON files."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="where the benchmarks' JSON files lie, e.g. docs/figures")
    args = p.parse_args()
    files = sorted(args.folder.glob("*.json"))
    if not files:
        raise SystemExit(f"{args.folder}: no JSON files; write some with python -m benchmarks.NAME --json FILE")
    for page, section in ((ROOT / "README.md", summary(files)), (ROOT / "docs" / "figures.md", render(files))):
        page.write_text(replaced(page.read_text("utf-8"), section), "utf-8")
        print(f"wrote the figures of {len(files)} benchmarks into {page}")


def replaced(text: str, section: str) -> str:
    """``text`` with ``section`` between the markers. Ends the program where they are absent."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise SystemExit(f"the text must hold {BEGIN} and, after it, {END}, each once")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + section + text[text.index(END) :]


def section_of(text: str) -> str:
    """What stands between the markers."""
    return text[text.index(BEGIN) + len(BEGIN) + 1 : text.index(END)]


def summary(files: Sequence[Path]) -> str:
    """The Markdown table of the figures that have targets; a benchmark whose file is absent is left out."""
    read = {d["benchmark"]: d["figures"] for d in (json.loads(f.read_text("utf-8")) for f in files)}
    rows = [row for name, make in ROWS.items() if name in read for row in make(read[name])]
    return "\n" + _table(("what", "here", "beside it", "target"), rows) + "\n" if rows else ""


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
                [[_words(k), _value("met" if name.endswith("met") else k, v)] for k, v in plain.items()],
            )
        )
    for k, v in deeper.items():
        out += _tables(f"{name}, {_words(k)}" if name else _words(k), v)
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
    if (name in WHOLE or any(part in name for part in FRACTIONS)) and isinstance(v, float):
        return f"{100 * v:.3g} %"
    return f"{v:,}" if isinstance(v, int) or v == int(v) else f"{v:.4g}" if abs(v) < 1e4 else f"{v:,.0f}"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
