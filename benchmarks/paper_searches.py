"""The ablations of the papers' searchers: what :mod:`benchmarks.paper_figures` draws of searches on a device.

Every evaluation is kept in the store under the evaluator's recipe, so that searches of one space share them, and the
same command goes on after an interruption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from latbench.searchers.rcas import RcasSearch

import latbench as lb
from benchmarks.common import percent
from benchmarks.paper_latency import Picture, Study
from latbench.evaluators import load_evaluator
from latbench.problem import Objective, Problem
from latbench.report.charts import SERIES, Figure, axis, figure, staircase
from latbench.report.course import hypervolume_chart, hypervolumes
from latbench.result import SearchResult
from latbench.space import Arch, SearchSpace

#: Small enough to train an architecture in seconds.
SMALL: dict[str, Any] = {"resolution": 16, "width_mult": 0.25, "num_classes": 10}
POPULATION = 10
#: Networks that a search may evaluate, by the searcher; RCAS needs about 200 for its first block.
BUDGETS = {"moga": 60, "rcas": 400, "rcas-some-types": 400}
#: RCNet's search may spend so many times the latency of the network that it starts from.
TIMES_START = 2.5
#: Searches that found the same lie on each other: both must be seen.
DASHES = ("solid", "dash", "dot", "dashdot")

# -- MoGA, fig. 7 ---------------------------------------------------------------------------------------------------


def mutation(study: Study) -> list[Picture]:
    """Hierarchical mutation beside a uniform one."""
    variants: dict[str, dict[str, Any]] = {
        f"{kind} mutation": {"objectives": ["error", "latency_ms", "-params"], "mutation": kind}
        for kind in ("hierarchical", "uniform")
    }
    why = "A hierarchical mutation picks a layer and then one property of its block, a uniform one any other block."
    return [_moga(study, d, f"Mutation on {d} (MoGA, fig. 7)", why, variants) for d in study.devices]


def objectives(study: Study) -> list[Picture]:
    """Two objectives, three, and three that are weighed as in the paper."""
    three = ["error", "latency_ms", "-params"]
    variants: dict[str, dict[str, Any]] = {
        "error, latency": {"objectives": three[:2]},
        "and −parameters, equal weights": {"objectives": three, "weights": [1, 1, 1]},
        "and −parameters, 0.4 0.4 0.2": {"objectives": three, "weights": [0.4, 0.4, 0.2]},
    }
    why = "All are judged by error and latency alone; more parameters are asked for because they come with accuracy."
    return [_moga(study, d, f"Objectives on {d} (MoGA, fig. 7)", why, variants) for d in study.devices]


def _moga(study: Study, device: str, title: str, why: str, variants: Mapping[str, Mapping[str, Any]]) -> Picture:
    space = study.space("mobilenetv3", **SMALL)
    judge = Problem(space, (Objective("error"), Objective("latency_ms")))
    found = {
        (name, seed): _search("moga", study, device, space, seed, population=POPULATION, **how)
        for name, how in variants.items()
        for seed in range(study.seed, study.seed + study.seeds)
    }
    volumes = hypervolumes({f"{n} {s}": r.candidates for (n, s), r in found.items()}, judge)
    if not volumes:
        raise SystemExit(f"{device}: no network of {space.name} keeps the limits or could be trained")
    lines, rows, numbers = {}, [], {}
    most = max(v[-1] for v in volumes.values())
    for name in variants:
        each = [volumes[f"{n} {s}"] for n, s in found if n == name]
        length = min(map(len, each))
        lines[name] = np.mean([v[:length] for v in each], axis=0).tolist()
        ends = [v[-1] / most for v in each]
        errors = [
            min(c.values["error"] for c in r.candidates if c.feasible) for (n, _), r in found.items() if n == name
        ]
        spread = f"{percent(min(ends), 1)} – {percent(max(ends), 1)}"
        half = lines[name][length // 2] / most
        best = percent(float(np.mean(errors)))
        rows.append((name, percent(half, 1), percent(float(np.mean(ends)), 1), spread, best))
        numbers[name] = {"hypervolume": lines[name], "ends": ends, "best_error": errors}
    fronts = {n: [c for (m, _), r in found.items() if m == n for c in judge.front(r.candidates)] for n in variants}
    chart = _fronts(judge, fronts, device)
    over = f"means over {study.seeds} seeds" if study.seeds > 1 else "of one seed"
    evaluated = study.budget or BUDGETS["moga"]
    seeds = f"{over}, {evaluated} networks each; accuracy: {_recipe(found)}"
    columns = ("search", "hypervolume at half the budget", "at the end", "over seeds", "least error, mean")
    return Picture(title, f"{why} Lines are {seeds}.", [hypervolume_chart(lines), chart], columns, rows, numbers)


def _recipe(found: Mapping[Any, SearchResult]) -> str:
    return str(next(iter(found.values())).provenance["recipe"])


def _fronts(judge: Problem, fronts: Mapping[str, Sequence[Any]], device: str) -> Figure:
    data = []
    for colour, dash, (name, candidates) in zip(SERIES, DASHES, fronts.items(), strict=False):
        best = staircase([(c.values["latency_ms"], c.values["error"]) for c in judge.front(list(candidates))])
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": name, "x": [a for a, _ in best],
            "y": [100 * b for _, b in best], "line": {"color": colour, "width": 2, "shape": "hv", "dash": dash},
            "hovertemplate": f"{name}<br>%{{x:.4g}} ms<br>%{{y:.2f}} %<extra></extra>",
        })  # fmt: skip
    return figure(data, axis(f"predicted latency on {device}, ms"), axis("error, %"), 360)


def _search(name: Any, study: Study, device: str, space: SearchSpace, seed: int, **how: Any) -> SearchResult:
    accuracy = load_evaluator(study.accuracy, space, study.accuracy_options)
    if accuracy is None:
        raise SystemExit("a search needs an evaluator: --accuracy digits, cifar10:FOLDER, …")
    model = study.model(device, space)
    r = lb.search(
        name, space=space, latency=model, accuracy=accuracy, seed=seed, store=study.store, limit_on="value",
        budget=study.budget or BUDGETS[name if isinstance(name, str) else name.name], report=print, **how,
    )  # fmt: skip
    paid = r.provenance["evaluations"]
    print(f"{r.provenance['searcher']}, seed {seed}, on {device}: {paid['paid']} trained, {paid['from_store']} known")
    return r


# -- RCAS, fig. 3 ---------------------------------------------------------------------------------------------------


class SomeTypes(RcasSearch):  # type: ignore[misc]
    """RCAS's search with some of its block types only, numbered from 0."""

    name = "rcas-some-types"

    def __init__(self, problem: Problem, *, seed: int = 0, types: Sequence[int] = (), **more: Any) -> None:
        super().__init__(problem, seed=seed, **more)
        self._elements[:] = [e for e in self._elements if e[1] in types]
        self.batch = len(self._elements) + 1


