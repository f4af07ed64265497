"""The sections of the page, in the order in which a reader asks: what was found, can I trust it, where is it from."""

from __future__ import annotations

import platform
from collections.abc import Callable
from html import escape
from math import isfinite
from typing import Any, TypeAlias

from latbench import __version__
from latbench.report import charts, words
from latbench.report.course import course_chart, front_movie, hypervolume_chart, hypervolumes
from latbench.report.data import ModelReport, Report, SearchReport
from latbench.report.diagrams import diagram
from latbench.report.html import notices, pairs, section, span, table

#: Places a figure on the page, with a label for those who cannot see it; gives the element that will hold it.
Draw: TypeAlias = Callable[[charts.Figure, str], str]

_LEGEND = (
    '<p class="legend"><span><i style="background:var(--series-1)"></i>3×3 kernel</span>'
    '<span><i style="background:var(--series-3)"></i>5×5</span>'
    '<span><i style="background:var(--series-5)"></i>7×7</span>'
    '<span><i style="background:var(--series-2)"></i>share of the latency, longest block = full</span>'
    "<span>e6: expanded six times · SE: squeeze-and-excitation · 56² /2: input size, stride</span></p>"
)


def header(r: Report) -> str:
    sentences = words.headline(r) or [f"{r.family} on {r.device}."]
    return (
        f"<header><h1>latbench · {escape(r.device)}</h1>"
        + "".join(f"<p>{escape(s)}</p>" for s in sentences)
        + notices([*([r.setting.clock_words] if r.setting.clock_words else []), *r.warnings])
        + "</header>"
    )


def tiles(r: Report) -> str:
    tiles: list[tuple[str, str]] = []
    if r.range_ms is not None:
        tiles.append((words.ms(r.range_ms[1]), "median latency of the family"))
    best = words.best_model(r)
    if best is not None and best.validation is not None:
        v = best.validation
        tiles.append((words.percent(v.score.rmspe), f"RMSPE of the {best.name} model, {v.score.n} held-out networks"))
        if isfinite(v.noise_floor) and not r.setting.simulated:
            tiles.append((words.percent(v.noise_floor), "noise floor: the same networks measured twice"))
    if r.setting.simulated and r.setting.model_error:
        tiles.append((words.percent(r.setting.model_error), "the simulator's own error, one standard deviation"))
    if r.drift is not None and not r.setting.simulated:
        what = "removed" if r.drift.model else "not removed: no correction was better than none"
        tiles.append((words.percent(r.drift.span), f"drift of this machine during the campaign, {what}"))
    if r.search is not None:
        some = "network" if len(r.search.front) == 1 else "networks"
        tiles.append((str(len(r.search.front)), f"{some} in the Pareto set, of {len(r.search.candidates)} tried"))
    if not tiles:
        return ""
    return (
        '<div class="tiles">'
        + "".join(f"<div class=tile><b>{escape(a)}</b><span>{escape(b)}</span></div>" for a, b in tiles)
        + "</div>"
    )


def search(r: Report, draw: Draw) -> str:
    s = r.search
    if s is None:
        return ""
    seen, names = words.seen(r.setting), [o.lstrip("-") for o in s.objectives]
    x = s.latency if s.latency in names else next((n for n in names if n.startswith("latency_ms")), names[0])
    y = next((n for n in names if n != x), x)
    limits = "; ".join(f"{k} ≤ {v:g}" for k, v in s.limits.items())
    why = (
        f"{s.searcher} evaluated {len(s.candidates)} networks (budget {s.budget}, seed {s.seed}) for "
        f"{', '.join(s.objectives)}"
        + (f" within {limits}" if limits else "")
        + ". Latency is predicted; diamonds are what "
        f"the {'simulator' if r.setting.simulated else 'device'} then said. "
        + (f"Accuracy: {s.accuracy}." if s.accuracy else "")
    )
    parts = ["<h2>The networks that were found</h2>", f'<p class="why">{escape(why)}</p>']
    parts.append(draw(charts.front_chart(s, x, y, seen), "Pareto front"))
    if s.picks:
        own = "".join(f"<li><b>{escape(network)}</b>: {escape(name)}</li>" for name, network in s.picks.items())
        parts.append(f"<p>What {escape(s.searcher)} singles out:</p><ul>{own}</ul>")
    measured = [f for f in s.found if f.measured is not None]
    if measured:
        chart = draw(charts.found_chart(measured, seen), f"Predicted and {seen}")
        parts += [f"<h3>Predicted beside {seen}</h3>", chart]
    if s.found:
        parts.append(_found_table(s, y, r.level, seen))
        parts.append("".join(f"<p>{escape(text)}</p>" for text in (*s.kept, *s.ties)))
        parts += ["<h3>Their blocks</h3>", _LEGEND]
        for f in s.found:
            svg = diagram(f.network, f.block_ms, f.choices, f.name)
            title = f"<p><b>{escape(f.name)}</b> {escape(words.values(f.values))}</p>"
            parts.append(f'<div class="network">{title}<div class="scroll">{svg}</div></div>')
    return section(parts)


