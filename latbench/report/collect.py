"""Gathering a report: what was measured from the store, what is predicted from models, what was found from a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latbench.card import device_option, space_options
from latbench.device import Check
from latbench.errors import ArchitectureError, NotAdditiveError, NotEnoughDataError, UnknownOpError, UnsupportedOpError
from latbench.evidence import Evidence
from latbench.network import Network
from latbench.op import Op
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
from latbench.report.words import family
from latbench.space import arch_name

if TYPE_CHECKING:
    from latbench.predictor import Predictor
    from latbench.result import SearchResult
    from latbench.setting import Setting
    from latbench.space import SearchSpace
    from latbench.store import CampaignRecord, Store

#: Random architectures that say how fast the family is.
SAMPLE = 5000
#: Level of the measurements' intervals.
LEVEL = 0.95
#: Longer times without a Visit are pauses, and shortened to this.
_PAUSE_S = 5.0
#: Control Visits and Ops are averaged over this many neighbours for the line "removed".
_WINDOW = 40


def collect(
    *,
    device: str,
    store: Store,
    models: Sequence[Predictor],
    space: SearchSpace | None = None,
    result: SearchResult | None = None,
    paths: Mapping[str, str] | None = None,
    checks: Sequence[Check] = (),
    commands: Sequence[str] = (),
) -> Report:
    """Everything on the page about one device, from the Visits of the first model's Setting (else its newest).

    ``paths`` maps a model's name to where it lies, ``result`` is what a search found. Raises
    :class:`~latbench.errors.NotEnoughDataError` where nothing was measured on the device, or nothing of the space.
    """
    setting = models[0].setting if models else store.latest_setting(device)
    statistic: Any = models[0].card.statistic if models else "p50"
    records = store.campaigns(setting=setting)
    evidence = Evidence.from_store(store, setting)
    nets = {k: n for k, n in store.subjects().items() if isinstance(n, Network)}
    environment = next((dict(v.environment) for v in reversed(evidence.visits) if v.environment), {})
    matrix, choices = _matrix(space, models)
    spread = _range(space, models)
    if space is not None and result is None and spread is None and not _holds(space, records, nets.values()):
        raise NotEnoughDataError(
            f"{store.address}: nothing was measured of {family(space.spec)} on {device}; measure it: "
            f"latbench profile {device_option(device)}{space_options(space.spec)}"
        )
    return Report(
        device=device,
        setting=setting,
        family=family(space.spec if space else {}),
        statistic=statistic,
        facts=store.devices().get(setting.device, {}),
        environment=environment,
        checks=checks,
        campaign=_campaign(records, evidence),
        range_ms=spread[0] if spread else None,
        sampled=spread[1] if spread else 0,
        level=LEVEL,
        models=[_model(m, evidence, nets, space, (paths or {}).get(m.name, "")) for m in models],
        drift=_drift(evidence, statistic),
        ops=_ops(evidence, statistic),
        matrix=matrix,
        choices=choices,
        search=None if result is None else _search(result, space, models, setting),
        provenance=_provenance(store, records, models, result, statistic),
        commands=commands,
        created=datetime.now(UTC).isoformat(" ", "seconds"),
    )


def _holds(space: SearchSpace, records: Iterable[CampaignRecord], nets: Iterable[Network]) -> bool:
    specs = [r.space for r in records] + [n.origin.get("space") for n in nets]
    return any(s is not None and dict(s) == space.spec for s in specs)


def _campaign(records: Sequence[CampaignRecord], evidence: Evidence) -> dict[str, Any]:
    visits = evidence.visits
    if not visits:
        return {}
    simulated = evidence.setting.simulated
    runs = sum(len(v.samples_ns) for v in visits)
    out = {
        "campaigns": ", ".join(f"{r.name} ({r.state}, seed {r.seed}, plan {r.plan})" for r in records),
        "Visits": f"{len(visits)} with samples, {len(evidence.excluded)} without"
        + ("" if simulated else f"; {runs} timed runs"),
    }
    when = f"{_time(min(v.started for v in visits))} to {_time(max(v.ended for v in visits))}"
    out["simulated" if simulated else "measured"] = when
    if records:
        out["protocol"] = ", ".join(f"{k} {v}" for k, v in records[0].protocol.model_dump().items())
    return out


def _model(
    model: Predictor, evidence: Evidence, nets: Mapping[str, Network], space: SearchSpace | None, path: str
) -> ModelReport:
    """Its validation from the card, and the very networks that it was checked on."""
    from latbench.fitting import validation_of

    points = []
    level = float(model.card.validation["level"]) if model.card.validation else 0.9
    statistic: Any = model.card.statistic
    for key, m in evidence.measurements(statistic, purpose="validation", level=LEVEL).items():
        net = nets.get(key)
        if net is None or (space is not None and net.origin.get("space") != space.spec):
            continue
        try:
            estimate = model.predict(net, level=level)
        except (UnknownOpError, UnsupportedOpError):
            continue
        points.append(Point(net.name, estimate.metrics["latency_ms"], m.metrics["latency_ms"]))
    return ModelReport(model.name, validation_of(model), points, path, model.card.notes)


def _drift(evidence: Evidence, statistic: Any) -> DriftReport | None:
    """Control Visits against the reference state, and what was removed from Ops and networks."""
    if not evidence.visits:
        return None
    drift = evidence.drift(statistic)
    raw, slow = evidence.values(statistic, drift=False), np.exp(drift.log_slowdown)
    seconds = _busy_seconds(np.array([v.started for v in evidence.visits]))
    control = np.array([v.role == "control" for v in evidence.visits])
    subjects = np.array([v.subject for v in evidence.visits])
    controls = []
    for subject in sorted(set(subjects[control].tolist())):
        own = control & (subjects == subject)
        order = np.argsort(seconds[own])
        ratio = raw[own] / np.median(raw[own] / slow[own])
        kind = subject.removeprefix("control:")
        controls.append(Control(kind, f"{kind}-bound", seconds[own][order].tolist(), ratio[order].tolist()))
    curves = []
    if drift.model != "none" and (~control).any():
        order = np.argsort(seconds[~control])
        t, f = seconds[~control][order], slow[~control][order]
        width = min(_WINDOW, len(t))
        line = [float(np.median(f[i : i + width])) for i in range(0, len(t), width)]
        middle = [float(np.mean(t[i : i + width])) for i in range(0, len(t), width)]
        curves.append(DriftCurve("Ops and networks", middle, line))
    residual = [v for v in drift.residual_percent.values() if isfinite(v)]
    return DriftReport(
        controls, curves, drift.span_percent / 100, float(np.median(residual)) / 100 if residual else nan,
        drift.warnings, "" if drift.model == "none" else f"{drift.model}; reference state: {drift.reference}",
    )  # fmt: skip


def _busy_seconds(started: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Seconds since the first Visit, pauses between campaigns left out."""
    order = np.argsort(started)
    steps = np.diff(started[order], prepend=started[order[0]])
    steps[steps > _PAUSE_S] = _PAUSE_S
    out = np.empty(len(started))
    out[order] = np.cumsum(steps)
    return out


