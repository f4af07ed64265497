"""The page that compares searches: who got how far with how many evaluations, and whose networks hold on the device.

Searches of one problem (space, objectives, limits, and the Settings that latency was predicted for) stand in one group
and share a reference point; hypervolumes of different problems mean nothing beside each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from latbench.report.charts import SERIES, Figure, axis, figure, words
from latbench.report.course import hypervolume_chart, hypervolumes
from latbench.report.html import section, table
from latbench.report.page import Draw, write_page
from latbench.result import SearchResult
from latbench.space import Arch, arch_name

COLUMNS = (
    "search", "searcher", "seed", "evaluations", "front", "hypervolume", "validated", "keep limits", "off by, mean",
    "wall s",
)  # fmt: skip

_COLUMNS_SAY = (
    "Hypervolume is a share of the group's largest; “off by, mean” says how far predictions were from what was "
    "measured."
)


def groups(runs: Mapping[str, SearchResult]) -> list[dict[str, SearchResult]]:
    """Searches of the same problem together, in the order given."""
    found: dict[str, dict[str, SearchResult]] = {}
    for name, run in runs.items():
        found.setdefault(json.dumps(_problem(run), sort_keys=True), {})[name] = run
    return list(found.values())


def _problem(run: SearchResult) -> dict[str, Any]:
    """What searches must have in common to be compared, by what a person calls it."""
    p = run.problem
    settings = {s: m.get("setting_hash") for s, m in (run.provenance.get("latency") or {}).items()}
    return {
        "the space": p.space.spec,
        "objectives": sorted(map(str, p.objectives)),
        "limits": [dict(p.limits), p.limit_on, p.level] if p.limits or p.soft_limits else [],
        "soft limits": dict(p.soft_limits),
        "the device or its Setting": settings,
        "how accuracy is judged": run.provenance.get("recipe"),
    }


def title(group: Mapping[str, SearchResult]) -> str:
    """The problem that the searches of a group answer, in a line."""
    run = next(iter(group.values()))
    problem = run.problem
    devices = sorted({str(p) for p in run.provenance.get("profiles", {}).values() if p})
    on = f" on {', '.join(devices)}" if devices else ""
    limits = "".join(f", {n} ≤ {v:g}" for n, v in problem.limits.items())
    return f"{problem.space.name}{on}: {', '.join(map(str, problem.objectives))}{limits}"


def explained(found: Sequence[Mapping[str, SearchResult]]) -> str:
    """Why there are so many groups, and what the columns say."""
    if len(found) == 1:
        return f"They answer one problem. {_COLUMNS_SAY}"
    facts = [_problem(next(iter(g.values()))) for g in found]
    differ = [name for name in facts[0] if any(f[name] != facts[0][name] for f in facts)]
    return (
        f"They answer {len(found)} problems, a group each: they differ in {', '.join(differ)}, and hypervolumes of "
        f"different problems mean nothing beside each other. {_COLUMNS_SAY}"
    )


def rows(group: Mapping[str, SearchResult]) -> list[tuple[str, ...]]:
    """A row of :data:`COLUMNS` for each search of a group; hypervolume is a share of the group's largest."""
    problem = next(iter(group.values())).problem
    volumes = hypervolumes({n: _evaluated(r) for n, r in group.items()}, problem)
    most = max((v[-1] for v in volumes.values() if v), default=0.0)
    out: list[tuple[str, ...]] = []
    for name, run in group.items():
        p, seen = run.provenance, [v for v in run.validated if v.measured is not None]
        off = [abs(v.ratio - 1) for v in seen]
        share = f"{volumes[name][-1] / most:.1%}" if most and volumes.get(name) else "–"
        out.append((
            name, str(p.get("searcher", "")), str(p.get("seed", "")), str(len(_evaluated(run))), str(len(run.front)),
            share, str(len(seen)), _kept(run) if problem.limits else "–",
            f"{sum(off) / len(off):.1%}" if off else "–", f"{p['wall_s']:.1f}" if "wall_s" in p else "–",
        ))  # fmt: skip
    return out


def _kept(run: SearchResult) -> str:
    """How many of the networks that were measured keep all limits, each by a measurement where there is one."""
    by_arch: dict[Arch, dict[str, bool]] = {}
    for v in run.validated:
        if v.measured is not None:
            judged = by_arch.setdefault(v.arch, {})
            # A limit on this device's latency is judged by what was measured, whoever else was asked.
            judged.update({n: kept for n, kept in v.kept.items() if n == v.value or n not in judged})
    if not by_arch:
        return "–"
    return f"{sum(all(judged.values()) for judged in by_arch.values())} of {len(by_arch)}"


