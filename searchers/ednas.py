"""E-DNAS: sizes of meta-kernels by gradient descent, under a latency budget, for devices that run them merged.

López, Sanchez-Riera, Moreno-Noguer, "E-DNAS: Differentiable Neural Architecture Search for Embedded Systems", ICPR
2020. Each iteration trains the weights on one half of the data, both meta-kernels each in a network of its own with
sizes mixed by Gumbel-softmax (eq. 15), feeds the better one back into both (eq. 3 and 4), and then moves the
architecture parameters on the other half by ``CE + β E[latency]`` (eq. 11–13). The network is in
:mod:`latbench.metakernels`; what a distribution over sizes costs in :mod:`latbench.searchers.ednas_costs`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.errors import ConfigError
from latbench.image_data import ImageData
from latbench.latency_loss import LatencyLoss
from latbench.metakernels import FIRST, SECOND, MetaKernels, Shares, gumbel_softmax
from latbench.network import Network
from latbench.problem import Problem
from latbench.searcher import whole_option
from latbench.space import Arch
from latbench.spaces.metakernel import KERNELS, MetaKernel
from latbench.training import Recipe, device_of, initialise, make_optimiser, score
from latbench.training_setup import training_device
from latbench.with_torch import F, Tensor, torch

from .deriving import derive
from .ednas_costs import PairCosts, by_size, of_larger, sizes
from .relaxed import Relaxed, judged

Floats = npt.NDArray[np.float64]
COUNTED = ("merged", "sum")
#: The learning rate at which the network that was found is trained on; 0.65 is for a search from scratch.
_TUNE_LR = 0.1


class Ednas(Relaxed):
    """Searches a ``metakernel`` space; what it proposes first is the network that it derived.

    It trains ``epochs`` on ``data`` (images, or as :func:`latbench.image_data.load_images` names them; a search gives
    those that its accuracy is of): the weights by SGD with a cosine from ``lr`` 0.65 and ``warmup`` epochs of linear
    rise, the paper's; the architecture parameters by Adam (``arch_lr``). The temperature falls geometrically from
    ``temperature`` to ``last_temperature``. ``weight`` is β, per unit of ``target`` (by default the limit, else what
    random networks cost on average), of ``cost`` (by default the objectives that a model predicts).
    ``counted="merged"`` weighs the expected cost of merged kernels, ``"sum"`` the paper's ``Σ pᵢ LAT(opᵢ)``; the course
    has both, ``latency_ms`` and ``latency_sum_ms``.

    Then the architecture that :func:`~latbench.searchers.deriving.derive` gives, which keeps all hard limits, is
    trained on for ``tune`` epochs, both meta-kernels in parallel, and merged (eq. 5): with a folder it is in
    ``deployed.onnx`` with its weights. It is proposed first, the next ones after it, each deployed network once.
    ``train_on`` is ``auto``, ``cpu`` or ``cuda``.

    Raises :class:`ConfigError` for another space, data of another number of classes, or an option out of range;
    :class:`~latbench.errors.InfeasibleError` where no network that keeps the limits is found, and
    :class:`~latbench.errors.SearchError` where the loss diverges.
    """

    name = "ednas"

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        data: str | ImageData = "digits",
        epochs: int = 30,
        tune: int = 8,
        batch_size: int = 50,
        lr: float = 0.65,
        warmup: int = 2,
        arch_lr: float = 0.05,
        weight: float = 0.1,
        counted: str = "merged",
        temperature: float = 5.0,
        last_temperature: float = 0.1,
        cost: str | Sequence[str] | None = None,
        target: float | None = None,
        threads: int = 1,
        train_on: str = "auto",
    ) -> None:
        space = problem.space
        if not isinstance(space, MetaKernel) or not space.params["merged"]:
            raise ConfigError(f"{self.name} searches the space metakernel, with merged=true; not {space!r}")
        if counted not in COUNTED:
            raise ConfigError(f"{self.name}: counted is {' or '.join(COUNTED)}, not {counted!r}")
        rates = {"lr": lr, "arch_lr": arch_lr, "temperature": temperature, "last_temperature": last_temperature}
        for option, value in {**rates, "weight": weight}.items():
            least = 0.0 if option == "weight" else 1e-12
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < inf:
                raise ConfigError(f"{self.name}: {option} must be a positive number, got {value!r}")
        pairs, self.by_size = by_size(problem, space)
        whole = {n: whole_option(self.name, n, v, 1) for n, v in (("epochs", epochs), ("tune", tune))}
        super().__init__(
            pairs, seed=seed, data=data, epochs=whole["epochs"] + whole["tune"], batch_size=batch_size, cost=cost,
            target=target, threads=threads,
        )  # fmt: skip
        self.space, self.tune, self.searching = space, tune, epochs
        self.warmup, self.weight, self.rates = whole_option(self.name, "warmup", warmup, 0), weight, rates
        self.costs = self.paired = PairCosts(self.name, self.by_size, cost, target, counted)
        self._device = training_device(train_on)
        self.schedule = f"epochs={epochs}, lr={lr:g} now"
        self._shares: Shares = (0.5, 0.5)
        self._deployed: Network | None = None

    def stage(self, epoch: int) -> str:
        """``training what was found`` after the search."""
        return "training what was found" if epoch > self.searching else ""

    @property
    def temperature(self) -> float:
        """Of the epoch that comes next: falls geometrically while it searches."""
        first, last = self.rates["temperature"], self.rates["last_temperature"]
        return float(first * (last / first) ** (self.epoch / max(self.searching - 1, 1)))

    # -- training -----------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Weights, architecture parameters and the optimisers of both."""
        self._halves = self.data.halves(self.seed)
        self._module = MetaKernels(MetaKernel(**{**self.space.params, "dtype": "f32", "batch": 1}))
        initialise(self._module, torch.Generator().manual_seed(self.seed))
        self._module.to(self._device)
        self._logits = torch.tensor(np.stack(self.alpha), requires_grad=True)
        self._architecture = torch.optim.Adam([self._logits], self.rates["arch_lr"], betas=(0.5, 0.999))
        self._make_optimiser()

    def _make_optimiser(self) -> None:
        """Cosine from 0.65 with a warm-up while it searches, as in the paper; one cycle while it tunes."""
        if self.epoch < self.searching:
            part, recipe = "weights", Recipe(self.searching, self.batch_size, self.rates["lr"], schedule="cosine")
        else:
            part, recipe = "train", Recipe(self.tune, self.batch_size, _TUNE_LR)
        steps = self._halves.steps(part, self.batch_size)
        self._weights, self._schedule = make_optimiser(
            self._module, recipe, steps * recipe.epochs, warmup=steps * self.warmup if part == "weights" else 0
        )

    def train_epoch(self, rng: np.random.Generator, generator: torch.Generator) -> Mapping[str, float]:
        """An epoch of the search, or of the training of what it found."""
        return self._search_epoch(generator) if self.epoch < self.searching else self._tune_epoch(generator)

    def _search_epoch(self, generator: torch.Generator) -> Mapping[str, float]:
        module, temperature, total, steps = self._module.train(), self.temperature, 0.0, 0
        halves = [
            self._halves.batches(part, self.batch_size, self.shape, generator) for part in ("weights", "architecture")
        ]
        each = min(self._halves.steps(part, self.batch_size) for part in ("weights", "architecture"))
        for train, judge in self.told(zip(*halves, strict=False), each):
            losses = self._losses(train, gumbel_softmax(self._logits.detach(), temperature, generator))
            mean = (losses[0] + losses[1]) / 2
            if not isfinite(float(mean.detach())):
                return {"loss": nan}
            self._step(mean)
            self._shares = module.feed_back((float(losses[0].detach()), float(losses[1].detach())))
            total, steps = total + float(mean.detach()), steps + 1

            losses = self._losses(judge, gumbel_softmax(self._logits, temperature, generator))
            mean = (losses[0] + losses[1]) / 2
            if not isfinite(float(mean.detach())):
                return {"loss": nan}
            loss = self._with_costs(mean, seed=1000 * self.epoch + steps)
            (self._logits.grad,) = torch.autograd.grad(loss, [self._logits])
            self._architecture.step()
        self.alpha = list(self._logits.detach().numpy().copy())
        return {"loss": total / steps, "accuracy": self._accuracy(), "temperature": temperature}

    def _tune_epoch(self, generator: torch.Generator) -> Mapping[str, float]:
        """With the sizes that were found, and both meta-kernels in parallel, each with its share."""
        if self.epoch == self.searching:
            self._make_optimiser()
            self._derived = (self._probable(1, frozenset()) or self._unseen.draw(1, frozenset()))[0]
        arch, total, steps = self.derived, 0.0, 0
        module, mixes = self._module.train(), _one_hot(arch)
        batches = self._halves.batches("train", self.batch_size, self.shape, generator)
        for x, y in self.told(batches, self._halves.steps("train", self.batch_size)):
            loss = self._loss(x, y, mixes, self._shares)
            self._step(loss)
            total, steps = total + float(loss.detach()), steps + 1
        row = {"loss": total / steps}
        if self.epoch + 1 == self.epochs:
            self._deployed = module.eval().deployed(arch, self._shares)
            error, _ = score(self._deployed.to_torch(), self.data, "validation", shape=self.shape)
            row["error"] = error
            if self.folder is not None:
                _write_onnx(self._deployed, self.folder / "deployed.onnx")
        return row

    def _step(self, loss: Tensor) -> None:
        self._weights.zero_grad(set_to_none=True)
        loss.backward()
        self._weights.step()
        self._schedule.step()

    def _losses(self, batch: tuple[Tensor, Tensor], mixes: Tensor) -> tuple[Tensor, Tensor]:
        """Of the network of all first meta-kernels, and of that of all second ones: L₁ and L₂ of eq. 4."""
        return self._loss(*batch, mixes, FIRST), self._loss(*batch, mixes, SECOND)

    def _loss(self, x: Tensor, y: Tensor, mixes: Tensor, shares: Shares) -> Tensor:
        device = device_of(self._module)
        return F.cross_entropy(self._module(x.to(device), mixes.to(device, torch.float32), shares), y.to(device))

    def _with_costs(self, error: Tensor, seed: int) -> Tensor:
        """``CE + β E[cost] / target`` (eq. 11)."""
        if not self.costs:
            return error
        ratio = self.paired.ratio(self._logits.softmax(1), seed)
        return LatencyLoss("additive", 1.0, self.weight)(error.double().cpu(), ratio)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _accuracy(self) -> float:
        """Of the most probable sizes on the architecture's half, merged, with weights as they are."""
        arch = tuple(int(np.argmax(a)) for a in self.alpha)
        module, right, n = self._module.eval(), 0, 0
        mixes, device = _one_hot(arch), device_of(module)
        for x, y in judged(self._halves, self.batch_size, self.shape):
            out = module(x.to(device), mixes.to(device), self._shares).cpu()
            right, n = right + int((out.argmax(1) == y).sum()), n + len(y)
        return right / n

    def tensors(self) -> dict[str, Any]:
        """Weights, optimisers, and how both meta-kernels are weighed."""
        return {
            "module": self._module.state_dict(), "shares": list(self._shares), "weights": self._weights.state_dict(),
            "schedule": self._schedule.state_dict(), "architecture": self._architecture.state_dict(),
        }  # fmt: skip

    def load(self, tensors: Mapping[str, Any]) -> None:
        """The inverse of :meth:`tensors`."""
        first, second = tensors["shares"]
        self._shares = float(first), float(second)
        self._module.load_state_dict(tensors["module"])
        self._architecture.load_state_dict(tensors["architecture"])
        if self.epoch != self.searching:
            # At the turn from searching to tuning those of the search have done their work.
            self._weights.load_state_dict(tensors["weights"])
            self._schedule.load_state_dict(tensors["schedule"])

    # -- what was found -----------------------------------------------------------------------------------------

    @property
    def derived(self) -> Arch:
        """The likeliest pairs of the likeliest sizes that keep the limits. Raises :class:`ConfigError` before the
        search has come to its end."""
        if self._derived is None:
            raise ConfigError(f"{self.name}: nothing is derived yet; call advance() until it is false")
        return self._derived

    def deployed(self) -> Network:
        """The derived network with its trained weights, meta-kernels merged: that of ``deployed.onnx``.

        Raises :class:`ConfigError` before training is finished.
        """
        if self._deployed is None and self.epoch >= self.epochs and self.folder is not None:
            self._deployed = Network.from_onnx(self.folder / "deployed.onnx")
        if self._deployed is None:
            raise ConfigError(f"{self.name}: nothing is trained to be deployed yet; call advance() until it is false")
        return self._deployed

    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` networks by falling probability that keep the limits, each merged network once."""
        known = {sizes(a) for a in self._seen}
        out = [self._derived] if self._derived is not None and sizes(self._derived) not in known else []
        known.update(map(sizes, out))
        out += self._probable(n - len(out), known)
        known.update(map(sizes, out))
        tried = {*self._seen, *out}
        while len(out) < n:
            more: list[Arch] = []
            self._unseen.fill(more, n - len(out), tried, feasible=bool(self._seen or out))
            if not more:
                break
            tried.update(more)
            for arch in more:
                if sizes(arch) not in known:
                    known.add(sizes(arch))
                    out.append(arch)
        self._seen.update(out)
        return out

    def _probable(self, n: int, known: Set[Arch]) -> list[Arch]:
        """Up to ``n`` networks of other sizes than the ``known`` ones that keep the limits, the likeliest first."""
        scores, pairs = self._of_sizes()
        larger = of_larger(torch.from_numpy(np.stack(self.probabilities()))).numpy()
        found = derive(self.by_size, list(scores), self.costs.of_limits(list(larger)), n, known)
        return [tuple(c for layer, s in zip(pairs, arch, strict=True) for c in layer[s]) for arch in found]

    def _of_sizes(self) -> tuple[Floats, list[list[Arch]]]:
        """(layers, sizes) log-probability of the likeliest pair that merges to a size, and those pairs."""
        logs = [a - np.logaddexp.reduce(a) for a in self.alpha]
        n, layers = len(KERNELS), len(logs) // 2
        scores, pairs = np.full((layers, n), -inf), list[list[Arch]]()
        for i in range(layers):
            each = logs[2 * i][:, None] + logs[2 * i + 1]
            best = [max((each[a, b], (a, b)) for a in range(n) for b in range(n) if max(a, b) == s) for s in range(n)]
            scores[i] = [value for value, _ in best]
            pairs.append([pair for _, pair in best])
        return scores, pairs


def _one_hot(arch: Arch) -> Tensor:
    return F.one_hot(torch.tensor(arch), len(KERNELS)).float()


def _write_onnx(net: Network, file: Path) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_bytes(net.to_onnx().SerializeToString())
    os.replace(part, file)
