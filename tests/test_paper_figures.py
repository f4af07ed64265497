"""The papers' figures: what they compare, on a simulator and on profiles that nobody can reach here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import paper_latency as latency
from benchmarks import paper_searches as searches
from benchmarks.paper_latency import Study
from latbench.evaluators import FunctionEvaluator
from latbench.space import Arch, SearchSpace
from latbench.zoo_families import named_network

pytest.importorskip("torch")
#: Out of reach of any test: their numbers are the rooflines of their profiles.
FAR = ["titan-x-pascal", "v100-server"]
CELLS = {"cells": [1, 1], "growth": [8, 16], "resolution": 8}
TINY = {"resolution": 32, "width_mult": 0.25}


@pytest.fixture
def study(tmp_path: Path) -> Any:
    return lambda devices, params, **more: Study(devices, params, tmp_path / "s.db", tmp_path / "models", **more)


def test_all_dense_cells_stand_on_every_device_with_the_published_ones_among_them(study: Any) -> None:
    s = study(["tda2x", FAR[0]], CELLS)
    cells, published = latency.dense_cells(s)
    ms = {d: np.asarray(v, float) for d, v in cells.numbers["latency_ms"].items()}
    assert [len(v) for v in ms.values()] == [324, 324]
    # The chip takes no group convolution with a shuffle behind it: three convolutions of six are left, at two places.
    assert [int(np.isfinite(v).sum()) for v in ms.values()] == [81, 324]
    assert [row[0] for row in cells.rows] == s.devices
    es = next(row for row in published.rows if row[0] == "dppnet_device_es")
    own = ms["tda2x"][cells.numbers["published"]["dppnet_device_es"]]
    assert es[3] == f"{own:.4g} ({int((ms['tda2x'] < own).sum()) + 1})"
    assert next(row for row in published.rows if row[0] == "dppnet_panacea")[3] == "–"
    assert s.warnings == [f"{FAR[0]} is out of reach: its latencies are the first guess of its profile's roofline"]


def test_widths_are_those_of_the_published_networks(study: Any) -> None:
    assert latency._scaled("MobileNetV2", 1.0, 224).key == named_network("mobilenet_v2").key
    wide = latency._scaled("proxyless_mobile", 1.4, 224)
    assert wide.key == named_network("proxyless_mobile_14").key
    macs = [latency._scaled("MobileNetV2", w, 224).macs / 1e6 for w in latency.WIDTHS]
    assert [int(m) for m in macs] == [59, 97, 209, 300, 582]
    (picture,) = latency.width_sweep(study(["tda2x"], {"resolution": 32}))
    ms = picture.numbers["predicted_ms"]
    assert ms["MobileNetV2 0.35"] < ms["MobileNetV2 1"] < ms["MobileNetV2 1.4"]
    assert "top-1, %" not in picture.columns


def test_a_simulators_table_is_compared_with_what_it_simulates(study: Any) -> None:
    (picture,) = latency.predicted_measured(study(["tda2x"], TINY, networks=5))
    assert "simulated on tda2x" in picture.title
    assert picture.rows[0][1:3] == ("table", "5")
    assert 0 < picture.numbers["rmspe"] < 0.1


def test_what_is_out_of_reach_is_not_compared(study: Any) -> None:
    s = study([FAR[0]], TINY)
    assert latency.predicted_measured(s) == []
    assert s.warnings == [f"{FAR[0]} is out of reach: nothing to compare with"]


def test_what_no_measurement_came_of_is_not_compared(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s = study(["tda2x"], TINY, networks=3)
    measure = s.measure
    # The table's plan goes through, of the networks to compare with none is measured.
    monkeypatch.setattr(s, "measure", lambda d, plan, space: {} if len(plan.items) == 3 else measure(d, plan, space))
    assert latency.predicted_measured(s) == []
    assert s.warnings == ["tda2x: none of 3 networks could be measured: nothing to compare with"]


@pytest.mark.parametrize(
    ("figure", "devices", "params"),
    [("op_shares", ["tda2x"], {"resolution": 32}), ("device_scatter", ["tda2x", FAR[0]], {"resolution": 32})],
)
def test_a_device_that_takes_no_network_is_named_and_nothing_is_drawn_of_it(
    study: Any, figure: str, devices: list[str], params: dict[str, Any]
) -> None:
    s = study(devices, params)
    assert getattr(latency, figure)(s) == []
    assert any("tda2x" in text for text in s.warnings)


def test_the_command_ends_with_the_reason_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    argv = [sys.executable, "-m", "benchmarks.paper_figures", "predicted-measured", "-d", FAR[0], "--html", str(page)]
    argv += ["--store", str(tmp_path / "s.db"), "--models", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"warning: {FAR[0]} is out of reach: nothing to compare with" in done.stdout
    assert done.stderr.endswith(f"predicted-measured: nothing to draw of {FAR[0]}\n")
    assert not page.exists()


def test_shares_of_ops_add_up(study: Any) -> None:
    (picture,) = latency.op_shares(study(["tda2x", FAR[0]], {**TINY, "act": "relu6"}))
    for nets in picture.numbers["shares"].values():
        for shares in nets.values():
            assert sum(shares[k] for k in latency.KINDS) == pytest.approx(1)
    far = picture.numbers["shares"][FAR[0]]
    assert far["moga_c"]["7×7 blocks"] == 0 < far["moga_b"]["7×7 blocks"]
    assert 0 < far["moga_a"]["with squeeze-and-excitation"] < 1


def test_devices_are_scattered_in_pairs(study: Any) -> None:
    (picture,) = latency.device_scatter(study(FAR, TINY))
    assert picture.rows[0][:2] == (" / ".join(FAR), "1000")
    assert 0 < picture.numbers["spearman"][" / ".join(FAR)] <= 1
    with pytest.raises(SystemExit, match="give --device twice"):
        latency.device_scatter(study(FAR[:1], TINY))


def counted(space: SearchSpace, arch: Arch) -> float:
    """Better with every larger kernel, and with every block that is there."""
    labels = [space.choice_label(i, c) for i, c in enumerate(arch)]
    return float(np.exp(-sum(0.02 if "none" in label else 0.03 + 0.01 * ("k7" in label) for label in labels)))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = FunctionEvaluator(counted, recipe="counted")
    monkeypatch.setattr(searches, "load_evaluator", lambda *_: evaluator)


@pytest.mark.usefixtures("judged")
def test_ablations_of_moga_share_a_reference_point(study: Any) -> None:
    s = study([FAR[0]], {}, budget=20, seeds=2)
    (picture,) = searches.mutation(s)
    assert [row[0] for row in picture.rows] == ["hierarchical mutation", "uniform mutation"]
    assert all(len(v["hypervolume"]) == 20 and len(v["ends"]) == 2 for v in picture.numbers.values())
    assert max(e for v in picture.numbers.values() for e in v["ends"]) == 1
    (picture,) = searches.objectives(s)
    assert len(picture.rows) == 3


@pytest.mark.usefixtures("judged")
def test_paths_of_rcas_grow_within_the_limit_by_the_blocks_that_are_allowed(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "TIMES_START", 1.15)
    s = study([FAR[0]], {"resolution": 8}, budget=2000)
    (picture,) = searches.search_path(s)
    paths = picture.numbers["paths"]
    assert set(paths) == {"uniform", "params", "macs", "latency_ms"}
    for path in paths.values():
        first, last = path[0], path[-1]
        assert len(path) > 1
        assert first[0] < last[0] <= searches.TIMES_START * first[0]
        assert first[1] > last[1]
    assert picture.numbers["saved"] > 0
    (picture,) = searches.block_diversity(s)
    ends = [path[-1][1] for path in picture.numbers["paths"].values()]
    assert ends[0] >= ends[1] >= ends[2]
    assert [w for w in s.warnings if "evaluations" in w] == []
    s.budget = 20
    searches.block_diversity(s)
    assert "all six types on titan-x-pascal spent its 20 evaluations while blocks still fitted" in s.warnings[-1]


def test_the_command_writes_a_page_and_figures(tmp_path: Path) -> None:
    page, figures = tmp_path / "p.html", tmp_path / "f.json"
    argv = [sys.executable, "-m", "benchmarks.paper_figures", "device-scatter", "-d", FAR[0], "-d", FAR[1]]
    argv += ["--resolution", "32", "--store", str(tmp_path / "s.db"), "--html", str(page), "--json", str(figures)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "is out of reach: its latencies are the first guess" in done.stdout
    text = page.read_text("utf-8")
    assert "Devices against each other (MoGA, fig. 2)" in text
    assert figures.exists()
    wrong = [*argv[:4], "-d", "no-such-device", "-d", FAR[0]]
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
