"""What searchers share that learn weights and architecture parameters by gradients, by turns, an epoch a piece.

The training images are split in two halves: weights learn from one, architecture parameters α from the other. α has one
number for each choice of each position, and a softmax makes probabilities of it. After the last epoch the most probable
architectures are proposed, those first that were learnt, and trained from scratch by the accuracy evaluator.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import cos, isfinite, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from latbench.errors import SearchError
from latbench.image_data import Halves, ImageData, Shape, load_images
from latbench.problem import Candidate, Problem
from latbench.searcher import Searcher, numbers, whole_option
from latbench.space import Arch
from latbench.telling import Pace, about, told

from .costs import Costs
from .deriving import derive, usable_choices
from .sampling import Unseen, as_archs, check_state

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
T = TypeVar("T")
#: At most so many held-out images tell each epoch how good the most probable network is.
JUDGED = 5000
#: The least share of the way from chance to no error that shared weights must have come, at best in the last epochs.
LEARNT, LAST = 0.15, 3


class Relaxed(Searcher):
    """A searcher that trains by itself before it proposes anything; see the module.

    Subclasses implement :meth:`make`, :meth:`train_epoch`, :meth:`tensors` and :meth:`load`, and call :meth:`_begin`
    in their constructor. The state's small part is JSON; weights and optimisers are files in :attr:`folder`, as long
    as training lasts.
    """

    pick_words: ClassVar = {
        "derived": "the most probable network that keeps the limits, which the method ends with; those beside it were "
        "evaluated as the next most probable"
    }
    #: The options that say how long and how fast it trains, and what they are now.
    schedule: str = ""

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        data: str | ImageData,
        epochs: int,
        batch_size: int,
        cost: str | Sequence[str] | None,
        target: float | None,
        threads: int,
    ) -> None:
        super().__init__(problem, seed=seed)
        self.epochs = whole_option(self.name, "epochs", epochs, 0)
        self.batch_size = whole_option(self.name, "batch_size", batch_size, 2)
        self.threads = whole_option(self.name, "threads", threads, 1)
        #: The data set, and (channels, height, width) of the images that the space takes.
        self.data = load_images(data) if isinstance(data, str) else data
        self.shape = _shape(problem, self.data)
        self.costs = Costs(self.name, problem, cost, target)
        self.usable = usable_choices(problem)
        rng = np.random.default_rng([seed, 0xA1FA])
        #: α, one array per position; −∞ for choices that a device does not support.
        self.alpha: list[Floats] = [
            np.where(row, rng.normal(0.0, 1e-3, len(row)), -np.inf) for row in self.usable
        ]  # fmt: skip
        self.epoch = 0
        self._pace = Pace()
        self._seen: set[Arch] = set()
        self._derived: Arch | None = None
        self._unseen = Unseen(problem, seed)
        self._made = False
        self._files: tuple[str | None, str | None] = (None, None)
        self._elsewhere: str | None = None

    # -- what a method adds -------------------------------------------------------------------------------------

    @abstractmethod
    def make(self) -> None:
        """Make modules and optimisers, from the seed."""

    @abstractmethod
    def train_epoch(self, rng: np.random.Generator, generator: torch.Generator) -> Mapping[str, float]:
        """Train one epoch, the one after :attr:`epoch`; all chance comes from these two.

        Gives ``loss`` and ``accuracy``, and what else belongs into the course.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Any]:
        """All that training changes besides α: tensors, numbers and texts in dicts and lists."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Any]) -> None:
        """Take back :meth:`tensors`."""

    def probabilities(self) -> list[Floats]:
        """softmax(α), one array per position."""
        return [softmax(a) for a in self.alpha]

    # -- the contract -------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Train an epoch and add its row to the course: epoch, loss, accuracy, entropy, and each expected cost.

        ``entropy`` is the mean over positions of the choices' entropy in nats. Raises :class:`SearchError` where the
        loss is no longer a number.
        """
        if self.epoch >= self.epochs:
            return False
        import torch

        from latbench.training import threads

        self._ready()
        seeds = np.random.SeedSequence([self.seed, self.epoch]).generate_state(2)
        with threads(self.threads):
            row = self.train_epoch(
                np.random.default_rng(int(seeds[0])), torch.Generator().manual_seed(int(seeds[1]))
            )  # fmt: skip
        if not all(isfinite(x) for x in row.values()):
            raise SearchError(
                f"{self.name}: in epoch {self.epoch + 1} training gave {dict(row)}; try lower learning rates"
            )
        self.epoch += 1
        p = self.probabilities()
        entropy = float(np.mean([-(q[q > 0] * np.log(q[q > 0])).sum() for q in p]))
        self.course.append({"epoch": self.epoch, **row, "entropy": entropy, **self.costs.expected(p, self.epoch)})
        return True

    def stage(self, epoch: int) -> str:
        """What an epoch, counted from 1, is for, where that is worth a word."""
        return ""

    def told(self, batches: Iterable[T], steps: int) -> Iterator[T]:
        """The batches of an epoch, of which there are ``steps``; where it takes long, a search hears how far it is."""
        what = f"{self.name}: epoch {self.epoch + 1} of {self.epochs}"
        return told(batches, what, self.report, total=steps, further=steps * (self.epochs - self.epoch - 1))

    def line(self, row: Mapping[str, float]) -> str:
        """``proxyless: epoch 3 of 160 (warm-up), loss 2.1, …; about 4 min left``."""
        epoch = int(row["epoch"])
        rest = numbers({name: value for name, value in row.items() if name != "epoch"})
        stage = f" ({what})" if (what := self.stage(epoch)) else ""
        left_s = self._pace.left_s(epoch, self.epochs)
        left = f"; {about(left_s)}" if left_s else ""
        return f"{self.name}: epoch {epoch} of {self.epochs}{stage}, {rest}{left}"

    def doubts(self) -> list[str]:
        """That the network of all choices has hardly learnt to tell classes apart: then α was moved by noise.

        So it is where, of what accuracy there is to gain above chance, the last epochs have gained less than a share of
        :data:`LEARNT`.
        """
        told = [row["accuracy"] for row in self.course[-LAST:] if "accuracy" in row]
        if self.epoch < self.epochs or not told:
            return []
        best, chance = max(told), 1 / self.data.classes
        if best >= chance + LEARNT * (1 - chance):
            return []
        return [
            f"{self.name}: after {self.epochs} epochs the network of all choices is right about {best:.1%} of held-out "
            f"images (by chance: {chance:.1%}), too little to tell good choices from bad ones: what was found is no "
            f"better than random networks; train longer or at other learning rates ({self.schedule})"
        ]

    def ask(self, n: int) -> list[Arch]:
        """Up to ``n`` architectures that keep the limits, see :func:`derive`; the first one is the derived one."""
        p = self.probabilities()
        with np.errstate(divide="ignore"):
            scores = [np.log(q) for q in p]
        out = derive(self.problem, scores, self.costs.of_limits(p), n, self._seen)
        self._unseen.fill(out, n, self._seen, feasible=bool(self._seen))
        self._seen.update(out)
        if self._derived is None and out:
            self._derived = out[0]
        return out

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Remember them, so that they are not proposed."""
        self._seen.update(c.arch for c in candidates)

    def picks(self, candidates: Sequence[Candidate]) -> dict[str, Candidate]:
        """``derived``: the most probable network that keeps the limits, the one that the method ends with."""
        return next(({"derived": c} for c in candidates if c.arch == self._derived), {})

    def state(self) -> dict[str, Any]:
        """Plain JSON values, and the name of a file of weights while training is not finished."""
        unfinished = self._made and 0 < self.epoch < self.epochs
        return {
            "searcher": self.name,
            "epoch": self.epoch,
            "alpha": [[x if isfinite(x) else None for x in a.tolist()] for a in self.alpha],
            "weights": self._keep(f"epoch-{self.epoch}.pt" if unfinished else None),
            "seen": [list(a) for a in sorted(self._seen)],
            "derived": None if self._derived is None else list(self._derived),
            "unseen": self._unseen.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`. Raises :class:`FileFormatError` for a file of weights that is damaged."""
        check_state(self.name, state)
        self.epoch, self._made = int(state["epoch"]), False
        self.alpha = [np.array([-np.inf if x is None else x for x in a]) for a in state["alpha"]]
        self._seen = set(as_archs(state["seen"]))
        self._derived = None if state["derived"] is None else tuple(int(c) for c in state["derived"])
        self._unseen.restore(state["unseen"])
        self._files = (None, state["weights"])
        if state["weights"] is not None:
            from latbench.checkpoints import load_tensors

            tensors = load_tensors(self._folder() / state["weights"], identity=self.name)
            self._ready()
            self.load(tensors)

    # -- parts --------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if not self._made:
            from latbench.training import threads

            with threads(self.threads):
                self.make()
            self._made = True

    def _keep(self, name: str | None) -> str | None:
        """Write the file ``name`` unless it is there; keep it and the one that the state before named."""
        before, last = self._files
        if self.folder is None and name is not None:
            # Nobody gave a folder: a place of its own, named in full.
            name = str(self._folder() / name)
        if name is not None and name != last:
            from latbench.checkpoints import save_tensors

            save_tensors(self._folder() / name, self.tensors(), identity=self.name)
        if before is not None and before not in (name, last):
            (self._folder() / before).unlink(missing_ok=True)
        self._files = (last, name)
        return name

    def _folder(self) -> Path:
        if self.folder is not None:
            return self.folder
        if self._elsewhere is None:
            self._elsewhere = tempfile.mkdtemp(prefix="latbench-")
            weakref.finalize(self, shutil.rmtree, self._elsewhere, ignore_errors=True)
        return Path(self._elsewhere)


# -- pieces ---------------------------------------------------------------------------------------------------------


def softmax(a: Floats) -> Floats:
    """Probabilities of logits; 0 for −∞."""
    e = np.exp(a - a.max())
    return np.asarray(e / e.sum())


def _shape(problem: Problem, data: ImageData) -> Shape:
    from latbench.network_training import check_classifier

    return check_classifier(problem.space.network(problem.space.covering_archs()[0]), data.classes, data.name)


def judged(halves: Halves, batch_size: int, shape: Shape) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the architecture's half in its own order, at most :data:`JUDGED` images."""
    return islice(halves.batches("architecture", batch_size, shape), max(1, JUDGED // batch_size))


def cosine(lr: float, done: float) -> float:
    """A learning rate that falls from ``lr`` to 0 along half a cosine; ``done`` is the share of training, 0 to 1."""
    return 0.5 * lr * (1 + cos(pi * done))
