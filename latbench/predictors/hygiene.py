"""Looking after tables: what is wrong with one, and what differs between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import erfc, isfinite, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np

from latbench.space import SearchSpace
from latbench.visit import Interval

if TYPE_CHECKING:
    from latbench.predictors.table import Table

#: Relative half-width of an entry's interval above which it is called uncertain.
UNCERTAIN = 0.05
#: Validation RMSPE over noise floor above which the sum over Ops is called not additive.
NOT_ADDITIVE = 3.0


@dataclass(frozen=True)
class Finding:
    """One thing about a table: ``severity`` "problem" or "warning", the Op's key or "", and a sentence."""

    severity: Literal["problem", "warning"]
    key: str
    text: str


@dataclass(frozen=True)
class Difference:
    """One Op in two tables. ``ratio`` is the second latency over the first; ``p_value`` that of no difference,
    corrected for the number of Ops (Holm 1979)."""

    key: str
    label: str
    a_ms: float
    b_ms: float
    ratio: float
    p_value: float

    @property
    def significant(self) -> bool:
        """True at the 5 % level for the family of all Ops."""
        return self.p_value < 0.05


@dataclass(frozen=True)
class Comparison:
    """Two tables side by side: ``settings`` are the fields in which their Settings differ."""

    settings: tuple[str, ...]
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Geometric mean of the latency ratios over common Ops; NaN without any."""
        if not self.differences:
            return float("nan")
        return float(np.exp(np.mean([np.log(d.ratio) for d in self.differences])))


def check(table: Table, space: SearchSpace | None = None) -> list[Finding]:
    """What is wrong with a table: bad or missing entries, weak ones, sums that do not add up, another runtime here.

    ``space`` (or the one of the table's card, where it can be made) says which Ops it should hold.
    """
    found = [*_entries(table), *_coverage(table, space), *_additivity(table)]
    try:
        here = version(table.setting.runtime)
    except PackageNotFoundError:
        here = ""
    its = table.setting.runtime_version
    if here and here != its:
        text = f"stale: measured with {table.setting.runtime} {its}, installed here is {here}"
        found.append(Finding("warning", "", text))
    return found


def _entries(table: Table) -> list[Finding]:
    found = []
    for key, e in table.entries.items():
        if not e.supported:
            continue
        i = e.metrics["latency_ms"]
        if not isfinite(i.value) or i.value <= 0:
            found.append(Finding("problem", key, f"a latency is a positive number, not {i.value} ms"))
        elif not i.low <= i.value <= i.high:
            found.append(Finding("problem", key, f"the value {i.value:.4g} ms is outside its interval"))
        elif (half := (i.high - i.low) / 2 / i.value) > UNCERTAIN:
            found.append(Finding("warning", key, f"uncertain: ± {half:.1%} after {e.visits} Visits"))
    return found


def _coverage(table: Table, space: SearchSpace | None) -> list[Finding]:
    if space is None and table.card.space:
        from latbench import load_space
        from latbench.errors import ConfigError

        spec = dict(table.card.space)
        try:
            space = load_space(spec.pop("name"), **spec)
        except ConfigError as e:
            return [Finding("warning", "", f"its space cannot be made here: {e}")]
    if space is None or not table.holds("block"):
        return []
    covered = table.coverage(space)
    missing = [Finding("problem", op.key, f"missing: {op.label}") for op in covered.missing]
    return missing + [Finding("warning", k, f"unsupported: {rule}") for k, rule in covered.unsupported.items()]


def _additivity(table: Table) -> list[Finding]:
    found = []
    for level in ("block", "unit"):
        if table.holds(level) and level not in table.calibrations:
            found.append(Finding("warning", "", f"no measured networks calibrate sums over {level}s"))
    v = table.card.validation
    if v is None:
        return [*found, Finding("warning", "", "not validated on held-out networks")]
    rmspe, floor = float(v["score"]["rmspe"]), v.get("noise_floor")
    if floor and rmspe > max(NOT_ADDITIVE * float(floor), 0.05):
        text = f"sums over Ops miss held-out networks by {rmspe:.1%} RMSPE, the noise floor is {float(floor):.1%}"
        found.append(Finding("warning", "", text))
    return found


def diff(a: Table, b: Table) -> Comparison:
    """Compare two tables Op by Op: what differs significantly first, and of that the largest change.

    The test of each Op takes the 95 % intervals of both entries as normal on the logarithm and is two-sided.
    """
    rows = []
    for key, x in a.entries.items():
        y = b.entries.get(key)
        if y is not None and x.supported and y.supported:
            i, j = x.metrics["latency_ms"], y.metrics["latency_ms"]
            rows.append((key, x.op.label, i, j, _p_value(i, j)))
    adjusted = _holm([r[4] for r in rows])
    found = [
        Difference(key, label, i.value, j.value, j.value / i.value, p)
        for (key, label, i, j, _), p in zip(rows, adjusted, strict=True)
    ]
    found.sort(key=lambda d: (not d.significant, -abs(np.log(d.ratio))))
    return Comparison(
        tuple(a.setting.differences(b.setting)),
        tuple(found),
        tuple(k for k in a.entries if k not in b.entries),
        tuple(k for k in b.entries if k not in a.entries),
    )


def _p_value(i: Interval, j: Interval) -> float:
    # A 95 % interval of a normal is 2 × 1.96 standard errors wide.
    variance = sum(((x.high - x.low) / (2 * 1.96 * x.value)) ** 2 for x in (i, j))
    change = abs(np.log(j.value / i.value))
    if variance == 0:
        return 1.0 if change == 0 else 0.0
    return erfc(float(change) / sqrt(variance) / sqrt(2))


def _holm(p: Sequence[float]) -> list[float]:
    order = np.argsort(p, kind="stable")
    scaled = np.array([p[k] * (len(p) - rank) for rank, k in enumerate(order)])
    out = np.empty(len(p))
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(p) else scaled
    return [float(x) for x in out]
