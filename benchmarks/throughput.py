"""How fast latency models answer, and how much time a campaign spends on anything but the device.

1. ``predict_archs`` of a table over ``mobilenetv3`` (14 positions × 12 choices) with checks and intervals, pinned to
   one core, beside a plain Python loop over the same cost matrix. Target: at least 5 million architectures a second.
2. Different networks at 224, each read from its ONNX file and predicted from units, by table and kernels. Target: at
   most 5 ms for the median network, for its first prediction after it was loaded. That depends on whether this host
   planned the network before (its units, as the runtime fuses them, are kept on disk), so both are shown: *cold*, never
   planned; *planned*, read again by something that has no plan in memory; and a repeated prediction.
3. A campaign on this machine with a warm artefact cache: the share of wall time that is not device time. Target: at
   most 10 %. (``--no-campaign`` leaves it out; the machine should have nothing else to do.)

Part 1 and 2 use made-up latencies: speed does not depend on them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import latbench as lb
from benchmarks.common import finish, parser, percent, table, verdict
from benchmarks.measuring import campaign as run_campaign
from latbench import plugins
from latbench.plan import Plan
from latbench.predictor import FitData, MeasuredNetwork, Predictor
from latbench.predictors import plans
from latbench.predictors.kernels import Kernels
from latbench.predictors.table import Table
from latbench.setting import Setting
from latbench.space import SearchSpace
from latbench.testing.predictors import AdditiveWorld

TARGET_ARCHS, TARGET_MS, TARGET_OVERHEAD = 5e6, 5.0, 0.10
WAYS = {
    "cold": "first prediction, never planned",
    "planned": "first prediction after load, planned before",
    "repeated": "the same again",
}


def main() -> None:
    """All parts."""
    p = parser(__doc__)
    p.add_argument("--archs", type=int, default=5_000_000, help="architectures (default 5,000,000)")
    p.add_argument("--networks", type=int, default=20, help="networks from ONNX (default 20)")
    p.add_argument("--resolution", type=int, default=224, help="of part 2 and 3 (default 224)")
    p.add_argument("--no-campaign", action="store_true", help="leave out the campaign on this machine")
    args = p.parse_args()
    figures: dict[str, Any] = {}
    with one_core():
        figures["predict_archs"] = architectures(args.archs, args.seed)
    figures["predict"] = networks(args.networks, args.resolution, args.seed)
    if not args.no_campaign:
        figures["campaign"] = campaign(args.resolution, args.seed)
    finish(args, "throughput", figures)


@contextmanager
def one_core() -> Iterator[None]:
    """Run on one core, where the system can be asked to."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def architectures(n: int, seed: int) -> dict[str, Any]:
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
    met = ours >= TARGET_ARCHS
    return {"archs": n, "table_per_s": ours, "loop_per_s": loop, "ratio": ours / loop, "difference": worst, "met": met}


def networks(n: int, resolution: int, seed: int) -> dict[str, Any]:
    """Milliseconds for one network from ONNX."""
    space = lb.load_space("mobilenetv3", resolution=resolution)
    archs = list(dict.fromkeys(map(tuple, space.sample_archs(2 * n + 8, seed).tolist())))
    fitted, asked = [space.network(a) for a in archs[:8]], [space.network(a) for a in archs[8 : 8 + n]]
    with lb.load_device("local-cpu") as device:
        setting = device.setting
    rows: list[tuple[str, ...]] = []
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(asked))]
        for path, net in zip(paths, asked, strict=True):
            path.write_bytes(net.to_onnx().SerializeToString())
        data = made_up(space, setting, fitted, [lb.Network.from_onnx(path) for path in paths])
        for cls in (Table, Kernels):
            model = lb.load_predictor(cls.fit(data).save(Path(folder) / cls.name))
            for way, times in first_predictions(model, paths, Path(folder) / f"{cls.name}-plans").items():
                median, worst = float(np.median(times)), max(times)
                out[f"{cls.name}, {way}"] = {"median_ms": median, "slowest_ms": worst, "met": median <= TARGET_MS}
                goal = f"{verdict(median <= TARGET_MS)} ({way})"
                what = f"{cls.name}, {WAYS[way]}"
                rows.append((what, f"{median:.2f} ms", f"{worst:.2f} ms", f"≤ {TARGET_MS:g} ms", goal))
    title = f"{len(asked)} different networks at {resolution} from ONNX, after load"
    table(title, ("", "median", "worst", "target", "median"), rows)
    return {"networks": len(asked), "resolution": resolution, **out}


def made_up(space: SearchSpace, setting: Setting, fitted: list[lb.Network], asked: list[lb.Network]) -> FitData:
    """Latencies of all units that the networks have, and of the networks of ``fitted``."""
    # Straight from the runtime: what is asked must not be found planned.
    plan = plugins.load("runtimes", setting.runtime).plan
    units = {net.key: plan(setting, net) for net in [*fitted, *asked]}
    world = AdditiveWorld(space, setting=setting)
    ops = {u.op.key: u.op for of_net in units.values() for u in of_net}
    measured = tuple(
        MeasuredNetwork(net, world.measure(net.key, sum(world.op_ms(u.op) for u in units[net.key]))) for net in fitted
    )
    return FitData(world.data(0).card, {k: world.measure(k, world.op_ms(op)) for k, op in ops.items()}, measured)


def first_predictions(model: Predictor, paths: list[Path], cache: Path) -> dict[str, list[float]]:
    """Milliseconds by way, one a network; plans are kept in ``cache``, which must be new."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for way in ("cold", "planned"):
            plans._MEMORY.clear()
            plans._OPS.clear()
            for path in paths:
                net = lb.Network.from_onnx(path)
                found[way].append(_ms(lambda net=net: model.predict(net)))  # type: ignore[misc]
                if way == "planned":
                    found["repeated"].append(_ms(lambda net=net: model.predict(net)))  # type: ignore[misc]
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
    return found


def campaign(resolution: int, seed: int) -> dict[str, Any]:
    """Share of a campaign's wall time that is not device time."""
    space = lb.load_space("mobilenetv3", resolution=resolution)
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
    return {
        "subjects": len(plan.subjects), "visits": result.visits, "wall_s": result.wall_s, "device_s": result.device_s,
        "overhead": share, "met": share <= TARGET_OVERHEAD,
    }  # fmt: skip


def _ms(f: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    f()
    return (time.perf_counter() - began) * 1e3


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
