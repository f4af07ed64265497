"""How much device time our protocol needs to be as right as fixed 10 + 50 repeats an Op.

Three kinds of measurement of the same Ops take turns on this machine: long rounds by the device's own protocol, whose
pooled result is the truth; passes of 10 warm-ups and 50 repeats an Op in the order of the list, as measured; and
short rounds of our protocol (shuffled, adaptive warm-up, control ops, drift correction). Short rounds are replayed in
the order in which they were taken, after each round and with smaller floors on the count and time of their repeats.
Errors are RMSPE over Ops against the truth, which shares no Visit with either.

The first turn alone chooses how many rounds and which floors: the cheapest that is as right as the fixed one.
The verdict is what that choice shows on the other turns: it must be as right as the fixed protocol there, in at least
3 × less device time (loading, warm-up, control ops, timed runs). Fixed protocols report the mean of their 50 repeats;
their median is a second, harder opponent, for which the choice is made again. The device's own protocol, as it comes,
stands beside them: one turn's long rounds, against those of the other turns.

Needs a machine with nothing else to do and about five minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

import latbench as lb
from benchmarks.common import finish, parser, percent, table, verdict
from benchmarks.measuring import FIXED, changed, device_s, locked, protocol_option
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
#: What reports of fixed protocols give, and the verdict is against.
REPORTED = "mean"


Floor: TypeAlias = tuple[int, float]
#: Floor and number of rounds.
Choice: TypeAlias = tuple[Floor, int]


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
    protocol_option(p)
    args = p.parse_args()
    if args.turns < 2:
        raise SystemExit("--turns: one turn chooses, at least one other judges; give 2 or more")
    ops = lb.load_space(args.space, resolution=args.resolution).ops()
    rng = np.random.default_rng(args.seed)
    if args.ops:
        ops = [ops[i] for i in sorted(rng.permutation(len(ops))[: args.ops])]
    long: list[list[Visit]] = []
    fixed: list[list[Visit]] = []
    short: list[list[list[Visit]]] = []
    with lb.load_device(args.device) as device, locked(device):
        device.prepare(ops)
        protocol = changed(device.profile.protocol, args.protocol)
        for turn in range(1, args.turns + 1):
            long.append([])
            for _ in range(args.long_rounds):
                long[-1] += take(device, shuffled(ops, rng), protocol)
            fixed.append(take(device, ops, FIXED))
            short.append([take(device, shuffled(ops, rng), SHORT) for _ in range(args.short_rounds)])
            print(f"turn {turn} of {args.turns} measured", flush=True)
        setting = device.setting
    truth = values((v for turn in long for v in turn), setting, args.statistic)
    baselines = {
        "mean": [fixed_point(v, truth, np.mean) for v in fixed],
        "median": [fixed_point(v, truth, np.median) for v in fixed],
    }
    own = [long_point(t, long, setting, args.statistic) for t in range(args.turns)]
    replayed = {
        (floor, r): [short_point(rounds[:r], floor, setting, args.statistic, truth) for rounds in short]
        for floor in FLOORS
        for r in range(1, args.short_rounds + 1)
    }
    finish(args, "budget", report(baselines, own, args.long_rounds, replayed), ops=len(ops))


def report(
    baselines: dict[str, list[Point]], own: list[Point], long_rounds: int, replayed: dict[Choice, list[Point]]
) -> dict[str, Any]:
    """Print the curves, the choice on the first turn, and what it shows on the others."""
    chosen = {name: choose(replayed, points[0].rmspe) for name, points in baselines.items()}
    found = {name: judge(points[1:], replayed[chosen[name]][1:]) for name, points in baselines.items()}
    spent = _mean(baselines[REPORTED])[1]
    everything = {f"fixed 10 + 50, one pass, {name}": points for name, points in baselines.items()}
    everything[f"this device's own protocol, {long_rounds} rounds"] = own
    marks: dict[str, str] = {}
    for choice, points in sorted(replayed.items(), key=lambda kv: _mean(kv[1])[1]):
        everything[_name(choice)] = points
        marks[_name(choice)] = ", ".join(f"for the {name}" for name, c in chosen.items() if c == choice)
    rows, curves = [], {}
    for name, points in everything.items():
        (error, cost), (other, _) = _mean(points[:1]), _mean(points[1:])
        cost = _mean(points)[1]
        ratio = spent / cost
        less = "" if name.startswith("fixed") else f"{ratio:.1f} ×"
        rows.append((name, f"{cost:.2f} s", percent(error), percent(other), less, marks.get(name, "")))
        curves[name] = {
            "device_s": cost, "rmspe_first_turn": error, "rmspe_other_turns": other, "less_time": ratio,
            "device_s_by_turn": [p.device_s for p in points], "rmspe_by_turn": [p.rmspe for p in points],
        }  # fmt: skip
    columns = ("", "device time", "RMSPE, turn 1", "RMSPE, other turns", "less time", "chosen on turn 1")
    table("Ops against the pooled long run", columns, rows)
    for name, f in found.items():
        target = f" (target ≥ {TARGET:g} ×: {verdict(f['met'])})" if name == REPORTED else ""
        print(
            f"against the {name} of 50, turns 2 to {len(own)}: {_name(chosen[name])}: error {percent(f['rmspe'])} "
            f"beside {percent(f['rmspe_fixed'])}, {f['ratio']:.1f} × less device time{target}"
        )
    return {
        "rows": curves,
        "verdicts": {name: {**f, "choice": _name(chosen[name])} for name, f in found.items()},
        "target": TARGET,
        "met": found[REPORTED]["met"],
    }


def choose(replayed: dict[Choice, list[Point]], goal: float) -> Choice:
    """The cheapest whose error on the first turn is at most ``goal``; the most exact where none is."""
    good = [c for c, points in replayed.items() if points[0].rmspe <= goal]
    if good:
        return min(good, key=lambda c: replayed[c][0].device_s)
    return min(replayed, key=lambda c: replayed[c][0].rmspe)


def judge(fixed: list[Point], ours: list[Point]) -> dict[str, Any]:
    """Errors and device times on turns that had no say in the choice."""
    (rmspe_fixed, spent), (error, cost) = _mean(fixed), _mean(ours)
    ratio = spent / cost
    return {
        "rmspe": error, "rmspe_fixed": rmspe_fixed, "device_s": cost, "device_s_fixed": spent, "ratio": ratio,
        "as_right": error <= rmspe_fixed, "met": error <= rmspe_fixed and ratio >= TARGET,
    }  # fmt: skip


def _name(choice: Choice) -> str:
    (runs, ms), rounds = choice
    return f"ours, {rounds} round{'s' if rounds > 1 else ''} of ≥ {runs} runs and ≥ {ms:g} ms"


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


def long_point(turn: int, long: Sequence[Sequence[Visit]], setting: Setting, statistic: Any) -> Point:
    """One turn's long rounds, against the long rounds of the other turns alone."""
    others = values((v for t, visits in enumerate(long) if t != turn for v in visits), setting, statistic)
    error = _error(values(long[turn], setting, statistic), others)
    return Point("own", sum(map(device_s, long[turn])), error)


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
