"""How accurate an architecture is: by a short training, from a table, or by a function of the user's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latbench import digits
from latbench.errors import ConfigError, NotInstalledError, SearchError
from latbench.problem import AccuracyEvaluator
from latbench.space import Arch, SearchSpace

if TYPE_CHECKING:
    from latbench.image_data import ImageData
    from latbench.training import Recipe
    from latbench.training_evaluators import TrainingEvaluator


class FunctionEvaluator(AccuracyEvaluator):
    """A function ``(space, arch) -> error`` (a fraction, 0–1) or a mapping of values with ``error`` among them.

    ``recipe`` names all that its answers depend on; without one nothing is stored, and a search does not go on where
    one with another function of the same name stopped. ``values`` are the names in the
    mapping that objectives and limits may use.
    """

    def __init__(
        self,
        function: Callable[[SearchSpace, Arch], float | Mapping[str, float]],
        *,
        recipe: str | None = None,
        values: Sequence[str] = ("error",),
    ) -> None:
        self.function, self.values = function, tuple(values)
        self.recipe = recipe or str(getattr(function, "__qualname__", "function"))
        self.cache = self.resumes = recipe is not None

    def evaluate(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Call the function for each."""
        answers = (self.function(space, arch) for arch in archs)
        return [v if isinstance(v, Mapping) else {"error": float(v)} for v in answers]


class TabularEvaluator(AccuracyEvaluator):
    """Known errors: architecture → error, or → values with ``error`` among them."""

    batch = 4096
    cache = False

    def __init__(self, table: Mapping[Arch, float | Mapping[str, float]], *, recipe: str = "tabular") -> None:
        if not table:
            raise ConfigError(f"{recipe}: the table holds no architecture")
        self.table = {a: v if isinstance(v, Mapping) else {"error": float(v)} for a, v in table.items()}
        told = json.dumps(sorted((list(a), sorted(v.items())) for a, v in self.table.items()))
        self.recipe = f"{recipe} sha256={hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.values = tuple(next(iter(self.table.values())))

    @classmethod
    def from_parquet(
        cls, path: str | Path, space: SearchSpace, accuracy: str, *, percent: bool = True, arch: str = "arch_str"
    ) -> TabularEvaluator:
        """Errors ``1 − accuracy`` from a Parquet file.

        ``accuracy`` names the column of accuracies (in ``percent``, or fractions), ``arch`` that of architectures:
        strings that ``space.from_string`` reads, or lists of choices. Raises :class:`ConfigError` naming the file and a
        column that it does not have.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError as e:
            raise NotInstalledError("pyarrow", "pip install 'latbench[parquet]'", "to read a table of errors") from e
        try:
            names = pq.read_schema(path).names
            if missing := [n for n in (arch, accuracy) if n not in names]:
                raise ConfigError(f"{path}: no column {', '.join(missing)}; it has: {', '.join(names)}")
            columns = pq.read_table(path, columns=[arch, accuracy])
        except (OSError, pa.ArrowInvalid) as e:
            raise ConfigError(f"{path}: not a readable Parquet file: {e}") from e
        read: Any = getattr(space, "from_string", space.validate)
        archs: Iterable[Arch] = map(read, columns[arch].to_pylist())
        scale = 100.0 if percent else 1.0
        errors = (1 - a / scale for a in columns[accuracy].to_pylist())
        return cls(dict(zip(archs, errors, strict=True)), recipe=f"tabular:{Path(path).name}:{accuracy}")

    def evaluate(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Look them up. Raises :class:`SearchError` for an architecture that the table does not hold."""
        try:
            return [self.table[a] for a in archs]
        except KeyError as e:
            raise SearchError(f"{self.recipe}: the table holds no architecture {list(e.args[0])}") from None


