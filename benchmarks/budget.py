"""How much device time our protocol needs to be as right as fixed 10 + 50 repeats an Op.

Three kinds of measurement of the same Ops take turns on this machine: long rounds by the device's own protocol, whose
pooled result is the truth; passes of 10 warm-ups and 50 repeats an Op in the order of the list, as measured; and
short rounds of our protocol (shuffled, adaptive warm-up, control ops, drift correction). Short rounds are replayed in
the order in which they were taken, after each round and with smaller floors on the count and time of their repeats, and
the device time (loading, warm-up, control ops, timed runs) at which their error first is that of the fixed protocol is
compared with its device time. Errors are RMSPE over Ops against the truth, which shares no Visit with either. Target:
at least 3 × less.

Needs a machine with nothing else to do and about four minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

import latbench as lb
from benchmarks.common import finish, parser, percent, table, verdict
from benchmarks.measuring import FIXED, device_s, locked
from latbench.device import Device, Job
from latbench.evidence import Evidence
from latbench.op import Op
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.validation import rmspe
from latbench.visit import Visit

#: Floors of a Visit, runs and milliseconds: many repeats of short Ops cost little, a few of long ones say as much.
FLOORS = ((4, 1.5), (5, 2.0), (6, 3.0), (8, 4.0), (12, 8.0))
#: Our protocol with short Visits; certainty comes from rounds.
SHORT = Protocol(
    warmup_runs=2, warmup_tolerance=0.1, warmup_max_ms=20, min_runs=FLOORS[-1][0], max_runs=300, min_ms=FLOORS[-1][1],
    max_ms=1000, min_visits=2, max_visits=2, contention_ratio=1e9,
)  # fmt: skip
TARGET = 3.0


Floor: TypeAlias = tuple[int, float]


@dataclass(frozen=True)
class Point:
    """Device time spent and the error reached, one of each a turn."""

    what: str
    device_s: float
    rmspe: float


def main() -> None:
    """Measure in turns, replay, print."""
    p = parser(__doc__)
    p.add_argument("--device", default="local-cpu")
    p.add_argument("--space", default="mobilenetv3")
    p.add_argument("--resolution", type=int, default=224)
    p.add_argument("--ops", type=int, default=0, help="at most so many Ops, drawn by the seed (default: all blocks)")
    p.add_argument("--turns", type=int, default=3, help="turns of long, fixed and short measurements (default 3)")
    p.add_argument("--long-rounds", type=int, default=4, help="long rounds a turn (default 4)")
    p.add_argument("--short-rounds", type=int, default=4, help="short rounds a turn (default 4)")
    p.add_argument("--statistic", default="p50", choices=["p50", "p25", "min", "mean"])
    args = p.parse_args()
    ops = lb.load_space(args.space, resolution=args.resolution).ops()
    rng = np.random.default_rng(args.seed)
    if args.ops:
        ops = [ops[i] for i in sorted(rng.permutation(len(ops))[: args.ops])]
    with lb.load_device(args.device) as device, locked(device):
        device.prepare(ops)
        long: list[Visit] = []
        fixed: list[list[Visit]] = []
        short: list[list[list[Visit]]] = []
        for _ in range(args.turns):
            for _ in range(args.long_rounds):
                long += take(device, shuffled(ops, rng), device.profile.protocol)
            fixed.append(take(device, ops, FIXED))
            short.append([take(device, shuffled(ops, rng), SHORT) for _ in range(args.short_rounds)])
        setting = device.setting
    truth = values(long, setting, args.statistic)
    baselines = {
        "mean": [fixed_point(v, truth, np.mean) for v in fixed],
        "median": [fixed_point(v, truth, np.median) for v in fixed],
    }
    replayed = {
        (floor, r): [short_point(rounds[:r], floor, setting, args.statistic, truth) for rounds in short]
        for floor in FLOORS
        for r in range(1, args.short_rounds + 1)
    }
    finish(args, "budget", report(baselines, replayed), ops=len(ops))


def report(baselines: dict[str, list[Point]], replayed: dict[tuple[Floor, int], list[Point]]) -> dict[str, Any]:
    """Print the curve and the device time at which it crosses the fixed protocol's error, the better of its two."""
    goals = {name: _mean(points) for name, points in baselines.items()}
    goal, spent = min(goals.values())
    rows = [(f"fixed 10 + 50, one pass, {n}", f"{cost:.2f} s", percent(e), "") for n, (e, cost) in goals.items()]
    curve = []
    for ((runs, ms), r), points in sorted(replayed.items(), key=lambda kv: _mean(kv[1])[1]):
        error, cost = _mean(points)
        curve.append((cost, error))
        name = f"ours, {r} round{'s' if r > 1 else ''} of ≥ {runs} runs and ≥ {ms:g} ms"
        rows.append((name, f"{cost:.2f} s", percent(error), f"{spent / cost:.1f} ×"))
    table("Ops against the pooled long run", ("", "device time", "RMSPE", "less time"), rows)
    reached = min((cost for cost, error in curve if error <= goal), default=float("inf"))
    ratio = spent / reached
    print(
        f"error of fixed 10 + 50 ({percent(goal)}) reached with {ratio:.1f} × less device time "
        f"(≥ {TARGET:g} ×: {verdict(ratio >= TARGET)})"
    )
    return {"fixed": goals, "curve": curve, "ratio": ratio}


