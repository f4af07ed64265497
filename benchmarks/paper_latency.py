"""The latency figures of the papers: what :mod:`benchmarks.paper_figures` draws of devices, without any search.

A device's numbers come from where ``latbench predict`` takes them: the simulator that it is, else the newest saved or
bundled predictor of its Setting and the space. Where there is none the device is measured, and a table fitted. One that
cannot be reached gives the first guess of its profile's roofline, and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

import latbench as lb
from benchmarks.common import percent
from benchmarks.measuring import campaign, changed
from latbench.cli import lookup
from latbench.errors import UnsupportedOpError
from latbench.evidence import Evidence
from latbench.network import Network
from latbench.plan import Plan, PlanItem
from latbench.predictor import Predictor
from latbench.problem import Floats
from latbench.report.charts import MUTED, SERIES, Figure, axis, figure, predicted_chart
from latbench.report.data import ModelReport, Point
from latbench.space import Arch, SearchSpace
from latbench.spaces.densecell import CONVS
from latbench.spaces.params import make_divisible
from latbench.store import Store
from latbench.validation import spearman
from latbench.visit import Measurement
from latbench.zoo_families import ARCHITECTURES, block_list

#: Top-1 accuracy on ImageNet at 224 pixels, percent, as the authors publish it, by network and width.
PUBLISHED = {
    ("MobileNetV2", 0.35): 60.3, ("MobileNetV2", 0.5): 65.4, ("MobileNetV2", 0.75): 69.8, ("MobileNetV2", 1.0): 71.8,
    ("MobileNetV2", 1.4): 75.0, ("proxyless_mobile", 1.0): 74.6, ("proxyless_mobile", 1.4): 76.7,
    ("proxyless_gpu", 1.0): 75.1, ("proxyless_cpu", 1.0): 75.3,
}  # fmt: skip
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.4)


@dataclass(frozen=True)
class Picture:
    """A figure with what it says, its table, and its numbers for ``--json``."""

    title: str
    why: str
    charts: Sequence[Figure]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Study:
    """What the command line asked for, and the latency models that were needed so far."""

    devices: Sequence[str]
    params: Mapping[str, Any]
    store: Path
    models: Path
    seed: int = 0
    networks: int = 24
    protocol: Sequence[str] = ()
    accuracy: str = "digits"
    accuracy_options: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    seeds: int = 2
    warnings: list[str] = field(default_factory=list)
    _spaces: dict[str, SearchSpace] = field(default_factory=dict)
    _found: dict[tuple[str, str], Predictor] = field(default_factory=dict)

    def space(self, name: str, **usual: Any) -> SearchSpace:
        """The space of a figure, with the parameters of the command line; the same one each time."""
        space = lb.load_space(name, **{**usual, **self.params})
        return self._spaces.setdefault(str(space.spec), space)

    def model(self, device: str, space: SearchSpace) -> Predictor:
        """The device's latency model of a space; measured where there is none."""
        key = device, str(space.spec)
        if key not in self._found:
            self._found[key] = self._model(device, space)
        return self._found[key]

    def latency(self, device: str, space: SearchSpace, archs: Any) -> Floats:
        """Milliseconds of (n, positions) architectures: (n,), NaN where the device does not take one."""
        e = self.model(device, space).predict_archs(space, np.asarray(archs))
        return np.where(e.supported, e.value, np.nan)

    def measure(self, device: str, plan: Plan, space: SearchSpace | None) -> dict[str, Measurement]:
        """Run (or resume) a plan on a device; gives what was measured, by the key of each subject."""
        with lb.load_device(device) as d:
            setting, protocol = d.setting, changed(d.profile.protocol, self.protocol)
            done = campaign(d, plan, self.store, space, protocol)  # type: ignore[arg-type]
        print(f"{device}: {done.visits} Visits in {done.wall_s:.0f} s")
        with Store.open(self.store) as opened:
            return Evidence.from_store(opened, setting, [done.id]).measurements(protocol.statistic)

    def reachable(self, device: str) -> bool:
        """Whether it can be measured; a simulator can."""
        return lookup.asked(device)[0] is not None

    def guess(self, device: str) -> Predictor:
        """The roofline of a profile, with a warning."""
        text = f"{device} is out of reach: its latencies are the first guess of its profile's roofline"
        if text not in self.warnings:
            self.warnings.append(text)
        return lb.fit("roofline", device=device)

    def _model(self, device: str, space: SearchSpace) -> Predictor:
        setting, own = lookup.asked(device)
        if own is not None:
            return own
        for _, found in lookup.candidates(self.models, device, setting, space):
            return found
        if setting is None:
            return self.guess(device)
        model = self.table(device, space)
        print(f"{device}: saved {lookup.save(model, self.models, device)}")
        return model

    def table(self, device: str, space: SearchSpace) -> Predictor:
        """A table of the space's blocks, measured (or simulated) now."""
        self.measure(device, Plan.for_space(space, calibration=12, validation=12, seed=self.seed), space)
        return lb.fit("table", store=self.store, device=device, space=space)


