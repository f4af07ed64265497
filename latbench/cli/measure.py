"""``latbench measure``: one network, now."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latbench.cli.console import bar, count, ms, note, print_json, quantity, say, span, table, warn
from latbench.cli.options import (
    DeviceName,
    Json,
    ProtocolSettings,
    Resolution,
    Settings,
    Wait,
    WidthMult,
    make_device,
    patiently,
)
from latbench.cli.subjects import Model, Shapes, read_model

if TYPE_CHECKING:
    from latbench.device import Device
    from latbench.network import Network
    from latbench.protocol import Protocol
    from latbench.setting import Setting
    from latbench.visit import Measurement, Visit


def measure(
    model: Model,
    device: DeviceName = "local-cpu",
    settings: Settings = None,
    resolution: Resolution = None,
    width_mult: WidthMult = None,
    shapes: Shapes = None,
    protocol: ProtocolSettings = None,
    metric: Annotated[
        str, typer.Option("--metric", help="latency_ms, or another: peak_memory_bytes, energy_mj.")
    ] = "latency_ms",
    units: Annotated[bool, typer.Option("--units", help="Also list what the runtime really runs.")] = False,
    wait: Wait = 0,
    as_json: Json = False,
) -> None:
    """Measure a network on a device: latency or another metric with its 95 % interval, as you would get it yourself."""
    net, _, _ = read_model(model, settings, resolution, width_mult, shapes)
    dev, how = make_device(device, protocol)
    with dev:
        m = measure_now(dev, net, how, wait, metric)
        plan = dev.units(net) if units else []
    if as_json:
        print_json({**measurement_json(m), "statistic": how.statistic})
        return
    if metric != "latency_ms":
        print_other(m, f"{net.name} on {device}")
        return
    say(
        f"{net.name} on {device}: {ms(m.latency_ms)} ms{by_clock(m.setting)} "
        f"({m.level:.0%} interval {span(m.low_ms, m.high_ms)} ms)", "bold",
    )  # fmt: skip
    note_clock(m.setting)
    say(f"{how.statistic} of {m.visits} Visits, {sum(map(len, m.samples_ns))} runs; {setting_words(m.setting)}")
    say(f"{count(net.params)} parameters, {count(net.macs)} multiply-accumulates")
    wall = wall_ms(m)
    rows = [(k, ms(v), ms(wall[k]) if k in wall else "") for k, v in m.statistics.items()]
    raw = "wall ms" if m.setting.clock == "wall" else "raw ms"
    table(("statistic", "ms", raw), rows, numbers=("ms", raw))
    note(taken_off(m))
    for text in m.warnings:
        warn(text)
    if plan:
        print_units(plan)


def measure_now(
    device: Device, net: Network, protocol: Protocol, wait_s: float = 0, metric: str = "latency_ms"
) -> Measurement:
    """Measure a network on an open device, once that is free, with a progress bar."""
    from latbench.measure import measure as measure_subject

    visits = itertools.count(1)
    with bar("Visits", lines=False) as b:

        def show(v: Visit, m: Measurement | None) -> None:
            b.update(next(visits), protocol.max_visits)

        return patiently(lambda: measure_subject(device, net, protocol, metric=metric, progress=show), wait_s)


def print_other(m: Measurement, title: str) -> None:
    """A Measurement of another metric than latency, and what came with it."""
    from latbench.metric import METRICS

    x = m.interval
    what = f"{m.metric} {quantity(x.value, m.metric)}"
    say(f"{title}: {what} ({m.level:.0%} interval {quantity(x.low, m.metric)} – {quantity(x.high, m.metric)})", "bold")
    say(f"centre of {m.visits} Visits; {METRICS[m.metric].meaning}; {setting_words(m.setting)}")
    rows = [(k, *(quantity(y, k) for y in (v.value, v.low, v.high)), METRICS[k].meaning) for k, v in m.metrics.items()]
    table(("metric", "value", "low", "high", "meaning"), rows, numbers=("value", "low", "high"))
    for text in m.warnings:
        warn(text)


def wall_ms(m: Measurement) -> dict[str, float]:
    """p50 and p99 over all timed runs of a Measurement as the clock told them, nothing taken off; milliseconds."""
    import numpy as np

    ns = np.concatenate([np.asarray(s, float) for s in m.samples_ns]) if m.samples_ns else np.empty(0)
    return {} if not ns.size else {f"p{q}": float(np.percentile(ns, q)) * 1e-6 for q in (50, 99)}


def taken_off(m: Measurement) -> str:
    """What lies between the wall times of a Measurement and its numbers, in one line."""
    if m.setting.clock == "simulated":
        return "computed: nothing is taken off"
    wait = "the time during which another program had the core (where the kernel tells it) is taken off"
    raw = "wall ms" if m.setting.clock == "wall" else "raw ms"
    if "span_percent" not in m.drift:
        return f"{raw}: all runs as the clock told them; ms: {wait}"
    if m.drift["model"] == "none":
        drift = "no drift was divided out"
    else:
        drift = f"drift is divided out ({m.drift['model']}, span {m.drift['span_percent']:.1f} %)"
    return f"{raw}: all runs as the clock told them; ms: {wait}, and {drift}"


def print_units(units: Any) -> None:
    """The units of a network, in execution order."""
    rows = [(i, u.op.label, len(u.nodes), count(u.op.macs), u.provider) for i, u in enumerate(units)]
    table(
        ("#", "unit", "nodes", "MACs", "runs on"), rows, title="What the runtime runs", numbers=("#", "nodes", "MACs")
    )


def by_clock(s: Setting) -> str:
    """What stands behind "ms" where it is not wall time."""
    return "" if s.clock == "wall" else f" ({s.clock})"


def taken_how(s: Setting) -> str:
    """What was done to get a number of this Setting: it was measured, or simulated."""
    return "simulated" if s.simulated else "measured"


def note_clock(s: Setting) -> None:
    """Say what the times of a Setting mean, where they are not wall times."""
    if s.clock_words:
        note(s.clock_words)


def setting_words(s: Setting) -> str:
    """A Setting in one line."""
    threads = f"{s.threads} thread{'s' * (s.threads != 1)}"
    on = f" on cores {','.join(map(str, s.affinity))}" if s.affinity else ""
    clock = "" if s.clock == "wall" else f", clock: {s.clock}"
    return (
        f"{' '.join(filter(None, (s.runtime, s.runtime_version)))}, {s.dtype}, {threads}{on}{clock}, Setting {s.hash}"
    )


def measurement_json(m: Any) -> dict[str, Any]:
    """A Measurement as plain JSON values."""
    return {
        "subject": m.subject,
        "metric": m.metric,
        "level": m.level,
        "metrics": {k: {"value": v.value, "low": v.low, "high": v.high} for k, v in m.metrics.items()},
        "statistics_ms": dict(m.statistics),
        "wall_ms": wall_ms(m),
        "visits": m.visits,
        "samples_ns": [s.tolist() for s in m.samples_ns],
        "setting": {**m.setting.to_json(), "hash": m.setting.hash},
        "environment": dict(m.environment),
        "drift": dict(m.drift),
        "warnings": list(m.warnings),
    }
