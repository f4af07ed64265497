"""The Protocol: how a number is taken, from warm-up to the statistic."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Statistics over the runs of one Visit. ``sustained`` is the median of the last quarter of the runs.
Statistic: TypeAlias = Literal["p50", "p25", "min", "mean", "p90", "p99", "first", "sustained"]

_Share = Annotated[float, Field(gt=0, lt=1)]


class Protocol(BaseModel):
    """How Visits are taken and summed up. Times are milliseconds.

    A Visit warms up until two consecutive windows of runs agree within ``warmup_tolerance`` (at least ``warmup_runs``,
    at most ``warmup_max_ms``), then repeats until both ``min_runs`` and ``min_ms`` are met, and stops at ``max_runs``
    or ``max_ms`` whichever comes first. Visits are added, in shuffled rounds, from ``min_visits`` until the 95 %
    interval over Visits is within ± ``target_ci`` of the value, or ``max_visits`` is reached. Control ops take at most
    ``control_share`` of the device time. A Visit whose p95/p5 exceeds ``contention_ratio`` goes back into the queue, at
    most ``max_requeues`` times.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    warmup_runs: int = Field(default=3, ge=1)
    warmup_tolerance: float = Field(default=0.05, gt=0)
    warmup_max_ms: float = Field(default=200.0, gt=0)
    min_runs: int = Field(default=12, ge=3)
    max_runs: int = Field(default=300, ge=3)
    min_ms: float = Field(default=40.0, ge=0)
    max_ms: float = Field(default=400.0, gt=0)
    min_visits: int = Field(default=4, ge=2)
    max_visits: int = Field(default=8, ge=2)
    target_ci: float = Field(default=0.01, gt=0)
    control_share: _Share = 0.1
    contention_ratio: float = Field(default=1.5, gt=1)
    max_requeues: int = Field(default=2, ge=0)
    visit_timeout_s: float = Field(default=120.0, gt=0)
    statistic: Statistic = "p50"

    @model_validator(mode="after")
    def _ordered(self) -> Protocol:
        for low, high in (("min_runs", "max_runs"), ("min_ms", "max_ms"), ("min_visits", "max_visits")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) is above {high} ({getattr(self, high)})")
        return self