# -- DPP-Net, fig. 9 ------------------------------------------------------------------------------------------------


def dense_cells(study: Study) -> list[Picture]:
    """All 324 dense cells on each device, and where the published ones stand among them."""
    space = study.space("densecell")
    archs = [a for a in product(*map(range, space.num_choices)) if (space.live_archs([a])[0] == a).all()]
    _, used = space.usage(archs)
    macs = used @ np.asarray([op.macs for op in space.ops()], float)
    published = {n: a.choices for n, a in ARCHITECTURES.items() if a.space == {"name": "densecell"}}
    known = {n: archs.index(a) for n, a in published.items() if a in archs}
    latency = {d: study.latency(d, space, archs) for d in study.devices}
    for d in [d for d, ms in latency.items() if not np.isfinite(ms).any()]:
        study.warnings.append(f"{d} takes none of the cells")
        del latency[d]
    if not latency:
        return []
    last = [next((c for i, c in reversed(list(enumerate(a))) if i % 2 and c < len(CONVS)), 0) for a in archs]
    charts = [_cells_chart(f"on {d}, ms", macs / 1e6, ms, archs, last, space, known) for d, ms in latency.items()]
    charts += [
        _pair_chart(a, b, latency[a], latency[b], [_cell(space, x) for x in archs], known)
        for a, b in pairwise(latency)
        if (np.isfinite(latency[a]) & np.isfinite(latency[b])).any()
    ]
    rows = []
    for d, ms in latency.items():
        best, taken = int(np.nanargmin(ms)), np.isfinite(ms)
        rho = f"{spearman(ms[taken], macs[taken]):.3f}"
        shown = (f"{ms[best]:.4g}", _cell(space, archs[best]), f"{np.nanmax(ms):.4g}", rho)
        rows.append((d, f"{taken.sum()} of {len(archs)}", *shown))
    columns = ("device", "cells it takes", "fastest, ms", "which is", "slowest, ms", "ρ with MACs")
    ranked = [
        (n, _cell(space, archs[i]), f"{macs[i] / 1e6:.1f}", *(_ranked(ms, i) for ms in latency.values()))
        for n, i in known.items()
    ]
    return [
        Picture(
            f"All {len(archs)} dense cells by device (DPP-Net, fig. 9)",
            "Every cell of the space, coloured by its last convolution. Cells on one vertical cost the same "
            "multiply-accumulates: what they differ by is the device.",
            charts,
            columns,
            rows,
            {
                "archs": archs,
                "macs": macs.tolist(),
                "latency_ms": {d: ms.tolist() for d, ms in latency.items()},
                "published": known,
            },
        ),
        Picture(
            "The published cells among all",
            "Milliseconds on each device, in brackets the rank among all cells that it takes.",
            [],
            ("network", "cell", "M MACs", *latency),
            ranked,
        ),
    ]