def search_path(study: Study) -> list[Picture]:
    """How the network of each rule of gain grows."""
    pictures = []
    for device in study.devices:
        space, limits = _limits(study, device)
        r = _search("rcas", study, device, space, study.seed, objectives=["error"], limits=limits)
        _look_at_end(study, r, f"the search on {device}")
        rules = ["uniform", "params", "macs", "latency_ms"]
        paths = {rule: _path(r, i, study, device, space) for i, rule in enumerate(rules)}
        why = (
            "Each rule divides what a block gains by another cost and grows a network of its own, within "
            f"{TIMES_START:g} times the latency of the first. Lazy greedy trains only what may be the next block."
        )
        last = r.course[-1] if r.course else {"evaluations": len(r.candidates), "saved": 0}
        rows = [_end(rule, path) for rule, path in paths.items()]
        why += f" {last['evaluations']:.0f} networks were evaluated, {last['saved']:.0f} fewer than eager greedy needs."
        columns = ("gain per", *COLUMNS)
        title = f"Search path on {device} (RCAS, fig. 3)"
        numbers = {"paths": paths, "evaluations": last["evaluations"], "saved": last["saved"]}
        pictures.append(Picture(title, why, [_path_chart(paths, device)], columns, rows, numbers))
    return pictures


def block_diversity(study: Study) -> list[Picture]:
    """One block type, the three without two grouped convolutions, and all six."""
    variants = {"type 5 alone": [4], "types 1, 4, 5": [0, 3, 4], "all six types": [0, 1, 2, 3, 4, 5]}
    pictures = []
    for device in study.devices:
        space, limits = _limits(study, device)
        paths = {}
        for name, types in variants.items():
            r = _search(
                SomeTypes, study, device, space, study.seed, objectives=["error"], limits=limits, types=types,
                gains=["latency_ms"],
            )  # fmt: skip
            _look_at_end(study, r, f"{name} on {device}")
            paths[name] = _path(r, 0, study, device, space)
        why = f"Gain per millisecond, within {TIMES_START:g} times the latency of the first network."
        rows = [_end(name, path) for name, path in paths.items()]
        columns = ("blocks", *COLUMNS)
        title = f"Block diversity on {device} (RCAS, fig. 3)"
        pictures.append(Picture(title, why, [_path_chart(paths, device)], columns, rows, {"paths": paths}))
    return pictures


