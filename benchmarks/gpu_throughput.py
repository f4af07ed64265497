"""Images a second that `proxyless` and `moga` train on a GPU, beside plain training of one compact network.

A CIFAR-sized problem at full width: a space of mobile networks at 32 × 32, ten classes, random images in CIFAR-10's own
files (or yours, ``--data cifar10:FOLDER``), augmented as in a search. Every way is the code that searches run, an epoch
at a time: plain training by a recipe, as the accuracy evaluators do it; the epochs of MoGA's supernet with strict
fairness; ``proxyless`` with weight steps alone, and with α learning in each of its modes, the look at held-out images
after each epoch in the time. Loading is in the time everywhere, and so are cuDNN's deterministic algorithms.

Two things are counted. Images are those that are taken from the data set, of both halves where α is learnt. Passes are
images times the networks, or the choices of each block, that each goes through: all choices in a step of the supernet
and in an α step of ``recompute``, two in one of ``two-path``, ten in one of ``reinforce`` (forward alone), and one
elsewhere. Shares are of plain training's passes. The compact network is the one whose MACs are nearest to what a path
has on average, so that the share tells what the machinery costs and not what the paths do.

An epoch before what is timed warms up (memory, kernels, the wirings of paths); the figure is the median of the others,
the GPU's queue drained before each reading of the clock. `proxyless` trains in float32; ``--precision`` adds plain
training and the supernet in another one. There is no target. Without a GPU it says so and gives no figures;
``--torch-device cpu`` runs it on the CPU, where small numbers are in place.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import latbench as lb
from benchmarks.common import finish, parser, percent, table
from latbench.cheap import SpaceValues
from latbench.image_data import ImageData, load_images
from latbench.network_training import fresh_module
from latbench.problem import Objective, Problem
from latbench.searching import make_searcher
from latbench.space import Arch, SearchSpace
from latbench.supernet_training import RECIPE, SupernetTraining
from latbench.training import Recipe, fit_module, initialise, threads
from latbench.training_recipe import PRECISIONS
from latbench.training_setup import repeatable, training_device
from latbench.with_torch import torch

#: Images of the written files that are for tests: nothing here looks at them.
TEST_IMAGES = 100
#: Networks of an α step of ``proxyless`` in its mode ``reinforce``.
PATHS = 10


class Way(NamedTuple):
    """A way of training: images an epoch of the data set, and times the networks that each goes through; and what
    trains so many epochs and calls ``tick`` after each."""

    name: str
    precision: str
    images: int
    passes: int
    train: Callable[[int, Callable[[], None]], None]


def main() -> None:
    """Train in every way, print."""
    p = parser(__doc__)
    p.add_argument("--torch-device", default="cuda", help="cuda, cuda:1 or cpu (default cuda)")
    p.add_argument("--space", default="mobilenetv3", help="any that both searchers take, e.g. proxyless")
    p.add_argument("--width-mult", type=float, default=1.0)
    p.add_argument("--images", type=int, default=20_480, help="random images to train on (default 20480)")
    p.add_argument("--data", help="other images than random ones, e.g. cifar10:FOLDER")
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument("--repeats", type=int, default=3, help="epochs that are timed, after one that is not (default 3)")
    p.add_argument("--precision", choices=PRECISIONS, default="f32", help="adds rows beside those in f32")
    p.add_argument("--threads", type=int, default=1, help="torch's, on the CPU")
    args = p.parse_args()
    if args.torch_device != "cpu" and not torch.cuda.is_available():
        print("gpu_throughput: torch sees no GPU here: no figures (--torch-device cpu runs it on the CPU)")
        return
    device = training_device(args.torch_device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = args.data or f"cifar10:{write_images(Path(folder), args.images, args.seed)}"
        data = load_images(source)
        space = lb.load_space(args.space, resolution=32, width_mult=args.width_mult, num_classes=data.classes)
        compact = typical(space, args.seed)
        for way in ways(space, compact, data, source, device, args):
            rates = timed(way, device, args)
            median = float(np.median(rates))
            plain = next((f["passes_per_s"] for n, f in figures.items() if n == f"plain training, {way.precision}"), 0)
            share = median / plain if plain else 1.0
            figures[f"{way.name}, {way.precision}"] = {
                "passes_per_s": median, "slowest": min(rates), "fastest": max(rates),
                "images_per_s": median * way.images / way.passes, "share of plain": share,
            }  # fmt: skip
            print(f"{way.name}, {way.precision}: {median:,.0f} passes/s", flush=True)
    rows = [
        (n, f"{f['passes_per_s']:,.0f}", f"{f['slowest']:,.0f} – {f['fastest']:,.0f}", f"{f['images_per_s']:,.0f}",
         percent(f["share of plain"], 1))
        for n, f in figures.items()
    ]  # fmt: skip
    title = f"{args.space} at 32, width {args.width_mult:g}, batch {args.batch_size}, on {hardware}"
    table(title, ("training", "passes/s", f"of {args.repeats} epochs", "images/s", "of plain"), rows)
    more = {"torch": torch.__version__, "hardware": hardware, "batch": args.batch_size}
    figures["hardware"], figures["batch_size"] = hardware, args.batch_size
    finish(args, "gpu_throughput", figures, **more, compact=list(compact), space=space.spec, data=data.name)


def write_images(folder: Path, n: int, seed: int) -> Path:
    """CIFAR-10's binary files with ``n`` random training images."""
    rng = np.random.default_rng(seed)
    sizes = [len(part) for part in np.array_split(np.arange(n), 5)]
    files = {f"data_batch_{i}.bin": k for i, k in enumerate(sizes, 1)} | {"test_batch.bin": TEST_IMAGES}
    for name, k in files.items():
        labels = rng.integers(0, 10, (k, 1), np.uint8)
        pixels = rng.integers(0, 256, (k, 3072), np.uint8)
        (folder / name).write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    return folder


