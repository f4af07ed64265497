"""What searches that train by themselves have in common: their images, what they tell, doubts, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from image_fixtures import write_cifar
from search_support import table, toy_evaluator

import latbench as lb
from latbench import load_space, plugins
from latbench.errors import ConfigError
from latbench.evaluators import DigitsEvaluator, load_evaluator
from latbench.image_data import Digits, load_images
from latbench.problem import Objective, Problem
from latbench.result import SearchResult
from latbench.searching import make_searcher
from latbench.testing.searchers import ToySpace

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
Proxyless = plugins.load("searchers", "proxyless")

TOY = ToySpace(3, 2)
META = load_space("metakernel", resolution=8, width_mult=0.05, num_classes=10, layers=1)
QUICK = {"warmup": 1, "epochs": 2, "batch_size": 250}


def posed(space: lb.SearchSpace = TOY) -> Problem:
    return Problem(space, (Objective("error"),))


def search(**changes: Any) -> SearchResult:
    options = {
        "space": TOY, "latency": table(TOY), "accuracy": toy_evaluator("toy"), "budget": 2, "seed": 1, **QUICK,
        **changes,
    }  # fmt: skip
    return lb.search("proxyless", **options)


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "space"), [("proxyless", TOY), ("ednas", META)])
def test_they_train_on_the_images_that_accuracy_is_of(name: str, space: lb.SearchSpace, tmp_path: Path) -> None:
    cifar = f"cifar10:{write_cifar(tmp_path)}"
    for text in (cifar, f"supernet:{cifar}"):
        accuracy = load_evaluator(text, space, {"validation": 0.2, "split_seed": 3})
        searcher: Any = make_searcher(name, posed(space), 0, {}, accuracy)
        assert accuracy is not None
        assert searcher.data is accuracy.images
        assert searcher.data.name.startswith("cifar10 ")
    # The evaluator's own split, so that what it holds out is not trained on.
    digits: Any = make_searcher(name, posed(space), 0, {"data": "digits"}, DigitsEvaluator())
    other: Any = make_searcher(name, posed(space), 0, {}, DigitsEvaluator(split_seed=5))
    assert (digits.data.name, other.data.name) == ("digits split_seed=0", "digits split_seed=5")
    assert isinstance(make_searcher(name, posed(space), 0, {}, toy_evaluator()).data, Digits)  # type: ignore[attr-defined]


def test_other_images_than_those_that_accuracy_is_of_are_refused(tmp_path: Path) -> None:
    cifar = f"cifar10:{write_cifar(tmp_path)}"
    with pytest.raises(
        ConfigError, match=r"proxyless: data 'cifar10:.*' is cifar10 .*, but accuracy is of digits split"
    ):
        search(data=cifar, accuracy=DigitsEvaluator())
    with pytest.raises(
        ConfigError, match=r"data 'digits' is digits split_seed=0, but .* split_seed=1; leave the option"
    ):
        search(data="digits", accuracy=DigitsEvaluator(split_seed=1))


def test_where_accuracy_is_that_of_detectors_images_must_be_named() -> None:
    class Detects(DigitsEvaluator):
        replaces, images = True, None  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="accuracy is that of detectors: name images for it with the option data"):
        make_searcher("proxyless", posed(), 0, {}, Detects())
    assert make_searcher("proxyless", posed(), 0, {"data": "digits"}, Detects())


# -- what they tell -------------------------------------------------------------------------------------------------


def test_each_epoch_is_told_with_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    search(report=lines.append)
    told = [line for line in lines if line.startswith("proxyless: epoch ")]
    assert [line.split(",")[0] for line in told] == [
        "proxyless: epoch 1 of 3 (warm-up)", "proxyless: epoch 2 of 3", "proxyless: epoch 3 of 3",
    ]  # fmt: skip
    assert "accuracy 0." in told[0]
    assert [" left" in line for line in told] == [False, True, False]
    ednas: Any = make_searcher("ednas", posed(META), 0, {"epochs": 2, "tune": 1})
    assert ednas.line({"epoch": 2.0, "loss": 1.5}) == "ednas: epoch 2 of 3, loss 1.5"
    assert ednas.line({"epoch": 3.0, "loss": 1.5}) == "ednas: epoch 3 of 3 (training what was found), loss 1.5"
    dense = load_space("densecell", cells=[1], growth=[4], resolution=8, shortest=2, num_classes=10)
    dppnet = make_searcher("dppnet", posed(dense), 0, {})
    assert dppnet.line({"length": 2, "extensions": 18.0}) == f"dppnet: 2 of {dense.positions} layers, extensions 18"
    # Where an epoch takes long, a line within it too.
    monkeypatch.setattr("latbench.telling.EVERY_S", 0.0)
    search(report=lines.append)
    assert any(line.startswith("proxyless: epoch 1 of 3, step 1 of 2, about ") for line in lines)


def _with_accuracy(*accuracies: float, space: lb.SearchSpace = TOY, **options: Any) -> Any:
    s = Proxyless(posed(space), warmup=1, epochs=len(accuracies) - 1, **options)
    s.epoch = len(accuracies)
    s.course = [{"epoch": i, "accuracy": a} for i, a in enumerate(accuracies, 1)]
    return s


def test_a_network_of_all_choices_near_chance_is_doubted() -> None:
    (doubt,) = _with_accuracy(0.1, 0.11, 0.16, lr=0.003).doubts()
    assert (
        "after 3 epochs the network of all choices is right about 16.0% of held-out images (by chance: 10.0%)" in doubt
    )
    assert "(warmup=1, epochs=2, warmup_lr=0.05, lr=0.003 now)" in doubt
    # Of ten classes, the share of the way from chance to all is told apart at 0.1 + 0.15 · 0.9.
    assert _with_accuracy(0.1, 0.23).doubts()
    assert not _with_accuracy(0.1, 0.24).doubts()
    # One bad epoch at the end is none.
    assert not _with_accuracy(0.5, 0.6, 0.15).doubts()
    assert _with_accuracy(0.6, 0.1, 0.1, 0.1).doubts()
    unfinished = _with_accuracy(0.1, 0.1)
    unfinished.epochs = 5
    assert not unfinished.doubts()


def test_doubts_are_told_when_training_ends_and_are_in_the_result_of_a_search_that_goes_on_too(tmp_path: Path) -> None:
    lines: list[str] = []
    r = search(run=tmp_path, report=lines.append, warmup_lr=1e-9, lr=1e-9)
    (warning,) = r.warnings
    assert "too little to tell good choices from bad ones" in warning
    assert warning == lines[-1]
    again = search(run=tmp_path, report=lines.append, warmup_lr=1e-9, lr=1e-9, budget=3)
    assert again.warnings == [warning]


# -- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends this process Ctrl-C, once or twice, in the middle of the second epoch."""
    real, epochs = Proxyless.train_epoch, [0]

    def arm(times: int) -> list[int]:
        def train(self: Any, *args: Any) -> Mapping[str, float]:
            for _ in range(times if self.epoch == 1 else 0):
                os.kill(os.getpid(), signal.SIGINT)
            row: Mapping[str, float] = real(self, *args)
            epochs[0] += 1
            return row

        monkeypatch.setattr(Proxyless, "train_epoch", train)
        return epochs

    yield arm
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_ctrl_c_ends_a_training_after_the_epoch_which_is_kept(tmp_path: Path, interrupted: Any) -> None:
    whole = search(run=tmp_path / "whole")
    epochs, lines = interrupted(1), list[str]()
    with pytest.raises(KeyboardInterrupt):
        search(run=tmp_path / "r", report=lines.append)
    assert epochs == [2]
    assert "Ctrl-C again stops at once" in lines[-2]
    assert lines[-1].startswith("proxyless: epoch 2 of 3")
    again = search(run=tmp_path / "r")
    assert epochs == [3]
    assert (again.course, again.candidates) == (whole.course, whole.candidates)


def test_the_second_ctrl_c_ends_it_at_once(tmp_path: Path, interrupted: Any) -> None:
    whole = search(run=tmp_path / "whole")
    epochs = interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        search(run=tmp_path / "r")
    assert epochs == [1]
    interrupted(0)
    assert search(run=tmp_path / "r").course == whole.course


def test_where_nothing_is_kept_the_first_ctrl_c_ends_it_at_once(interrupted: Any) -> None:
    epochs = interrupted(1)
    with pytest.raises(KeyboardInterrupt):
        search()
    assert epochs == [1]


def test_a_data_set_by_name_is_opened_by_a_searcher_that_is_made_alone(tmp_path: Path) -> None:
    cifar = f"cifar10:{write_cifar(tmp_path)}"
    assert Proxyless(posed(), data=cifar).data.name == load_images(cifar).name
