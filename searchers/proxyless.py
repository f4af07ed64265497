"""ProxylessNAS: one over-parameterised network with binarised paths, its weights and its gates learnt by turns.

Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR 2019. Paths are
sampled by eq. 2; gates learn by eq. 4, or by REINFORCE (section 3.3.2); what the device needs enters through the
expected latency of eq. 5 and 6, by one of the losses of :mod:`latbench.latency_loss` (eq. 7 among them). Constants are
those of the released code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from latbench.errors import ConfigError, SearchError
from latbench.image_data import Digits, ImageData
from latbench.problem import Problem
from latbench.searcher import whole_option
from latbench.space import Arch

from .mixing import check_mixes
from .relaxed import Floats, Relaxed, cosine, judged

if TYPE_CHECKING:
    import torch

    from latbench.latency_loss import LossName

Mode = Literal["recompute", "two-path", "reinforce"]
#: Share of its distance to a step's mean reward by which the baseline moves.
BASELINE_STEP = 0.99
WEIGHT_DECAY, LABEL_SMOOTHING = 4e-5, 0.1


class Proxyless(Relaxed):
    """ProxylessNAS.

    ``mode`` says how α learns: ``recompute``, every choice's gate gets its gradient (appendix D); ``two-path``, those
    of a sampled pair (section 3.2.1), see :meth:`_gradients`; ``reinforce``, ``paths`` sampled networks a step, reward
    accuracy · (target / cost)^``reward_exponent``. ``loss`` weighs the expected cost in the gradient modes,
    ``loss_weight`` and ``loss_exponent`` are its constants (:class:`~latbench.latency_loss.LatencyLoss`). ``cost``
    names what is weighed against accuracy (by default the predicted objectives), ``target`` what it aims at (by default
    the limit on it).

    For ``warmup`` epochs only weights learn, from uniformly chosen paths; in the following ``epochs`` α takes a step of
    Adam every ``alpha_every`` batches. ``lr`` and ``warmup_lr`` are the weights' learning rates, each falling along a
    cosine. ``alpha_lr`` is by default the paper's for the data: 1e-3 on folders of images (ImageNet); on CIFAR 6e-3,
    1e-2 for REINFORCE; on the digits, which give α a hundredth of the steps, ten times that. ``data`` are
    images or what :func:`~latbench.image_data.load_images` takes; a search gives those that its accuracy is of.

    ``train_on`` is a device of torch's, by ``auto`` a GPU where there is one. With one thread on the CPU a search
    repeats bit for bit.

    The most probable network is proposed first, then the next ones that keep the limits, by
    :func:`~latbench.searchers.deriving.derive`; the evaluator trains them.
    Raises :class:`~latbench.errors.ConfigError` for a space whose choices cannot stand in for each other.
    """

    name = "proxyless"

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        data: str | ImageData = "digits",
        mode: Mode = "recompute",
        loss: LossName = "mul-log",
        loss_weight: float | None = None,
        loss_exponent: float = 0.3,
        cost: str | Sequence[str] | None = None,
        target: float | None = None,
        warmup: int = 40,
        epochs: int = 120,
        batch_size: int = 50,
        alpha_every: int = 5,
        alpha_lr: float | None = None,
        lr: float = 0.025,
        warmup_lr: float = 0.05,
        paths: int = 10,
        reward_exponent: float = 0.1,
        threads: int = 1,
        train_on: str = "auto",
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"{self.name}: mode is one of {', '.join(get_args(Mode))}, not {mode!r}")
        self.mode: Mode = mode
        self.warmup = whole_option(self.name, "warmup", warmup, 0)
        whole_option(self.name, "epochs", epochs, 0)
        self.alpha_every = whole_option(self.name, "alpha_every", alpha_every, 1)
        self.paths = whole_option(self.name, "paths", paths, 2)
        rates = {"lr": lr, "warmup_lr": warmup_lr, "alpha_lr": 1e-3 if alpha_lr is None else alpha_lr}
        for option, x in {**rates, "reward_exponent": reward_exponent}.items():
            if isinstance(x, bool) or not isinstance(x, int | float) or not 0 < x < float("inf"):
                raise ConfigError(f"{self.name}: {option} must be a positive number, got {x!r}")
        check_mixes(self.name, problem.space)
        super().__init__(
            problem, seed=seed, data=data, epochs=self.warmup + epochs, batch_size=batch_size, cost=cost, target=target,
            threads=threads,
        )  # fmt: skip
        self.lr, self.warmup_lr, self.reward_exponent = float(lr), float(warmup_lr), float(reward_exponent)
        self.alpha_lr = _alpha_lr(self.data, mode) if alpha_lr is None else float(alpha_lr)
        from latbench.latency_loss import LatencyLoss

        self.train_on = train_on
        # The digits' short trainings go without.
        self._augment = not isinstance(self.data, Digits)
        self.loss = LatencyLoss(loss, self.costs.target, loss_weight, loss_exponent)
        self._baseline: float | None = None

        self.schedule = f"warmup={warmup}, epochs={epochs}, warmup_lr={warmup_lr:g}, lr={lr:g} now"

    def stage(self, epoch: int) -> str:
        """``warm-up`` while α is frozen."""
        return "warm-up" if epoch <= self.warmup else ""

    # -- what training needs ------------------------------------------------------------------------------------

    def make(self) -> None:
        """The supernet with fresh weights, both optimisers."""
        import torch

        from latbench.training import initialise
        from latbench.training_setup import training_device

        self._halves = self.data.halves(self.seed)
        self._where = training_device(self.train_on)
        self.supernet = self.problem.space.supernet(seed=self.seed)
        initialise(self.supernet, torch.Generator().manual_seed(self.seed))
        self.supernet.to(self._where, memory_format=torch.channels_last)
        self._sgd = torch.optim.SGD(
            self.supernet.parameters(), self.warmup_lr, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        # The same memory: a step of Adam changes α.
        self._alphas = [torch.from_numpy(a) for a in self.alpha]
        # With β₁ = 0 a choice without a gradient stays where it is.
        self._adam = torch.optim.Adam(self._alphas, self.alpha_lr, betas=(0.0, 0.999))

    def tensors(self) -> dict[str, Any]:
        """Weights, both optimisers, REINFORCE's baseline."""
        return {
            "supernet": self.supernet.state_dict(),
            "sgd": self._sgd.state_dict(),
            "adam": self._adam.state_dict(),
            "baseline": self._baseline,
        }

    def load(self, tensors: Mapping[str, Any]) -> None:
        """Take back :meth:`tensors`."""
        self.supernet.load_state_dict(tensors["supernet"])
        self._sgd.load_state_dict(tensors["sgd"])
        self._adam.load_state_dict(tensors["adam"])
        self._baseline = tensors["baseline"]

    # -- an epoch -----------------------------------------------------------------------------------------------

    def train_epoch(self, rng: np.random.Generator, generator: torch.Generator) -> Mapping[str, float]:
        """A pass over the weights' half; after the warm-up an α step every few batches, on the other half.

        ``accuracy`` is that of the most probable network with the shared weights, on the other half, its batch norms on
        the batch's own statistics.
        """
        steps = self._halves.steps("weights", self.batch_size)
        every = min(self.alpha_every, steps)
        held_out = self._held_out(generator)
        losses = []
        batches = self._halves.batches("weights", self.batch_size, self.shape, generator, self._augment)
        for step, (x, y) in enumerate(self.told(batches, steps)):
            losses.append(self._weight_step(x, y, rng, step / steps))
            if self.epoch >= self.warmup and (step + 1) % every == 0:
                number = self.epoch * steps + step
                self._alpha_step(*next(held_out), rng, number)
        return {"loss": float(np.mean(losses)), "accuracy": self._accuracy()}

    def _weight_step(self, x: torch.Tensor, y: torch.Tensor, rng: np.random.Generator, part: float) -> float:
        """Train the weights of one sampled path."""
        from latbench.with_torch import F

        from .binary_paths import sample_path

        warm = self.epoch < self.warmup
        begun, length = (0, self.warmup) if warm else (self.warmup, self.epochs - self.warmup)
        for group in self._sgd.param_groups:
            group["lr"] = cosine(self.warmup_lr if warm else self.lr, (self.epoch - begun + part) / length)
        self.supernet.train()
        self._sgd.zero_grad(set_to_none=True)
        out = self.supernet(x.to(self._where), sample_path(self.probabilities(), rng))
        loss = F.cross_entropy(out, y.to(self._where), label_smoothing=LABEL_SMOOTHING)
        if not isfinite(float(loss.detach())):
            raise SearchError(f"{self.name}: in epoch {self.epoch + 1} the loss is {loss}; try a lower learning rate")
        loss.backward()
        self._sgd.step()
        return float(loss.detach())

    def _alpha_step(self, x: torch.Tensor, y: torch.Tensor, rng: np.random.Generator, number: int) -> None:
        from latbench.with_torch import torch

        from .binary_paths import keep_others, only_architecture, sample_pair, sample_path

        before, probs, pairs = [a.copy() for a in self.alpha], self.probabilities(), None
        with only_architecture(self.supernet):
            if self.mode == "reinforce":
                gradients = self._reinforce(x, y, probs, [sample_path(probs, rng) for _ in range(self.paths)])
            else:
                if self.mode == "two-path":
                    pairs = [sample_pair(p, rng) for p in probs]
                    probs = [_among(p, pair) for p, pair in zip(probs, pairs, strict=True)]
                gradients = self._gradients(x, y, probs, sample_path(probs, rng), number)
        if not all(np.isfinite(g).all() for g in gradients):
            raise SearchError(
                f"{self.name}: in epoch {self.epoch + 1} the gradients of α are no numbers; try lower learning rates"
            )
        for tensor, g in zip(self._alphas, gradients, strict=True):
            tensor.grad = torch.from_numpy(g)
        self._adam.step()
        if pairs is not None:
            for a, old, pair in zip(self.alpha, before, pairs, strict=True):
                keep_others(a, old, pair)

    def _gradients(
        self, x: torch.Tensor, y: torch.Tensor, probs: Sequence[Floats], active: Arch, number: int
    ) -> list[Floats]:
        """∂loss/∂α for one batch: eq. 4 of the gates' gradients and of the expected cost's own (eq. 5 and 6).

        ``probs`` are those of the choices between which α decides now; 0 for others. In two-path mode these are pairs
        (i, j) whose probabilities q sum to one, as if there were no other choices (section 3.2.1), for the cost as for
        the gates, as in the released code: cost F then gives ``∂E/∂α_i = q_i q_j (F_i − F_j)``. That is the gradient
        among the networks of the sampled pairs, not an unbiased estimate of eq. 6: averaged over pairs, each counts
        P(i, j) / (p_i + p_j)² times what it does there, once for two choices, and for none against its sign.
        """
        from latbench.with_torch import F, torch

        from .binary_paths import Gates, alpha_gradient

        choices = self.problem.space.num_choices
        gates = Gates(active, [np.flatnonzero(p).tolist() for p in probs], choices)
        out = self.supernet(x.to(self._where), active, mix=gates.mixers())
        loss = F.cross_entropy(out, y.to(self._where))
        leaves = [torch.from_numpy(p.copy()).requires_grad_() for p in probs]
        if self.costs:
            expected = self.costs.expected_ratio(leaves, number) * self.loss.target
            loss = self.loss(loss.double().cpu(), expected)
        loss.backward()
        own = [np.zeros(len(p)) if t.grad is None else t.grad.numpy() for p, t in zip(probs, leaves, strict=True)]
        return [alpha_gradient(p, g + c) for p, g, c in zip(probs, gates.gradients, own, strict=True)]

    def _reinforce(
        self, x: torch.Tensor, y: torch.Tensor, probs: Sequence[Floats], archs: Sequence[Arch]
    ) -> list[Floats]:
        """−∇J(α) ≈ −1/M Σ_m (R_m − baseline) ∇ log p(arch_m), from the accuracies of M networks on one batch."""
        rewards = self._rewards(x, y, archs)
        mean = float(rewards.mean())
        self._baseline = mean if self._baseline is None else self._baseline + BASELINE_STEP * (mean - self._baseline)
        out = []
        for i, p in enumerate(probs):
            score = -np.repeat(p[None], len(archs), axis=0)
            score[np.arange(len(archs)), [a[i] for a in archs]] += 1
            out.append(-((rewards - self._baseline) @ score) / len(archs))
        return out

    def _rewards(self, x: torch.Tensor, y: torch.Tensor, archs: Sequence[Arch]) -> Floats:
        """Accuracy on the batch, times (target / cost)^exponent."""
        from latbench.with_torch import torch

        x, y = x.to(self._where), y.to(self._where)
        with torch.no_grad():
            right = np.array([float((self.supernet(x, a).argmax(1) == y).double().mean()) for a in archs])
        return right * self.costs.ratios(archs) ** -self.reward_exponent if self.costs else right

    def _accuracy(self) -> float:
        from latbench.with_torch import torch

        from .binary_paths import only_architecture

        best = tuple(int(np.argmax(a)) for a in self.alpha)
        right = total = 0
        with only_architecture(self.supernet), torch.no_grad():
            for x, y in judged(self._halves, self.batch_size, self.shape):
                right += int((self.supernet(x.to(self._where), best).argmax(1).cpu() == y).sum())
                total += len(y)
        return right / total

    def _held_out(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from self._halves.batches("architecture", self.batch_size, self.shape, generator)


def _among(p: Floats, pair: Sequence[int]) -> Floats:
    """Probabilities renormalised over a pair; 0 for others."""
    out = np.zeros(len(p))
    out[list(pair)] = p[list(pair)] / p[list(pair)].sum()
    return out


def _alpha_lr(data: ImageData, mode: Mode) -> float:
    cifar = 1e-2 if mode == "reinforce" else 6e-3
    return {"images": 1e-3, "digits": 10 * cifar}.get(data.name.split()[0], cifar)