def unchecked(group: Mapping[str, SearchResult]) -> list[str]:
    """Which limits were checked by measurement and which by prediction alone, in sentences, of each search that has
    both validated networks and limits that were not measured."""
    out = []
    for name, run in group.items():
        open_ = run.limits_by_prediction()
        if open_ and any(v.measured is not None for v in run.validated):
            seen = {v.value for v in run.validated if v.measured is not None}
            measured = [n for n in run.problem.limits if n in seen]
            out.append(
                f"{name}: {_listed(run, measured) or 'no limit'} was checked by measurement; {_listed(run, open_)} by "
                "prediction only, since nothing was measured there"
            )
    return out


def _listed(run: SearchResult, names: Sequence[str]) -> str:
    return " and ".join(f"{n} ≤ {run.problem.limits[n]:g}" for n in names)


def ties(group: Mapping[str, SearchResult]) -> list[str]:
    """What the latencies of each search cannot tell apart, in sentences."""
    return [f"{name}: {text}" for name, run in group.items() for text in run.ties()]


def write_runs(path: str | Path, runs: Mapping[str, SearchResult]) -> Path:
    """Write the page of searches, name → result, as one file that opens with no network; gives its path."""
    name = f"{len(runs)} searches"
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return write_page(path, name, created, lambda draw: list(_body(runs, draw)))


def _body(runs: Mapping[str, SearchResult], draw: Draw) -> list[str]:
    found = groups(runs)
    parts = [f"<header><h1>{len(runs)} searches</h1><p>{escape(explained(found))}</p></header>"]
    return parts + [_group(group, draw) for group in found]


def _group(group: Mapping[str, SearchResult], draw: Draw) -> str:
    run = next(iter(group.values()))
    problem = run.problem
    names = [o.name for o in problem.objectives]
    parts = [
        f"<h2>{escape(title(group))}</h2>",
        f'<div class="scroll">{table(COLUMNS, rows(group), numbers=range(2, len(COLUMNS)))}</div>',
        *(f"<p>{escape(text)}</p>" for text in (*unchecked(group), *ties(group))),
    ]
    volumes = hypervolumes({n: _evaluated(r) for n, r in group.items()}, problem)
    if volumes:
        parts += ["<h3>Hypervolume over evaluations</h3>", draw(hypervolume_chart(volumes), "Hypervolume")]
    if len(names) > 1:
        latency = next((n for n in names if n.startswith("latency_ms")), names[1])
        other = next(n for n in names if n != latency)
        parts += ["<h3>Fronts</h3>", draw(_fronts(group, latency, other), "Pareto sets")]
    return section(parts)


def _fronts(group: Mapping[str, SearchResult], x: str, y: str) -> Figure:
    """Each search's Pareto set as predicted, and as diamonds where its networks came out when they were measured."""
    data: list[dict[str, Any]] = []
    for i, (name, run) in enumerate(group.items()):
        colour, points = SERIES[i % len(SERIES)], sorted(run.front, key=lambda c: c.values[x])
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name,
            "x": [c.values[x] for c in points], "y": [c.values[y] for c in points],
            "text": [arch_name(c.arch) for c in points],
            "line": {"color": colour, "width": 1.5, "shape": "hv", "dash": "solid" if i < len(SERIES) else "dot"},
            "marker": {"size": 6, "color": colour},
            "hovertemplate": f"<b>{escape(name)}</b> %{{text}}<br>{x} %{{x:.4g}}<br>{y} %{{y:.4g}}<extra></extra>",
        })  # fmt: skip
        values = {c.arch: c.values for c in run.candidates}
        shown = [
            (v.measured.latency_ms, values[v.arch][y], v.arch)
            for v in run.validated
            if v.measured and v.value == x and y in values.get(v.arch, {})
        ]
        if shown:
            data.append({
                "type": "scatter", "mode": "markers", "name": f"{name}, measured", "legendgroup": name,
                "x": [a for a, _, _ in shown], "y": [b for _, b, _ in shown], "text": [arch_name(a) for *_, a in shown],
                "marker": {"symbol": "diamond-open", "size": 11, "color": colour, "line": {"width": 2}},
                "hovertemplate": f"<b>{escape(name)}</b> %{{text}}<br>measured %{{x:.4g}} ms<extra></extra>",
            })  # fmt: skip
    return figure(data, axis(words(x)), axis(words(y)), 460)


def _evaluated(run: SearchResult) -> Sequence[Any]:
    return [c for c in run.candidates if c.evaluated]
