"""What tests of the command line share."""

from __future__ import annotations

#: Options of a protocol that is over in milliseconds: such tests check the way, not the numbers.
QUICK = [
    f"--protocol={k}={v}"
    for k, v in {
        "warmup_runs": 1, "warmup_max_ms": 1, "min_runs": 3, "max_runs": 3, "min_ms": 0, "contention_ratio": 1e6,
        "min_visits": 2, "max_visits": 2,
    }.items()
]  # fmt: skip