def _ops(evidence: Evidence, statistic: Any) -> list[OpCost]:
    out = []
    for key, m in evidence.measurements(statistic, purpose="op", level=LEVEL).items():
        op = Op.parse(key)
        out.append(OpCost(key, op.label, op.kind, m.metrics["latency_ms"], op.macs, m.visits, op.level))
    return out


def _matrix(space: SearchSpace | None, models: Sequence[Predictor]) -> tuple[list[list[float]], list[str]]:
    """The cost of every choice by the first model that knows all of them."""
    if space is None or not space.additive:
        return [], []
    for model in models:
        try:
            matrix, _ = space.cost_matrix(model)
        except (NotAdditiveError, UnknownOpError):
            continue
        widest = int(np.argmax(space.num_choices))
        return matrix.tolist(), [space.choice_label(widest, c) for c in range(matrix.shape[1])]
    return [], []


def _range(space: SearchSpace | None, models: Sequence[Predictor]) -> tuple[tuple[float, float, float], int] | None:
    """The 5 %, 50 % and 95 % quantiles over random networks that the first model predicts, and how many they are."""
    if space is None:
        return None
    archs = space.sample_archs(min(SAMPLE, 4 * space.size), seed=0)
    for model in models:
        try:
            value = model.predict_archs(space, archs).value
        except (UnknownOpError, ArchitectureError):
            continue
        value = value[np.isfinite(value)]
        if not value.size:
            continue
        low, middle, high = np.quantile(value, [0.05, 0.5, 0.95])
        return (float(low), float(middle), float(high)), len(value)
    return None


