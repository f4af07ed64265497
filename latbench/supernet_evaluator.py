"""Accuracy from a one-shot supernet: trained once, then each architecture is judged with its weights in seconds.

The evaluator behind ``supernet:digits`` and ``supernet:cifar10:FOLDER``, MoGA's. The weights lie in the store and
depend on no device: a search for another device needs that device's table and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from latbench.errors import ConfigError, DeviceBusyError, SearchError
from latbench.host_lock import HostLock
from latbench.image_data import ImageData, Shape, load_images
from latbench.network_training import check_classifier
from latbench.problem import AccuracyEvaluator
from latbench.result import write_atomically
from latbench.space import Arch, SearchSpace
from latbench.supernet import Supernet
from latbench.supernet_training import RECIPE, SupernetTraining, recalibrate, train_supernet
from latbench.training import Recipe, initialise, scores, threads
from latbench.training_setup import repeatable, training_device
from latbench.with_torch import torch

WEIGHTS = "supernet.pt"
_OWN = ("fairness", "seed", "recalibration", "train_on", "threads")
_DATA = ("split_seed", "validation")
#: File, time and recipe of the weights read last, and what was read: worker processes are sent one task after another.
_LATEST: list[Any] = []


class SupernetEvaluator(AccuracyEvaluator):
    """Validation error with the weights of a supernet of the whole space, trained on ``data`` by ``recipe``.

    ``fairness`` is ``strict`` or ``uniform``, see :mod:`latbench.supernet_training`; ``recipe`` is MoGA's by default.
    Before an architecture is scored its batch norms are set anew on ``recalibration`` batches of training images. Both
    are deterministic: on the CPU with one thread answers are bit-equal on one machine and torch, in any order. Weights
    are checkpointed after every epoch in :attr:`folder`. Values: ``error``, ``top5_error``, ``val_loss``, all of shared
    weights: they rank architectures, a final training tells how good one is.
    """

    values = ("error", "top5_error", "val_loss")

    def __init__(
        self,
        data: ImageData,
        recipe: Recipe = RECIPE,
        *,
        fairness: str = "strict",
        seed: int = 0,
        recalibration: int = 10,
        train_on: str = "auto",
        threads: int = 1,
    ) -> None:
        for what, n, least in (("threads", threads, 1), ("seed", seed, 0), ("recalibration", recalibration, 1)):
            if isinstance(n, bool) or not isinstance(n, int) or n < least:
                raise ConfigError(f"supernet: {what} must be a whole number of at least {least}, got {n!r}")
        self.data, self.training, self.fairness, self.seed = data, recipe, fairness, seed
        self.recalibration, self.threads = recalibration, threads
        self.device = training_device(train_on)
        self.recipe = f"supernet-1 {data.name} {fairness} {recipe.text} seed={seed} recalibration={recalibration}"
        self.recipe += f" device={self.device.type}" if self.device.type != "cpu" else ""
        self._trained_here = 0
        self._ready: tuple[SearchSpace, SupernetTraining] | None = None

    @classmethod
    def make(cls, name: str, options: Mapping[str, Any]) -> SupernetEvaluator:
        """For data by name (:func:`~latbench.image_data.load_images`), with its options, the recipe's and its own.

        Raises :class:`ConfigError` naming an option that none of them has.
        """
        own = {k: v for k, v in options.items() if k in _OWN}
        data = {k: v for k, v in options.items() if k in _DATA}
        rest = {k: v for k, v in options.items() if k not in (*_OWN, *_DATA)}
        known = [f.name for f in fields(Recipe)]
        if unknown := sorted(set(rest) - set(known)):
            raise ConfigError(f"supernet:{name} has no {unknown[0]!r}; it has {', '.join((*_OWN, *_DATA, *known))}")
        return cls(load_images(name, **data), Recipe.make(rest, RECIPE), **own)

    @property
    def images(self) -> ImageData:
        """The data."""
        return self.data

    @property
    def weights(self) -> Path | None:
        """The file of the weights, where there is a folder for it."""
        return None if self.folder is None else self.folder / WEIGHTS

    @property
    def counts(self) -> list[list[int]]:
        """How often each choice of each position was trained, once :meth:`prepare` is done; empty before."""
        if self._ready is None:
            return []
        space, training = self._ready
        return [training.counts[i, :k].tolist() for i, k in enumerate(space.num_choices)]

    @property
    def origin(self) -> dict[str, Any]:
        """Where the weights are, their checksum, how they were trained, and how many epochs of it in this process."""
        file = self.weights
        if file is None or not (told := file.with_suffix(".json")).exists():
            return {}
        facts: dict[str, Any] = json.loads(told.read_bytes())
        return {"weights": str(file), **facts, "epochs_trained_by_this_search": self._trained_here}

    def check(self, space: SearchSpace) -> None:
        """Raise :class:`ConfigError` unless networks of the space take one image and tell the data's classes apart."""
        self._shape(space)

    def prepare(self, space: SearchSpace, report: Callable[[str], None]) -> None:
        """Train the supernet, go on with a training that was interrupted, or take the weights that are there.

        Raises :class:`SearchError` where training diverges or another process is at it.
        """
        if self._ready is not None and self._ready[0] == space:
            return
        with threads(self.threads), repeatable(self.device):
            self._ready = space, self._trained(space, report)

    def evaluate(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Score each on the validation images."""
        return [self._score(space, arch, "validation") for arch in archs]

    def test(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Score each, with the same weights, on the test images, which no search has seen."""
        return [self._score(space, arch, "test") for arch in archs]

    def __getstate__(self) -> dict[str, Any]:
        # Other processes read the weights from the file rather than from each task that they are sent.
        return {**self.__dict__, "_ready": None}

    # -- parts --------------------------------------------------------------------------------------------------

    def _trained(self, space: SearchSpace, report: Callable[[str], None]) -> SupernetTraining:
        file = self.weights
        if file is None:
            return self._finish(self._begun(space), report)
        if file.exists():
            version = (str(file.resolve()), file.stat().st_mtime_ns, self.recipe)
            if _LATEST and _LATEST[0] == version:
                held: SupernetTraining = _LATEST[1]
                return held
            training = self._begun(space)
            if training.done:
                report(f"supernet: all {training.epoch} epochs were trained before; nothing is left to train ({file})")
                _LATEST[:] = [version, training]
                self._tell_of(training)
                return training
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with HostLock(f"supernet {file.resolve()}", "training", folder=file.parent):
                return self._finish(self._begun(space), report)
        except DeviceBusyError as e:
            raise SearchError(f"{file}: these weights are being trained by {e.holder}; wait for it, or stop it") from e

    def _begun(self, space: SearchSpace) -> SupernetTraining:
        """A training as far as its file goes."""
        supernet = Supernet(space, seed=self.seed).to(memory_format=torch.channels_last)
        initialise(supernet, torch.Generator().manual_seed(self.seed), bn_momentum=self.training.bn_momentum)
        return SupernetTraining(
            supernet.to(self.device), self.data, self.training, shape=self._shape(space), fairness=self.fairness,
            seed=self.seed, file=self.weights,
        )  # fmt: skip

    def _finish(self, training: SupernetTraining, report: Callable[[str], None]) -> SupernetTraining:
        before = training.epoch
        if before:
            report(f"supernet: {before} of {self.training.epochs} epochs were trained before ({self.weights})")
        if not train_supernet(training, report):
            raise SearchError(
                f"the supernet of {training.supernet.space.name} diverged in epoch {training.epoch + 1}: its loss is "
                f"not finite; a lower lr than {self.training.lr:g} may help (--accuracy-set lr=…)"
            )
        self._trained_here = training.epoch - before
        self._tell_of(training)
        return training

    def _tell_of(self, training: SupernetTraining) -> None:
        """Write beside the weights what they are."""
        if self.weights is None or (told := self.weights.with_suffix(".json")).exists():
            return
        digest = hashlib.sha256()
        for name, tensor in training.supernet.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        row = training.course[-1]
        facts = {
            "recipe": self.recipe, "sha256": digest.hexdigest(), "epochs": training.epoch, "loss": row["loss"],
            **{n: int(row[n]) for n in ("least_trained", "most_trained")},
        }  # fmt: skip
        write_atomically(told, json.dumps(facts, indent=1).encode())

    def _shape(self, space: SearchSpace) -> Shape:
        net = space.network(space.covering_archs()[0])
        return check_classifier(net, self.data.classes, f"images of {self.data.name.split()[0]}")

    def _score(self, space: SearchSpace, arch: Arch, part: str) -> dict[str, float]:
        self.prepare(space, lambda _: None)
        assert self._ready is not None
        training = self._ready[1]
        with threads(self.threads), repeatable(self.device):
            child = training.supernet.export(arch)
            recalibrate(
                child, self.data, shape=training.shape, batches=self.recalibration, batch_size=self.training.batch_size
            )
            found = scores(child, self.data, part, shape=training.shape)
        return {"error": found.error, "top5_error": found.top5_error, "val_loss": found.loss}