def _ranked(ms: Floats, i: int) -> str:
    return f"{ms[i]:.4g} ({int((ms < ms[i]).sum()) + 1})" if np.isfinite(ms[i]) else "–"


def _cell(space: SearchSpace, arch: Sequence[int]) -> str:
    return " · ".join(space.choice_label(i, c) for i, c in enumerate(arch))


def _cells_chart(
    title: str, x: Any, y: Any, archs: Sequence[Arch], last: Sequence[int], space: SearchSpace, known: Mapping[str, int]
) -> Figure:
    data = []
    for conv, name in enumerate(CONVS):
        mine = [i for i, c in enumerate(last) if c == conv and np.isfinite(y[i])]
        data.append({
            "type": "scatter", "mode": "markers", "name": name, "x": [float(x[i]) for i in mine],
            "y": [float(y[i]) for i in mine], "text": [_cell(space, archs[i]) for i in mine],
            "marker": {"size": 7, "color": (*SERIES, MUTED)[conv], "line": {"width": 1, "color": "var(--surface)"}},
            "hovertemplate": "%{text}<br>%{x:.2f} M MACs<br>%{y:.4g} ms<extra></extra>",
        })  # fmt: skip
    data.append(_named({n: (float(x[i]), float(y[i])) for n, i in known.items() if np.isfinite(y[i])}))
    return figure(data, _log("multiply-accumulates, millions", x[np.isfinite(y)]), _log(title, y), 420)


def _log(title: str, values: Any) -> dict[str, Any]:
    """A logarithmic axis, with whole numbers at 1, 2 and 5 of each decade; a plain one for values of one size."""
    low, high = np.nanmin(values) / 1.15, np.nanmax(values) * 1.15
    if high < 5 * low:
        return axis(title)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [d * 10.0**e for e in decades for d in (1, 2, 5) if low <= d * 10.0**e <= high]
    text = [f"{t:g}" for t in ticks]
    span = [float(np.log10(low)), float(np.log10(high))]
    return axis(title, type="log", tickvals=ticks, ticktext=text, range=span)


#: Where names stand, one after the other, so that neighbours do not cover each other.
_BESIDE = ("top left", "bottom right", "top right", "bottom left", "middle right")


