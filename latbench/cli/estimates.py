"""What commands print of latency models: how right they were, and what they say of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from latbench.cli.console import ms, note, percent, quantity, say, span, table, warn
from latbench.cli.measure import by_clock, measurement_json, note_clock, setting_words, taken_how
from latbench.cli.unit_rows import Units, left_words, units_json
from latbench.cli.unit_rows import rows as unit_rows
from latbench.metric import METRICS
from latbench.op import Op

if TYPE_CHECKING:
    from latbench.device import Device
    from latbench.explanation import Explanation
    from latbench.network import Network
    from latbench.predictor import Predictor
    from latbench.setting import Setting
    from latbench.visit import Estimate, Measurement, Part

#: Warnings of one estimate, and further breaches of a refused network, that are printed.
MOST_WARNINGS = 4


def print_validation(models: Iterable[tuple[str, Predictor]]) -> None:
    """How right models were on held-out networks, the noise floor and the baselines beside them."""
    from latbench.fitting import validation_of

    columns = ("model", "RMSPE", "MAPE", "±5 %", "±10 %", "Spearman", "worst")
    rows: dict[str, tuple[str, ...]] = {}
    title, tail = "", []
    clock: dict[str, None] = {}
    for name, model in models:
        v = validation_of(model)
        if v is None:
            warn(f"{name}: not validated: the store holds no held-out networks that it can predict")
            continue
        for r in v.rows(name):
            if r["model"] == "noise floor" and model.setting.simulated:
                continue
            rows.setdefault(r["model"] + r["RMSPE"], tuple(r.get(c, "") for c in columns))
        title = f"{v.score.n} held-out networks"
        clock = {model.setting.clock_words: None, **clock}
        tail.append(
            f"{name}: {f'statistic {v.statistic}' if v.statistic else model.metric}; "
            f"{percent(v.level, 0)} intervals held {percent(v.coverage, 0)} of the "
            f"networks, mean width {percent(v.width)}"
        )
    if rows:
        ordered = sorted(rows.values(), key=lambda r: r[0] == "noise floor")
        table(columns, ordered, title=title, numbers=columns[1:])
    for text in (*tail, *filter(None, clock)):
        note(text)


def print_estimate(
    name: str,
    device: str,
    model: Predictor,
    estimate: Estimate,
    measured: Measurement | None = None,
    units: Units | None = None,
    explained: Explanation | None = None,
    most: int = 40,
    source: str = "",
) -> None:
    """An Estimate with its breakdown, or with the report that stands for it; beside it the measured latency, what the
    profiler measured of each unit, and where units run, as far as that is known. ``source`` says where the predictor
    comes from."""
    unit = METRICS[estimate.metric].unit
    what = ms(estimate.value) + f" ms{by_clock(estimate.setting)}" if unit == "ms" else _amount(estimate)
    say(f"{name} on {device}: {what} predicted ({_interval_words(estimate)})", "bold")
    if measured is not None:
        off = estimate.latency_ms / measured.latency_ms - 1
        held = estimate.low_ms <= measured.latency_ms <= estimate.high_ms
        inside = "inside its interval" if held else "outside its interval"
        if not held and measured.low_ms <= estimate.latency_ms <= measured.high_ms:
            inside += ", inside the measurement's"
        told = taken_how(measured.setting).rjust(len(name) + len(device) + 5)
        say(f"{told} {ms(measured.latency_ms)} ms{by_clock(measured.setting)} "
            f"({measured.level:.0%} interval {span(measured.low_ms, measured.high_ms)} ms): "
            f"prediction off by {off:+.1%}, {inside}")  # fmt: skip
    made = f", made {model.card.created}" if model.card.created else ""
    made += f" ({source})" if source else ""
    both = " of both" if measured is not None else ""
    told = f"statistic {model.card.statistic}{both}; " if model.card.statistic else ""
    say(f"{told}by {model.name}{made}; {setting_words(model.setting)}")
    for name_, x in estimate.metrics.items():
        if name_ != estimate.metric:
            ends = f" ({span(x.low, x.high)})" if isfinite(x.high) else ""
            say(f"{name_} {quantity(x.value, name_)}{ends}: {METRICS[name_].meaning}")
    note_clock(model.setting)
    if explained is not None and explained.rows:
        numeric = [c for c, v in zip(explained.columns, explained.rows[0], strict=True) if not isinstance(v, str)]
        table(explained.columns, map(partial(_cells, explained.columns), explained.rows), title=explained.title,
              numbers=numeric)  # fmt: skip
        # Part of the report: who keeps the table in a file keeps these lines.
        for text in explained.notes:
            say(text)
        return
    beside, rest_of_units = unit_rows(estimate, units or Units(estimate.setting))
    parts = [r.part for r in beside]
    # An overhead below 0 is no part of the whole: shares are those of what takes time.
    total = sum(p.value for p in parts if p.value > 0) or 1.0
    shown = "MiB" if unit == "B" else unit
    profiled = any(r.measured_ms is not None for r in beside)
    placed = len({p for r in beside for p in r.providers}) > 1 or bool(units and units.left)
    columns = ["unit", "×", shown, *(["profiler ms", "error"] if profiled else []), "share"]
    columns += [*(["runs on"] if placed else []), "origin"]
    rows, names = [], _names(parts)
    for r in beside[:most]:
        p = r.part
        seen = [f"{r.measured_ms:.4f}" if r.measured_ms is not None else "", _error(r.error)] if profiled else []
        share = "–" if p.value < 0 else percent(p.value / total)
        where = [", ".join(x.removesuffix("ExecutionProvider") for x in r.providers)] if placed else []
        origin = _origin(p, estimate.setting)
        rows.append((names[p.key], p.count, _number(p.value, unit), *seen, share, *where, origin))
    table(columns, rows, numbers=("×", shown, "share", "profiler ms", "error"))
    if len(parts) > most:
        rest = sum(p.value for p in parts[most:])
        note(f"… and {len(parts) - most} smaller parts of {_number(rest, unit)} {shown} together (--json lists all)")
    if any(p.origin == "estimated" for p in parts):
        note(f"{shown}: all × together; measured: this very Op was, alone; estimated: from others of its kind")
    if any(p.origin == "overhead" and p.value < 0 for p in parts):
        note("overhead below 0: what these units save inside a network, compared with each of them "
             f"{taken_how(estimate.setting)} alone")  # fmt: skip
    if profiled and units is not None:
        by_profiler = sum(units.profiled_ms.values())
        # The difference is no cost of a unit where the runs beside the profiler were disturbed: then it is just told.
        apart = f" beside {ms(measured.latency_ms)} ms measured without it" if measured is not None else ""
        which = "shortest runs" if model.card.statistic == "min" else "medians"
        note(f"profiler ms: {which} by the runtime's own profiler, {ms(by_profiler)} ms in all{apart}; it tells whole "
             "µs, times every node and so slows small ones down")  # fmt: skip
        if hidden := sum(units.profiled_ms.get(u.name, 0.0) for u in rest_of_units):
            note(f"{ms(hidden)} ms of that in {len(rest_of_units)} units that no line holds: layout conversions")
    if units is not None and (left := left_words(units)):
        warn(left)
    for text in measured.warnings if measured is not None else ():
        warn(f"measured: {text}")
    for text in estimate.warnings[:MOST_WARNINGS]:
        warn(text if len(text) <= 160 else f"{text[:160]} …")
    if len(estimate.warnings) > MOST_WARNINGS:
        warn(f"… and {len(estimate.warnings) - MOST_WARNINGS} more (--json lists all)")


def _names(parts: Sequence[Part]) -> dict[str, str]:
    """Label by key; Ops that share one are told apart by the shapes that they read."""
    often = Counter(p.label for p in parts)
    names = {}
    for p in parts:
        alike = often[p.label] > 1 and p.key.startswith("op1:")
        shapes = dict.fromkeys("×".join(map(str, t.shape)) for t in Op.parse(p.key).inputs) if alike else {}
        names[p.key] = f"{p.label} [{', '.join(shapes)}]" if shapes else p.label
    return names


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def _interval_words(e: Estimate) -> str:
    """The interval, or that there is none: peak arithmetic is a bound from below."""
    if e.setting.simulated and not isfinite(e.interval.high):
        return "peak arithmetic: a bound from below, without an interval"
    level = f"{e.level:.0%} interval"
    if e.reached < e.level:
        level = f"interval of at most {e.reached:.0%}, too few networks for {e.level:.0%}:"
    if (unit := METRICS[e.metric].unit) == "B":
        return f"{level} {quantity(e.interval.low, e.metric)} to {quantity(e.interval.high, e.metric)}"
    return f"{level} {span(e.interval.low, e.interval.high)} {unit}"


def _amount(e: Estimate) -> str:
    """The value of another metric than a time, and what it is."""
    return f"{quantity(e.value, e.metric)} of {e.metric}"


def _cells(columns: Sequence[str], row: Sequence[Any]) -> list[Any]:
    """A row of a report for people: shares in percent."""
    return [percent(v) if c == "share" else v for c, v in zip(columns, row, strict=True)]


def _origin(part: Part, setting: Setting) -> str:
    """Where a part's number comes from; an entry of a simulator's table was simulated."""
    return taken_how(setting) if part.origin == "measured" else part.origin


def _number(value: float, unit: str) -> str:
    """A part's number for people; bytes in MiB."""
    if unit == "B":
        return f"{value / 1048576:.2f}"
    return f"-{ms(-value)}" if value < 0 else ms(value)