def _look_at_end(study: Study, r: SearchResult, name: str) -> None:
    """Warn where the budget ended a search: its paths are cut short, and say nothing against it."""
    budget = study.budget or BUDGETS["rcas"]
    if sum(r.provenance["evaluations"].values()) >= budget:
        study.warnings.append(f"{name} spent its {budget} evaluations while blocks still fitted; give more: --budget")


def _limits(study: Study, device: str) -> tuple[SearchSpace, dict[str, float]]:
    space = study.space("rcas", base="cifar", **SMALL)
    start = tuple(4 if n == 6 else 6 for n in space.num_choices)
    first = float(study.latency(device, space, [start])[0])
    if not np.isfinite(first):
        raise SystemExit(f"{device} does not take the network that the search starts from")
    return space, {"latency_ms": TIMES_START * first}


def _path(r: SearchResult, rule: int, study: Study, device: str, space: SearchSpace) -> list[tuple[float, float]]:
    """Latency and error after each block that a rule took, the first network before them."""
    arch: Arch = r.candidates[0].arch
    archs, errors = [arch], [r.candidates[0].values["error"]]
    for row in (row for row in r.course if row["rule"] == rule):
        i = int(row["position"])
        arch = (*arch[:i], int(row["choice"]), *arch[i + 1 :])
        archs.append(arch)
        errors.append(row["objective"])
    return list(zip(study.latency(device, space, archs).tolist(), errors, strict=True))


COLUMNS = ("blocks added", "latency, ms", "error", "least error", "at ms")


def _end(name: str, path: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    """Where a path ends, and its best network: greedy goes on as long as a block fits, also by one that loses."""
    best = min(path, key=lambda p: (p[1], p[0]))
    last = path[-1]
    return name, str(len(path) - 1), f"{last[0]:.4g}", percent(last[1]), percent(best[1]), f"{best[0]:.4g}"


def _path_chart(paths: Mapping[str, Sequence[tuple[float, float]]], device: str) -> Figure:
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": name, "x": [a for a, _ in path],
            "y": [100 * b for _, b in path], "line": {"color": colour, "width": 2, "dash": dash}, "marker": {"size": 6},
            "text": [f"block {i}" for i in range(len(path))],
            "hovertemplate": f"{name}, %{{text}}<br>%{{x:.4g}} ms<br>%{{y:.2f}} %<extra></extra>",
        }
        for colour, dash, (name, path) in zip(SERIES, DASHES, paths.items(), strict=False)
    ]  # fmt: skip
    return figure(data, axis(f"predicted latency on {device}, ms"), axis("error, %"), 420)
