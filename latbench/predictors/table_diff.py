"""Two tables side by side: which Ops became slower or faster, and what of it is more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, log, nan
from typing import TYPE_CHECKING

import numpy as np

from latbench.errors import ConfigError
from latbench.metric import LATENCY
from latbench.predictors.table_tests import ALPHA, holm, welch

if TYPE_CHECKING:
    from latbench.predictors.table import Table
    from latbench.setting import Setting

#: Clocks that tell how long a device took.
_TELL_TIME = {"wall", "device-event"}
#: Fewest common Ops for a test of the tables as wholes.
_FEWEST = 6
#: Fewest common Ops that are ranked.
_RANKED = 3


@dataclass(frozen=True)
class Difference:
    """One Op in two tables, ``a`` and ``b`` in the unit of their metric.

    ``ratio`` is the second over the first; ``p_value`` that of no difference, corrected for the number of Ops, NaN
    where one of the two rests on a single Visit.
    """

    key: str
    label: str
    a: float
    b: float
    ratio: float
    p_value: float

    @property
    def significant(self) -> bool:
        """True at the 5 % level for the family of all Ops; False where it cannot be told."""
        return self.p_value < ALPHA

    @property
    def tested(self) -> bool:
        """False where one of the two rests on a single Visit."""
        return not isnan(self.p_value)


@dataclass(frozen=True)
class Comparison:
    """Two tables side by side: ``settings`` are the fields in which their Settings differ.

    ``only_a`` and ``only_b`` are the keys that one of them lacks, ``incomparable`` those that are in both, but refused
    by one of the two devices or no positive number. ``p_value`` is of the hypothesis that neither table is slower as a
    whole: Wilcoxon's signed-rank test on the log ratios of the common Ops (Wilcoxon 1945), NaN with fewer than six of
    them. All Ops of a table were measured in its own campaign: what moved them together (another boot, a warmer room)
    is a difference of the tables, too, and no test on two tables tells it from one of the devices.
    """

    metric: str
    settings: tuple[str, ...]
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    p_value: float = nan
    incomparable: tuple[str, ...] = ()
    #: Two clocks of which one tells no time of a device (an emulator's or a simulator's): no ratio of theirs and no
    #: test says which is slower. Empty where both tell times.
    clocks: tuple[str, ...] = ()
    #: Spearman's rank correlation over the common Ops: 1 where both order them alike; NaN where there is no order.
    spearman: float = nan

    @property
    def ratio(self) -> float:
        """Geometric mean of the ratios over common Ops; NaN without any, and for clocks that cannot be compared."""
        if not self.differences or self.clocks:
            return float("nan")
        return float(np.exp(np.mean([np.log(d.ratio) for d in self.differences])))


def diff(a: Table, b: Table) -> Comparison:
    """Compare two tables Op by Op: what differs significantly first, and of that the largest change.

    Each Op by Welch's t on the logarithm, two-sided, with Holm's correction over all that are tested. Numbers of a
    simulator have no noise: any difference of them is one. Of two clocks that cannot be compared as times nothing is
    tested (every p-value is NaN). Raises :class:`ConfigError` for tables of two metrics.
    """
    if a.metric != b.metric:
        raise ConfigError(f"the first table is of {a.metric}, the second of {b.metric}: they cannot be compared")
    exact = a.setting.simulated and b.setting.simulated
    both = [(x, b.entries[key]) for key, x in a.entries.items() if key in b.entries]
    common = [(x, y) for x, y in both if x.value > 0 and y.value > 0]  # NaN where it is unsupported
    apart = tuple(x.op.key for x, y in both if (x.supported or y.supported) and not (x.value > 0 and y.value > 0))
    clocks = _apart(a.setting, b.setting) if a.metric == LATENCY else ()
    adjusted = [nan] * len(common) if clocks else holm([welch(x, y, exact=exact) for x, y in common])
    found = [
        Difference(x.op.key, x.op.label, x.value, y.value, y.value / x.value, p)
        for (x, y), p in zip(common, adjusted, strict=True)
    ]
    found.sort(key=lambda d: (not d.significant, -abs(log(d.ratio))))
    return Comparison(
        a.metric,
        tuple(a.setting.differences(b.setting)),
        tuple(found),
        tuple(k for k in a.entries if k not in b.entries),
        tuple(k for k in b.entries if k not in a.entries),
        nan if clocks else _wholes([d.ratio for d in found]),
        apart,
        clocks,
        _ranks([d.a for d in found], [d.b for d in found]),
    )


def _ranks(a: list[float], b: list[float]) -> float:
    from scipy.stats import spearmanr

    enough = len(a) >= _RANKED and len(set(a)) > 1 and len(set(b)) > 1
    return float(spearmanr(a, b).statistic) if enough else nan


def _apart(a: Setting, b: Setting) -> tuple[str, ...]:
    """Both clocks, where they differ and one of them tells no time of a device."""
    return (a.clock, b.clock) if a.clock != b.clock and not {a.clock, b.clock} <= _TELL_TIME else ()


def _wholes(ratios: list[float]) -> float:
    from scipy.stats import wilcoxon

    logs = np.log(ratios)
    moved = logs[logs != 0]
    if len(logs) < _FEWEST:
        return nan
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0
