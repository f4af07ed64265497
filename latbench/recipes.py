"""Recipes by name: the short ones of searches, and the long ones by which papers train the networks that they found.

A paper's recipe holds what :class:`~latbench.training.Recipe` can say; ``source`` tells where its numbers are from,
what of it is left out, and which numbers are ours since no source that we could read states them. Where a paper trains
only on other data than the user's, its recipe for the nearest kind is taken.
"""

from __future__ import annotations

from typing import NamedTuple

from latbench.errors import ConfigError
from latbench.training import Recipe


class Named(NamedTuple):
    """A recipe and where it is from."""

    recipe: Recipe
    source: str


_SGD = Recipe(schedule="cosine", label_smoothing=0.0, bn_momentum=0.1, augment=True)


def _sgd(epochs: int, batch_size: int, lr: float, **changes: object) -> Recipe:
    return Recipe.make({"epochs": epochs, "batch_size": batch_size, "lr": lr, **changes}, _SGD)


#: Kind of data (``digits``, ``cifar``, ``images``, ``voc``) → searcher, or ``plain`` → its final recipe.
FINAL: dict[str, dict[str, Named]] = {
    "digits": {
        "plain": Named(Recipe(epochs=30), "latbench: the short recipe of the digits, thirty epochs long"),
    },
    "cifar": {
        "plain": Named(
            _sgd(200, 128, 0.1, weight_decay=5e-4, patience=0), "latbench: as residual networks are trained on CIFAR"
        ),
        "dppnet": Named(
            _sgd(300, 64, 0.1),
            "CondenseNet (Huang et al., CVPR 2018), whose connections DPP-Net's networks have: the commands of its "
            "released code (script.sh, main.py); what DPP-Net itself trained its final networks by, we have not read",
        ),
        "proxyless": Named(
            _sgd(600, 64, 0.1, cutout=16),
            "Path-Level EAS (Cai et al., ICML 2018, table 1), which ProxylessNAS takes its CIFAR networks' form from: "
            "600 epochs with cutout; without its DropPath; batch, learning rate and size of the cut are ours",
        ),
    },
    "images": {
        "plain": Named(_sgd(150, 256, 0.05, weight_decay=4e-5, label_smoothing=0.1, decay_norms=False), "latbench"),
        "dppnet": Named(
            _sgd(120, 256, 0.1),
            "CondenseNet (Huang et al., CVPR 2018): the defaults of its released main.py; what DPP-Net itself trained "
            "its final networks by, we have not read",
        ),
        "proxyless": Named(
            _sgd(300, 256, 0.05, weight_decay=4e-5, label_smoothing=0.1, decay_norms=False),
            "the defaults of ProxylessNAS's released imagenet_run_exp.py; without dropout (0.1 to 0.3 by network in "
            "its README) and strong colour distortion",
        ),
        "moga": Named(
            Recipe(
                epochs=350, batch_size=4096, lr=0.256, momentum=0.9, weight_decay=1e-5, label_smoothing=0.1,
                schedule="cosine", warmup_epochs=5, optimiser="rmsprop", augment=True, bn_momentum=0.01,
            ),
            "MnasNet (Tan et al., CVPR 2019), common for MoGA's kind of network: RMSProp, 0.256 after 5 epochs of "
            "rise, batches of 4096, 350 epochs; cosine for its steps of 3 % each 2.4 epochs, without dropout and "
            "averaged weights; what MoGA itself was trained by, we have not read",
        ),
        "ednas": Named(
            _sgd(240, 512, 0.65, weight_decay=4e-5, label_smoothing=0.1, warmup_epochs=5),
            "E-DNAS (López et al., ICPR 2020): learning rate 0.65 with warm-up and cosine; all else is not in the "
            "paper and is ours",
        ),
    },
    "voc": {
        "plain": Named(
            _sgd(200, 32, 0.02, weight_decay=5e-4, warmup_epochs=5),
            "latbench: SSD's loss and augmentation (Liu et al., ECCV 2016) with a cosine schedule, from scratch",
        ),
    },
}  # fmt: skip


def kind_of(data: str) -> str:
    """``digits``, ``cifar``, ``images`` or ``voc``, by what a user types for the data or by the data's name."""
    word = data.split(":")[0].split(" ")[0]
    return "cifar" if word.startswith("cifar") else word


def of_search(data: str) -> Recipe:
    """The short recipe by which a search judges candidates where nothing else is said.

    Ten epochs of batches of 256 up to a learning rate of 0.1 are those of DPP-Net's search (Dong et al., ECCV 2018).
    """
    kind = kind_of(data)
    if kind == "digits":
        return Recipe()
    if kind == "voc":
        return _sgd(20, 32, 0.02, weight_decay=5e-4, warmup_epochs=1)
    return _sgd(10, 256, 0.1)


def of_paper(data: str, name: str, *, known: bool = False) -> Named:
    """The final recipe of a searcher for this kind of data.

    Where its paper has none for it, ``plain`` is taken if ``known`` is set (the name is that of a searcher, whatever it
    is). Raises :class:`ConfigError` for a kind of data, or a name, that there is no recipe for.
    """
    found = FINAL.get(kind_of(data))
    if found is None:
        raise ConfigError(f"no recipe for data {data!r}; there are some for {', '.join(FINAL)}")
    if name not in found and not known:
        raise ConfigError(f"no recipe {name!r} for {kind_of(data)}; there are {', '.join(found)}")
    return found.get(name, found["plain"])
