"""Accuracy by training from scratch on any image data: behind ``cifar10:FOLDER`` and ``images:FOLDER``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path

from latbench.errors import ConfigError
from latbench.image_data import ImageData, Shape
from latbench.network import Network
from latbench.network_training import check_classifier, fresh_module
from latbench.problem import AccuracyEvaluator
from latbench.space import Arch, SearchSpace
from latbench.training import Classification, Fitted, Recipe, Task, fit_module, scores, threads
from latbench.training_setup import accelerated, lacking, repeatable, training_device
from latbench.with_torch import nn


class TrainingEvaluator(AccuracyEvaluator):
    """Validation error after training from scratch on ``data`` by ``recipe``; weights start from ``seed``.

    ``train_on`` is a device of torch (``auto``: a GPU where there is one). On the CPU with one thread answers are
    bit-equal on one machine and torch. What the device cannot do (a precision, ``compiled``) is left out; the search
    reports it before it starts, and the evaluator's ``recipe`` says what is used. Inside a search each training is
    checkpointed after every epoch, so that one that was interrupted goes on. Values: ``error``, ``top5_error`` and
    ``val_loss``; NaN where training diverged.
    """

    values: tuple[str, ...] = ("error", "top5_error", "val_loss")
    #: First word of the recipe: what is trained, and the version of how.
    kind = "training-1"
    #: Whether what is trained is another network than the space's, with a latency of its own.
    replaces = False

    def __init__(
        self,
        data: ImageData,
        recipe: Recipe | None = None,
        *,
        seed: int = 0,
        train_on: str = "auto",
        threads: int = 1,
        compiled: bool = False,
    ) -> None:
        for what, n, least in (("threads", threads, 1), ("seed", seed, 0)):
            if isinstance(n, bool) or not isinstance(n, int) or n < least:
                raise ConfigError(f"{what} must be a whole number of at least {least}, got {n!r}")
        self.data, self.seed, self.threads, self.compiled = data, seed, threads, compiled
        self.device = training_device(train_on)
        self.notes: list[str] = []
        asked = recipe or Recipe()
        if why := lacking(asked.precision, self.device):
            self.notes.append(f"precision {asked.precision} is left out: {why}")
            asked = replace(asked, precision="f32")
        self.training = asked
        self.recipe = f"{self.kind} {data.name} {asked.text} seed={seed}"
        self.recipe += f" device={self.device.type}" if self.device.type != "cpu" else ""
        self.recipe += " compiled" if compiled else ""

    @property
    def images(self) -> ImageData | None:
        """The data, where they are for telling classes apart."""
        return None if self.replaces else self.data

    def network(self, net: Network) -> Network:
        """The network that is trained for a network of the space: itself."""
        return net

    def check(self, space: SearchSpace) -> None:
        """Raise :class:`ConfigError` unless networks of the space take one image and tell the data's classes apart."""
        self._shape(space.network(space.covering_archs()[0]))

    def prepare(self, space: SearchSpace, report: Callable[[str], None]) -> None:
        """Say what was asked for and is left out."""
        for note in self.notes:
            report(note)
        module, _ = fresh_module(self.network(space.network(space.covering_archs()[0])), self.seed, device=self.device)
        accelerated(module, compiled=self.compiled, report=report)

    def evaluate(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Train each from scratch. Raises :class:`~latbench.errors.FileFormatError` for damaged images."""
        return [self._answer(space, arch, "validation") for arch in archs]

    def test(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Trained as for :meth:`evaluate`, scored on the test images, which no search has seen."""
        return [self._answer(space, arch, "test") for arch in archs]

    def train(
        self,
        net: Network,
        *,
        checkpoint: Path | None = None,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> tuple[nn.Module, Fitted]:
        """The module of a network that :meth:`network` gave, trained from scratch, and how that went."""
        with threads(self.threads), repeatable(self.device):
            module, generator = fresh_module(net, self.seed, bn_momentum=self.training.bn_momentum, device=self.device)
            fitted = fit_module(
                module, self.data, self.training, seed=self.seed, generator=generator, shape=self._shape(net),
                on_epoch=on_epoch, checkpoint=checkpoint, forward=accelerated(module, compiled=self.compiled),
                task=self._task(net),
            )  # fmt: skip
        return module, fitted

    def judge(self, net: Network, module: nn.Module, part: str) -> dict[str, float]:
        """The values of a trained module on a part."""
        with threads(self.threads), repeatable(self.device):
            found = scores(module, self.data, part, shape=self._shape(net))
        return {"error": found.error, "top5_error": found.top5_error, "val_loss": found.loss}

    def _shape(self, net: Network) -> Shape:
        return check_classifier(net, self.data.classes, f"{self.data.name.split()[0]} data")

    def _task(self, net: Network) -> Task:
        return Classification(self.training.label_smoothing)

    def _answer(self, space: SearchSpace, arch: Arch, part: str) -> dict[str, float]:
        net = self.network(space.network(arch))
        # Named by a hash: a file system takes no name of many positions.
        name = hashlib.sha256(repr(tuple(arch)).encode()).hexdigest()[:16]
        file = None if self.folder is None else self.folder / f"training-{name}.pt"
        module, fitted = self.train(net, checkpoint=file)
        found = self.judge(net, module, part) if fitted.ok else dict.fromkeys(self.values, nan)
        if file is not None:
            file.unlink(missing_ok=True)
        return found