def typical(space: SearchSpace, seed: int) -> Arch:
    """Of 1,000 random architectures the one whose MACs are nearest to their mean."""
    archs = space.sample_archs(1000, seed=seed)
    macs = SpaceValues(space, {}, counts=True)(archs)["macs"]
    return tuple(archs[int(np.argmin(np.abs(macs - macs.mean())))].tolist())


def ways(
    space: SearchSpace, compact: Arch, data: ImageData, source: str, device: torch.device, args: argparse.Namespace
) -> list[Way]:
    """Every way, plain training of a precision before what stands beside it."""
    given = {"batch_size": args.batch_size, "augment": True}
    images = data.steps("train", args.batch_size) * args.batch_size
    problem = Problem(
        space, (Objective("error"), Objective("macs")), cheap_values=SpaceValues(space, {}, counts=True)
    )  # fmt: skip
    shape = (3, 32, 32)

    def plain(precision: str) -> Way:
        def train(epochs: int, tick: Callable[[], None]) -> None:
            recipe = Recipe.make({**given, "epochs": epochs, "precision": precision})
            module, generator = fresh_module(space.network(compact), args.seed, device=device)
            with repeatable(device):
                done = fit_module(
                    module, data, recipe, generator=generator, shape=shape, on_epoch=lambda _: tick()
                )  # fmt: skip
            ended(done.ok)

        return Way("plain training", precision, images, images, train)

    def moga(precision: str) -> Way:
        def train(epochs: int, tick: Callable[[], None]) -> None:
            recipe = Recipe.make({**given, "epochs": epochs, "precision": precision}, RECIPE)
            supernet = space.supernet(seed=args.seed).to(memory_format=torch.channels_last)
            initialise(supernet, torch.Generator().manual_seed(args.seed), bn_momentum=recipe.bn_momentum)
            training = SupernetTraining(supernet.to(device), data, recipe, shape=shape, seed=args.seed)
            with repeatable(device):
                for _ in range(epochs):
                    ended(training.run_epoch())
                    tick()

        return Way("moga: supernet, strict fairness", precision, images, images * max(space.num_choices), train)

    def proxyless(mode: str | None) -> Way:
        steps = data.halves(args.seed).steps("weights", args.batch_size)
        every = min(5, steps)

        def train(epochs: int, tick: Callable[[], None]) -> None:
            warmup = 0 if mode else epochs
            options = {"data": source, "batch_size": args.batch_size, "warmup": warmup, "epochs": epochs - warmup}
            options |= {"mode": mode or "recompute", "alpha_every": every, "threads": args.threads, "paths": PATHS}
            searcher = make_searcher("proxyless", problem, args.seed, {**options, "train_on": str(device)})
            with repeatable(device):
                while searcher.advance():
                    tick()

        name = f"proxyless: weights and α, {mode}" if mode else "proxyless: weights"
        of_alpha = steps // every if mode else 0
        networks = {"recompute": max(space.num_choices), "two-path": 2, "reinforce": PATHS}.get(mode or "", 1)
        images, passes = steps + of_alpha, steps + of_alpha * networks
        return Way(name, "f32", images * args.batch_size, passes * args.batch_size, train)

    out = [plain("f32"), *map(proxyless, (None, "recompute", "two-path", "reinforce")), moga("f32")]
    return out if args.precision == "f32" else [*out, plain(args.precision), moga(args.precision)]


def timed(way: Way, device: torch.device, args: argparse.Namespace) -> list[float]:
    """Passes a second in each epoch but the first."""
    marks: list[float] = []

    def tick() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    with threads(args.threads):
        way.train(1 + args.repeats, tick)
    return [way.passes / float(s) for s in np.diff(marks)]


def ended(ok: bool) -> None:
    """Ends the program where a training diverged."""
    if not ok:
        raise SystemExit("gpu_throughput: a loss is not finite: what is timed would be no training")


if __name__ == "__main__":
    main()
