"""How fast latency models answer, and how much time a campaign spends on anything but the device.

1. ``predict_archs`` of a table over ``mobilenetv3`` (14 positions × 12 choices) with checks and intervals, on one core,
   beside a plain Python loop over the same cost matrix. Target: at least 5 million architectures a second.
2. One network read from an ONNX file, predicted from units after its plan is known, by table and kernels.
   Target: at most 5 ms.
3. A campaign on this machine with a warm artefact cache: the share of wall time that is not device time. Target: at
   most 10 %. (``--no-campaign`` leaves it out; the machine should have nothing else to do.)

Part 1 and 2 use made-up latencies: speed does not depend on them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import latbench as lb
from benchmarks.common import finish, parser, percent, table, verdict
from benchmarks.measuring import campaign as run_campaign
from latbench.plan import Plan
from latbench.predictor import FitData, MeasuredNetwork
from latbench.predictors import plans
from latbench.predictors.kernels import Kernels
from latbench.predictors.table import Table
from latbench.testing.predictors import AdditiveWorld

TARGET_ARCHS, TARGET_MS, TARGET_OVERHEAD = 5e6, 5.0, 0.10


def main() -> None:
    """All parts."""
    p = parser(__doc__)
    p.add_argument("--archs", type=int, default=5_000_000, help="architectures (default 5,000,000)")
    p.add_argument("--no-campaign", action="store_true", help="leave out the campaign on this machine")
    args = p.parse_args()
    figures: dict[str, Any] = {}
    if hasattr(os, "sched_setaffinity") and args.no_campaign:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures["predict_archs"] = architectures(args.archs, args.seed)
    figures["predict"] = networks(args.seed)
    if not args.no_campaign:
        figures["campaign"] = campaign(args.seed)
    finish(args, "throughput", figures)


def architectures(n: int, seed: int) -> dict[str, float]:
    """Architectures a second."""
    space = lb.load_space("mobilenetv3")
    model = Table.fit(AdditiveWorld(space).data())
    archs = space.sample_archs(n, seed)
    model.predict_archs(space, archs[:1])
    ours = n / _best(lambda: model.predict_archs(space, archs), 5)
    matrix, constant = space.cost_matrix(model)
    rows, few = matrix.tolist(), archs[:50_000].tolist()

    def naive() -> list[float]:
        return [constant + sum(row[c] for row, c in zip(rows, arch, strict=True)) for arch in few]

    loop = len(few) / _best(naive, 3)
    worst = float(np.abs(model.predict_archs(space, archs[: len(few)]).value / naive() - 1).max())
    table(
        "predict_archs on a table, mobilenetv3, one core",
        ("", "architectures/s", "target", ""),
        [
            (
                "table",
                f"{ours / 1e6:.1f} million",
                f"≥ {TARGET_ARCHS / 1e6:.0f} million",
                verdict(ours >= TARGET_ARCHS),
            ),
            ("plain Python loop", f"{loop / 1e6:.2f} million", "", f"{ours / loop:.0f} × slower"),
        ],
    )
    print(f"largest relative difference between the two: {worst:.1e}")
    return {"table_per_s": ours, "loop_per_s": loop}


def networks(seed: int) -> dict[str, float]:
    """Milliseconds for one network from ONNX."""
    space = lb.load_space("mobilenetv3", resolution=64, width_mult=0.5)
    with lb.load_device("local-cpu") as device:
        setting = device.setting
        world = AdditiveWorld(space, setting=setting)
        nets = [space.network(a) for a in space.sample_archs(8, seed).tolist()]
        units = {u.op.key: u.op for net in nets for u in plans.units(setting, net)}
    measured = tuple(
        MeasuredNetwork(n, world.measure(n.key, sum(world.op_ms(u.op) for u in plans.units(setting, n)))) for n in nets
    )
    data = FitData(world.data(0).card, {k: world.measure(k, world.op_ms(op)) for k, op in units.items()}, measured)
    rows, out = [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(nets[0].to_onnx().SerializeToString())
        for cls in (Table, Kernels):
            model = lb.load_predictor(cls.fit(data).save(Path(folder) / cls.name))
            net = lb.Network.from_onnx(path)
            began = time.perf_counter()
            first = model.predict(net)
            cold = (time.perf_counter() - began) * 1e3
            warm = _best(lambda model=model, net=net: model.predict(net), 20) * 1e3  # type: ignore[misc]
            out[cls.name] = warm
            detail = f"{len(first.breakdown)} parts, {len(net.nodes)} nodes; {cold:.0f} ms with its plan"
            rows.append((cls.name, f"{warm:.2f} ms", f"≤ {TARGET_MS:g} ms", verdict(warm <= TARGET_MS), detail))
    table("one network from ONNX, after load", ("", "time", "target", "", ""), rows)
    return out


def campaign(seed: int) -> dict[str, float]:
    """Share of a campaign's wall time that is not device time."""
    space = lb.load_space("mobilenetv3")
    plan = Plan.for_space(space, calibration=10, validation=0, seed=seed)
    with tempfile.TemporaryDirectory() as folder, lb.load_device("local-cpu") as device:
        device.prepare(plan.subjects)
        result = run_campaign(device, plan, Path(folder) / "s.db", space)
    share = 1 - result.device_s / result.wall_s
    table(
        "campaign with a warm artefact cache",
        ("", "wall", "device", "overhead", "target", ""),
        [
            (
                f"{len(plan.subjects)} subjects, {result.visits} Visits", f"{result.wall_s:.1f} s",
                f"{result.device_s:.1f} s", percent(share, 1), f"≤ {TARGET_OVERHEAD:.0%}",
                verdict(share <= TARGET_OVERHEAD),
            )
        ],
    )  # fmt: skip
    return {"wall_s": result.wall_s, "device_s": result.device_s, "overhead": share}


def _best(f: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        f()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
