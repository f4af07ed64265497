"""Measuring what a search found, on the device itself, beside what was predicted; and testing its accuracy.

A search picks the architectures that its latency model is most optimistic about, so that limits which hold by
prediction may break on the device. Here they are judged on measurements. Nor is the validation error of the best of
many an honest one: an evaluator that has kept data aside tells the test error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latbench.campaign import Campaign, Progress
from latbench.device import Device
from latbench.errors import ConfigError, DeviceError, SettingMismatchError
from latbench.evidence import Evidence
from latbench.keep_limits import WinnersFactor, keep_limit
from latbench.plan import Plan
from latbench.problem import AccuracyEvaluator, Candidate
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.space import Arch, arch_name
from latbench.telling import silent, told
from latbench.visit import Interval, Measurement

if TYPE_CHECKING:
    from latbench.result import SearchResult
    from latbench.store import Store


@dataclass(frozen=True)
class Validated:
    """One found network, predicted and measured; latencies in milliseconds.

    ``value`` is the name of the predicted value (``latency_ms``, ``latency_ms@device``). ``measured`` is None where the
    device could not run it, and ``failure`` says why. ``kept`` maps each limit to whether it is kept: limits on this
    device's latency by the measured value, all others by the candidate's values. ``test_error`` is a fraction, on data
    that the search has not seen; None where nobody asked for it, or the evaluator has no such data.
    """

    arch: Arch
    value: str
    predicted: Interval
    measured: Measurement | None
    kept: Mapping[str, bool] = field(default_factory=dict)
    failure: str = ""
    test_error: float | None = None

    @property
    def ratio(self) -> float:
        """Predicted over measured latency; NaN where nothing was measured."""
        return self.predicted.value / self.measured.latency_ms if self.measured else float("nan")

    @property
    def covered(self) -> bool:
        """Whether the measured latency lies inside the predicted interval."""
        return self.measured is not None and self.predicted.low <= self.measured.latency_ms <= self.predicted.high

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values (raw samples stay in the store); :meth:`from_json` reads them back."""
        m = self.measured
        return {
            "arch": list(self.arch),
            "value": self.value,
            "predicted": _ends(self.predicted),
            "measured": m and {
                "subject": m.subject, "setting": m.setting.to_json(), "visits": m.visits, "level": m.level,
                "metrics": {n: _ends(i) for n, i in m.metrics.items()},
                "statistics": {n: v for n, v in m.statistics.items() if np.isfinite(v)}, "warnings": list(m.warnings),
            },
            "kept": dict(self.kept),
            "failure": self.failure,
            "test_error": self.test_error,
        }  # fmt: skip

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Validated:
        """The inverse of :meth:`to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        m = d["measured"]
        measured = m and Measurement(
            m["subject"], Setting.from_json(m["setting"]), {n: _interval(i) for n, i in m["metrics"].items()},
            m["statistics"], int(m["visits"]), float(m["level"]), warnings=tuple(m["warnings"]),
        )  # fmt: skip
        return cls(
            tuple(d["arch"]), d["value"], _interval(d["predicted"]), measured or None, dict(d["kept"]), d["failure"],
            None if (error := d.get("test_error")) is None else float(error),
        )  # fmt: skip


def validate(
    result: SearchResult,
    device: Device,
    *,
    protocol: Protocol | None = None,
    top: int = 5,
    archs: Iterable[Arch] | None = None,
    store: Store | str | Path | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    accuracy: AccuracyEvaluator | None = None,
    extra: int = 3,
    report: Callable[[str], None] = silent,
) -> list[Validated]:
    """Measure ``top`` networks at equal distance along the front (or these ``archs``) on the device.

    They are measured in one campaign, in turns, by the statistic that the latency model predicts; with ``store`` its
    Visits are kept and an interrupted validation goes on. The outcome is also put into ``result.validated``, in place
    of what was there for the same architectures and device. ``accuracy``, the search's evaluator, tells the test errors
    where it has kept data aside (:meth:`~latbench.problem.AccuracyEvaluator.test`).

    Where the search has a hard limit on this device's latency and the best network breaks it when it is measured, the
    next on the front is measured in its place, with the intervals recalibrated by what the measured ones showed
    (:func:`latbench.keep_limits.keep_limit`): at most ``extra`` networks more, 0 for none. What came of it stands in
    ``result.provenance["kept_limits"]``. ``report`` is told in a line what is being done.

    Raises :class:`SettingMismatchError` where none of the search's latency models is for this device in its Setting,
    :class:`ConfigError` where there is nothing to validate, or for an evaluator of another recipe than the search's,
    and what the campaign raises.
    """
    chosen = _chosen(result, top, archs)
    if accuracy is not None and accuracy.recipe != (recipe := result.provenance.get("recipe")):
        raise ConfigError(f"the search's evaluator was {recipe!r}, not {accuracy.recipe!r}: give that one as accuracy=")
    with ExitStack() as stack:
        try:
            setting = device.setting
        except DeviceError:
            setting = stack.enter_context(device).setting
        suffix = _suffix(result, setting)
        name = f"latency_ms{suffix}"
        facts = result.provenance["latency"][suffix]
        rules = protocol or device.profile.protocol
        rules = rules.model_copy(update={"statistic": facts.get("statistic", rules.statistic)})
        if store is None:
            store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latbench-"))) / "validate.db"
        networks = f"{len(chosen)} network{'s' * (len(chosen) != 1)}"
        more = f", more (at most {rules.max_visits}) where the interval is wide" * (rules.max_visits > rules.min_visits)
        report(f"measuring {networks} in turns: {rules.min_visits} Visits each{more}")
        measured, failed = _measure(result, device, chosen, rules, store, seed, progress)
        if (most := result.problem.limits.get(name)) is not None and extra:

            def one_more(c: Candidate) -> float:
                report(f"measuring {arch_name(c.arch)} too: it may keep {name} ≤ {most:g}, or be better and keep it")
                found, why = _measure(result, device, [c], rules, store, seed, progress)
                chosen.append(c)
                measured.update(found)
                failed.update(why)
                return found[c.arch].latency_ms if c.arch in found else float("nan")

            known = {c.arch: measured.get(c.arch) for c in chosen}
            result.provenance.setdefault("kept_limits", {})[name] = _keep(result, name, most, one_more, extra, known)
    # After the campaign: trainings would disturb it.
    tested = {v.arch: v.test_error for v in result.validated} | _test_errors(result, chosen, accuracy, report)
    out = []
    for c in chosen:
        low, high = (c.values.get(f"latency_{end}_ms{suffix}", c.values[name]) for end in ("low", "high"))
        m = measured.get(c.arch)
        kept = {}
        for limit, largest in {**result.problem.limits, **result.problem.soft_limits}.items():
            value = (m.latency_ms if m else None) if limit == name else c.values.get(limit)
            kept[limit] = value is not None and value <= largest
        predicted = Interval(c.values[name], low, high)
        out.append(Validated(c.arch, name, predicted, m, kept, failed.get(c.arch, ""), tested.get(c.arch)))
    done = {(v.arch, v.value) for v in out}
    result.validated = [v for v in result.validated if (v.arch, v.value) not in done] + out
    result.provenance["validated_setting"] = setting.hash
    return out


def _keep(
    result: SearchResult,
    name: str,
    limit: float,
    measure: Callable[[Candidate], float],
    extra: int,
    known: Mapping[Arch, Measurement | None],
) -> dict[str, Any]:
    """Find the network that keeps a limit as measured; gives what came of it as plain JSON values."""
    if all(o.name == name for o in result.problem.objectives):
        return {}
    factor = WinnersFactor(float(result.provenance.get("level", 0.9)))
    before = {a: m.latency_ms if m else float("nan") for a, m in known.items()}
    kept = keep_limit(
        result.problem, result.candidates, limit, measure, name=name, extra=extra, factor=factor, known=before
    )
    broke = [w for w in kept.tried if not w.measured_ms <= limit]
    return {
        "limit_ms": limit,
        "winner": list(kept.winner.arch) if kept.winner else None,
        "replaced": [list(w.candidate.arch) for w in broke if w.chosen],
        # On trial for something better, when a winner was there already.
        "tried": [list(w.candidate.arch) for w in broke if not w.chosen],
        "measured": sum(w.candidate.arch not in before for w in kept.tried),
        "interval_factor": factor.factor,
    }


def _chosen(result: SearchResult, top: int, archs: Iterable[Arch] | None) -> list[Candidate]:
    """Candidates to measure, with their predicted values."""
    if archs is None:
        chosen = result.pick(top)
        if not chosen:
            raise ConfigError("the search found nothing that keeps its limits: name architectures with archs=")
        return chosen
    known = {c.arch: c for c in result.candidates}
    wanted = [result.problem.space.validate(a) for a in archs]
    out = []
    for arch in dict.fromkeys(wanted):
        if arch not in known and result.problem.cheap_values is not None:
            row = {n: float(column[0]) for n, column in result.problem.cheap([arch]).items()}
            known[arch] = result.problem.candidate(arch, row, {})
        if arch not in known:
            raise ConfigError(f"{list(arch)} is no candidate of this search, so nothing was predicted for it")
        out.append(known[arch])
    return out


def _suffix(result: SearchResult, setting: Setting) -> str:
    """Suffix of the latency values that were predicted for this Setting."""
    models: Mapping[str, Any] = result.provenance.get("latency") or {}
    if not models:
        raise ConfigError("the search had no latency model, so there is no prediction to validate")
    why = []
    for suffix, facts in models.items():
        if facts["setting_hash"] == setting.hash:
            return suffix
        predicted = Setting.from_json(facts["setting"])
        why.append(f"{suffix or 'model'}: " + "; ".join(predicted.differences(setting)))
    raise SettingMismatchError(
        "the search's latency was predicted for another Setting than this device is in (predicted ≠ here):\n  "
        + "\n  ".join(why)
    )


def _measure(
    result: SearchResult,
    device: Device,
    chosen: Iterable[Candidate],
    protocol: Protocol,
    store: Store | str | Path,
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> tuple[dict[Arch, Measurement], dict[Arch, str]]:
    """Measurement of each architecture, or why there is none."""
    from latbench.store import Store

    nets = {c.arch: result.problem.space.network(c.arch) for c in chosen}
    with ExitStack() as stack:
        opened = store if isinstance(store, Store) else stack.enter_context(Store.open(store))
        campaign = Campaign(
            device, Plan.of(nets.values(), networks="found", seed=seed), store=opened, protocol=protocol, seed=seed,
            name="validation of a search", space=result.problem.space,
        )  # fmt: skip
        done = campaign.run(progress)
        evidence = Evidence.from_store(opened, done.setting, [done.id])
        found = evidence.measurements(protocol.statistic)
        visits = opened.visits(done.setting, campaign=done.id, failed=True)
    why = {v.subject: v.failure or v.unsupported for v in visits}
    failed = {a: f"{f.kind}: {f.message}" for a, n in nets.items() if n.key not in found and (f := why.get(n.key))}
    return {a: found[n.key] for a, n in nets.items() if n.key in found}, failed


def _test_errors(
    result: SearchResult,
    chosen: Sequence[Candidate],
    accuracy: AccuracyEvaluator | None,
    report: Callable[[str], None],
) -> dict[Arch, float | None]:
    """Test error of each architecture that has one."""
    out: dict[Arch, float | None] = {}
    if accuracy is None:
        return out
    report("test errors: each network is judged again, on data that the search has not seen")
    for c in told(chosen, "test errors", report, total=len(chosen), unit="network"):
        answers = accuracy.test(result.problem.space, [c.arch])
        if answers is None:
            return {}
        error = float(answers[0]["error"])
        if np.isfinite(error):
            out[c.arch] = error
    return out


def _ends(x: Interval) -> list[float | None]:
    """Value and ends; JSON has no infinity: an end that is not finite is null."""
    return [v if np.isfinite(v) else None for v in (x.value, x.low, x.high)]


def _interval(ends: Sequence[float | None]) -> Interval:
    """The inverse of :func:`_ends`: a missing end is an interval's that goes on for ever."""
    value, low, high = ends
    return Interval(
        np.nan if value is None else float(value), -np.inf if low is None else float(low),
        np.inf if high is None else float(high),
    )  # fmt: skip
