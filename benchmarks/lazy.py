"""What laziness saves RCAS: evaluations of lazy against eager greedy.

On a submodular oracle (each block of RCNet's space covers a random part of 200 weighted points; what is left is the
error) both must take the same blocks, by every rule of gain. On the digits, where accuracy is only almost submodular,
blocks are taken by validation loss after a short training, within a limit on parameters: evaluations, and the error on
test images of the networks found after a full training (8 epochs), beside the network that the search starts from and
the best of random search with as many evaluations, a row of the same table (``--no-random`` leaves that out; it takes
as long again). Target: the same picks.

Oracles have the seeds 1, 2, …; seeds up to 5 of another cover served the tests. The digits' split is the evaluator's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import finish, parser, percent, table, verdict
from latbench import search
from latbench.evaluators import DigitsEvaluator, FunctionEvaluator
from latbench.load import load_space
from latbench.space import Arch
from latbench.spaces.rcas import NONE

SPACE: Any = load_space("rcas", base="cifar", resolution=8, width_mult=0.25, num_classes=10)
RULES = ("uniform", "params", "macs")
POINTS = 200


class Cover:
    """A weighted cover: monotone and submodular. Sums are exact, so that there are no ties by rounding."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.integers(1, 1024, POINTS)
        self.covers = rng.random((SPACE.positions, NONE, POINTS)) < rng.uniform(0.01, 0.08, (SPACE.positions, NONE, 1))

    def error(self, space: object, arch: Arch) -> float:
        """The weight of what no block covers, as a fraction of 2¹⁸."""
        held = [self.covers[i, c] for i, c in enumerate(arch) if c != NONE]
        return float(self.weights[~np.any(held, axis=0)].sum() / 2**18)


def picks(course: Sequence[Mapping[str, float]], rule: int) -> list[tuple[int, int]]:
    """Blocks taken by a rule, in order."""
    return [(int(r["position"]), int(r["choice"])) for r in course if r["rule"] == rule]


def oracle(seed: int, limit: float) -> dict[str, dict[str, float]]:
    """Lazy against eager, rule by rule."""
    f = FunctionEvaluator(Cover(seed).error)
    out = {}
    for rule in RULES:
        given: dict[str, Any] = {
            "space": SPACE, "accuracy": f, "objectives": ["error", "params"], "limits": {"params": limit},
            "budget": 100_000, "gains": [rule], "seed": seed,
        }  # fmt: skip
        lazy, eager = search("rcas", **given), search("rcas", lazy=False, **given)
        taken = picks(lazy.course, 0)
        out[rule] = {
            "same": float(taken == picks(eager.course, 0)), "blocks": len(taken), "lazy": len(lazy.candidates),
            "eager": len(eager.candidates),
        }  # fmt: skip
    return out


def on_digits(limit: int, epochs: int, random: bool) -> dict[str, Any]:
    """Lazy greedy by all rules on the digits, with what eager greedy would have needed along its paths."""
    given: dict[str, Any] = {
        "space": SPACE, "accuracy": DigitsEvaluator(epochs=epochs, batch_size=100),
        "objectives": ["val_loss", "params"], "limits": {"params": limit},
    }  # fmt: skip
    lazy = search("rcas", budget=100_000, gains=list(RULES), **given)
    found = {"start": lazy.candidates[0].arch, "lazy greedy": lazy.front[0].arch}
    sizes = [sum(c != NONE for c in x.arch) for x in lazy.candidates]
    found["start"] = lazy.candidates[int(np.argmin(sizes))].arch
    for i, rule in enumerate(RULES):
        end = list(found["start"])
        for p, c in picks(lazy.course, i):
            end[p] = c
        found[f"grown by {rule}"] = tuple(end)
    if random:
        found["random search"] = search("random", budget=len(lazy.candidates), **given).front[0].arch
    full = DigitsEvaluator(epochs=8)
    rows = {
        name: {
            "params": SPACE.network(arch).params, "blocks": sum(c != NONE for c in arch),
            "test_error": full.test(SPACE, [arch])[0]["error"],
        }
        for name, arch in found.items()
    }  # fmt: skip
    last = lazy.course[-1]
    return {"networks": rows, "lazy": last["evaluations"], "eager": last["eager_evaluations"], "params_limit": limit}


def main() -> int:
    """Run both, print; 1 where the target is missed."""
    p = parser(__doc__)
    p.add_argument("--oracles", type=int, default=5)
    p.add_argument("--oracle-limit", type=float, default=300_000, help="on parameters")
    p.add_argument("--limit", type=int, default=60_000, help="on parameters, on the digits; 0 leaves them out")
    p.add_argument("--epochs", type=int, default=2, help="of an evaluation on the digits")
    p.add_argument("--no-random", action="store_true")
    args = p.parse_args()
    runs = [oracle(1 + s, args.oracle_limit) for s in range(args.oracles)]
    rows, same = [], True
    for rule in RULES:
        mean = {n: float(np.mean([r[rule][n] for r in runs])) for n in ("same", "blocks", "lazy", "eager")}
        same &= mean["same"] == 1.0
        saved = 1 - mean["lazy"] / mean["eager"]
        rows.append([rule, f"{mean['blocks']:.1f}", f"{mean['lazy']:.0f}", f"{mean['eager']:.0f}", percent(saved, 1),
                     verdict(mean["same"] == 1.0)])  # fmt: skip
    columns = ("gain", "blocks", "lazy", "eager", "saved", "same picks")
    table(f"Evaluations on {args.oracles} submodular oracles, params ≤ {args.oracle_limit:g}", columns, rows)
    figures: dict[str, Any] = {"oracles": runs, "same": same}
    if args.limit:
        digits = on_digits(args.limit, args.epochs, not args.no_random)
        saved = 1 - digits["lazy"] / digits["eager"]
        table(
            f"Digits, params ≤ {args.limit:g}: {digits['lazy']:.0f} evaluations, eager greedy along the same paths "
            f"{digits['eager']:.0f}, saved {percent(saved, 1)}",
            ("network", "params", "blocks", "test error"),
            [[n, r["params"], r["blocks"], percent(r["test_error"], 1)] for n, r in digits["networks"].items()],
        )
        figures["digits"] = digits
    finish(args, "lazy", figures, oracle_limit=args.oracle_limit, epochs=args.epochs)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
