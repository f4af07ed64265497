"""The final stage: found networks are trained for long, tested, kept as files, and never trained twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_fixtures import write_voc
from search_support import table
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import latbench as lb  # noqa: E402
from latbench.cli.app import app  # noqa: E402
from latbench.cli.retrain import print_retrained  # noqa: E402
from latbench.errors import ConfigError, FileFormatError  # noqa: E402
from latbench.evaluators import FunctionEvaluator, training_evaluator  # noqa: E402
from latbench.image_data import Digits  # noqa: E402
from latbench.protocol import Protocol  # noqa: E402
from latbench.result import SearchResult  # noqa: E402
from latbench.retraining import (  # noqa: E402
    load_network,
    retrain,
    retrained,
    retrained_networks,
    with_own_latency,
)
from latbench.space import file_stem  # noqa: E402
from latbench.training import Recipe, scores  # noqa: E402
from latbench.training_evaluators import TrainingEvaluator  # noqa: E402

SPACE = lb.load_space("mobilenetv3", resolution=16, width_mult=0.1, num_classes=10)


def evaluator(**changes: object) -> TrainingEvaluator:
    return TrainingEvaluator(Digits(), Recipe.make({"epochs": 2, "batch_size": 100, **changes}), train_on="cpu")


@pytest.fixture
def found(tmp_path: Path) -> SearchResult:
    judge = FunctionEvaluator(lambda space, arch: 1 / (2 + sum(arch)), recipe="toy")
    return lb.search("random", space=SPACE, latency=table(SPACE), accuracy=judge, budget=6, run=tmp_path / "run")


def test_found_networks_are_trained_tested_and_kept(found: SearchResult, tmp_path: Path) -> None:
    seen: list[tuple[tuple[int, ...], float]] = []
    run, judge = tmp_path / "run", evaluator()
    done = retrain(found, judge, run, top=2, on_epoch=lambda a, row: seen.append((a, row["epoch"])))
    chosen = [c.arch for c in found.pick(2)]
    assert [r.arch for r in done] == chosen
    assert seen == [(a, e) for a in chosen for e in (1.0, 2.0)]
    for r in done:
        net = SPACE.network(r.arch)
        assert (r.params, r.macs, r.epochs) == (net.params, net.macs, 2)
        assert 0 <= r.values["top5_error"] <= r.values["error"] <= 1
        kept = load_network(run / "retrained" / r.weights)
        assert kept.key == net.key
        # The file holds the weights that were tested, and the test images tested them.
        again = scores(kept.to_torch(), Digits(), "test", shape=(3, 16, 16))
        assert (again.error, again.top5_error) == pytest.approx((r.values["error"], r.values["top5_error"]))
    assert set(retrained_networks(run)) == set(chosen)
    assert not list(run.rglob("*.part.pt"))
    found.save(run)
    assert [tuple(d["arch"]) for d in SearchResult.load(run).provenance["retrained"]] == chosen


def test_what_is_there_is_not_trained_again_and_what_was_changed_is(found: SearchResult, tmp_path: Path) -> None:
    seen: list[float] = []
    first = retrain(found, evaluator(), tmp_path, top=1)
    assert retrain(found, evaluator(), tmp_path, top=1, on_epoch=lambda a, row: seen.append(row["epoch"])) == first
    assert seen == []
    file = tmp_path / "retrained" / first[0].weights
    file.write_bytes(file.read_bytes()[:-1])
    assert retrain(found, evaluator(), tmp_path, top=1, on_epoch=lambda a, row: seen.append(row["epoch"])) == first
    assert seen == [1, 2]
    longer = retrain(found, evaluator(epochs=3), tmp_path, top=1)
    assert longer[0].epochs == 3
    assert len(found.provenance["retrained"]) == 1
    assert retrained(tmp_path) == longer
    (tmp_path / "retrained" / f"{file_stem(first[0].arch)}.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"\.json: damaged, or no record of a final training"):
        retrained(tmp_path)


def test_a_final_training_that_was_interrupted_ends_bit_equal(found: SearchResult, tmp_path: Path) -> None:
    def stop(arch: tuple[int, ...], row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    alone = retrain(found, evaluator(), tmp_path / "alone", top=1)[0]
    with pytest.raises(KeyboardInterrupt):
        retrain(found, evaluator(), tmp_path / "r", top=1, on_epoch=stop)
    seen: list[float] = []
    again = retrain(found, evaluator(), tmp_path / "r", top=1, on_epoch=lambda a, row: seen.append(row["epoch"]))[0]
    assert seen == [2]
    assert again.values == alone.values
    nets = [load_network(tmp_path / d / "retrained" / alone.weights) for d in ("alone", "r")]
    for node, arrays in (nets[0].weights or {}).items():
        for name, array in arrays.items():
            assert np.array_equal(array, (nets[1].weights or {})[node][name])


def test_a_final_training_that_diverges_leaves_no_weights(found: SearchResult, tmp_path: Path) -> None:
    done = retrain(found, evaluator(lr=1e30, epochs=20), tmp_path, top=1)
    assert (done[0].values, done[0].weights) == ({}, "")
    assert retrained_networks(tmp_path) == {}
    print_retrained(found, done)


def test_nothing_to_train_and_a_wrong_task_are_refused(found: SearchResult, tmp_path: Path) -> None:
    nothing = SearchResult(found.problem, [])
    with pytest.raises(ConfigError, match="found nothing that keeps its limits"):
        retrain(nothing, evaluator(), tmp_path)
    of_two = SearchResult(found.problem, found.candidates)
    data = Digits()
    data.classes = 3
    with pytest.raises(ConfigError, match="have 3 classes"):
        retrain(of_two, TrainingEvaluator(data, train_on="cpu"), tmp_path)


def test_networks_that_broke_a_limit_give_way_to_those_that_keep_it(found: SearchResult) -> None:
    first, *rest = [c.arch for c in found.pick(6)]
    winner = next(c.arch for c in found.candidates if c.arch != first)
    found.provenance["kept_limits"] = {"latency_ms": {"winner": list(winner), "replaced": [list(first)]}}
    assert [c.arch for c in found.final(6)] == list(dict.fromkeys([winner, *rest]))
    assert [c.arch for c in found.final(1)] == [winner]
    found.provenance["kept_limits"] = {"latency_ms": {}}
    assert [c.arch for c in found.final(6)] == [first, *rest]


def test_long_architectures_get_file_names_that_fit() -> None:
    assert file_stem((3, 11, 0)) == "3-11-0"
    assert len(file_stem((1,) * 648)) == 32
    assert file_stem((1,) * 648) != file_stem((1,) * 647 + (0,))


def test_detectors_are_retrained_whole_and_measured_themselves(tmp_path: Path, local_device: lb.Device) -> None:
    space = lb.load_space("mobilenetv3", resolution=64, width_mult=0.1)
    judge = FunctionEvaluator(lambda space, arch: 0.5, recipe="toy")
    found = lb.search("random", space=space, accuracy=judge, objectives=["error", "macs"], budget=1)
    options = {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "train_on": "cpu"}
    voc = training_evaluator(f"voc:{write_voc(tmp_path / 'voc')}", options)
    (done,) = retrain(found, voc, tmp_path, top=1)
    assert {"map", "map_all"} <= set(done.values)
    assert done.macs > 0.5 * space.network(done.arch).macs
    assert done.measured == {}
    assert len(load_network(tmp_path / "retrained" / done.weights).outputs) > 2
    quick = Protocol(min_runs=3, max_runs=3, min_ms=0, min_visits=2, max_visits=2, warmup_runs=1, warmup_max_ms=1)
    value, low, high = with_own_latency(done, tmp_path, local_device, quick).measured["latency_ms"]
    # With so few visits the interval may begin at nothing.
    assert 0 <= low <= value <= high
    assert value > 0


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_retrains_on_the_searchs_data_and_prints_what_came_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    judge = training_evaluator("digits", {"epochs": 1, "batch_size": 100, "train_on": "cpu"})
    lb.search("random", space=SPACE, latency=table(SPACE), accuracy=judge, budget=3, run=run)
    command = ["retrain", str(run), "--top", "1", "--recipe-set", "epochs=2", "--recipe-set", "train_on=cpu"]
    out = CliRunner().invoke(app, command)
    assert out.exit_code == 0, out.output
    text = " ".join(out.output.split())
    assert "test error" in text
    assert "top-5 error" in text
    (record,) = (run / "retrained").glob("*.json")
    assert json.loads(record.read_text())["epochs"] == 2
    loaded = SearchResult.load(run)
    assert len(loaded.provenance["retrained"]) == 1
    # And what was trained is what is exported.
    exported = CliRunner().invoke(app, ["export", str(run), "--top", "1", "--format", "onnx"])
    assert exported.exit_code == 0, exported.output
    (row,) = json.loads((run / "networks" / "front.json").read_text())["networks"]
    assert (tuple(row["arch"]) in retrained_networks(run)) == (row["weights"] == "trained")


def test_the_command_asks_for_data_that_it_cannot_know(found: SearchResult, tmp_path: Path) -> None:
    out = CliRunner().invoke(app, ["retrain", str(tmp_path / "run")])
    assert isinstance(out.exception, ConfigError)
    assert "say --data" in str(out.exception)
    out = CliRunner().invoke(app, ["retrain", str(tmp_path / "run"), "--data", "digits", "--recipe", "best"])
    assert "no recipe 'best' for digits; there are plain" in str(out.exception)
