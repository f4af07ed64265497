"""A new device from 10 or 20 measured networks and other families' measurements: NAS-Bench-201 on 21 settings.

Each setting in turn is the target; its family (1080ti, 2080ti, titan_rtx, titanx, titanxp at all batch sizes, the
three Xeons as one, each phone by itself) is left out whole, all others are sources with all their rows. The networks to
measure are chosen among architectures 0–899 by ``lb.choose_networks``; the query is 900–15,624, of which a seed takes
``--query`` (2,000) at random. pixel3's 202 networks below 0.1 ms are neither chosen nor asked for; they are told apart.
Beside it in the same run: random networks instead of chosen ones; on the same random networks another Gaussian process
fitted to the target alone (the best of those that were tried), ``transfer`` without sources and with sources that
are unlike the target (phones only for GPUs and Xeons, GPUs only for phones), the ceiling (boosted trees on 12,500 rows
of the target, scored on the 3,125 others), and the published protocol (10 + 10 networks: candidates 0–899 and queries
900–1899, both cut to the target's 10–90 % latency quantiles), with 10 of the 20 networks alone beside it. The quick
baseline is a Gaussian process on the logarithms of source models' outputs (ridge regression on both encodings) and on
cell features, from the same random networks, with the first ``--baseline-seeds`` (5) seeds; ceiling and the share of
the gap that was closed are printed for each target. One measured earlier with 5 seeds, whose goals those are: Spearman
.962 and 82.6 % within ± 10 % at n = 20, .918 and 65.1 % at n = 10.

Choices of method were made on the settings :data:`DEVELOPMENT` with seeds from 1000 on; the mean of the other settings
is printed apart. The full run takes about 20 minutes on one core; ``--targets`` and ``--seeds`` shorten it.

``python -m benchmarks.nb201_transfer``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import latbench as lb
from benchmarks.common import finish, parser, percent, table, verdict
from benchmarks.nas_tables import Table, alone, family, nasbench201, quick, scores, trees
from latbench.arch_times import ArchTimes

#: Mean Spearman correlation and share within ± 10 % of an earlier quick baseline, by number of networks.
BASELINE = {10: (0.918, 0.651), 20: (0.962, 0.826)}
#: The ceiling's mean, as it was stated with the baseline.
CEILING = (0.978, 0.91)
#: Settings that choices were made on.
DEVELOPMENT = (
    "1080ti_32", "2080ti_1", "titanxp_256", "titan_rtx_1", "silver_4114", "gold_6240", "samsung_a50", "samsung_s7",
)  # fmt: skip
POOL, PHONES = 900, ("essential_ph_1", "pixel3", "samsung_a50", "samsung_s7")
#: Networks measured in the published protocol: 10 + 10, and 10 of them.
PUBLISHED = (20, 10)
#: The fewest points of ± 10 % that sources unlike the target may cost.
UNLIKE_LOSS = 0.02


@dataclass
class Scores:
    """Spearman correlations and shares within ± 10 % of seeds, by what was fitted."""

    of: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, what: str, score: tuple[float, float]) -> None:
        """One seed more."""
        self.of.setdefault(what, []).append(score)

    def mean(self, what: str) -> tuple[float, float]:
        """Over seeds."""
        a = np.mean(self.of[what], axis=0)
        return float(a[0]), float(a[1])

    def spread(self, what: str) -> float:
        """Standard deviation of the share within ± 10 % over seeds."""
        return float(np.std([s[1] for s in self.of[what]]))


def fit(data: Table, target: str, rows: Any, sources: Mapping[str, ArchTimes]) -> Any:
    """The predictor under test."""
    return lb.fit(
        "transfer", space=data.space, archs=data.archs[rows], latency_ms=data.ms[target][rows],
        sources={k: (v.archs, v.values) for k, v in sources.items()}, device=target,
    )  # fmt: skip


def unlike(data: Table, target: str) -> dict[str, ArchTimes]:
    """Sources of another kind: phones for GPUs and Xeons, GPUs for phones."""
    wanted = [n for n in data.ms if (n in PHONES) != (target in PHONES) and family(n) != "xeon"]
    return {n: data.times(n) for n in wanted}


def one_target(
    data: Table, target: str, seeds: Sequence[int], sizes: Sequence[int], asked: int, quick_seeds: int
) -> Scores:
    """All fits of one target."""
    out = Scores()
    usable = np.flatnonzero(data.usable(target))
    pool, rest = usable[usable < POOL], usable[usable >= POOL]
    sources, other = data.sources(target), unlike(data, target)
    y = data.ms[target]
    model, x = trees(data.space, data.archs, 0)
    train = np.random.default_rng(0).permutation(len(y))[:12500]
    train = train[data.usable(target)[train]]
    model.fit(x[train], np.log(y[train]))
    left = np.setdiff1d(usable, train)
    out.add("ceiling", scores(np.exp(model.predict(x[left]).astype(float)), y[left]))
    for seed in seeds:
        rng = np.random.default_rng(seed)
        query = rng.choice(rest, min(asked, len(rest)), replace=False)

        def score(what: str, rows: Any, by: Mapping[str, ArchTimes], query: Any = query) -> Any:
            found = fit(data, target, rows, by)
            out.add(what, scores(found.predict_archs(data.space, data.archs[query]).value, y[query]))
            return found

        for n in sizes:
            picked = pool[lb.choose_networks(data.space, data.archs[pool], sources, n, seed)]
            drawn = rng.choice(pool, n, replace=False)
            score(f"chosen {n}", picked, sources)
            score(f"random {n}", drawn, sources)
            score(f"alone {n}", drawn, {})
            if seed - seeds[0] < quick_seeds:
                out.add(f"quick {n}", scores(quick(data, target, drawn, query, seed), y[query]))
            out.add(f"outside {n}", scores(alone(data, target, drawn, query, seed), y[query]))
            score(f"unlike {n}", drawn, other)
        # The published protocol: both sets without the slowest and the fastest tenth.
        low, high = np.quantile(y[usable], (0.1, 0.9))
        inner = np.flatnonzero((y >= low) & (y <= high))
        few = inner[inner < POOL]
        then = inner[(inner >= POOL) & (inner < 1900)]
        drawn = rng.choice(few, 20, replace=False)
        for n in PUBLISHED:
            picked = few[lb.choose_networks(data.space, data.archs[few], sources, n, seed)]
            score(f"published {n}", picked, sources, then)
            score(f"published {n}, random", drawn[:n], sources, then)
    return out


def degenerate(data: Table) -> dict[str, float]:
    """What is predicted for pixel3's networks below 0.1 ms, which no fit has seen: a number of them, and quantiles."""
    usable = np.flatnonzero(data.usable("pixel3"))
    pool, sources = usable[usable < POOL], data.sources("pixel3")
    found = fit(data, "pixel3", pool[lb.choose_networks(data.space, data.archs[pool], sources, 20, 0)], sources)
    bad = np.flatnonzero(~data.usable("pixel3"))
    ms = found.predict_archs(data.space, data.archs[bad]).value
    return {"networks": float(len(bad)), "median predicted ms": float(np.median(ms)),
            "median measured ms": float(np.median(data.ms["pixel3"][bad]))}  # fmt: skip


