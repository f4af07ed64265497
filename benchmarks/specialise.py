"""Whether a network that was searched for a device is the fastest of its size there: one space, three devices.

As in the ProxylessNAS paper (Cai, Zhu, Han 2019, table 3), where a network found for a GPU is slow on a CPU and the
other way round. Each device gets a table of its own from the blocks of one space; then, at equal multiply-accumulates
(±2 % of the median of random networks), MoGA searches the fastest network by each table; and all winners are measured
on all devices (simulated on simulators), in one campaign a device, in turns. Target: each winner is the fastest on its
own device by more than the noise floor; where two are nearer than that it is a tie, and said so. The tables have to
rank differently for there to be anything to win: their Spearman correlations over random networks stand beside it.

The devices are this machine, a simulator of EVE cores, and the emulated Cortex-A53: only the first of them is noisy.
They and the size of the networks were chosen before anything of this space was measured at this size, by `kernels`
models of other campaigns (mobilenetv3, at 224 here and at 32 on the emulator). These expect correlations of at most
.85, and that each winner leads by 9 % or more; at 32 pixels and width 0.35 they expect 1 to 2 % here, which is noise.
That is the second choice: an earlier one, this machine, the simulator and PoCL at 32 pixels, was measured and missed
the target, with 2 of 6 comparisons held and 4 ties. Measured with these devices on a quiet machine 4 of 6 held: each
winner of the simulator and of the emulator leads there by 17 % or more, and here all three winners lie within 3 % of
each other, so that this machine's own ties with both others (noise floor 4.6 %). The target is missed again.

Needs a machine with nothing else to do and about ten minutes; devices are profiles, ``--device`` three times. Where
``lab-a53`` is one of them its emulator (tests/lab/install.sh) is started here.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from math import hypot, log
from pathlib import Path

import numpy as np

import latbench as lb
from benchmarks.common import finish, parser, percent, table, verdict
from benchmarks.measuring import campaign
from latbench.device import Device
from latbench.evidence import Evidence
from latbench.plan import Plan
from latbench.predictor import Predictor
from latbench.protocol import Protocol
from latbench.searching import pose
from latbench.setting import Setting
from latbench.space import Arch, SearchSpace
from latbench.store import Store
from latbench.validation import spearman
from latbench.visit import Measurement

DEVICES = ("local-cpu", "tda2x", "lab-a53")
#: Half of the band of multiply-accumulates that winners lie in, and the Spearman correlation that counts as different.
BAND, ALIKE = 0.02, 0.95
POPULATION, GENERATIONS = 70, 80
EMULATED = "lab-a53"


def main() -> int:
    """Tables, winners, and every winner on every device; 1 where a target is missed."""
    p = parser(__doc__)
    p.add_argument("--device", action="append", help=f"three profiles (default {', '.join(DEVICES)})")
    p.add_argument("--space", default="proxyless")
    p.add_argument("--resolution", type=int, default=96)
    p.add_argument("--width-mult", type=float, default=1.0)
    p.add_argument("--store", type=Path, help="where Visits are kept; those of the same plan are reused or resumed")
    args = p.parse_args()
    names = args.device or list(DEVICES)
    space = lb.load_space(args.space, resolution=args.resolution, width_mult=args.width_mult)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = args.store or folder / "specialise.db"
        profiles = {name: emulated(folder, stack) if name == EMULATED else name for name in names}
        models = {name: learn(name, profiles[name], space, store, args.seed) for name in names}
        sample = np.asarray(space.sample_archs(2000, seed=args.seed + 1))
        latency = {n: m.predict_archs(space, sample).value for n, m in models.items()}
        alike = {f"{a} / {b}": spearman(latency[a], latency[b]) for i, a in enumerate(names) for b in names[:i]}
        table("Spearman correlation of the tables, 2,000 random networks", ("devices", "ρ"),
              [(pair, f"{rho:.3f}") for pair, rho in alike.items()])  # fmt: skip
        winners = {n: winner(space, m, args.seed) for n, m in models.items()}
        seen = {n: measured(profiles[n], space, winners, store, args.seed) for n in names}
    rows, held, ties = [], 0, 0
    for found in names:
        cells = []
        for on in names:
            here, own = seen[on][found].latency_ms, seen[on][on].latency_ms
            cells.append(f"{here:.4g} ms ({here / own - 1:+.1%})")
        rows.append((f"searched for {found}", f"{space.network(winners[found]).macs / 1e6:.2f} M", *cells))
    for on in names:
        for other in names:
            if other == on:
                continue
            gap, floor = log(seen[on][other].latency_ms / seen[on][on].latency_ms), noise(seen[on][on], seen[on][other])
            held += gap > floor
            ties += abs(gap) <= floor
    pairs = len(names) * (len(names) - 1)
    table("Every winner on every device", ("network", "MACs", *(f"on {n}" for n in names)), rows)
    met = held == pairs
    print(f"fastest on its own device in {held} of {pairs} comparisons, {ties} ties within the noise: {verdict(met)}")
    differ = max(alike.values()) < ALIKE
    print(f"tables rank differently, Spearman below {ALIKE} in every pair: {verdict(differ)}")
    figures = {
        "spearman": alike,
        "latency_ms": {found: {on: seen[on][found].latency_ms for on in names} for found in names},
        "noise_floor": {on: max(noise(seen[on][on], m) for m in seen[on].values()) for on in names},
        "archs": {n: list(a) for n, a in winners.items()},
        "fastest_at_home": held, "comparisons": pairs, "ties": ties, "met": met,
    }  # fmt: skip
    finish(args, "specialise", figures, devices=names, space=space.spec)
    return 0 if met and differ else 1


def emulated(folder: Path, stack: ExitStack) -> Path:
    """Start the emulated Cortex-A53, to end with ``stack``; its profile."""
    from tests.lab import a53

    if why := a53.why_not():
        raise SystemExit(f"no emulated Cortex-A53 here: {why}")
    machine = stack.enter_context(a53.A53Machine())
    profile = folder / f"{EMULATED}.toml"
    profile.write_text(a53.profile_text(machine), "utf-8")
    return profile


def exact(device: Device) -> bool:
    """Whether its numbers hardly scatter, so that few networks and Visits tell all."""
    return device.setting.clock in ("simulated", "instruction-count")


def visits(device: Device, at_least: int | None = None) -> Protocol:
    """The device's protocol: two Visits of each subject where it is exact, elsewhere as many as are asked for."""
    if exact(device):
        return device.profile.protocol.model_copy(update={"min_visits": 2, "max_visits": 2})
    more = {} if at_least is None else {"min_visits": at_least, "max_visits": at_least + 8}
    return device.profile.protocol.model_copy(update=more)