def course(r: Report, draw: Draw) -> str:
    s = r.search
    if s is None or s.problem is None or not s.candidates:
        return ""
    parts = ["<h2>How the search went</h2>"]
    volumes = hypervolumes({s.searcher: s.candidates}, s.problem)
    if volumes:
        parts.append(
            '<p class="why">Hypervolume is what the Pareto set dominates, up to the worst network that keeps the '
            "limits: a curve that is still rising says that more evaluations would have paid.</p>"
        )
        parts.append(draw(hypervolume_chart(volumes), "Hypervolume over evaluations"))
    names = [o.name for o in s.problem.objectives]
    if len(names) > 1 and volumes:
        latency = next((n for n in names if n.startswith("latency_ms")), names[1])
        other = next(n for n in names if n != latency)
        parts += ["<h3>The front as it moved</h3>", draw(front_movie(s.problem, s.candidates, latency, other), "Front")]
    told = [n for n in dict.fromkeys(n for row in s.course for n in row) if n != "epoch"]
    if told:
        parts.append("<h3>The searcher's own training</h3>")
        drawn = "".join(draw(course_chart(s.course, n), n) for n in told)
        parts.append(f'<div class="two">{drawn}</div>')
    return section(parts)


def _found_table(s: SearchReport, y: str, measured: float, seen: str) -> str:
    rows = []
    tested = any(f.test_error is not None for f in s.found)
    for f in s.found:
        m = f.measured
        off = "–" if m is None else f"{round((f.predicted.value / m.value - 1) * 100, 1) + 0.0:+.1f} %"
        inside = "–" if m is None else ("yes" if f.predicted.low <= m.value <= f.predicted.high else "no")
        test = [] if not tested else ["–" if f.test_error is None else f"{f.test_error:.4g}"]
        rows.append((
            f.name, f"{f.values[y]:.4g}" if y in f.values else "–", *test, f"{f.predicted.value:#.4g}",
            span(f.predicted), "–" if m is None else f"{m.value:#.4g}", "–" if m is None else span(m), off, inside,
        ))  # fmt: skip
    levels = (f"{s.level:.0%} interval", f"{measured:.0%} interval")
    columns = (
        "network", y, *["test error"] * tested, "predicted ms", levels[0], f"{seen} ms", levels[1], "off by",
        "inside its interval",
    )  # fmt: skip
    return f'<div class="scroll">{table(columns, rows, numbers=range(1, len(columns) - 1))}</div>'


def trust(r: Report, draw: Draw) -> str:
    if not r.models:
        return ""
    levels = " and ".join(sorted({f"{m.validation.level:.0%}" for m in r.models if m.validation})) or "90%"
    seen = words.seen(r.setting)
    if r.setting.simulated:
        why = (
            "Networks that no fit has seen were simulated, and each model predicted them: errors here are distances "
            f"from the simulator, {words.own_error(r.setting)}. The bars are {levels} intervals of the predictions and "
            f"{r.level:.0%} intervals of the simulator, both with that error in them."
        )
    else:
        why = (
            "Networks that no fit has seen were measured on the device, and each model predicted them. The "
            f"bars are {levels} intervals of the predictions and {r.level:.0%} intervals of the measurements; the band "
            "is the noise floor, the difference between two full measurements of the same networks."
        )
    parts = ["<h2>How far to trust the predictions</h2>", f'<p class="why">{why}</p>']
    shown = [m for m in r.models if m.points]
    if shown:
        one, two = (
            draw(charts.predicted_chart(shown, seen), f"Predicted against {seen}"),
            draw(charts.error_chart(shown, seen), "Errors"),
        )
        parts.append(f'<div class="two">{one}{two}</div>')
    # Baselines and the noise floor belong to the networks, not to a model: once is enough where they agree.
    rows = list(dict.fromkeys(row for m in r.models for row in _score_rows(m, r.setting.simulated)))
    rows.sort(key=lambda row: (row[0].startswith("noise floor"), row[0].startswith("baseline")))
    columns = ("model", "networks", "RMSPE", "MAPE", "within ±5 %", "within ±10 %", "Spearman", "worst", "in interval")
    if rows:
        parts.append(f'<div class="scroll">{table(columns, rows, numbers=range(1, 9))}</div>')
    for m in r.models:
        parts.append(notices([f"{m.name}: {n}" for n in m.notes]))
    return section(parts)


def _score_rows(m: ModelReport, simulated: bool) -> list[tuple[str, ...]]:
    v = m.validation
    if v is None:
        return [(m.name, "0", *("–" for _ in range(7)))]
    rows: list[tuple[str, ...]] = []
    for name, s in ((m.name, v.score), *((f"baseline: {k}", b) for k, b in v.baselines.items())):
        coverage = f"{words.percent(v.coverage)} ({words.percent(v.level)} asked)" if s is v.score else "–"
        rows.append((
            name, str(s.n), words.percent(s.rmspe), words.percent(s.mape), words.percent(s.within_5),
            words.percent(s.within_10), f"{s.spearman:.3f}" if isfinite(s.spearman) else "–", words.percent(s.worst),
            coverage,
        ))  # fmt: skip
    if simulated:
        return rows
    floor = words.percent(v.noise_floor) if isfinite(v.noise_floor) else "not measured twice"
    return [*rows, (f"noise floor ({v.statistic})", "", floor, *("" for _ in range(6)))]


