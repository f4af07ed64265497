"""Training by a recipe: it repeats, stops early, goes on after a kill, and says what a machine cannot do."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
from image_fixtures import write_cifar, write_folders
from search_support import table

torch = pytest.importorskip("torch")

import latbench as lb  # noqa: E402
from latbench import training, training_setup  # noqa: E402
from latbench.checkpoints import load_tensors, save_tensors  # noqa: E402
from latbench.errors import ConfigError, FileFormatError  # noqa: E402
from latbench.evaluators import DigitsEvaluator, load_evaluator  # noqa: E402
from latbench.image_data import Digits, load_images  # noqa: E402
from latbench.network_training import fresh_module  # noqa: E402
from latbench.recipes import FINAL, kind_of, of_paper, of_search  # noqa: E402
from latbench.store import Store  # noqa: E402
from latbench.testing.searchers import ToySpace  # noqa: E402
from latbench.training import Recipe, fit_module, score, scores  # noqa: E402
from latbench.training_evaluators import TrainingEvaluator  # noqa: E402

SPACE = ToySpace(2, 2)
ARCH = (0, 1)
SHAPE = (3, 8, 8)


def module(seed: int = 0) -> torch.nn.Module:
    return fresh_module(SPACE.network(ARCH), seed)[0]


def weights(m: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in m.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_a_recipes_text_says_all_of_it() -> None:
    recipe = Recipe(7, 32, 0.05, schedule="cosine", patience=3, augment=True, precision="bf16", decay_norms=False)
    assert Recipe.parse(recipe.text) == recipe
    assert Recipe.make({"epochs": "9", "augment": "true", "lr": 1}, recipe) == replace(recipe, epochs=9, lr=1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size"),
        ({"lr": 0}, "lr must be"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"momentum": 1.0}, "momentum"),
        ({"schedule": "steps"}, "schedule is one of one-cycle, cosine, constant"),
        ({"precision": "f8"}, "precision is one of"),
        ({"augment": 1}, "augment is true or false"),
        ({"warmup_epochs": 2}, "warmup_epochs are fewer"),
        ({"epoch": 3}, "no 'epoch'; it has epochs"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recipe.make(options)


def test_every_paper_has_a_recipe_for_every_kind_of_data() -> None:
    for data in ("digits", "cifar10:x", "cifar100:x", "images:x", "voc:x"):
        assert of_search(data).epochs <= 20 < of_paper(data, "plain").recipe.epochs
        assert kind_of(data) in FINAL
        for searcher in ("dppnet", "moga", "random"):
            assert of_paper(data, searcher, known=True).source
    assert of_paper("images:x", "proxyless").recipe.epochs == 300
    assert of_paper("cifar10:x", "proxyless").recipe.epochs == 600
    # What no source states is said to be ours.
    assert "are ours" in of_paper("cifar10:x", "proxyless").source
    assert "we have not read" in of_paper("images:x", "moga").source
    with pytest.raises(ConfigError, match="no recipe 'moga' for cifar; there are plain"):
        of_paper("cifar10:x", "moga")
    with pytest.raises(ConfigError, match="no recipe for data"):
        of_paper("mnist:x", "plain")


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_learning_rates_rise_and_fall_as_the_schedule_says() -> None:
    def rates(recipe: Recipe) -> list[float]:
        optimiser, schedule = training.make_optimiser(module(), recipe, 10, warmup=2 * (recipe.warmup_epochs > 0))
        seen = []
        for _ in range(10):
            seen.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        return seen

    cosine = rates(Recipe(10, lr=1.0, schedule="cosine", warmup_epochs=2))
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[9] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(7 / 8 * torch.pi)).item()))
    assert rates(Recipe(10, lr=0.5, schedule="constant")) == [0.5] * 10
    cycle = rates(Recipe(10, lr=1.0))
    assert max(cycle) == pytest.approx(1.0, abs=0.05)
    assert cycle[0] == pytest.approx(1 / 25)


def test_norms_and_biases_may_be_spared_the_decay() -> None:
    optimiser, _ = training.make_optimiser(module(), Recipe(decay_norms=False, weight_decay=0.1), 10)
    decays = {p.ndim <= 1: g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    assert decays == {True: 0.0, False: 0.1}


@pytest.mark.parametrize("optimiser", training.OPTIMISERS)
def test_every_optimiser_learns_the_digits(optimiser: str) -> None:
    lr = {"sgd": 0.1, "rmsprop": 0.01, "adam": 0.01}[optimiser]
    m = learner()
    fitted = fit_module(m, Digits(), Recipe(2, 50, lr, optimiser=optimiser, augment=True, cutout=2), shape=(1, 8, 8))
    assert [row["epoch"] for row in fitted.course] == [1, 2]
    assert fitted.course[1]["loss"] < fitted.course[0]["loss"]
    assert score(m, Digits(), "validation", shape=(1, 8, 8))[0] < 0.75
    assert m.training


def learner() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def test_patience_stops_the_training_and_goes_back_to_the_best_weights() -> None:
    m = learner()
    # At this learning rate the validation error goes up and down.
    recipe = Recipe(40, 50, 0.8, momentum=0.0, schedule="constant", patience=2)
    fitted = fit_module(m, Digits(), recipe, seed=3, shape=(1, 8, 8))
    errors = [row["val_error"] for row in fitted.course]
    assert len(errors) < 40
    assert errors.index(min(errors)) == len(errors) - 3
    assert score(m, Digits(), "validation", shape=(1, 8, 8))[0] == min(errors)


def test_cutout_blanks_a_square_inside_each_image() -> None:
    x = torch.ones(50, 1, 12, 12)
    cut = training.cut_out(x, 4, torch.Generator().manual_seed(0))
    gone = (cut == 0).sum(dim=(1, 2, 3))
    assert gone.max() == 16
    assert gone.min() >= 4
    assert len(set(gone.tolist())) > 1


def test_top_five_counts_the_five_best() -> None:
    class Third(torch.nn.Module):
        """Gives the right label the third place."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = labels[: len(x)]
            out = torch.zeros(len(x), 10)
            out[torch.arange(len(x)), y] = 1.0
            out[torch.arange(len(x)), (y + 1) % 10] = 3.0
            out[torch.arange(len(x)), (y + 2) % 10] = 2.0
            return out

    labels = Digits().take("test", slice(None), (1, 8, 8))[1]
    found = scores(Third(), Digits(), "test", shape=(1, 8, 8), batch_size=400)
    assert (found.error, found.top5_error) == (1.0, 0.0)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_training_that_was_interrupted_ends_bit_equal(tmp_path: Path) -> None:
    recipe = Recipe(4, 100, patience=4, augment=True)
    alone = module()
    whole = fit_module(alone, Digits(), recipe, seed=5, shape=SHAPE)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    file = tmp_path / "deep" / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        fit_module(module(), Digits(), recipe, seed=5, shape=SHAPE, on_epoch=stop, checkpoint=file)
    told: list[float] = []
    # Whatever weights the module has now: the checkpoint's count.
    again = module(seed=9)
    rest = fit_module(
        again, Digits(), recipe, seed=5, shape=SHAPE, on_epoch=lambda row: told.append(row["epoch"]), checkpoint=file
    )
    assert told == [3, 4]
    assert rest == whole
    assert same(weights(again), weights(alone))


