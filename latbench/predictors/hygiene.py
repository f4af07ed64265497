"""Looking after a table: what is wrong with it, what was tested, and what could not be.

:func:`check` gives findings: problems (numbers that are none, Ops that are missing), warnings (entries too uncertain,
larger Ops that take less time, sums that miss networks, another runtime by now, age), and notes on what could not be
tested. :mod:`latbench.predictors.table_tests` holds the tests, :mod:`latbench.predictors.table_diff` compares two
tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import TYPE_CHECKING, Literal

from latbench.errors import ConfigError
from latbench.metric import METRICS
from latbench.predictors.table_tests import ALPHA, excess_error, monotonicity
from latbench.setting import Setting
from latbench.space import SearchSpace
from latbench.visit import Interval

if TYPE_CHECKING:
    from latbench.predictors.table import Table

#: Relative half-width of an entry's interval above which it is called uncertain.
UNCERTAIN = 0.05
#: Error of sums on held-out networks beyond their noise above which they are called not additive.
NOT_ADDITIVE = 0.05
#: Days after which a table is old, and percent by which a device's state may move while it is measured.
OLD_DAYS, DRIFTED_PERCENT = 180, 20.0
#: Runtimes whose Python package has another name.
PACKAGES = {"tvm": "apache-tvm", "tvm-rpc": "apache-tvm"}
#: Findings of one kind that are named one by one, the worst of them.
_NAMED = 20

What = Literal["entry", "missing", "monotonicity", "additivity", "stale", "drift", "age"]


@dataclass(frozen=True)
class Finding:
    """One thing about a table: ``severity``, the Op's key or "", a sentence, and which check it comes from.

    A "note" says what was tested and found good, or why something could not be tested.
    """

    severity: Literal["problem", "warning", "note"]
    key: str
    text: str
    what: What = "entry"


def check(table: Table, space: SearchSpace | None = None, *, setting: Setting | None = None) -> list[Finding]:
    """Everything that is wrong with a table, problems first.

    ``space`` (or the one of the table's card, where it can be made) says which Ops it should hold; ``setting`` is the
    one that the device has now, which tells whether the table is stale.
    """
    found = [
        *_entries(table), *_coverage(table, space), *_monotonicity(table), *_additivity(table),
        *_staleness(table, setting), *_drift(table), *_age(table), *_uncertain(table),
    ]  # fmt: skip
    order = ("problem", "warning", "note")
    return sorted(found, key=lambda f: order.index(f.severity))


def _entries(table: Table) -> Iterator[Finding]:
    unit = METRICS[table.metric].unit
    own = table.setting.model_error
    if own:
        yield Finding("warning", "", f"a simulator's numbers: its own error is {own:.0%} (one standard deviation)")
    for key, e in table.entries.items():
        if not e.supported:
            continue
        i = e.interval
        if not isfinite(i.value) or i.value <= 0:
            yield Finding("problem", key, f"{table.metric} is a positive number, not {i.value:.4g} {unit}")
        elif not i.low <= i.value <= i.high:
            yield Finding("problem", key, f"the value {i.value:.4g} {unit} is outside its interval")


def _uncertain(table: Table) -> Iterator[Finding]:
    """Entries with wide intervals, the widest first; of a simulator, whose own error all share, none."""
    if table.setting.model_error:
        return
    halves = {k: _half(e.interval) for k, e in table.entries.items() if e.supported}
    wide = sorted((k for k, half in halves.items() if half > UNCERTAIN), key=lambda k: -halves[k])
    for key in wide[:_NAMED]:
        visits = table.entries[key].visits
        said = f"± {halves[key]:.1%} after {visits} Visits" if isfinite(halves[key]) else "one Visit tells no interval"
        yield Finding("warning", key, f"uncertain: {said}")
    if rest := wide[_NAMED:]:
        text = f"uncertain: {len(rest)} further entries of {len(halves)}, beyond ± {UNCERTAIN:.0%} all of them"
        yield Finding("warning", "", text)


def _half(i: Interval) -> float:
    """Half of an interval over its value; 0 of what is broken, which is a finding of its own."""
    return (i.high - i.low) / 2 / i.value if i.value > 0 and i.low <= i.value <= i.high else 0.0


def _coverage(table: Table, space: SearchSpace | None) -> Iterator[Finding]:
    if space is None and table.card.space:
        from latbench import load_space

        spec = dict(table.card.space)
        try:
            space = load_space(spec.pop("name"), **spec)
        except ConfigError as e:
            yield Finding("warning", "", f"its space cannot be made here: {e}", "missing")
            return
    if space is None or not table.holds("block"):
        why = "no space says which Ops it should hold"
        why = why if space is None else "it holds units alone, and a space lists blocks"
        yield Finding("note", "", f"missing Ops: not known: {why}", "missing")
        return
    covered = table.coverage(space)
    for op in covered.missing:
        yield Finding("problem", op.key, f"missing: {op.label}", "missing")
    for key, rule in covered.unsupported.items():
        yield Finding("warning", key, f"unsupported: {rule}", "missing")


def _monotonicity(table: Table) -> Iterator[Finding]:
    breaks, pairs = monotonicity(list(table.entries.values()), exact=table.setting.simulated)
    unit = METRICS[table.metric].unit
    for b in breaks[:_NAMED]:
        yield Finding(
            "warning", b.larger.op.key,
            f"{1 - b.ratio:.0%} below a smaller Op: {b.larger.value:.4g} {unit}, and {b.smaller.value:.4g} {unit} of "
            f"{b.smaller.op.label} (p = {b.p_value:.2g})", "monotonicity",
        )  # fmt: skip
    more = f"; {len(breaks) - _NAMED} further breaks" if len(breaks) > _NAMED else ""
    tested = f"{pairs} pairs of a smaller and a larger Op of one make, {len(breaks)} of them the wrong way round"
    yield Finding("note", "", f"monotonicity: {tested}{more}", "monotonicity")


def _additivity(table: Table) -> Iterator[Finding]:
    for level in ("block", "unit"):
        if table.holds(level) and level not in table.calibrations:
            yield Finding("warning", "", f"no measured networks calibrate sums over {level}s", "additivity")
    v = table.card.validation
    if v is None:
        yield Finding(
            "warning", "", "not validated on held-out networks: nothing tells whether sums hold", "additivity"
        )
        return
    rmspe, floor, n = float(v["score"]["rmspe"]), v.get("noise_floor"), int(v["score"]["n"])
    if table.setting.simulated:
        floor = 0.0
    if floor is None:
        yield Finding("note", "", "additivity: held-out networks were measured once, so that noise is not known",
                      "additivity")  # fmt: skip
        return
    p, excess = excess_error(rmspe, float(floor), n)
    said = (
        f"sums over Ops miss {n} held-out networks by {rmspe:.1%} RMSPE, the noise floor is {float(floor):.1%}: "
        f"{excess:.1%} are not explained by noise (p = {p:.2g})"
    )
    if p < ALPHA and excess > NOT_ADDITIVE:
        yield Finding("warning", "", said, "additivity")
    else:
        yield Finding("note", "", f"additivity: {said}", "additivity")


def _staleness(table: Table, now: Setting | None) -> Iterator[Finding]:
    its = table.setting
    if now is not None:
        if now.hash == its.hash:
            yield Finding("note", "", "the device's Setting is still the table's", "stale")
        for line in its.differences(now):
            name = line.partition(":")[0]
            word = "stale" if name == "runtime_version" else "another Setting"
            yield Finding("warning", "", f"{word} (the table's ≠ the device's): {line}", "stale")
        return
    if not _is_local(table):
        yield Finding(
            "note", "", f"staleness: not known without the device; --device {_profile(table)} asks it", "stale"
        )
        return
    try:
        here = version(PACKAGES.get(its.runtime, its.runtime))
    except PackageNotFoundError:
        text = f"staleness: not known: {its.runtime} is not installed here; --device {_profile(table)} asks the device"
        yield Finding("note", "", text, "stale")
        return
    if here != its.runtime_version:
        text = f"stale: measured with {its.runtime} {its.runtime_version}, installed here is {here}"
        yield Finding("warning", "", text, "stale")


def _profile(table: Table) -> str:
    return str(table.card.device.get("profile") or table.setting.device)


def _is_local(table: Table) -> bool:
    """True where what is installed here is what the device runs; a profile that is not at hand may be of here."""
    from latbench.profile import find_profile

    try:
        return find_profile(_profile(table)).transport.get("kind") == "local"
    except ConfigError:
        return True


def _drift(table: Table) -> Iterator[Finding]:
    drift = table.card.data.get("drift")
    if not isinstance(drift, dict):
        return
    span = float(drift.get("span_percent", 0.0))
    if span > DRIFTED_PERCENT:
        text = f"the device's state moved by {span:.0f} % while it was measured (taken off by {drift.get('model')})"
        yield Finding("warning", "", text, "drift")
    for text in drift.get("warnings", ()):
        yield Finding("warning", "", f"drift: {text}", "drift")


def _age(table: Table) -> Iterator[Finding]:
    text = str(table.card.data.get("last") or table.card.created)
    if table.setting.simulated:
        return
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return
    days = (datetime.now(UTC) - (when if when.tzinfo else when.replace(tzinfo=UTC))).days
    if days > OLD_DAYS:
        yield Finding("warning", "", f"old: measured {days} days ago, on {text[:10]}", "age")