def closed(mean: float, baseline: float, ceiling: float) -> float:
    """The share of the gap between baseline and ceiling."""
    return (mean - baseline) / (ceiling - baseline) if ceiling != baseline else 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 where a target is missed."""
    p = parser(__doc__)
    p.add_argument("--targets", nargs="*", help="settings; all 21 if none is named")
    p.add_argument("--seeds", type=int, default=10, help="seeds a target (default 10)")
    p.add_argument("--n", type=int, nargs="*", default=[10, 20], help="numbers of measured networks (default 10 20)")
    p.add_argument("--query", type=int, default=2000, help="architectures asked for a seed (default 2000)")
    p.add_argument("--baseline-seeds", type=int, default=5, help="seeds of the quick baseline, at least 1 (default 5)")
    args = p.parse_args(argv)
    data = nasbench201()
    seeds = range(args.seed, args.seed + args.seeds)
    targets = args.targets or list(data.ms)
    if unknown := set(targets) - set(data.ms):
        raise SystemExit(f"--targets: no setting {', '.join(sorted(unknown))}; known: {', '.join(data.ms)}")
    # Targets of one family share their sources, and with them what was learnt of those.
    found: dict[str, Scores] = {}
    began = time.monotonic()
    for target in sorted(targets, key=family):
        found[target] = one_target(data, target, seeds, args.n, args.query, max(args.baseline_seeds, 1))
        print(f"{target}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    figures, met = report(found, targets, args.n)
    if "pixel3" in targets:
        figures["pixel3's degenerate networks"] = degenerate(data)
        print("pixel3's networks below 0.1 ms:", figures["pixel3's degenerate networks"])
    finish(args, "nb201_transfer", {**figures, "met": met}, seeds=len(seeds), seconds=round(time.monotonic() - began))
    return 0 if all(met.values()) else 1


def report(found: Mapping[str, Scores], targets: Sequence[str], sizes: Sequence[int]) -> tuple[dict[str, Any], Any]:
    """Print the tables; gives figures and which targets were met."""
    figures: dict[str, Any] = {}
    met: dict[str, bool] = {}

    def cell(s: Scores, what: str) -> str:
        rank, within = s.mean(what)
        return f"{rank:.3f} / {percent(within, 1)}"

    def mean(names: Sequence[str], what: str) -> tuple[float, float]:
        each = np.mean([found[t].mean(what) for t in names], axis=0)
        return float(each[0]), float(each[1])

    for n in sizes:
        ways = [f"{how} {n}" for how in ("chosen", "random", "outside", "unlike", "alone")]
        rows = [
            [t, *(cell(found[t], w) for w in ways[:1]), f"± {percent(found[t].spread(ways[0]), 1)}",
             *(cell(found[t], w) for w in ways[1:]), cell(found[t], "ceiling")]
            for t in targets
        ]  # fmt: skip
        groups = {"mean": targets, "mean, not for development": [t for t in targets if t not in DEVELOPMENT]}
        for name, group in groups.items():
            if group:
                cells = [f"{a:.4f} / {percent(b, 1)}" for a, b in (mean(group, w) for w in (*ways, "ceiling"))]
                rows.append([name, cells[0], "", *cells[1:]])
        table(
            f"{n} measured networks: Spearman / share within ± 10 %",
            ["target", "chosen", "seeds", "random", "GP, target alone", "unlike sources", "no sources",
             "ceiling"], rows,
        )  # fmt: skip
        figures[f"gap closed by target, n = {n}"] = _by_target(found, targets, n)
        rank, within = mean(targets, ways[0])
        figures[f"n = {n}"] = {
            t: {"spearman": found[t].mean(ways[0])[0], "within 10 %": found[t].mean(ways[0])[1],
                "within 10 %, spread over seeds": found[t].spread(ways[0]),
                "within, random networks": found[t].mean(ways[1])[1], "within, target alone": found[t].mean(ways[2])[1],
                "within, unlike sources": found[t].mean(ways[3])[1],
                "within, no sources": found[t].mean(ways[4])[1], "ceiling spearman": found[t].mean("ceiling")[0],
                "ceiling within 10 %": found[t].mean("ceiling")[1]}
            for t in targets
        } | {"mean": {
            "spearman": rank, "within 10 %": within, "within, random networks": mean(targets, ways[1])[1],
            "within, target alone": mean(targets, ways[2])[1], "within, unlike sources": mean(targets, ways[3])[1],
            "ceiling spearman": mean(targets, "ceiling")[0], "ceiling within 10 %": mean(targets, "ceiling")[1],
        }}  # fmt: skip
        gain = np.array([found[t].mean(ways[3])[1] - found[t].mean(ways[2])[1] for t in targets])
        met[f"unlike sources, n = {n}, mean"] = bool(gain.mean() >= 0)
        met[f"unlike sources, n = {n}, worst"] = bool(gain.min() >= -UNLIKE_LOSS)
        figures[f"unlike sources, n = {n}"] = {
            "mean gain over the target alone, share within": float(gain.mean()),
            "worst target, share within": float(gain.min()), "worst target": targets[int(gain.argmin())],
        }  # fmt: skip
        if n in BASELINE:
            (b_rank, b_within), (c_rank, c_within) = BASELINE[n], CEILING
            shares = closed(rank, b_rank, c_rank), closed(within, b_within, c_within)
            met |= {f"n = {n}, Spearman": shares[0] >= 0.5, f"n = {n}, within": shares[1] >= 0.5}
            figures[f"gap closed, n = {n}"] = {
                "share of the gap, spearman": shares[0], "share of the gap, within": shares[1],
                "baseline spearman": b_rank, "baseline within 10 %": b_within,
            }  # fmt: skip
            table(
                f"{n} networks: mean of {len(targets)} settings beside the quick baseline (of all 21)",
                ["", "baseline", "here", "ceiling", "gap closed", "target", ""],
                [
                    ["Spearman", f"{b_rank:.3f}", f"{rank:.4f}", f"{c_rank:.3f}", percent(shares[0], 0), "half",
                     verdict(shares[0] >= 0.5)],
                    ["within ± 10 %", percent(b_within, 1), percent(within, 1), percent(c_within, 1),
                     percent(shares[1], 0), "half", verdict(shares[1] >= 0.5)],
                    ["unlike sources − alone, mean", "", percent(float(gain.mean()), 1), "", "", "≥ 0",
                     verdict(bool(gain.mean() >= 0))],
                    ["unlike sources − alone, worst", "", percent(float(gain.min()), 1), "", "", "≥ −2 points",
                     verdict(bool(gain.min() >= -UNLIKE_LOSS))],
                ],
            )  # fmt: skip
    names = [f"published {n}{how}" for n in PUBLISHED for how in ("", ", random")]
    rows = [[t, *(cell(found[t], w) for w in names)] for t in targets]
    rows.append(["mean", *(f"{a:.4f} / {percent(b, 1)}" for a, b in (mean(targets, w) for w in names))])
    table("The published protocol, 10–90 % quantiles: Spearman / share within ± 10 %",
          ["target", "10 + 10 chosen", "10 + 10 random", "10 chosen", "10 random"], rows)  # fmt: skip
    for n in PUBLISHED:
        chosen, drawn = f"published {n}", f"published {n}, random"
        figures[f"published protocol, n = {n}"] = {
            what: {"spearman": a[0], "within 10 %": a[1], "spearman, random networks": b[0],
                   "within, random networks": b[1]}
            for what, a, b in [
                *((t, found[t].mean(chosen), found[t].mean(drawn)) for t in targets),
                ("mean", mean(targets, chosen), mean(targets, drawn)),
            ]
        }  # fmt: skip
    return figures, met


def _by_target(found: Mapping[str, Scores], targets: Sequence[str], n: int) -> dict[str, Any]:
    """Print quick baseline, chosen networks and ceiling of each target and their mean, with the gap that was closed."""
    each = {t: np.array([found[t].mean(w) for w in (f"quick {n}", f"chosen {n}", "ceiling")]) for t in targets}
    each["mean"] = np.mean(list(each.values()), axis=0)
    shares = {t: [closed(x[1, i], x[0, i], x[2, i]) for i in (0, 1)] for t, x in each.items()}
    table(
        f"{n} networks beside the quick baseline of this run: Spearman / share within ± 10 %",
        ["target", "quick baseline", "chosen", "ceiling", "gap closed, Spearman", "gap closed, ± 10 %"],
        [[t, *(f"{a:.3f} / {percent(b, 1)}" for a, b in x), *(percent(v, 0) for v in shares[t])]
         for t, x in each.items()],
    )  # fmt: skip
    return {
        t: {"baseline spearman": x[0, 0], "baseline within 10 %": x[0, 1], "share of the gap, spearman": shares[t][0],
            "share of the gap, within": shares[t][1]}
        for t, x in each.items()
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
