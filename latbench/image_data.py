"""Images to train on and to be judged by: one shape for digits, CIFAR and folders of pictures.

Every data set is split before anything else looks at it: ``train`` for weights, ``validation`` for whoever searches,
``test`` for final reports alone. Its ``name`` tells the data and the split, and goes into the recipes by which answers
are stored. :func:`load_images` opens one by what a user types: ``digits``, ``cifar10:FOLDER``, ``images:FOLDER``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from latbench.errors import ConfigError

if TYPE_CHECKING:
    import torch

Shape: TypeAlias = tuple[int, int, int]

PARTS = ("train", "validation", "test")


class ImageData(ABC):
    """Labelled images in parts; see the module.

    ``name`` is a text that changes with the data and their split and not with the folder that they lie in. ``classes``
    is the number of labels, ``shape`` the images' own (channels, height, width) before any resizing.
    """

    name: str
    classes: int
    shape: Shape
    #: Whether a mirrored image is as good as the image itself; augmentation mirrors then.
    mirrors: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts."""
        return PARTS

    @abstractmethod
    def count(self, part: str) -> int:
        """How many images a part has. Raises :class:`ConfigError` for a part that there is not."""

    @abstractmethod
    def take(
        self,
        part: str,
        rows: torch.Tensor | slice,
        shape: Shape,
        generator: torch.Generator | None = None,
        augment: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``rows`` of a part, (n, *shape) float32 and normalised, and their labels (n,) int64.

        Augmentation is drawn from ``generator``. Raises :class:`~latbench.errors.FileFormatError` naming a damaged
        file.
        """

    def batches(
        self,
        part: str,
        batch_size: int,
        shape: Shape | None = None,
        generator: torch.Generator | None = None,
        augment: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass over a part: ``(x, y)`` as :meth:`take` gives them, at this (channels, height, width).

        With a ``generator`` in an order drawn from it, without the last, incomplete batch (batch norm would see too few
        images), unless it is the only one. Without, in the part's own order, all of it. ``shard`` (i, of n) gives every
        n-th image of each batch: the part of one process among several that draw the same order.
        """
        import torch

        shape = shape or self.shape
        n = self.count(part)
        if generator is None:
            if augment:
                raise ConfigError("augmented images are drawn at random: give a generator")
            for start in range(0, n, batch_size):
                yield self.take(part, slice(start, min(start + batch_size, n)), shape)
            return
        used = self.steps(part, batch_size) * batch_size
        for rows in torch.randperm(n, generator=generator)[:used].split(batch_size):
            mine = rows if shard[1] == 1 else rows[shard[0] :: shard[1]]
            yield self.take(part, mine, shape, generator, augment)

    def steps(self, part: str, batch_size: int) -> int:
        """How many batches a shuffled pass has."""
        return max(self.count(part) // batch_size, 1)

    def halves(self, seed: int = 0) -> Halves:
        """The same data with ``weights`` and ``architecture``, disjoint halves of ``train``, as parts too."""
        return Halves(self, seed)


class Halves(ImageData):
    """Training images in two halves drawn by ``seed``: ``weights`` are trained on one, architectures on the other."""

    def __init__(self, data: ImageData, seed: int = 0) -> None:
        import torch

        self.data, self.classes, self.shape, self.mirrors = data, data.classes, data.shape, data.mirrors
        self.name = f"{data.name} halves={seed}"
        n = data.count("train")
        if n < 2:
            raise ConfigError(f"{data.name}: {n} images to train on have no two halves")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self._rows = {"weights": order[: n - n // 2], "architecture": order[n - n // 2 :]}

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of the data, ``weights`` and ``architecture``."""
        return (*self.data.parts, *self._rows)

    def count(self, part: str) -> int:
        """How many images a part has."""
        return len(self._rows[part]) if part in self._rows else self.data.count(part)

    def take(
        self,
        part: str,
        rows: torch.Tensor | slice,
        shape: Shape,
        generator: torch.Generator | None = None,
        augment: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the data give them."""
        if part in self._rows:
            part, rows = "train", self._rows[part][rows]
        return self.data.take(part, rows, shape, generator, augment)


class Digits(ImageData):
    """scikit-learn's digits: 1,797 grey images of 8 × 8, ten classes; 1,000 to train, 400 to validate, 397 to test."""

    classes, shape, mirrors = 10, (1, 8, 8), False

    def __init__(self, *, split_seed: int = 0) -> None:
        self.split_seed = split_seed
        self.name = f"digits split_seed={split_seed}"

    def count(self, part: str) -> int:
        """How many images a part has."""
        from latbench import digits

        sizes = {"train": digits.TRAIN, "validation": digits.VALIDATION, "test": digits.TEST}
        return sizes[known_part(self, part)]

    def take(
        self,
        part: str,
        rows: torch.Tensor | slice,
        shape: Shape,
        generator: torch.Generator | None = None,
        augment: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images by index from memory; augmented ones are shifted by up to an eighth of their size."""
        from latbench import digits

        x, y = digits.split(self.split_seed, *shape)[known_part(self, part)]
        picked = x[rows]
        return (shifted(picked, max(shape[1] // 8, 1), generator, False) if augment else picked), y[rows]


def known_part(data: ImageData, part: str) -> str:
    """``part``, if there is one of that name. Raises :class:`ConfigError`."""
    if part not in data.parts:
        raise ConfigError(f"{data.name}: no part {part!r}; it has {', '.join(data.parts)}")
    return part


def shifted(x: torch.Tensor, most: int, generator: torch.Generator | None, mirror: bool) -> torch.Tensor:
    """Each image moved by up to ``most`` pixels either way, filled up with zeros, and mirrored half the time."""
    import torch

    n, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (most,) * 4)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5 if mirror else torch.zeros(n, dtype=torch.bool)
    rows = dy[:, None] + torch.arange(height)
    columns = dx[:, None] + torch.arange(width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    every = torch.arange(n)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def same_images(searcher: str, asked: str | None, data: ImageData) -> ImageData:
    """``data``, those that accuracies are of, for a searcher that was ``asked`` to train on images of this name itself.

    Raises :class:`ConfigError` where these are others, or split otherwise: what was found on one says little of the
    other, and images held out of one may be trained on by the other.
    """
    if asked is not None and (other := load_images(asked).name) != data.name:
        raise ConfigError(
            f"{searcher}: data {asked!r} is {other}, but accuracy is of {data.name}; leave the option data out, and "
            f"{searcher} trains on the images that accuracy is of"
        )
    return data


def load_images(name: str, **options: Any) -> ImageData:
    """The data set that a text names: ``digits``, ``cifar10:FOLDER``, ``cifar100:FOLDER`` or ``images:FOLDER``.

    ``options`` are the data set's: ``split_seed``, and ``validation``, the share of the training images that is held
    out (not for the digits). Raises :class:`ConfigError` for another name, option, or a folder without the data,
    :class:`~latbench.errors.FileFormatError` naming a damaged file.
    """
    from latbench import image_files

    kind, _, folder = name.partition(":")
    makers: dict[str, Callable[..., ImageData]] = {
        "cifar10": partial(image_files.Cifar, folder, 10),
        "cifar100": partial(image_files.Cifar, folder, 100),
        "images": partial(image_files.Folders, folder),
    }
    if name == "digits":
        make: Callable[..., ImageData] = Digits
    elif folder and kind in makers:
        make = makers[kind]
    else:
        raise ConfigError(f"data {name!r}: expected digits, {', '.join(f'{m}:FOLDER' for m in makers)}")
    try:
        return make(**options)
    except TypeError as e:
        known = "split_seed" if name == "digits" else "split_seed, validation"
        raise ConfigError(f"data {name!r} has no such option ({e}); its options: {known}") from None
