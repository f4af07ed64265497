"""The searchers' benchmarks, each run small: they must search, train, print their tables and write their figures.

No figure is judged but those that the machine has no part in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import ROOT
from test_benchmarks import refused, run, summary

from benchmarks import gpu_throughput, moga_speed, nb201_limit, nb201_search, specialise
from benchmarks.nas_problems import ALL, Tabular
from latbench.image_data import load_images
from latbench.load import load_space
from latbench.problem import Candidate


@pytest.mark.data
def test_nb201_search_gives_shares_of_the_true_hypervolume_and_says_who_is_better(
    data_dir: Path, tmp_path: Path
) -> None:
    assert data_dir.is_dir()
    options = ["--seeds", "1", "--devices", "gold_6240", "--searchers", "random", "NSGA-II (pymoo)", "surrogate"]
    text, figures = run("nb201_search", *options, folder=tmp_path, may_miss=True)
    assert "imagenet16_120: share of the true hypervolume, 1 devices × 1 seeds" in text
    assert "surrogate against random at 200: better" in text
    for dataset in ("imagenet16_120", "cifar10"):
        for name, share in figures[dataset]["share"].items():
            assert 0.5 < share["50"] <= share["100"] <= share["200"] <= 1, name
    share = figures["imagenet16_120"]["share"]["surrogate"]["200"]
    assert f"/ {share:.3f} | NSGA-II (pymoo)" in summary(tmp_path)


def test_nb201_search_calls_what_lies_within_two_standard_errors_a_tie() -> None:
    def told(apart: float) -> dict[str, str]:
        # One device, two seeds: each mean's standard error is .01, that of the difference .014.
        shares = {n: [[m - 0.01] * 3, [m + 0.01] * 3] for n, m in (("surrogate", 0.9 + apart), ("random", 0.9))}
        found: dict[str, str] = nb201_search.report("cifar10", shares, dict.fromkeys(shares, 0.0), 2)["met"]
        return found

    for apart, how in ((0.03, "better"), (0.025, "tie"), (-0.025, "tie"), (-0.03, "worse")):
        assert set(told(apart).values()) == {how}, apart


@pytest.mark.data
def test_nb201_limit_measures_winners_until_one_keeps_its_limit(data_dir: Path, tmp_path: Path) -> None:
    assert data_dir.is_dir()
    options = ["--devices", "gold_6240", "--searcher", "random", "--budget", "30", "--seeds", "2"]
    text, figures = run("nb201_limit", *options, folder=tmp_path, may_miss=True)
    for seed in range(2):
        assert f"Best cifar100 accuracy under 3 limits, 30 evaluations each, seed {seed}" in text
    assert list(figures["limits"]) == ["gold_6240 25 %", "gold_6240 50 %", "gold_6240 75 %"]
    limits = [f["limit_ms"] for f in figures["limits"].values()]
    assert 0 < limits[0] < limits[1] < limits[2]
    assert figures["regret_points"] > 0
    assert 0 <= figures["extra_per_limit"] <= 3
    assert f"{figures['broken_before']} before, {figures['broken_after']} after" in summary(tmp_path)


def test_nb201_limit_judges_the_mean_regret_and_the_worst_seed() -> None:
    def found(broke: bool, kept: bool, extra: int, regret: float) -> list[nb201_limit.Found]:
        ran = nb201_limit.Found("toy", 0.5, 1.0, None, False, 0, True, 0.0)
        return [ran, ran._replace(broke=True), ran._replace(
            quantile=0.75, limit_ms=2.0, broke=broke, kept=kept, extra=extra, regret_points=regret)]  # fmt: skip

    good = nb201_limit.judged({0: found(False, True, 3, 0.9), 1: found(False, True, 0, 0.3)})
    assert good["met"] == {"broken before": True, "broken after": True, "regret": True}
    assert good["regret_points"] == pytest.approx(0.2)
    assert good["extra_per_limit"] == 0.5
    assert good["limits"]["toy 75 %"] == {
        "limit_ms": 2.0, "broken_before": 0, "broken_after": 0, "extra": 1.5, "regret_points": pytest.approx(0.6),
    }  # fmt: skip
    # One seed that is worse is not made up for by others.
    bad = nb201_limit.judged(
        {0: found(True, False, 3, 2.7), 1: found(False, True, 0, 0.0), 2: found(False, True, 0, 0.0)}
    )
    assert (bad["broken_before"], bad["broken_after"]) == (2, 1)
    assert bad["met"] == {"broken before": False, "broken after": False, "regret": True}


@pytest.mark.data
def test_regret_is_against_the_best_that_keeps_the_limit_evaluated_or_not(data_dir: Path) -> None:
    assert data_dir.is_dir()
    tabular = Tabular("cifar100", "gold_6240")
    limit = float(np.median(tabular.latency))
    order = np.argsort(np.where(tabular.usable & (tabular.latency <= limit), tabular.error, np.inf))
    first, tenth = (Candidate(tuple(ALL[i].tolist()), {"error": float(tabular.error[i])}) for i in order[[0, 9]])
    assert nb201_limit.regret(tabular, limit, first) == 0
    lost = 100 * (tenth.values["error"] - first.values["error"])
    assert nb201_limit.regret(tabular, limit, tenth) == pytest.approx(lost)
    assert lost > 0
    assert np.isnan(nb201_limit.regret(tabular, limit, None))


@pytest.mark.data
def test_moga_speed_runs_as_many_evaluations_through_both(data_dir: Path, tmp_path: Path) -> None:
    assert data_dir.is_dir()
    text, figures = run("moga_speed", folder=tmp_path, may_miss=True)
    assert "120 generations × 70" in text
    assert figures["evaluations"] <= 8400
    assert 7000 < figures["pymoo_evaluations"] <= 8400
    assert min(figures["moga_s"], figures["pymoo_s"]) > 0
    assert f"(pymoo) {figures['pymoo_s']:.2f} s" in summary(tmp_path)


@pytest.mark.data
def test_pymoo_searches_moga_speeds_three_objectives(data_dir: Path) -> None:
    assert data_dir.is_dir()
    tabular = Tabular("imagenet16_120", "gold_6240")
    params = (ALL == 4).sum(axis=1)
    points = moga_speed.points(tabular, params)
    assert points.shape == (len(ALL), 3)
    assert points[tabular.usable].min() == 0
    assert points[tabular.usable].max() == 1
    # The third objective counts an operation that is good for nothing else.
    last = {n: np.concatenate(tabular.pymoo_generations(0, 20, 20, points[:, :n])[-5:]) for n in (2, 3)}
    assert params[last[3]].mean() > params[last[2]].mean() + 0.5


def test_fairness_counts_choices_and_correlates_supernets_with_trainings(tmp_path: Path) -> None:
    options = ["--archs", "8", "--seeds", "2", "--epochs", "1", "--alone-epochs", "1", "--batch-size", "300"]
    text, figures = run("fairness", *options, folder=tmp_path)
    assert "8 architectures of nasbench201, 2 seeds, 1 epochs" in text
    assert figures["exact"] is True
    # A ranking that is compared with itself would come to 1 with every seed.
    for name in ("strict", "uniform", "ceiling"):
        for of in ("tau_of_mean", "tau_of_one"):
            assert min(figures[name][of]) < 0.99, (name, of)
    assert figures["strict"]["count_spread"] == 0 < figures["uniform"]["count_spread"]
    assert set(figures["Kendall's tau"]) == {"strict fairness", "uniform sampling", "one stand-alone training"}
    assert all(-1 <= f["lowest"] <= f["tau"] <= f["highest"] <= 1 for f in figures["Kendall's tau"].values())
    assert "Kendall's τ with stand-alone trainings" in summary(tmp_path)


def test_fairness_refuses_a_ceiling_of_one_training() -> None:
    assert "--seeds" in refused("fairness", "--seeds", "1")


def test_lazy_greedy_picks_what_eager_greedy_picks_with_fewer_evaluations(tmp_path: Path) -> None:
    text, figures = run("lazy", "--oracles", "1", "--oracle-limit", "60000", "--limit", "0", folder=tmp_path)
    assert "Evaluations on 1 submodular oracles, params ≤ 60000" in text
    assert figures["same"] is True
    (oracle,) = figures["oracles"]
    assert all(r["lazy"] < r["eager"] and r["blocks"] > 1 for r in oracle.values())
    assert "| 3 of 3 |" in summary(tmp_path)


def test_supernet_memory_measures_every_way_in_a_process_of_its_own(tmp_path: Path) -> None:
    options = ["--batch", "8", "--large-batch", "0", "--resolution", "32", "--width-mult", "0.25", "--classes", "10"]
    text, figures = run("supernet_memory", *options, folder=tmp_path, may_miss=True)
    assert "A step at 32, width 0.25, batch 8" in text
    ways = figures["batch 8"]
    ratio = {name: way["ratio"] for name, way in ways.items()}
    assert ratio["largest path"] == 1 < ratio["two at once"] < ratio["all at once"]
    assert ratio["recompute"] < 0.7 * ratio["two at once"]
    assert ways["reinforce"]["gradients"] == 0 < ways["weight step"]["gradients"]
    assert f"all at once {ratio['all at once']:.2f}" in summary(tmp_path)


def test_specialise_tells_winners_of_simulated_devices_apart(tmp_path: Path) -> None:
    devices = ["--device", "tda2x", "--device", "tda2x-decompose", "--device", "am5729"]
    options = [*devices, "--resolution", "32", "--width-mult", "0.35", "--store", str(tmp_path / "s.db")]
    text, figures = run("specialise", *options, folder=tmp_path, may_miss=True)
    assert "Every winner on every device" in text
    assert figures["comparisons"] == 6
    # The same simulator twice: tables that agree, and winners that tie.
    assert figures["spearman"]["tda2x-decompose / tda2x"] == 1
    assert figures["ties"] >= 2
    assert "tables rank differently, Spearman below 0.95 in every pair: missed" in text
    assert figures["noise_floor"] == dict.fromkeys(("tda2x", "tda2x-decompose", "am5729"), 0)
    for found, on in figures["latency_ms"].items():
        assert all(on[found] <= other[found] for other in figures["latency_ms"].values())
    assert f"{figures['fastest_at_home']} of 6" in summary(tmp_path)


def test_networks_are_told_apart_by_more_than_both_intervals_half_widths_unless_simulated() -> None:
    def measured(low: float, high: float, simulated: bool) -> Any:
        return SimpleNamespace(low_ms=low, high_ms=high, setting=SimpleNamespace(simulated=simulated))

    a, b = ((1.0, np.exp(0.06)), (2.0, 2 * np.exp(0.08)))
    assert specialise.noise(measured(*a, False), measured(*b, False)) == pytest.approx(0.05)
    assert specialise.noise(measured(*a, True), measured(*b, True)) == 0


def test_a_winner_is_the_fastest_of_those_of_median_size_and_no_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("nasbench201", resolution=8, num_cells=1, channels=8)
    macs = iter(({"macs": np.asarray([100.0, 100.0])},))
    monkeypatch.setattr(specialise, "pose", lambda *_: SimpleNamespace(cheap=lambda _: next(macs)))
    found = [
        Candidate((i,) * 6, {"latency_ms": ms, "macs": m})
        for i, (ms, m) in enumerate(((1.0, 97.9), (2.0, 98.1), (3.0, 101.9)))
    ]
    monkeypatch.setattr(specialise.lb, "search", lambda *_, **given: SimpleNamespace(
        candidates=[c for c in found if c.values["macs"] <= given["limits"]["macs"]]))  # fmt: skip
    assert specialise.winner(space, cast(Any, None), 0) == (1,) * 6


def test_gpu_throughput_trains_in_every_way_and_puts_it_beside_plain_training(tmp_path: Path) -> None:
    options = ["--torch-device", "cpu", "--space", "nasbench201", "--width-mult", "0.25", "--images", "24"]
    options += ["--batch-size", "4", "--repeats", "1", "--precision", "bf16"]
    text, figures = run("gpu_throughput", *options, folder=tmp_path)
    assert "nasbench201 at 32, width 0.25, batch 4, on the CPU" in text
    rows = {name: f for name, f in figures.items() if isinstance(f, dict)}
    modes = ["weights", *(f"weights and α, {mode}" for mode in ("recompute", "two-path", "reinforce"))]
    searchers = [f"proxyless: {mode}" for mode in modes] + ["moga: supernet, strict fairness"]
    assert list(rows) == [
        *(f"{name}, f32" for name in ("plain training", *searchers)),
        *(f"{name}, bf16" for name in ("plain training", "moga: supernet, strict fairness")),
    ]
    for name, row in rows.items():
        plain = rows[f"plain training, {name.rpartition(', ')[2]}"]["passes_per_s"]
        assert row["share of plain"] == pytest.approx(row["passes_per_s"] / plain)
        assert 0 < row["slowest"] <= row["passes_per_s"] <= row["fastest"]
    # Five choices, each image through one path of each; two weight steps, and after them a step of α.
    networks = {name: row["passes_per_s"] / row["images_per_s"] for name, row in rows.items()}
    ways = ("plain training", "proxyless: weights", *(f"proxyless: {mode}" for mode in modes[1:]))
    for name, n in zip((*ways, "moga: supernet, strict fairness"), (1, 1, 7 / 3, 4 / 3, 12 / 3, 5), strict=True):
        assert networks[f"{name}, f32"] == pytest.approx(n), name
    assert summary(tmp_path).count("passes a second of images at 32 × 32") == 6


def test_gpu_throughput_has_no_figures_where_torch_sees_no_gpu(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: False; from benchmarks import gpu_throughput;"
        f"sys.argv = ['gpu_throughput', '--json', {str(file)!r}]; gpu_throughput.main()"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch sees no GPU here: no figures" in done.stdout
    assert not file.exists()


def test_images_of_gpu_throughput_are_cifars_and_its_compact_network_is_of_average_size(tmp_path: Path) -> None:
    data = load_images(f"cifar10:{gpu_throughput.write_images(tmp_path, 23, seed=1)}")
    assert [data.count(part) for part in ("train", "validation", "test")] == [20, 3, gpu_throughput.TEST_IMAGES]
    space = load_space("mobilenetv3", resolution=32, width_mult=0.25)
    arch = gpu_throughput.typical(space, 0)
    macs = [space.network(a).macs for a in space.sample_archs(50, seed=2)]
    assert space.network(arch).macs == pytest.approx(sum(macs) / len(macs), rel=0.05)