class DigitsEvaluator(AccuracyEvaluator):
    """Validation error after a short training on scikit-learn's digits: 1,797 images, ten classes, nothing to download.

    Images are resized to the space's resolution and split once (``split_seed``) into 1,000 to train, 400 to validate,
    397 to test; searches see only the first two. Training is SGD with Nesterov momentum 0.9 and a one-cycle learning
    rate up to ``lr``, label smoothing 0.1, weight decay 1e-4, batches of ``batch_size``, ``epochs`` times. Weights
    start from ``seed``, the same for every architecture. With one thread answers are bit-equal on one machine and
    torch. Values: ``error`` and ``val_loss``; NaN where the loss became NaN, at which training stops.
    """

    values = ("error", "val_loss")

    def __init__(
        self,
        *,
        epochs: int = 4,
        batch_size: int = 50,
        lr: float = 0.1,
        seed: int = 0,
        split_seed: int = 0,
        threads: int = 1,
    ) -> None:
        for what, n in (("epochs", epochs), ("batch_size", batch_size), ("threads", threads)):
            if isinstance(n, bool) or not isinstance(n, int) or n < (2 if what == "batch_size" else 1):
                raise ConfigError(f"digits: {what} must be a whole number, large enough to train, got {n!r}")
        if not 0 < lr < float("inf"):
            raise ConfigError(f"digits: lr must be positive, got {lr!r}")
        self.epochs, self.batch_size, self.lr, self.threads = epochs, batch_size, lr, threads
        self.seed, self.split_seed = seed, split_seed
        self.recipe = f"digits-1 epochs={epochs} batch_size={batch_size} lr={lr:g} seed={seed} split_seed={split_seed}"

    @property
    def images(self) -> ImageData:
        """The digits, split as here."""
        from latbench.image_data import Digits

        return Digits(split_seed=self.split_seed)

    def check(self, space: SearchSpace) -> None:
        """Raise :class:`ConfigError` unless networks of the space take one image and tell ten classes apart."""
        digits.check_network(space.network(space.covering_archs()[0]))

    def evaluate(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Train each from scratch. Raises :class:`NotInstalledError` without torch, :class:`ConfigError` as check."""
        return [self._score(space, arch, "validation") for arch in archs]

    def test(self, space: SearchSpace, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        """Trained as for :meth:`evaluate`; ``error`` and ``val_loss`` on the 397 images that no search has seen."""
        return [self._score(space, arch, "test") for arch in archs]

    @classmethod
    def from_recipe(cls, recipe: str | None) -> DigitsEvaluator | None:
        """The evaluator that has this ``recipe``; None where it is another evaluator's."""
        found = re.fullmatch(
            r"digits-1 epochs=(\d+) batch_size=(\d+) lr=(\S+) seed=(\d+) split_seed=(\d+)", recipe or "", re.ASCII
        )
        if not found:
            return None
        epochs, batch_size, lr, seed, split_seed = found.groups()
        return cls(
            epochs=int(epochs), batch_size=int(batch_size), lr=float(lr), seed=int(seed), split_seed=int(split_seed)
        )

    def _score(self, space: SearchSpace, arch: Arch, part: str) -> dict[str, float]:
        error, loss = digits.train_and_score(
            space.network(arch), epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, seed=self.seed,
            split_seed=self.split_seed, threads=self.threads, part=part,
        )  # fmt: skip
        return {"error": error, "val_loss": loss}


def load_evaluator(name: str, space: SearchSpace, options: Mapping[str, Any] | None = None) -> AccuracyEvaluator | None:
    """The evaluator that a text names: ``digits``, ``cifar10:FOLDER``, ``cifar100:FOLDER``, ``images:FOLDER``,
    ``voc:FOLDER``, ``supernet:`` before one of images, ``FILE.parquet:COLUMN``, or None for ``none``.

    ``options`` are the evaluator's: those of a training are the data's (``validation``, ``split_seed``), the fields of
    :class:`~latbench.training.Recipe`, and ``seed``, ``train_on``, ``threads``, ``compiled``; the digits take the
    short recipe of :class:`DigitsEvaluator` unless an option is of no part of it. Raises :class:`ConfigError` for
    another name or option, :class:`~latbench.errors.FileFormatError` for damaged data.
    """
    asked = dict(options or {})
    kind, _, rest = name.partition(":")
    if name == "none":
        return None
    if name == "digits" and not set(asked) - {"epochs", "batch_size", "lr", "seed", "split_seed", "threads"}:
        return DigitsEvaluator(**asked)
    if name == "digits" or (rest and kind in ("cifar10", "cifar100", "images", "voc")):
        return training_evaluator(name, asked)
    if rest and kind == "supernet":
        from latbench.supernet_evaluator import SupernetEvaluator

        return SupernetEvaluator.make(rest, asked)
    path, _, column = name.rpartition(":")
    if path.endswith(".parquet"):
        if unknown := sorted(set(asked) - {"percent", "arch"}):
            raise ConfigError(
                f"--accuracy-set {unknown[0]}: a Parquet file of accuracies has the options percent (true or false) "
                "and arch (the column of architectures)"
            )
        return TabularEvaluator.from_parquet(path, space, column, **asked)
    raise ConfigError(
        f"--accuracy {name}: expected digits, cifar10:FOLDER, cifar100:FOLDER, images:FOLDER, voc:FOLDER, "
        "supernet:digits (or supernet: before another one of images), FILE.parquet:COLUMN, or none"
    )


def training_evaluator(name: str, options: Mapping[str, Any], recipe: Recipe | None = None) -> TrainingEvaluator:
    """The evaluator that trains on the data of this name; ``recipe`` is what ``options`` change (default: a search's
    short one). Raises as :func:`load_evaluator`."""
    from latbench.image_data import load_images
    from latbench.recipes import of_search
    from latbench.training import Recipe
    from latbench.training_evaluators import TrainingEvaluator

    asked = dict(options)
    own = {k: asked.pop(k) for k in ("seed", "train_on", "threads", "compiled") if k in asked}
    data = {k: asked.pop(k) for k in ("validation", "split_seed") if k in asked}
    chosen = Recipe.make(asked, recipe or of_search(name))
    if name.startswith("voc:"):
        from latbench.detection.evaluator import DetectionEvaluator
        from latbench.detection.voc import Voc

        return DetectionEvaluator(Voc(name.partition(":")[2], **data), chosen, **own)
    return TrainingEvaluator(load_images(name, **data), chosen, **own)