def _named(points: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Published networks: open diamonds; each name beside its own."""
    return {
        "type": "scatter", "mode": "markers+text", "name": "published", "x": [a for a, _ in points.values()],
        "y": [b for _, b in points.values()], "text": [n.removeprefix("dppnet_") for n in points],
        "textposition": [_BESIDE[i % len(_BESIDE)] for i in range(len(points))],
        "marker": {"symbol": "diamond-open", "size": 12, "color": "var(--ink)", "line": {"width": 2}},
        "textfont": {"color": "var(--ink)"}, "hovertemplate": "<b>%{text}</b><br>%{x:.4g}<br>%{y:.4g}<extra></extra>",
    }  # fmt: skip


def _pair_chart(a: str, b: str, x: Any, y: Any, names: Sequence[str], known: Mapping[str, int] | None = None) -> Figure:
    both = np.flatnonzero(np.isfinite(x) & np.isfinite(y)).tolist()
    data: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "markers", "name": "networks", "x": x[both].tolist(), "y": y[both].tolist(),
        "text": [names[i] for i in both], "marker": {"size": 6, "color": SERIES[0], "opacity": 0.6},
        "hovertemplate": f"%{{text}}<br>{a} %{{x:.4g}} ms<br>{b} %{{y:.4g}} ms<extra></extra>",
    }]  # fmt: skip
    if known is not None:
        data.append(_named({n: (float(x[i]), float(y[i])) for n, i in known.items() if i in both}))
    return figure(data, _log(f"{a}, ms", x[both]), _log(f"{b}, ms", y[both]), 420, showlegend=len(data) > 1)


# -- ProxylessNAS, figs. 4 and 5 ------------------------------------------------------------------------------------


def width_sweep(study: Study) -> list[Picture]:
    """MobileNetV2 and ProxylessNAS's networks at several widths, by latency on each device."""
    resolution = int(study.params.get("resolution", 224))
    nets = {(f, w): _scaled(f, w, resolution) for f in ("MobileNetV2", "proxyless_mobile") for w in WIDTHS}
    nets |= {(f, 1.0): _scaled(f, 1.0, resolution) for f in ("proxyless_gpu", "proxyless_cpu")}
    pictures = []
    for device in study.devices:
        predicted, measured = _network_latencies(study, device, nets)
        if not predicted:
            continue
        accuracy = resolution == 224
        value = {k: PUBLISHED.get(k) if accuracy else net.macs / 1e6 for k, net in nets.items()}
        data: list[dict[str, Any]] = []
        for colour, family in zip(SERIES, dict.fromkeys(f for f, _ in nets), strict=False):
            mine = [k for k in nets if k[0] == family and value[k] is not None and k in predicted]
            data.append({
                "type": "scatter", "mode": "lines+markers+text", "name": family, "x": [predicted[k] for k in mine],
                "y": [value[k] for k in mine], "text": [f"× {w:g}" for _, w in mine],
                "textposition": "top left" if family == "MobileNetV2" else "bottom right",
                "line": {"color": colour, "width": 2}, "marker": {"size": 8},
                "hovertemplate": f"{family} %{{text}}<br>predicted %{{x:.4g}} ms<br>%{{y:.4g}}<extra></extra>",
            })  # fmt: skip
            seen = [k for k in mine if k in measured]
            if seen:
                data.append({
                    "type": "scatter", "mode": "markers", "name": f"{family}, measured", "showlegend": False,
                    "x": [measured[k].latency_ms for k in seen], "y": [value[k] for k in seen],
                    "marker": {"symbol": "diamond-open", "size": 12, "color": colour, "line": {"width": 2}},
                    "hovertemplate": f"{family}<br>measured %{{x:.4g}} ms<extra></extra>",
                })  # fmt: skip
        y = "top-1 on ImageNet as published, %" if accuracy else "multiply-accumulates, millions"
        rows = [
            (f, f"{w:g}", f"{nets[f, w].macs / 1e6:.1f}", f"{predicted[f, w]:.4g}" if (f, w) in predicted else "–",
             *([f"{measured[f, w].latency_ms:.4g}" if (f, w) in measured else "–"] if measured else []),
             *([str(PUBLISHED.get((f, w), "–"))] if accuracy else []))
            for f, w in nets
        ]  # fmt: skip
        why = "Networks scaled in width."
        if measured:
            why += " Diamonds are measured; they calibrate the table, so that its errors are not judged here."
        columns = ("network", "width", "M MACs", "predicted ms", *["measured ms"] * bool(measured))
        numbers = {
            "predicted_ms": {f"{f} {w:g}": v for (f, w), v in predicted.items()},
            "measured_ms": {f"{f} {w:g}": m.latency_ms for (f, w), m in measured.items()},
        }
        chart = figure(data, axis(f"latency on {device}, ms", rangemode="tozero"), axis(y), 440)
        title = f"Widths on {device} (ProxylessNAS, fig. 4)"
        pictures.append(Picture(title, why, [chart], (*columns, *["top-1, %"] * accuracy), rows, numbers))
    return pictures


def _scaled(family: str, width: float, resolution: int) -> Network:
    name = f"{family} {width:g}"
    if family != "MobileNetV2":
        # The released network of width 1.4 is rounded in its own way.
        wide = family == "proxyless_mobile" and width == 1.4
        params, choices = ARCHITECTURES[f"{family}_14" if wide else family]
        width = 1.0 if wide else width
        return lb.load_space(**params, width_mult=width, resolution=resolution).network(choices).replace(name=name)
    spec, channels = block_list("mobilenet_v2"), 3
    spec |= {"name": name, "input": [3, resolution, resolution]}
    for i, layer in enumerate(spec["layers"]):
        if "out" in layer and layer["op"] != "linear":
            # As its authors do: the head is not made narrower than 1,280.
            is_head = i == len(spec["layers"]) - 3
            layer["out"] = make_divisible(layer["out"] * (max(width, 1.0) if is_head else width))
        if layer["op"] == "mbconv":
            layer["mid"] = 6 * channels
        channels = layer.get("out", channels)
    return Network.from_blocks(spec)


def _network_latencies(
    study: Study, device: str, nets: Mapping[tuple[str, float], Network]
) -> tuple[dict[tuple[str, float], float], dict[tuple[str, float], Measurement]]:
    setting, own = lookup.asked(device)
    measured: dict[tuple[str, float], Measurement] = {}
    model = own
    if setting is None:
        model = study.guess(device)
    elif own is None:
        ops = {b.op.key: b.op for n in nets.values() for b in n.blocks}
        items = [PlanItem(op, "op") for op in ops.values()] + [PlanItem(n, "calibration") for n in nets.values()]
        done = study.measure(device, Plan(tuple(items), study.seed), None)
        measured = {k: done[n.key] for k, n in nets.items() if n.key in done}
        model = lb.fit("table", store=study.store, device=device)
    predicted = {}
    for k, net in nets.items():
        try:
            predicted[k] = model.predict(net).value if model is not None else np.nan
        except UnsupportedOpError as e:
            study.warnings.append(f"{device} does not take {net.name}: {e}")
    return predicted, measured


def predicted_measured(study: Study) -> list[Picture]:
    """Random networks of a space, predicted and measured."""
    space = study.space("proxyless")
    archs = [tuple(a) for a in space.sample_archs(study.networks, seed=study.seed + 7).tolist()]
    nets = {a: space.network(a) for a in archs}
    pictures = []
    for device in study.devices:
        if not study.reachable(device):
            study.warnings.append(f"{device} is out of reach: nothing to compare with")
            continue
        # A simulator would be compared with itself.
        model = study.table(device, space) if lookup.asked(device)[1] else study.model(device, space)
        done = study.measure(device, Plan.of(nets.values(), networks="found", seed=study.seed), space)
        points = []
        for a, net in nets.items():
            if net.key in done:
                e, m = model.predict(net), done[net.key]
                points.append(Point("-".join(map(str, a)), e.interval, m.metrics["latency_ms"]))
        if not points:
            study.warnings.append(f"{device}: none of {len(nets)} networks could be measured: nothing to compare with")
            continue
        off = np.asarray([p.predicted.value - p.measured.value for p in points])
        truth = np.asarray([p.measured.value for p in points])
        rmse, rmspe = float(np.sqrt((off**2).mean())), float(np.sqrt(((off / truth) ** 2).mean()))
        rho = spearman(truth + off, truth)
        said = "simulated" if model.setting.simulated else "measured"
        rows = [(device, model.name, str(len(points)), f"{rmse:.4g}", percent(rmspe), f"{rho:.4f}")]
        pictures.append(
            Picture(
                f"Predicted against {said} on {device} (ProxylessNAS, fig. 5)",
                "Random networks that no fit has seen; the paper's own table is 0.75 ms off on a Pixel 1 (RMSE).",
                [predicted_chart([ModelReport(model.name, None, points)], said)],
                ("device", "model", "networks", "RMSE, ms", "RMSPE", "Spearman"),
                rows,
                {"device": device, "rmse_ms": rmse, "rmspe": rmspe, "spearman": rho},
            )
        )
    return pictures


# -- MoGA, figs. 1 and 2 --------------------------------------------------------------------------------------------

KINDS = ("3×3 blocks", "5×5 blocks", "7×7 blocks", "stem, head and classifier")


def op_shares(study: Study) -> list[Picture]:
    """How much of a network's latency blocks of each kernel take, and those with squeeze-and-excitation."""
    space = study.space("mobilenetv3")
    archs = {n: a.choices for n, a in ARCHITECTURES.items() if n.startswith("moga_")}
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for device in study.devices:
        model = study.model(device, space)
        for name, arch in archs.items():
            try:
                shares.setdefault(device, {})[name] = _shares(model, space, space.validate(arch))
            except UnsupportedOpError as e:
                study.warnings.append(f"{device} does not take {name}: {e}")
    bars = [(f"{n} on {d}", v) for d, nets in shares.items() for n, v in nets.items()]
    if not bars:
        return []
    data = [
        {
            "type": "bar", "orientation": "h", "name": kind, "y": [b for b, _ in bars],
            "x": [100 * v[kind] for _, v in bars], "marker": {"color": (SERIES[0], SERIES[2], SERIES[4], MUTED)[i]},
            "hovertemplate": f"%{{y}}<br>{kind}: %{{x:.1f}} %<extra></extra>",
        }
        for i, kind in enumerate(KINDS)
    ]  # fmt: skip
    y = axis("", type="category", autorange="reversed")
    x = axis("share of the sum over blocks, %", range=[0, 100.5])
    chart = figure(data, x, y, 120 + 30 * len(bars), barmode="stack")
    # Stacked bars would be named from the right.
    chart["layout"]["legend"]["traceorder"] = "normal"
    rows = [(b, *(percent(v[k], 1) for k in (*KINDS, "with squeeze-and-excitation"))) for b, v in bars]
    why = "The same networks, block by block: what is cheap on one device need not be on another."
    columns = ("network", *KINDS, "with squeeze-and-excitation")
    return [Picture("Shares of the Ops (MoGA, fig. 1)", why, [chart], columns, rows, {"shares": shares})]


def _shares(model: Predictor, space: SearchSpace, arch: Arch) -> dict[str, float]:
    """Shares of the sum over blocks, without what a model adds for the network as a whole."""
    net = space.network(arch)
    block_of = {node: block for block in net.blocks for node in block.nodes}
    out = dict.fromkeys((*KINDS, "with squeeze-and-excitation"), 0.0)
    parts = [part for part in model.predict(net).breakdown if part.nodes]
    for part in parts:
        block = block_of.get(part.nodes[0])
        label = space.choice_label(int(block.name.split(".")[1]), block.choice) if block and block.choice >= 0 else ""
        kind = next((k for k in KINDS[:3] if label.startswith(f"k{k[0]}")), KINDS[3])
        out[kind] += part.value
        if " se" in label:
            out["with squeeze-and-excitation"] += part.value
    total = sum(p.value for p in parts)
    return {k: v / total for k, v in out.items()}


def device_scatter(study: Study) -> list[Picture]:
    """Random networks on pairs of devices."""
    if len(study.devices) < 2:
        raise SystemExit("device-scatter compares devices: give --device twice or more")
    space = study.space("mobilenetv3")
    archs = space.sample_archs(1000, seed=study.seed)
    names = ["-".join(map(str, a)) for a in archs.tolist()]
    latency = {d: study.latency(d, space, archs) for d in study.devices}
    charts, rows, numbers = [], [], {}
    for i, a in enumerate(study.devices):
        for b in study.devices[i + 1 :]:
            both = np.isfinite(latency[a]) & np.isfinite(latency[b])
            if not both.any():
                study.warnings.append(f"no network is taken by both {a} and {b}; try --set act=relu6 --set se=false")
                continue
            rho = spearman(latency[a][both], latency[b][both])
            charts.append(_pair_chart(a, b, latency[a], latency[b], names))
            rows.append((f"{a} / {b}", str(int(both.sum())), f"{rho:.4f}"))
            numbers[f"{a} / {b}"] = rho
    if not rows:
        return []
    why = "Were latency on one device a function of latency on the other, the points would lie on a line."
    title = "Devices against each other (MoGA, fig. 2)"
    return [Picture(title, why, charts, ("devices", "networks", "Spearman"), rows, {"spearman": numbers})]