def _search(
    result: SearchResult, space: SearchSpace | None, models: Sequence[Predictor], setting: Setting
) -> SearchReport:
    space = space or result.problem.space
    numbers = {c.number for c in result.front}
    candidates = [c for c in result.candidates if c.evaluated and "failed" not in c.info]
    p = result.provenance
    # One search may have asked models of several devices: the page is about one of them.
    own = next((s for s, m in p.get("latency", {}).items() if m["setting_hash"] == setting.hash), None)
    level = float(p.get("level", 0.9))
    return SearchReport(
        searcher=str(p.get("searcher", "")),
        objectives=[str(o) for o in result.problem.objectives],
        limits=dict(result.problem.limits),
        candidates=candidates,
        names=[arch_name(c.arch) for c in candidates],
        front=[i for i, c in enumerate(candidates) if c.number in numbers],
        found=_found(result, space, models, setting, level),
        budget=int(p.get("budget", 0)),
        seed=int(p.get("seed", 0)),
        accuracy=str(p.get("recipe") or ""),
        latency="" if own is None else f"latency_ms{own}",
        level=level,
        problem=result.problem,
        course=result.course,
        kept=result.kept_limits(),
        ties=result.ties(),
        picks={result.pick_texts[name]: arch_name(c.arch) for name, c in result.picks.items()},
    )


def _found(
    result: SearchResult, space: SearchSpace, models: Sequence[Predictor], setting: Setting, level: float
) -> list[Found]:
    """The networks that were measured in this Setting; where none were, some along the front."""
    values = {c.arch: c.values for c in result.candidates}
    out = []
    facts = result.provenance.get("latency", {})
    measured = {
        v.arch: v
        for v in result.validated
        if facts.get(v.value.removeprefix("latency_ms"), {}).get("setting_hash") == setting.hash
    }
    for arch in list(measured) or [c.arch for c in result.pick(5)]:
        net = space.network(arch)
        v = measured.get(arch)
        estimate = next((e for e in (_estimate(m, net, level) for m in models) if e is not None), None)
        predicted = v.predicted if v is not None else estimate.metrics["latency_ms"] if estimate else None
        if predicted is None:
            continue
        measured_ms = v.measured.metrics["latency_ms"] if v is not None and v.measured is not None else None
        out.append(Found(
            arch_name(arch), arch, values.get(arch, {}), predicted, measured_ms, net,
            [space.choice_label(i, c) for i, c in enumerate(arch)], _block_ms(net, models),
            v.test_error if v is not None else None,
        ))  # fmt: skip
    return sorted(out, key=lambda f: f.predicted.value)


def _estimate(model: Predictor, net: Network, level: float) -> Any:
    try:
        return model.predict(net, level=level)
    except (UnknownOpError, UnsupportedOpError):
        return None


def _block_ms(net: Network, models: Sequence[Predictor]) -> dict[str, float]:
    for model in models:
        try:
            costs = model.op_costs([b.op.key for b in net.blocks])
        except (UnknownOpError, NotAdditiveError):
            continue
        return {b.name: float(c) for b, c in zip(net.blocks, costs, strict=True) if isfinite(c)}
    return {}


def _provenance(
    store: Store, records: Sequence[CampaignRecord], models: Sequence[Predictor], result: SearchResult | None, stat: str
) -> dict[str, str]:
    out = {"store": store.address, "statistic": stat}
    out |= {"campaign ids": ", ".join(r.id for r in records)} if records else {}
    for m in models:
        card = m.card.to_json()
        out[f"card of {m.name}"] = f"{card['checksum']}, made {m.card.created} by latbench {m.card.latbench}"
    if result is not None:
        p = result.provenance
        paid = p.get("evaluations", {})
        out["search"] = f"{p.get('id', '')}: {p.get('searcher', '')}, {paid.get('paid', 0)} evaluations paid for, "
        out["search"] += f"{paid.get('from_store', 0)} from the store"
        if p.get("recipe"):
            out["accuracy"] = str(p["recipe"])
    return out


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