def take(device: Device, ops: Sequence[Op], protocol: Protocol) -> list[Visit]:
    """One Visit each, in one process, control Visits included."""
    return [v for v in device.visits([Job(f"budget/{i}", op) for i, op in enumerate(ops)], protocol) if v.ok]


def shuffled(ops: Sequence[Op], rng: np.random.Generator) -> list[Op]:
    """A new order."""
    return [ops[i] for i in rng.permutation(len(ops))]


def values(visits: Iterable[Visit], setting: Setting, statistic: Any) -> dict[str, float]:
    """Milliseconds by Op, drift removed."""
    found = Evidence(visits, setting).measurements(statistic)
    return {k: m.latency_ms for k, m in found.items()}


def fixed_point(visits: Sequence[Visit], truth: dict[str, float], centre: Callable[[Any], Any]) -> Point:
    """The fixed protocol takes no control ops and corrects nothing: times as measured."""
    own = [v for v in visits if v.role != "control"]
    found = {v.subject: float(centre(v.samples_ns)) * 1e-6 for v in own}
    return Point("fixed", sum(map(device_s, own)), _error(found, truth))


def short_point(
    rounds: Sequence[Sequence[Visit]], floor: Floor, setting: Setting, statistic: Any, truth: dict[str, float]
) -> Point:
    """The first rounds, each Visit cut to where smaller floors would have ended it; control Visits are whole."""
    cut = [v if v.role == "control" else _cut(v, floor) for taken in rounds for v in taken]
    return Point("ours", sum(map(device_s, cut)), _error(values(cut, setting, statistic), truth))


def _cut(v: Visit, floor: Floor) -> Visit:
    enough = int(np.searchsorted(np.cumsum(v.samples_ns), floor[1] * 1e6)) + 1
    n = max(floor[0], enough)
    return replace(v, samples_ns=v.samples_ns[:n], wait_ns=None if v.wait_ns is None else v.wait_ns[:n])


def _error(found: dict[str, float], truth: dict[str, float]) -> float:
    common = [k for k in truth if k in found]
    return rmspe([found[k] for k in common], [truth[k] for k in common])


def _mean(points: Sequence[Point]) -> tuple[float, float]:
    """Root mean square error over turns, and mean device time."""
    return float(np.sqrt(np.mean([p.rmspe**2 for p in points]))), float(np.mean([p.device_s for p in points]))


if __name__ == "__main__":
    main()
