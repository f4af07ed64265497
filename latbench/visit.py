"""Visits, and the numbers made of them: Measurement and Estimate.

A :class:`Visit` is one stay at one Op or Network on one device: raw samples or a failure, and the environment. It is
the unit of statistics. A :class:`Measurement` is what several Visits of one subject say, drift removed; an
:class:`Estimate` is what a latency model says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from latbench.errors import MissingMetricError
from latbench.metric import LATENCY
from latbench.setting import Setting

Role: TypeAlias = Literal["op", "network", "control"]
#: How an isolated Op was separated from its boundary conversions: it is a whole network; it was cut out of its context
#: (the kernels are those of the whole network); its boundary conversions were subtracted; or none of these.
Boundary: TypeAlias = Literal["whole", "in-context", "subtracted", "isolated"]


@dataclass(frozen=True)
class Failure:
    """Why a Visit measured nothing. ``kind`` is the name of the error class that says it best.

    ``layer`` names what in the network it is about, ``rule`` the rule that this breaks, where the device tells.
    """

    kind: str
    message: str
    layer: str | None = None
    rule: str | None = None


@dataclass(frozen=True)
class Visit:
    """One stay at one subject.

    ``samples_ns`` are wall times of the timed runs, in order; ``wait_ns``, where the device can tell, the part of each
    during which the runner was ready to run but another task had its core. ``started`` and ``ended`` are seconds on the
    device's clock, taken as Unix time. ``metric`` is what it was taken for: a Visit for latency has samples, one for
    another metric has that metric, and perhaps others that come with it, in ``metrics``: values by name, in the units
    of :data:`latbench.metric.METRICS`. ``uid`` is given by the runner, which logs it.
    """

    subject: str
    role: Role
    uid: str
    started: float
    ended: float
    samples_ns: npt.NDArray[np.int64] = field(repr=False)
    wait_ns: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    warmup_ns: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    load_ns: int = 0
    boundary: Boundary = "whole"
    metrics: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Process that took it: Visits of one run share a process.
    run: str = ""
    #: Plan slot that it fills, "" for control Visits and Visits outside a campaign.
    slot: str = ""
    #: What the plan measured it for: one of latbench.plan.PURPOSES, "" outside a campaign.
    purpose: str = ""
    #: Which of several disjoint full-protocol measurements of the same subject it belongs to.
    replica: int = 0
    failure: Failure | None = None
    unsupported: Failure | None = None
    #: Campaign that it was taken in (id), "" outside a campaign.
    campaign: str = ""
    metric: str = LATENCY

    @property
    def ok(self) -> bool:
        """True if it measured what it was taken for."""
        return self.failure is None and self.unsupported is None


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, all in the metric's unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """What the Visits of one subject say, at the reference state (drift removed).

    ``metrics`` maps metric name to :class:`Interval` at confidence ``level``; ``statistics`` maps the names of
    :data:`latbench.protocol.Statistic` to milliseconds; ``visits`` is the number of Visits taken for ``metric``. One
    for another metric than latency has neither latency nor statistics, and no drift is taken off.
    """

    subject: str
    setting: Setting
    metrics: Mapping[str, Interval]
    statistics: Mapping[str, float]
    visits: int
    level: float = 0.95
    samples_ns: tuple[npt.NDArray[np.int64], ...] = field(default=(), repr=False)
    environment: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: What drift correction did: its span, the residual, warnings.
    drift: Mapping[str, Any] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    #: How an isolated Op was separated from its boundary conversions, in all Visits that count.
    boundary: Boundary = "whole"
    metric: str = LATENCY
    #: The highest level that the calibration can give: n/(n + 1) of n networks. A ``level`` above it was asked for, but
    #: is not what the interval holds.
    attainable: float = 1.0

    @property
    def reached(self) -> float:
        """The level that the interval has: the one asked for, or what the calibration can give at most."""
        return min(self.level, self.attainable)

    @property
    def interval(self) -> Interval:
        """What was asked for: the interval of ``metric``."""
        return self.metrics[self.metric]

    @property
    def latency_ms(self) -> float:
        """Latency in milliseconds. Raises :class:`MissingMetricError` where another metric was measured."""
        return _latency(self.metrics, self.metric).value

    @property
    def low_ms(self) -> float:
        """Lower end of the latency's interval."""
        return _latency(self.metrics, self.metric).low

    @property
    def high_ms(self) -> float:
        """Upper end of the latency's interval."""
        return _latency(self.metrics, self.metric).high


def _latency(metrics: Mapping[str, Interval], metric: str) -> Interval:
    """The latency among metrics. Raises :class:`MissingMetricError` where they are of something else."""
    if LATENCY not in metrics:
        raise MissingMetricError(LATENCY, metric)
    return metrics[LATENCY]


@dataclass(frozen=True)
class Part:
    """One line of an Estimate's breakdown: an Op, how often it occurs, and its share ``value`` of the estimate, in the
    unit of ``metric``."""

    key: str
    label: str
    count: int
    value: float
    #: "measured" where it is a table entry, "estimated" where a regressor made it, "overhead" for per-run costs.
    origin: str
    #: The nodes of the network that it covers.
    nodes: tuple[str, ...] = ()
    metric: str = LATENCY

    @property
    def latency_ms(self) -> float:
        """Its share of the latency in milliseconds. Raises :class:`MissingMetricError` for another metric."""
        if self.metric != LATENCY:
            raise MissingMetricError(LATENCY, self.metric)
        return self.value


@dataclass(frozen=True)
class Estimate:
    """What a model says of a Network: metrics at interval ``level``, and where the one that was asked for comes from.

    ``metric`` names that one; the model may know others, too. The breakdown of a metric that adds up over Ops adds up
    to it; that of a peak holds what is in use at the peak.
    """

    setting: Setting
    metrics: Mapping[str, Interval]
    breakdown: tuple[Part, ...] = field(default=(), repr=False)
    level: float = 0.9
    warnings: tuple[str, ...] = ()
    #: The statistic whose value it estimates: p50 of a Visit's runs, min, ….
    statistic: str = "p50"
    metric: str = LATENCY
    #: The highest level that the calibration can give: n/(n + 1) of n networks. A ``level`` above it was asked for, but
    #: is not what the interval holds.
    attainable: float = 1.0

    @property
    def reached(self) -> float:
        """The level that the interval has: the one asked for, or what the calibration can give at most."""
        return min(self.level, self.attainable)

    @property
    def interval(self) -> Interval:
        """What was asked for: value and interval of ``metric``."""
        return self.metrics[self.metric]

    @property
    def value(self) -> float:
        """The value of ``metric``, in its unit."""
        return self.interval.value

    @property
    def latency_ms(self) -> float:
        """Latency in milliseconds. Raises :class:`MissingMetricError` where the model is one of another metric."""
        return _latency(self.metrics, self.metric).value

    @property
    def low_ms(self) -> float:
        """Lower end of the latency's interval."""
        return _latency(self.metrics, self.metric).low

    @property
    def high_ms(self) -> float:
        """Upper end of the latency's interval."""
        return _latency(self.metrics, self.metric).high


@dataclass(frozen=True)
class ArchEstimates:
    """Values of many architectures: arrays of shape (n,), in the unit of ``metric`` (milliseconds of latency where it
    is not said); NaN where ``supported`` is false.

    ``extrapolated`` (n,) is true where a predictor warns that an architecture lies outside what was measured; None
    where it does not tell.
    """

    value: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    supported: npt.NDArray[np.bool_]
    metric: str = LATENCY
    extrapolated: npt.NDArray[np.bool_] | None = None
