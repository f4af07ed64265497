"""Training a supernet one path at a time, with strict fairness or uniform sampling, and batch norms fit for a child.

Strict fairness (Chu, Zhang and Xu, "FairNAS", ICCV 2021, definition 2 and algorithm 1; MoGA trains so): a step draws a
permutation of the choices of every position, runs one path after the other, and updates once by the sum of their
gradients, so that every choice of every position is trained exactly once in each step. Uniform sampling (Guo et al.,
"Single Path One-Shot", ECCV 2020) draws each path by itself and updates after each; choices are trained equally often
only on average.

Where positions have different numbers of choices, those with fewer are run again in the paths that are left over, with
weights that get no gradient there: what the paper leaves open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from latbench.checkpoints import load_tensors, save_tensors
from latbench.errors import ConfigError
from latbench.image_data import ImageData, Shape
from latbench.space import Arch
from latbench.supernet import Supernet
from latbench.telling import silent, told
from latbench.training import Recipe, cut_out, device_of, make_optimiser
from latbench.training_setup import check_precision
from latbench.with_torch import F, Tensor, nn, torch

FAIRNESS = ("strict", "uniform")
#: MoGA's: SGD with momentum 0.9 and a learning rate from 0.05 by a cosine, 32 epochs.
RECIPE = Recipe(epochs=32, lr=0.05, schedule="cosine")


class Draw(NamedTuple):
    """One forward and backward pass: an architecture, and the positions whose choice is only lent to it."""

    arch: Arch
    lent: tuple[int, ...] = ()


def fair_paths(num_choices: Sequence[int], generator: torch.Generator) -> list[Draw]:
    """The paths of one step: as many as the most choices of a position; each choice is in one path that trains it."""
    n = max(num_choices)
    columns, lent = [], []
    for k in num_choices:
        more = torch.randint(k, (n - k,), generator=generator).tolist()
        drawn = torch.randperm(k, generator=generator).tolist() + more
        order = torch.randperm(n, generator=generator).tolist() if more else range(n)
        columns.append([drawn[j] for j in order])
        lent.append([j >= k for j in order])
    return [
        Draw(tuple(c[p] for c in columns), tuple(i for i, is_lent in enumerate(lent) if is_lent[p])) for p in range(n)
    ]


def uniform_paths(num_choices: Sequence[int], generator: torch.Generator) -> list[Draw]:
    """As many paths as :func:`fair_paths` gives, each choice of each drawn by itself."""
    drawn = [torch.randint(k, (max(num_choices),), generator=generator).tolist() for k in num_choices]
    return [Draw(tuple(c)) for c in zip(*drawn, strict=True)]


class SupernetTraining:
    """The training of one supernet, an epoch at a time; :attr:`file` keeps what the next epoch depends on.

    In an epoch each batch of the ``train`` part is run by as many paths as a position has choices at most: with
    ``strict`` fairness they make one step together, with ``uniform`` sampling one each, so that both cost the same.
    ``counts`` (positions, most choices) tells how often each choice was trained. With one thread on the CPU a training
    repeats bit for bit, one that was interrupted too. Raises :class:`ConfigError` for a recipe that it cannot follow
    and for a file of another training, :class:`~latbench.errors.FileFormatError` for a damaged one.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        recipe: Recipe = RECIPE,
        *,
        shape: Shape,
        fairness: str = "strict",
        seed: int = 0,
        file: Path | None = None,
    ) -> None:
        if fairness not in FAIRNESS:
            raise ConfigError(f"supernet: fairness is {' or '.join(FAIRNESS)}, not {fairness!r}")
        if recipe.patience:
            raise ConfigError("supernet: patience would judge one path of many; it must be 0")
        self.supernet, self.data, self.recipe, self.shape = supernet, data, recipe, shape
        self.fairness, self.file = fairness, file
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device_of(supernet)
        self._dtype = check_precision(recipe.precision, self.device)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "f16")
        choices = supernet.space.num_choices
        self.counts = torch.zeros(len(choices), max(choices), dtype=torch.int64)
        self._batches = data.steps("train", recipe.batch_size)
        each = 1 if fairness == "strict" else max(choices)
        warmup = self._batches * each * recipe.warmup_epochs
        self._optimiser, self._schedule = make_optimiser(
            supernet, recipe, self._batches * each * recipe.epochs, warmup=warmup
        )
        self.course: list[dict[str, float]] = []
        names = hashlib.sha256(" ".join(f"{n}{tuple(t.shape)}" for n, t in supernet.state_dict().items()).encode())
        self.identity = (
            f"supernet {fairness} {recipe.text} seed={seed} data={data.name} shape={shape} "
            f"weights={names.hexdigest()[:12]}"
        )
        self._restore()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.course)

    @property
    def done(self) -> bool:
        """Whether it has all its epochs."""
        return self.epoch >= self.recipe.epochs

    @property
    def plan(self) -> str:
        """What is left to train, in a line."""
        paths, left = max(self.supernet.space.num_choices), self.recipe.epochs - self.epoch
        return (
            f"supernet: {left} of {self.recipe.epochs} epochs to train, {self._batches} batches of "
            f"{self.recipe.batch_size} images in each, "
            f"every batch by {paths} paths" + ("; kept after each epoch" if self.file else "")
        )

    def run_epoch(self, report: Callable[[str], None] = silent) -> bool:
        """Train an epoch and keep it; false as soon as the loss is not finite.

        The row of :attr:`course` has ``epoch``, ``loss`` (the mean over paths), ``lr``, ``least_trained`` and
        ``most_trained``, counts over all choices.
        """
        self.supernet.train()
        recipe, choices = self.recipe, self.supernet.space.num_choices
        lr = self._optimiser.param_groups[0]["lr"]
        draw = fair_paths if self.fairness == "strict" else uniform_paths
        total, n = 0.0, 0
        batches = self.data.batches("train", recipe.batch_size, self.shape, self.generator, recipe.augment)
        what, left = f"supernet: epoch {self.epoch + 1} of {recipe.epochs}", recipe.epochs - self.epoch - 1
        for x, y in told(batches, what, report, total=self._batches, further=left * self._batches):
            images = cut_out(x, recipe.cutout, self.generator) if recipe.cutout else x
            images, y = images.to(self.device), y.to(self.device)
            paths = draw(choices, self.generator)
            steps = [paths] if self.fairness == "strict" else [[p] for p in paths]
            for step in steps:
                loss = self._step(step, images, y)
                if not isfinite(loss):
                    return False
                total, n = total + loss, n + len(step)
        trained = [self.counts[i, :k] for i, k in enumerate(choices)]
        self.course.append({
            "epoch": float(self.epoch + 1), "loss": total / n, "lr": float(lr),
            "least_trained": float(min(int(c.min()) for c in trained)),
            "most_trained": float(max(int(c.max()) for c in trained)),
        })  # fmt: skip
        self._save()
        return True

    def _step(self, paths: Sequence[Draw], x: Tensor, y: Tensor) -> float:
        """One update by the sum of the gradients of all paths; gives the sum of their losses."""
        self._optimiser.zero_grad(set_to_none=True)
        total: Any = 0.0
        for path in paths:
            with _frozen([self.supernet.position(i).choice(path.arch[i]) for i in path.lent]):
                with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
                    out = self.supernet(x, path.arch)
                loss = F.cross_entropy(out.float(), y, label_smoothing=self.recipe.label_smoothing)
                self._scaler.scale(loss).backward()
            total = total + loss.detach()
            for i, c in enumerate(path.arch):
                self.counts[i, c] += i not in path.lent
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._schedule.step()
        return float(total)

    def _save(self) -> None:
        if self.file is None:
            return
        state = {
            "course": self.course, "module": self.supernet.state_dict(), "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(), "scaler": self._scaler.state_dict(), "counts": self.counts,
            "generator": self.generator.get_state(),
        }  # fmt: skip
        save_tensors(self.file, state, identity=self.identity)

    def _restore(self) -> None:
        if self.file is None or not self.file.exists():
            return
        state = load_tensors(self.file, identity=self.identity)
        self.course, self.counts = state["course"], state["counts"]
        self.supernet.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])


