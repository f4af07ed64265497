"""How well a one-shot supernet ranks architectures: strict fairness beside uniform sampling, and the ceiling.

On the digits, 30 architectures of NAS-Bench-201's space (one cell a stage, 8 channels), drawn once, no two the same
network. Each supernet has the same passes over the same images; each child is judged by its validation loss after its
batch norms are set anew. Kendall's tau is against the mean validation loss of stand-alone trainings (those of
``--accuracy digits``), and against single ones; the ceiling is what one stand-alone training says of the others.
Target: choice counts exactly equal after every step.

Seed 0 served while this was written; supernets have the seeds 1, 2, …, stand-alone trainings 101, 102, …
"""

from __future__ import annotations

import sys
import time
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from benchmarks.common import finish, parser, table, verdict
from latbench.evaluators import DigitsEvaluator
from latbench.image_data import load_images
from latbench.load import load_space
from latbench.space import Arch, SearchSpace
from latbench.supernet_evaluator import SupernetEvaluator
from latbench.supernet_training import RECIPE, fair_paths
from latbench.training import Recipe
from latbench.with_torch import torch

SPACES: dict[str, dict[str, Any]] = {
    "nasbench201": {"resolution": 8, "num_cells": 1, "channels": 8, "num_classes": 10},
    "mobilenetv3": {"resolution": 8, "width_mult": 0.25, "num_classes": 10},
}


def drawn(space: SearchSpace, n: int) -> list[Arch]:
    """``n`` architectures that are different networks."""
    live: dict[Arch, Arch] = {}
    for arch in space.sample_archs(20 * n, seed=0).tolist():
        live.setdefault(tuple(space.live_archs([arch])[0].tolist()), tuple(arch))
    return list(live.values())[:n]


def equal_after_each_step(space: SearchSpace, steps: int) -> bool:
    """Whether strict fairness keeps all counts of a position equal, looked at after every step."""
    generator = torch.Generator().manual_seed(0)
    counts = np.zeros((space.positions, max(space.num_choices)), np.int64)
    for done in range(1, steps + 1):
        for path in fair_paths(space.num_choices, generator):
            for i, c in enumerate(path.arch):
                counts[i, c] += i not in path.lent
        if any((counts[i, :k] != done).any() for i, k in enumerate(space.num_choices)):
            return False
    return True


def tau(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Kendall's tau-b."""
    return float(kendalltau(a, b).statistic)


def main() -> int:
    """Train stand-alone, train supernets, compare; 1 where the target is missed."""
    p = parser(__doc__)
    p.add_argument("--space", choices=SPACES, default="nasbench201")
    p.add_argument("--archs", type=int, default=30)
    p.add_argument("--seeds", type=int, default=5, help="supernets of each kind, and stand-alone trainings")
    p.add_argument(
        "--epochs", type=int, default=RECIPE.epochs, help="of a supernet; in each, every choice sees every image once"
    )
    p.add_argument("--batch-size", type=int, default=RECIPE.batch_size, help="of a supernet")
    p.add_argument("--alone-epochs", type=int, default=4, help="of a stand-alone training")
    args = p.parse_args()
    if args.seeds < 2:
        raise SystemExit("--seeds: the ceiling is one training against others; give 2 or more")
    space, data = load_space(args.space, **SPACES[args.space]), load_images("digits")
    archs, started = drawn(space, args.archs), time.process_time()
    alone = np.asarray([
        [v["val_loss"] for v in DigitsEvaluator(epochs=args.alone_epochs, seed=101 + s).evaluate(space, archs)]
        for s in range(args.seeds)
    ])  # fmt: skip
    alone_s = time.process_time() - started
    print(f"{args.seeds} × {len(archs)} stand-alone trainings: {alone_s:.0f} s", flush=True)
    rows: dict[str, dict[str, Any]] = {}
    for fairness in ("strict", "uniform"):
        recipe = Recipe.make({"epochs": args.epochs, "batch_size": args.batch_size}, RECIPE)
        single, mean, spread, seconds = [], [], [], []
        for seed in range(1, args.seeds + 1):
            begun = time.process_time()
            e = SupernetEvaluator(data, recipe, fairness=fairness, seed=seed)
            losses = [v["val_loss"] for v in e.evaluate(space, archs)]
            seconds.append(time.process_time() - begun)
            counts = e.counts
            spread.append(max(max(c) - min(c) for c in counts))
            single.append([tau(losses, a) for a in alone])
            mean.append(tau(losses, alone.mean(0)))
            print(f"{fairness} seed {seed}: tau {mean[-1]:.3f}, {seconds[-1]:.0f} s", flush=True)
        rows[fairness] = {
            "tau_of_mean": mean, "tau_of_one": np.mean(single, axis=1).tolist(), "count_spread": max(spread),
            "seconds": float(np.mean(seconds)),
        }  # fmt: skip
    others = [tau(alone[s], np.delete(alone, s, 0).mean(0)) for s in range(args.seeds)]
    ceiling = {
        "tau_of_mean": others, "tau_of_one": [tau(alone[a], alone[b]) for a, b in combinations(range(args.seeds), 2)],
        "seconds": alone_s / args.seeds,
    }  # fmt: skip
    exact = equal_after_each_step(space, 500) and rows["strict"]["count_spread"] == 0

    def cells(row: dict[str, Any]) -> list[str]:
        m, o = (np.asarray(row[n]) for n in ("tau_of_mean", "tau_of_one"))
        return [f"{m.mean():.3f} ({m.min():.3f}–{m.max():.3f})", f"{o.mean():.3f}", f"{row['seconds']:.0f}"]

    table(
        f"{len(archs)} architectures of {args.space}, {args.seeds} seeds, {args.epochs} epochs",
        ("ranked by", "τ, mean of stand-alone", "τ, one stand-alone", "CPU s", "most − least trained"),
        [
            ("supernet, strict fairness", *cells(rows["strict"]), f"{rows['strict']['count_spread']} (target 0)"),
            ("supernet, uniform sampling", *cells(rows["uniform"]), rows["uniform"]["count_spread"]),
            ("one stand-alone training (ceiling)", *cells(ceiling), ""),
        ],
    )
    print(f"counts equal after each of 500 steps, and in the end of each training: {verdict(exact)}")
    short = {
        name: {"tau": float(np.mean(r["tau_of_mean"])), "lowest": min(r["tau_of_mean"]),
               "highest": max(r["tau_of_mean"]), "tau of one": float(np.mean(r["tau_of_one"]))}
        for name, r in (("strict fairness", rows["strict"]), ("uniform sampling", rows["uniform"]),
                        ("one stand-alone training", ceiling))
    }  # fmt: skip
    figures = {"Kendall's tau": short, **rows, "ceiling": ceiling, "exact": exact}
    finish(args, "fairness", figures, epochs=args.epochs, alone_epochs=args.alone_epochs, space=space.spec)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