def explanation_json(e: Explanation) -> dict[str, Any]:
    """The report of every layer, and of all together, as plain JSON values."""
    return {"layers": [dict(zip(e.columns, row, strict=True)) for row in e.rows], "report": dict(e.figures)}


def estimate_json(
    e: Estimate, statistic: str, measured: Measurement | None, units: Units | None = None
) -> dict[str, Any]:
    """An Estimate as plain JSON values; the Measurement and the execution units beside it where there are any."""
    parts = [
        {
            "key": p.key, "label": p.label, "count": p.count, p.metric: p.value,
            "origin": _origin(p, e.setting),
        }
        for p in e.breakdown
    ]  # fmt: skip
    metrics = {k: {"value": v.value, "low": v.low, "high": v.high} for k, v in e.metrics.items()}
    out: dict[str, Any] = {
        "metric": e.metric,
        "metrics": metrics,
        "level": e.reached,
        "level_asked": e.level,
        "breakdown": parts,
        "warnings": list(e.warnings),
    }
    out["statistic"] = statistic
    out["setting"] = {**e.setting.to_json(), "hash": e.setting.hash}
    if units is not None and units.units:
        out["units"] = units_json(e, units)
        out["left"] = [u.name for u in units.left]
    if measured is not None:
        out["measured"] = {**measurement_json(measured), "statistic": statistic}
    return out


def add_breaches(error: Exception, device: Device, net: Network) -> None:
    """Add what else a refused network breaks on an open device: the error names the first layer alone."""
    more = device.breaches(net)[1:]
    for b in more[:MOST_WARNINGS]:
        error.add_note(f"layer {b.layer!r} too: {b.rule}")
    if len(more) > MOST_WARNINGS:
        error.add_note(f"… and {len(more) - MOST_WARNINGS} more layers")
