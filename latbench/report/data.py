"""What a report shows, as plain values: the page knows neither stores nor devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latbench.device import Check
from latbench.network import Network
from latbench.problem import Candidate, Problem
from latbench.setting import Setting
from latbench.validation import Validation
from latbench.visit import Interval


@dataclass(frozen=True)
class Point:
    """One network, predicted and measured, milliseconds. ``networks`` it was checked on are not those of the fit."""

    name: str
    predicted: Interval
    measured: Interval


@dataclass(frozen=True)
class ModelReport:
    """A latency model: its validation on held-out networks, the networks themselves, and where it lies."""

    name: str
    validation: Validation | None
    points: Sequence[Point] = ()
    path: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Control:
    """The Visits of one control op: seconds of measuring, pauses left out, and time relative to its reference state."""

    kind: str
    label: str
    seconds: Sequence[float]
    ratio: Sequence[float]


@dataclass(frozen=True)
class DriftCurve:
    """The drift that was removed: seconds of measuring, pauses left out, and multiplicative factor."""

    kind: str
    seconds: Sequence[float]
    factor: Sequence[float]


@dataclass(frozen=True)
class DriftReport:
    """How the machine's speed moved during a campaign. ``span`` and ``residual`` are relative (0.1 for 10 %)."""

    controls: Sequence[Control]
    curves: Sequence[DriftCurve]
    span: float
    residual: float
    warnings: Sequence[str] = ()
    #: How it was removed, in words; "" where no correction predicted held-out Visits better than none.
    model: str = ""


@dataclass(frozen=True)
class OpCost:
    """What one Op costs, milliseconds, with its 95 % interval; ``kind`` is the Op's kind."""

    key: str
    label: str
    kind: str
    latency: Interval
    macs: int
    visits: int
    level: str = "block"


@dataclass(frozen=True)
class Found:
    """A network that the search found: its architecture, values, estimate, and what the device said of it."""

    name: str
    arch: tuple[int, ...]
    values: Mapping[str, float]
    predicted: Interval
    measured: Interval | None = None
    network: Network | None = None
    #: What was chosen at each position, in the space's words.
    choices: Sequence[str] = ()
    #: Predicted milliseconds of each block, by block name.
    block_ms: Mapping[str, float] = field(default_factory=dict)
    #: A fraction, on data that the search has not seen.
    test_error: float | None = None


@dataclass(frozen=True)
class SearchReport:
    """A search: everything that was evaluated, and the indices of the Pareto set among it."""

    searcher: str
    objectives: Sequence[str]
    limits: Mapping[str, float]
    candidates: Sequence[Candidate]
    names: Sequence[str]
    front: Sequence[int]
    found: Sequence[Found] = ()
    budget: int = 0
    seed: int = 0
    accuracy: str = ""
    #: Name of the latency that was predicted for the page's device, "" where there is none: ``latency_ms@device``.
    latency: str = ""
    #: Level of the predictions' intervals.
    level: float = 0.9
    #: The problem as it was posed, and what the searcher told of its own work, a row a piece.
    problem: Problem | None = None
    course: Sequence[Mapping[str, float]] = ()
    #: For each limit on a validated latency: the network that keeps it and those that broke it, in a sentence.
    kept: Sequence[str] = ()
    #: What the front's latencies cannot tell apart, in sentences.
    ties: Sequence[str] = ()
    #: The networks that the searcher's method singles out, by its name for each and what it says of it.
    picks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything on the page. What is empty is left out of it.

    ``family`` says in a few words which networks this is about; ``range_ms`` holds the 5 %, 50 % and 95 % quantiles of
    predicted latency over random architectures of the space. ``matrix`` is the cost of every choice at every position
    (positions × choices, milliseconds, NaN where there is none) with ``choices`` naming the columns.
    ``provenance`` maps what is shown to where it came from, and ``commands`` lists what makes it again.
    """

    device: str
    setting: Setting
    family: str
    #: By which statistic of :data:`latbench.protocol.Statistic` the runs of a Visit are summed up.
    statistic: str = "p50"
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    campaign: Mapping[str, Any] = field(default_factory=dict)
    range_ms: tuple[float, float, float] | None = None
    #: Random networks that ``range_ms`` was predicted over.
    sampled: int = 0
    #: Level of the measurements' intervals.
    level: float = 0.95
    models: Sequence[ModelReport] = ()
    drift: DriftReport | None = None
    ops: Sequence[OpCost] = ()
    matrix: Sequence[Sequence[float]] = ()
    choices: Sequence[str] = ()
    search: SearchReport | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    warnings: Sequence[str] = ()
    created: str = ""