def learn(name: str, profile: str | Path, space: SearchSpace, store: Path, seed: int) -> Predictor:
    """The device's table of the space's blocks, calibrated on a few networks."""
    with lb.load_device(profile) as device:
        calibration, held_out = (6, 2) if exact(device) else (12, 12)
        plan = Plan.for_space(space, calibration=calibration, validation=held_out, seed=seed)
        with Store.open(store) as opened:
            known = opened.campaigns(plan=plan.hash(device.setting, visits(device)), state="finished")
        if not known:
            result = campaign(device, plan, store, space, visits(device))
            print(f"{name}: {result.visits} Visits in {result.wall_s:.0f} s")
        model = lb.fit("table", store=store, device=name, space=space)
    v = model.card.validation
    if v:
        print(f"{name}: table RMSPE {percent(v['score']['rmspe'])} on {v['score']['n']} held-out networks")
    return model


def winner(space: SearchSpace, model: Predictor, seed: int) -> Arch:
    """The fastest network by the model among those of about the median multiply-accumulates of random networks."""
    values = pose(space, {"": model}, None, ["latency_ms", "-macs"], {}, {})
    middle = float(np.median(values.cheap(space.sample_archs(2000, seed=0))["macs"]))
    r = lb.search(
        "moga", space=space, latency=model, objectives=["latency_ms", "-macs"], limits={"macs": (1 + BAND) * middle},
        limit_on="value", budget=POPULATION * GENERATIONS, seed=seed, population=POPULATION,
    )  # fmt: skip
    of_size = [c for c in r.candidates if c.feasible and c.values["macs"] >= (1 - BAND) * middle]
    if not of_size:
        raise SystemExit(f"no network of {middle * (1 - BAND):.3g} to {middle * (1 + BAND):.3g} MACs was found")
    return min(of_size, key=lambda c: c.values["latency_ms"]).arch


def measured(
    profile: str | Path, space: SearchSpace, winners: dict[str, Arch], store: Path, seed: int
) -> dict[str, Measurement]:
    """Each winner as measured on a device, in one campaign."""
    nets = {n: space.network(a) for n, a in winners.items()}
    with lb.load_device(profile) as device:
        setting: Setting = device.setting
        protocol = visits(device, at_least=24)
        done = campaign(device, Plan.of(nets.values(), networks="found", seed=seed), store, space, protocol)
    with Store.open(store) as opened:
        found = Evidence.from_store(opened, setting, [done.id]).measurements(protocol.statistic)
    return {n: found[net.key] for n, net in nets.items()}


def noise(a: Measurement, b: Measurement) -> float:
    """How far apart two networks must be, relatively, to be told apart: their intervals' half-widths, added in squares.

    0 for a simulator, whose own error is the same for both."""
    if a.setting.simulated:
        return 0.0
    halves = [(log(m.high_ms / m.low_ms)) / 2 for m in (a, b)]
    return hypot(*halves)


if __name__ == "__main__":
    sys.exit(main())
