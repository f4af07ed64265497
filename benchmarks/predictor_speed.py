"""How many architectures a second does ``network`` predict?

``network`` is fitted to 900 measured architectures of NAS-Bench-201 on a few device settings, then asked for 50,000
random ones: the first time nothing is kept of earlier calls and every distinct architecture is encoded and computed,
later ones are looked up. Random architectures repeat themselves in so small a space: how many are distinct is printed,
and the speed by those alone, too, in a call of its own that asks for each once with nothing kept. For a space too large
to keep, mobilenetv3, it is fitted to 100 architectures whose times a formula makes, and each call computes anew.
Checking the architectures and intervals included. Target: ≥ 50,000 a second of processor time (of all threads
together), each call, and of distinct ones; what passed on the clock, other programs' load included, is beside it. One
thread where ``OMP_NUM_THREADS=1``.

``python -m benchmarks.predictor_speed [--repeats 5]``
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import latbench as lb
from benchmarks.common import finish, parser, table, verdict
from benchmarks.nas_tables import nasbench201
from latbench.predictor import Predictor
from latbench.predictors.encodings import encoder
from latbench.predictors.files import load_predictor
from latbench.space import SearchSpace

TARGET = 50_000.0
ASKED = 50_000
#: What is printed of each fit: :func:`rates`.
COLUMNS = ("first", "first, clock", "distinct", "first, distinct", "first, distinct, clock", "warm", "warm, clock")
#: A GPU, a CPU and a phone.
SETTINGS = ("1080ti_256", "gold_6240", "pixel3")


def rates(model: Predictor, space: SearchSpace, repeats: int, seed: int) -> dict[str, float]:
    """Architectures a second of processor time, and of the clock: the first call, and the median of the next ones; how
    many are distinct, and the first call's rate by those, each asked for once."""
    archs = space.sample_archs(ASKED, seed)
    distinct = np.unique(archs, axis=0)
    with tempfile.TemporaryDirectory() as folder:
        # What a fit and its calls keep does not come back with its files.
        fresh = load_predictor(model.save(Path(folder) / "model"))
    encoder.cache_clear()
    alone = _seconds(fresh, space, distinct)
    encoder.cache_clear()
    cpu, clock = np.array([_seconds(model, space, archs) for _ in range(repeats + 1)]).T
    return {
        "distinct": len(distinct), "first, distinct": len(distinct) / alone[0],
        "first, distinct, clock": len(distinct) / alone[1],
        "first": ASKED / cpu[0], "warm": ASKED / float(np.median(cpu[1:])),
        "first, clock": ASKED / clock[0], "warm, clock": ASKED / float(np.median(clock[1:])),
    }  # fmt: skip


def _seconds(model: Predictor, space: SearchSpace, archs: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Of processor time and on the clock that one call takes."""
    begun = time.process_time(), time.perf_counter()
    model.predict_archs(space, archs)
    return max(time.process_time() - begun[0], 1e-9), max(time.perf_counter() - begun[1], 1e-9)


def main() -> None:
    """Print what each fit reaches; exit 1 where the target is missed."""
    p = parser(__doc__)
    p.add_argument("--repeats", type=int, default=5, help="calls after the first (default 5)")
    args = p.parse_args()
    figures: dict[str, Any] = {}

    def show(name: str, model: Predictor, space: SearchSpace) -> None:
        figures[name] = {**rates(model, space, args.repeats, 1), "families": model.card.model["families"]}
        figures[name]["encodings"] = model.card.model["encodings"]

    data = nasbench201()
    rows = np.random.default_rng(args.seed).choice(len(data.archs), 900, replace=False)
    for target in SETTINGS:
        ms = data.ms[target][rows]
        fitted = lb.fit("network", space=data.space, archs=data.archs[rows], latency_ms=ms, seed=args.seed)
        show(f"nasbench201, {target}", fitted, data.space)
    large = lb.load_space("mobilenetv3", resolution=64)
    archs = large.sample_archs(100, args.seed)
    macs = np.array([large.network(a).macs for a in archs.tolist()], float)
    show("mobilenetv3", lb.fit("network", space=large, archs=archs, latency_ms=1 + macs / 1e7, seed=args.seed), large)
    table(
        f"{ASKED:,} architectures at once",
        ["fitted to", "first call, a second", "on the clock", "distinct", "each once, a second", "on the clock",
         "later calls", "on the clock", "encodings", "families", f"target {TARGET:,.0f}"],
        [[k, *(f"{f[w]:,.0f}" for w in COLUMNS),
          ", ".join(f["encodings"]), ", ".join(f["families"]), verdict(_least(f) >= TARGET)]
         for k, f in figures.items()],
    )  # fmt: skip
    met = all(_least(f) >= TARGET for f in figures.values())
    finish(args, "predictor_speed", figures)
    if not met:
        raise SystemExit(1)


def _least(f: dict[str, Any]) -> float:
    return float(min(f["first"], f["first, distinct"], f["warm"]))


if __name__ == "__main__":
    main()