def test_an_evaluation_that_is_killed_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    """kill -9 of the process, in the middle of a search."""
    program = textwrap.dedent(
        f"""
        import latbench as lb
        from latbench.evaluators import load_evaluator
        from latbench.testing.searchers import ToySpace
        from latbench.training import _Run
        space = ToySpace(2, 2)
        options = {{"epochs": 6, "batch_size": 100, "schedule": "cosine", "train_on": "cpu"}}
        judge = load_evaluator("digits", space, options)
        real = _Run.train_epoch
        def told(self):
            row = real(self)
            print(row["epoch"], flush=True)
            return row
        _Run.train_epoch = told
        r = lb.search("random", space=space, accuracy=judge, objectives=["error"], budget=2, store=r"{tmp_path}/s.db")
        print([c.values for c in r.candidates])
        """
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as first:
        assert first.stdout is not None
        lines = [first.stdout.readline() for _ in range(3)]
        first.send_signal(signal.SIGKILL)
    assert [float(line) for line in lines] == [1, 2, 3]
    out = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.splitlines()
    # Two architectures of six epochs, less those that were there: at least two of the first one's were kept.
    assert float(out[0]) >= 3
    judge = load_evaluator("digits", SPACE, {"epochs": 6, "batch_size": 100, "schedule": "cosine", "train_on": "cpu"})
    alone = lb.search("random", space=SPACE, accuracy=judge, objectives=["error"], budget=2)
    assert out[-1] == str([c.values for c in alone.candidates])
    # A training that has come to its end leaves no checkpoint behind.
    assert not list(tmp_path.rglob("training-*.pt"))


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    fit_module(module(), Digits(), Recipe(1, 500), shape=SHAPE, checkpoint=file)
    with pytest.raises(ConfigError, match=r"c\.pt: is of another training"):
        fit_module(module(), Digits(), Recipe(1, 400), shape=SHAPE, checkpoint=file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(FileFormatError, match=r"c\.pt: damaged"):
        fit_module(module(), Digits(), Recipe(1, 500), shape=SHAPE, checkpoint=file)


def test_files_of_tensors_run_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    file = tmp_path / "e.pt"
    torch.save({"format": "latbench-tensors", "identity": "", "state": Evil()}, file)
    with pytest.raises(FileFormatError, match=r"e\.pt: damaged, or not a file of tensors"):
        load_tensors(file)
    torch.save([1], file)
    with pytest.raises(FileFormatError, match="not a file of latbench's tensors"):
        load_tensors(file)
    save_tensors(file, {"x": torch.ones(2), "n": [1, "a"]}, identity="mine")
    assert load_tensors(file, identity="mine")["n"] == [1, "a"]
    with pytest.raises(FileFormatError, match="no such file"):
        load_tensors(tmp_path / "none.pt")


# -- what the machine offers ------------------------------------------------------------------------------------------


def test_bfloat16_trains_on_the_cpu_and_float16_is_said_to_be_for_gpus() -> None:
    m, plain = learner(), learner()
    fit_module(m, Digits(), Recipe(1, 100, precision="bf16"), shape=(1, 8, 8))
    fit_module(plain, Digits(), Recipe(1, 100), shape=(1, 8, 8))
    assert m[0].weight.dtype == torch.float32
    assert not same(weights(m), weights(plain))
    with pytest.raises(ConfigError, match="precision f16: float16 is for GPUs"):
        fit_module(m, Digits(), Recipe(1, 100, precision="f16"), shape=(1, 8, 8))


def test_what_a_device_lacks_is_left_out_and_said() -> None:
    judge = TrainingEvaluator(Digits(), Recipe(1, 100, precision="f16"), train_on="cpu")
    assert "precision=f32" in judge.recipe
    told: list[str] = []
    judge.prepare(SPACE, told.append)
    assert told == ["precision f16 is left out: float16 is for GPUs (the CPU has bf16)"]


def test_without_a_compiler_modules_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    told: list[str] = []
    m = learner()
    assert training_setup.accelerated(m, compiled=True, report=told.append) is m
    assert told == ["torch.compile is left out: it needs a C++ compiler, and none was found"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_shares_the_weights() -> None:
    m = learner()
    told: list[str] = []
    fast = training_setup.accelerated(m, compiled=True, report=told.append)
    if told:
        pytest.skip(told[0])
    assert fast is not m
    assert next(fast.parameters()) is next(m.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_is_one_graph_to_torchs_compiler() -> None:
    net = lb.load_space("mobilenetv3", resolution=16, width_mult=0.1, num_classes=10).network((1,) * 14)
    m = fresh_module(net, 0)[0].eval()
    x = torch.randn(2, 3, 16, 16)
    # Without a back end this needs no C++ compiler, and a break in the graph is an error.
    whole = torch.compile(m, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(whole(x), m(x), atol=1e-6)


def test_what_runs_in_the_modules_place_trains_it() -> None:
    class Wrapped(torch.nn.Module):
        """Without a length, and so neither true nor false, like a compiled module."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.runs = inner, 0

        def __len__(self) -> int:
            raise TypeError

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return self.inner(x)

    m, alone = learner(), learner()
    wrapped = Wrapped(m)
    fit_module(m, Digits(), Recipe(1, 100), shape=(1, 8, 8), forward=wrapped)
    fit_module(alone, Digits(), Recipe(1, 100), shape=(1, 8, 8))
    assert wrapped.runs == 10
    assert same(weights(m), weights(alone))


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="train_on='tpu': it is auto, cpu or cuda"):
        training_setup.training_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU here"):
            training_setup.training_device("cuda")
        assert training_setup.training_device("auto").type == "cpu"


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Gradients of the two halves of a batch, averaged, are those of the batch (no batch norm here); and what decides
    how training goes on is decided by both alike."""
    program = tmp_path / "p.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from latbench.image_data import Digits
            from latbench.training import Classification, Recipe, fit_module
            from latbench.training_setup import accelerated, processes, share_of_batches
            torch.manual_seed(0)
            m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
            with processes(torch.device("cpu")):
                fit_module(m, Digits(), Recipe(1, 100), shape=(1, 8, 8), forward=accelerated(m))
                torch.save(m.state_dict(), sys.argv[1])
                # The first process alone sees a validation error that goes up: both stop there.
                class Worse(Classification):
                    seen = share_of_batches()[0]
                    def error(self, *_):
                        self.__class__.seen += 0.1 if self.seen < 1 else -0.1
                        return self.seen
                course = fit_module(
                    m, Digits(), Recipe(9, 500, patience=2), shape=(1, 8, 8), forward=accelerated(m), task=Worse()
                ).course
                assert len(course) == 3, course
                # One of them has nothing but NaN: both end.
                class Broken(Classification):
                    def loss(self, out, y):
                        return super().loss(out, y) * (float("nan") if share_of_batches()[0] else 1.0)
                fitted = fit_module(
                    m, Digits(), Recipe(2, 500), shape=(1, 8, 8), forward=accelerated(m), task=Broken()
                )
                assert not fitted.ok
            """
        )
    )
    port = str(29500 + os.getpid() % 1000)
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / f"{i}.pt")],
            env={**base, "RANK": str(i), "LOCAL_RANK": str(i)},
        )
        for i in (0, 1)
    ]
    assert [p.wait(timeout=120) for p in started] == [0, 0]
    torch.manual_seed(0)
    m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    fit_module(m, Digits(), Recipe(1, 100), shape=(1, 8, 8))
    both = [torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in (0, 1)]
    assert same(*both)
    for name, w in m.state_dict().items():
        assert torch.allclose(w, both[0][name], atol=1e-5)


# -- evaluators -------------------------------------------------------------------------------------------------------


def cifar_space() -> lb.SearchSpace:
    return lb.load_space("mobilenetv3", resolution=32, width_mult=0.1, num_classes=10)


def test_a_search_trains_on_cifar_and_pays_once_for_each_recipe(tmp_path: Path) -> None:
    space = cifar_space()
    judge = load_evaluator(
        f"cifar10:{write_cifar(tmp_path / 'data')}", space,
        {"epochs": 1, "batch_size": 16, "validation": 0.2, "train_on": "cpu"},
    )  # fmt: skip
    assert isinstance(judge, TrainingEvaluator)
    assert judge.recipe.startswith("training-1 cifar10 sha256=")
    how = {"space": space, "latency": table(space), "accuracy": judge, "store": tmp_path / "s.db"}
    first = lb.search("random", budget=2, **how)
    again = lb.search("random", budget=3, seed=0, **how)
    assert first.provenance["evaluations"]["paid"] == 2
    assert again.provenance["evaluations"]["paid"] == 1
    assert set(judge.values) <= set(first.candidates[0].values)
    with Store.open(tmp_path / "s.db") as store:
        known = store.evaluations(judge.recipe, space)
    assert known[first.candidates[0].arch] == {n: first.candidates[0].values[n] for n in judge.values}


def test_a_training_that_diverges_is_a_failed_candidate() -> None:
    judge = TrainingEvaluator(Digits(), Recipe(50, 100, 1e30), train_on="cpu")
    (values,) = judge.evaluate(SPACE, [ARCH])
    assert all(map(isnan, values.values()))
    found = lb.search("random", space=SPACE, accuracy=judge, objectives=["error"], budget=1)
    assert "failed" in found.candidates[0].info
    assert found.front == []


def test_folders_of_pictures_judge_a_space_with_their_classes(tmp_path: Path) -> None:
    name = f"images:{write_folders(tmp_path)}"
    options = {"epochs": 1, "batch_size": 4, "validation": 0.25, "train_on": "cpu"}
    two = lb.load_space("mobilenetv3", resolution=32, width_mult=0.1, num_classes=2)
    judge = load_evaluator(name, two, options)
    assert judge is not None
    assert judge.evaluate(two, [(0,) * 14]) == judge.evaluate(two, [(0,) * 14])
    with pytest.raises(ConfigError, match=r"images data have 2 classes.*use num_classes=2"):
        judge.check(cifar_space())


def test_an_evaluator_is_sent_to_another_process_without_its_images(tmp_path: Path) -> None:
    judge = TrainingEvaluator(load_images(f"cifar10:{write_cifar(tmp_path)}"), Recipe(1, 16), train_on="cpu")
    sent = pickle.dumps(judge)
    assert len(sent) < 10_000
    there = pickle.loads(sent)
    assert there.recipe == judge.recipe
    assert there.data is pickle.loads(sent).data
    parts = [d.take("train", slice(3), d.shape) for d in (there.data, judge.data)]
    assert torch.equal(parts[0][0], parts[1][0])


def test_digits_keep_their_short_recipe_unless_more_is_asked_for() -> None:
    assert isinstance(load_evaluator("digits", SPACE, {"epochs": 3}), DigitsEvaluator)
    more = load_evaluator("digits", SPACE, {"patience": 2, "train_on": "cpu"})
    assert isinstance(more, TrainingEvaluator)
    assert more.recipe.startswith("training-1 digits split_seed=0 epochs=4 batch_size=50 lr=0.1")
    plain = load_evaluator("digits", SPACE, {"epochs": 2, "train_on": "cpu"})
    old = DigitsEvaluator(epochs=2)
    assert plain is not None
    assert plain.evaluate(SPACE, [ARCH])[0]["error"] == old.evaluate(SPACE, [ARCH])[0]["error"]


@pytest.mark.parametrize("name", ["mnist", "cifar10:", "voc:", "x.csv:y"])
def test_names_of_evaluators_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected digits, cifar10:FOLDER"):
        load_evaluator(name, SPACE)


def test_an_unknown_option_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no 'epoch'; it has epochs, batch_size"):
        load_evaluator(f"cifar10:{write_cifar(tmp_path)}", SPACE, {"epoch": 3})
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        TrainingEvaluator(load_images("digits"), seed=-1)


def test_the_numbers_of_digits_are_those_they_have_always_been() -> None:
    """From the version before training was a part of its own; another torch or processor may round otherwise."""
    (values,) = DigitsEvaluator(epochs=3, batch_size=64, lr=0.05, seed=2, split_seed=1).evaluate(
        ToySpace(4, 3), [(2, 1, 1, 1)]
    )
    assert values["error"] == pytest.approx(0.915, abs=0.01)
    assert values["val_loss"] == pytest.approx(2.3066697120666504, rel=1e-4)


class Penalised(torch.nn.Module):
    """Says nothing of images, so that only its penalty pulls: three times its one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(5.0))
        self.told: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 10) + 0 * self.weight

    def set_progress(self, part: float) -> None:
        self.told.append(part)

    def penalty(self) -> torch.Tensor:
        return 3 * self.weight


def test_the_penalty_of_a_module_is_added_to_the_loss_as_it_is() -> None:
    m = Penalised()
    recipe = Recipe(epochs=2, batch_size=500, lr=0.1, momentum=0, weight_decay=0, schedule="constant")
    fitted = fit_module(m, Digits(), recipe)
    assert m.weight.item() == pytest.approx(5 - 4 * 0.1 * 3)
    assert m.told == [0, 0.25, 0.5, 0.75, 1]
    # The course tells what is learnt of images, without it.
    assert fitted.course[0]["loss"] == pytest.approx(2.302585, rel=1e-4)
