"""Supernets are trained fairly, resume bit for bit, and judge architectures with batch norms of their own."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_support import SETTING, table

import latbench as lb
from latbench.errors import ConfigError, FileFormatError, SearchError
from latbench.image_data import Digits, ImageData, load_images
from latbench.network import NetworkBuilder
from latbench.result import SearchResult
from latbench.space import Arch, SearchSpace
from latbench.testing.searchers import ToyOptionalSpace, ToySpace

torch: Any = pytest.importorskip("torch")

from latbench.supernet_evaluator import SupernetEvaluator  # noqa: E402
from latbench.supernet_training import (  # noqa: E402
    RECIPE,
    SupernetTraining,
    fair_paths,
    recalibrate,
    train_supernet,
    uniform_paths,
)
from latbench.training import Recipe, initialise, scores  # noqa: E402

SHAPE = (3, 8, 8)
SMALL = Recipe(epochs=3, batch_size=500, lr=0.05, schedule="cosine")


class Uneven(ToySpace):
    """Two, three and four choices."""

    name = "uneven"

    @property
    def num_choices(self) -> tuple[int, ...]:
        return (2, 3, 4)


class Normed(ToySpace):
    """With batch norms, of which each choice shifts the statistics in its own way."""

    name = "normed"

    def build(self, b: NetworkBuilder, arch: Arch) -> str:
        x = b.input((1, 3, 8, 8))
        for i, c in enumerate(arch):
            x = b.block("conv", x, scope=f"positions.{i}", choice=c, out=8, kernel=2 * c + 1, act="relu", bn=True)
        return b.block("linear", b.block("global_avg_pool", x, scope="pool"), scope="classifier", out=10)


def training(space: SearchSpace, recipe: Recipe = SMALL, *, seed: int = 0, **more: Any) -> SupernetTraining:
    supernet = space.supernet(seed=seed).to(memory_format=torch.channels_last)
    initialise(supernet, torch.Generator().manual_seed(seed))
    return SupernetTraining(supernet, load_images("digits"), recipe, shape=SHAPE, seed=seed, **more)


def weights(t: SupernetTraining) -> dict[str, Any]:
    return {n: v.clone() for n, v in t.supernet.state_dict().items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[n]) for n, v in a.items())


def evaluator(**changes: Any) -> SupernetEvaluator:
    return SupernetEvaluator(load_images("digits"), changes.pop("recipe", SMALL), **changes)


@pytest.mark.parametrize("num_choices", [(3, 3, 3), (12,) * 14, (6, 7, 7), (2, 3, 4), (1, 5)])
def test_in_a_fair_step_each_choice_is_trained_exactly_once(num_choices: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    steps = [fair_paths(num_choices, generator) for _ in range(20)]
    for paths in steps:
        assert len(paths) == max(num_choices)
        for i, k in enumerate(num_choices):
            trained = sorted(p.arch[i] for p in paths if i not in p.lent)
            assert trained == list(range(k))
    # Each position has a permutation of its own, drawn anew: paths are not the same list repeated.
    if num_choices == (12,) * 14:
        assert len({p.arch for paths in steps for p in paths}) == 240
        assert max(len(set(p.arch)) for p in steps[0]) > 4


def test_uniform_paths_are_as_many_and_fair_only_on_average() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = np.zeros((3, 4), int)
    for _ in range(3000):
        paths = uniform_paths((4, 4, 4), generator)
        assert len(paths) == 4
        for p in paths:
            counts[np.arange(3), list(p.arch)] += 1
    assert counts.sum() == 3 * 12_000
    assert len(set(counts.ravel().tolist())) > 1
    assert counts.min() > 0.94 * 3000


@pytest.mark.parametrize("space", [ToySpace(3, 3), Uneven(), ToyOptionalSpace(3, 3)])
def test_counts_are_exactly_equal_after_any_number_of_steps(space: SearchSpace) -> None:
    t = training(space)
    for step in range(1, 4):
        before = t.counts.clone()
        assert t.run_epoch()
        for i, k in enumerate(space.num_choices):
            # Two batches an epoch, a step each.
            assert t.counts[i, :k].tolist() == [2 * step] * k
            assert t.counts[i, k:].tolist() == [0] * (t.counts.shape[1] - k)
        assert not torch.equal(before, t.counts)
    assert t.course[-1]["least_trained"] == t.course[-1]["most_trained"] == 6


def test_with_uniform_sampling_the_same_number_of_passes_is_spread_unevenly() -> None:
    fair, uniform = training(ToySpace(3, 3)), training(ToySpace(3, 3), fairness="uniform")
    assert fair.run_epoch()
    assert uniform.run_epoch()
    assert fair.counts.sum() == uniform.counts.sum()
    assert uniform.course[0]["least_trained"] < uniform.course[0]["most_trained"]


def test_a_fair_step_is_one_update_by_the_sum_of_its_paths_gradients() -> None:
    space = ToySpace(3, 3)
    t = training(space, Recipe(epochs=1, batch_size=1000, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant"))
    start = weights(t)
    generator = torch.Generator().manual_seed(0)
    x, y = next(iter(t.data.batches("train", 1000, SHAPE, generator)))
    paths = fair_paths(space.num_choices, generator)
    other = training(space)
    other.supernet.load_state_dict(start)
    loss = sum(torch.nn.functional.cross_entropy(other.supernet(x, p.arch), y, label_smoothing=0.1) for p in paths)
    loss.backward()
    assert t.run_epoch()
    for name, p in other.supernet.named_parameters():
        moved = t.supernet.get_parameter(name).detach()
        assert torch.allclose(moved, start[name] - 0.1 * p.grad, atol=1e-6), name
        assert p.grad.abs().max() > 0
    assert t.course[0]["loss"] == pytest.approx(float(loss.detach()) / 3, rel=1e-5)


def test_a_lent_choice_gets_no_gradient_but_hands_it_on() -> None:
    space = Uneven()
    t = training(space, Recipe(epochs=1, batch_size=1000, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant"))
    start = weights(t)
    generator = torch.Generator().manual_seed(0)
    x, y = next(iter(t.data.batches("train", 1000, SHAPE, generator)))
    (own,) = [p for p in fair_paths(space.num_choices, generator) if p.arch[0] == 1 and 0 not in p.lent]
    other = training(space)
    other.supernet.load_state_dict(start)
    torch.nn.functional.cross_entropy(other.supernet(x, own.arch), y, label_smoothing=0.1).backward()
    assert t.run_epoch()
    for name, p in other.supernet.position(0).choice(1).named_parameters():
        moved = dict(t.supernet.position(0).choice(1).named_parameters())[name].detach()
        before = start[f"positions.0.choices.1.{name}"]
        assert torch.allclose(moved, before - 0.1 * p.grad, atol=1e-6)
    assert all(p.requires_grad for p in t.supernet.parameters())


@pytest.mark.parametrize("fairness", ["strict", "uniform"])
def test_a_training_that_was_interrupted_ends_bit_equal(fairness: str, tmp_path: Path) -> None:
    whole = training(Normed(3, 3), fairness=fairness)
    assert train_supernet(whole)
    for _ in range(3):
        # Each time another process would go on from the file alone.
        part = training(Normed(3, 3), fairness=fairness, file=tmp_path / "s.pt")
        assert part.run_epoch()
    again = training(Normed(3, 3), fairness=fairness, file=tmp_path / "s.pt")
    assert again.done
    assert same(weights(whole), weights(again))
    assert whole.course == again.course
    assert torch.equal(whole.counts, again.counts)


def test_files_of_another_training_and_damaged_ones_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "s.pt"
    assert training(ToySpace(3, 3), file=file).run_epoch()
    with pytest.raises(ConfigError, match=r"s\.pt: is of another training"):
        training(ToySpace(3, 3), file=file, fairness="uniform")
    with pytest.raises(ConfigError, match=r"s\.pt: is of another training"):
        training(ToySpace(3, 4), file=file)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(FileFormatError, match=r"s\.pt: damaged"):
        training(ToySpace(3, 3), file=file)


def test_recalibrated_norms_hold_the_statistics_of_their_own_network() -> None:
    space, data = Normed(2, 3), load_images("digits")
    t = training(space)
    assert train_supernet(t)
    child = t.supernet.export((2, 0))
    mixed = {n: v.clone() for n, v in child.state_dict().items()}
    recalibrate(child, data, shape=SHAPE, batches=5, batch_size=200)
    x, _ = data.take("train", slice(None), SHAPE)
    first = child.get_submodule("positions.0")
    conv = next(m for m in first.modules() if isinstance(m, torch.nn.Conv2d))
    norm = next(m for m in first.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with torch.no_grad():
        y = conv(x)
    assert torch.allclose(norm.running_mean, y.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, y.var((0, 2, 3)), rtol=0.02)
    after = child.state_dict()
    moved = {n for n in mixed if not torch.equal(mixed[n], after[n])}
    assert moved
    assert all("running" in n or "num_batches" in n for n in moved)
    assert not any(m.training for m in child.modules())


def test_recalibration_makes_children_of_a_supernet_better() -> None:
    space, data = lb.load_space("nasbench201", resolution=8, num_cells=1, channels=8), load_images("digits")
    t = training(space, Recipe(epochs=4, batch_size=100, lr=0.1, schedule="cosine"))
    assert train_supernet(t)
    raw, fit = [], []
    for arch in [(3,) * 6, (2,) * 6, (1,) * 6, (3, 1, 2, 0, 3, 1)]:
        child = t.supernet.export(arch)
        raw.append(scores(child, data, "validation", shape=SHAPE).loss)
        recalibrate(child, data, shape=SHAPE)
        fit.append(scores(child, data, "validation", shape=SHAPE).loss)
    assert np.mean(fit) < 0.8 * np.mean(raw)
    assert np.mean(fit) < 2.0


def test_answers_depend_on_neither_order_nor_company(tmp_path: Path) -> None:
    space, archs = Normed(3, 3), [(0, 0, 0), (2, 1, 0), (1, 2, 2)]
    one, two = evaluator(), evaluator()
    one.folder = two.folder = tmp_path
    one.prepare(space, print)
    there = one.evaluate(space, archs)
    back = [two.evaluate(space, [a])[0] for a in reversed(archs)][::-1]
    assert there == back
    assert len({v["val_loss"] for v in there}) == 3
    assert one.test(space, archs)[0]["error"] != there[0]["error"]
    assert evaluator(seed=1).evaluate(space, archs) != there


def test_worker_processes_read_the_weights_from_the_folder(tmp_path: Path) -> None:
    space = lb.load_space("nasbench201", resolution=8, num_cells=1, channels=8)
    e = evaluator(recipe=Recipe(epochs=1, batch_size=500, lr=0.05, schedule="cosine"))
    e.folder = tmp_path
    e.prepare(space, lambda _: None)
    assert len(pickle.dumps(e)) < 20_000
    expected = e.evaluate(space, [(3,) * 6, (2,) * 6])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(e.evaluate, [space] * 2, [[(3,) * 6], [(2,) * 6]]))
    assert [f[0] for f in found] == expected


def search(run: Path, store: Path | None, e: SupernetEvaluator, told: list[str], device: str = "one") -> SearchResult:
    from dataclasses import replace

    # The second device is slow at large kernels: its table differs, and nothing else.
    model = table(Normed(3, 3), setting=replace(SETTING, device=device), slow=1 if device == "one" else 3)
    return lb.search(
        "moga", space=Normed(3, 3), latency=model, accuracy=e, budget=8, run=run, store=store, report=told.append,
        population=4,
    )  # fmt: skip


def test_a_second_device_needs_only_its_table(tmp_path: Path) -> None:
    told: tuple[list[str], list[str]] = ([], [])
    first = search(tmp_path / "a", tmp_path / "s.db", evaluator(), told[0])
    second = search(tmp_path / "b", tmp_path / "s.db", evaluator(), told[1], "two")
    starts = [line.split(",")[0] for line in told[0]]
    epochs = [f"supernet: epoch {i} of 3" for i in (1, 2, 3)]
    assert starts == ["moga: up to 8 architectures", "supernet: 3 of 3 epochs to train", *epochs]
    assert "judged by supernet-1 " in told[0][0]
    assert "kept after each epoch" in told[0][1]
    assert len(told[1]) == 2
    assert "all 3 epochs were trained before; nothing is left to train" in told[1][1]
    mine, theirs = (r.provenance["accuracy"] for r in (first, second))
    assert mine["sha256"] == theirs["sha256"]
    assert mine["weights"] == theirs["weights"]
    assert (mine["epochs_trained_by_this_search"], theirs["epochs_trained_by_this_search"]) == (3, 0)
    assert mine["least_trained"] == mine["most_trained"] == 6
    assert SearchResult.load(tmp_path / "b", space=Normed(3, 3)).provenance["accuracy"] == theirs
    by_arch = {c.arch: c.values["error"] for c in first.candidates}
    both = [c for c in second.candidates if c.arch in by_arch]
    assert both
    assert all(by_arch[c.arch] == c.values["error"] for c in both)


def test_a_search_stopped_while_its_supernet_is_trained_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = search(tmp_path / "alone", None, evaluator(), [])
    saved: Callable[..., None] = SupernetTraining._save

    def stop_after_two(self: SupernetTraining) -> None:
        saved(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SupernetTraining, "_save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "r", None, evaluator(), [])
    monkeypatch.setattr(SupernetTraining, "_save", saved)
    told: list[str] = []
    r = search(tmp_path / "r", None, evaluator(), told)
    assert told[1].startswith("supernet: 2 of 3 epochs were trained before")
    starts = [line.split(",")[0] for line in told[2:]]
    assert starts == ["supernet: 1 of 3 epochs to train", "supernet: epoch 3 of 3"]
    assert r.candidates == alone.candidates
    assert r.provenance["accuracy"]["sha256"] == alone.provenance["accuracy"]["sha256"]


def test_a_supernet_that_diverges_ends_the_search_with_what_may_help() -> None:
    e = evaluator(recipe=Recipe(epochs=2, batch_size=250, lr=1e6, schedule="constant"))
    with pytest.raises(SearchError, match=r"diverged in epoch \d: its loss is not finite; a lower lr than 1e\+06"):
        e.prepare(ToySpace(3, 3), print)


def test_spaces_of_another_task_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images of digits have 10 classes"):
        evaluator().check(lb.load_space("mobilenetv3", resolution=32))


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({"fairness": "loose"}, "fairness is strict or uniform, not 'loose'"),
        ({"recalibration": 0}, "recalibration must be a whole number of at least 1"),
        ({"patience": 3}, "patience would judge"),
        ({"epoch": 3}, "supernet:digits has no 'epoch'; it has fairness, seed, .*epochs"),
        ({"validation": 0.1}, "has no such option"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], right: str) -> None:
    with pytest.raises(ConfigError, match=right):
        SupernetEvaluator.make("digits", options).prepare(ToySpace(2, 2), print)


def test_the_recipe_names_all_that_answers_depend_on() -> None:
    assert SupernetEvaluator.make("digits", {}).training == RECIPE
    variants = [{}, {"fairness": "uniform"}, {"seed": 1}, {"split_seed": 2}, {"epochs": 4}, {"recalibration": 3}]
    recipes = [SupernetEvaluator.make("digits", v).recipe for v in variants]
    assert len(set(recipes)) == len(variants)
    assert isinstance(SupernetEvaluator.make("digits", {}).data, Digits | ImageData)