def train_supernet(training: SupernetTraining, report: Callable[[str], None] = silent) -> bool:
    """Train what is left; false where the loss became NaN or infinite. Told at the start, after each epoch, and within
    epochs that take long."""
    if not training.done:
        report(training.plan)
    while not training.done:
        if not training.run_epoch(report):
            return False
        row, epochs = training.course[-1], training.recipe.epochs
        counts = f"each choice trained {row['least_trained']:.0f}"
        counts += f"–{row['most_trained']:.0f}" if row["least_trained"] < row["most_trained"] else ""
        report(f"supernet: epoch {row['epoch']:.0f} of {epochs}, loss {row['loss']:.4g}, {counts} times")
    return True


def recalibrate(module: nn.Module, data: ImageData, *, shape: Shape, batches: int = 10, batch_size: int = 100) -> None:
    """Set batch norms' running statistics to those of training images in this very network, in place.

    In a supernet they mix all paths, and a child judged by them is judged by chance. ``batches`` shuffled batches,
    always the same ones, not augmented; the mean over batches. Weights stay as they are; the module is left in
    evaluation mode.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    module.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    device = device_of(module)
    with torch.no_grad():
        for used, (x, _) in enumerate(_endless(data, batch_size, shape), 1):
            module(x.to(device))
            if used >= batches:
                break
    for m, momentum in zip(norms, before, strict=True):
        m.momentum = momentum
        m.eval()


def _endless(data: ImageData, batch_size: int, shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from data.batches("train", batch_size, shape, generator)


@contextmanager
def _frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Weights that get no gradient inside."""
    held = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)