def costs(r: Report, draw: Draw) -> str:
    parts: list[str] = []
    if len(r.matrix):
        parts.append(
            '<p class="why">Every choice at every position of the family, in milliseconds; hover for the number.</p>'
        )
        parts.append(draw(charts.cost_matrix_chart(r.matrix, r.choices), "Cost of every choice"))
    if len(r.ops):
        parts.append(
            f'<p class="why">Every Op that was {words.seen(r.setting)}, against its multiply-accumulates. '
            "Ops on one vertical cost differently for the same arithmetic: that is why counting multiply-accumulates "
            "predicts latency badly. "
            "Circles are blocks, diamonds units: what the runtime really runs in one go.</p>"
        )
        parts.append(draw(charts.op_cost_chart(r.ops), "Cost of every Op"))
        top = sorted(r.ops, key=lambda o: -o.latency.value)[:12]
        rows = [
            (o.label, o.level, f"{o.latency.value:.4g}", span(o.latency), f"{o.macs / 1e6:,.3f}", str(o.visits))
            for o in top
        ]
        columns = ("Op", "level", "ms", f"{r.level:.0%} interval", "M MACs", "Visits")
        inner = table(columns, rows, numbers=(2, 3, 4, 5))
        parts.append(
            f"<details><summary>The {len(top)} most expensive Ops</summary><div class=scroll>{inner}</div></details>"
        )
    return section(["<h2>What the blocks cost</h2>", *parts]) if parts else ""


def drift(r: Report, draw: Draw) -> str:
    d = r.drift
    if d is None or r.setting.simulated:
        return ""
    why = (
        "Control ops of several kinds were measured again and again among all the others. The machine's speed moved by "
        f"{words.percent(d.span)} during the campaign; "
        + (
            f"that was divided out of every number, by {d.model}."
            if d.model
            else "no correction predicted held-out Visits better than none, so nothing was divided out."
        )
        + f" {words.percent(d.residual)} of scatter is left. Where the kernel tells for how long another program had "
        "the core, that wait is taken off each run: the numbers are not plain wall times."
    )
    chart = draw(charts.drift_chart(d), "Drift of the control ops") if d.controls else ""
    return section(["<h2>Drift and noise</h2>", f'<p class="why">{escape(why)}</p>', chart, notices(d.warnings)])


def device(r: Report, draw: Draw) -> str:
    s = r.setting
    facts: list[tuple[str, Any]] = [("device", r.device), ("identity", s.device), *r.facts.items()]
    threads = f"{s.threads}" + (f" on cores {', '.join(map(str, s.affinity))}" if s.affinity else "")
    options = ", ".join(f"{k} = {v}" for k, v in s.options.items())
    setting = [
        ("runtime", f"{s.runtime} {s.runtime_version}"), ("options", options), ("data type", s.dtype),
        ("quantisation", s.quantisation), ("threads", threads), ("power mode", s.power_mode), ("cores", s.cores),
        ("tuning", s.tuning), ("clock", s.clock), ("Setting", s.hash),
    ]  # fmt: skip
    parts = ["<h2>The device</h2>", f'<div class="two"><div>{pairs(facts)}</div><div>{pairs(setting)}</div></div>']
    if r.checks:
        rows = "".join(
            f'<tr><td><span class="state {escape(c.state)}">{escape(c.state)}</span></td><td>{escape(c.what)}</td>'
            f"<td>{escape(c.found)}</td><td>{escape(c.advice)}</td></tr>"
            for c in r.checks
        )
        head = "<tr><th>state</th><th>check</th><th>found</th><th>what to do</th></tr>"
        title = "What it says of itself" if r.setting.simulated else "Is it fit to measure?"
        parts += [f"<h3>{title}</h3>", f'<div class="scroll"><table>{head}{rows}</table></div>']
    if r.environment:
        inner = pairs(list(r.environment.items()))
        parts.append(f"<details><summary>Environment when the campaign was {words.seen(s)}</summary>{inner}</details>")
    return section(parts)


def provenance(r: Report, draw: Draw) -> str:
    rows: list[tuple[str, Any]] = [*r.provenance.items(), *r.campaign.items()]
    rows += [(f"model {m.name}", m.path) for m in r.models if m.path]
    rows += [("latbench", __version__), ("python", platform.python_version()), ("page written", r.created)]
    parts = ["<h2>Where all this comes from</h2>", pairs(rows)]
    if r.commands:
        parts.append(
            "<h3>Commands that make it again</h3><pre><code>" + escape("\n".join(r.commands)) + "</code></pre>"
        )
    return section(parts)
