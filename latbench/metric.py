"""Metrics: what is measured, in which unit, and how it composes over the parts of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """``composition`` says how a network's value follows from its units': ``sum``, ``peak``, ``none`` (it does not)."""

    name: str
    unit: str
    composition: Literal["sum", "peak", "none"]
    meaning: str


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("latency_ms", "ms", "sum", "one input in to its output out"),
        Metric("interval_ms", "ms", "none", "one over throughput: pipelines, batches"),
        Metric("peak_memory_bytes", "B", "peak", "largest memory in use above the runtime's own"),
        Metric("energy_mj", "mJ", "sum", "energy of one inference, idle power subtracted"),
    )
}
