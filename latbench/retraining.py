"""The final stage: found networks trained from scratch by a long recipe, scored on images that no search has seen.

Each network has its files in the run's folder ``retrained``: ``NAME.pt`` with its weights, ``NAME.json`` with what it
reached, and while it is trained ``NAME.RECIPE.part.pt``, from which an interrupted training goes on. What is there
already for the same recipe is not trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latbench.errors import ConfigError, FileFormatError
from latbench.network import Network
from latbench.result import write_atomically
from latbench.space import Arch, file_stem

if TYPE_CHECKING:
    from latbench.device import Device
    from latbench.protocol import Protocol
    from latbench.result import SearchResult
    from latbench.training_evaluators import TrainingEvaluator

FOLDER = "retrained"


@dataclass(frozen=True)
class Retrained:
    """One network after its final training.

    ``values`` are those of the evaluator on the test images (``error``, ``top5_error`` or ``map``), empty where
    training diverged. ``params`` and ``macs`` are those of what was trained (for detection: of the detector).
    ``weights`` is the file's name beside this one's, ``sha256`` its checksum, ``epochs`` how many there were.
    """

    arch: Arch
    recipe: str
    values: Mapping[str, float]
    params: int
    macs: int
    epochs: int
    weights: str
    sha256: str
    #: Measured latency in milliseconds of each device: value, low, high; see :func:`with_latency`.
    measured: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "arch": list(self.arch), "measured": {k: list(v) for k, v in self.measured.items()}}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Retrained:
        """The inverse of :meth:`to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        measured = {str(k): (float(v[0]), float(v[1]), float(v[2])) for k, v in d["measured"].items()}
        values = {str(k): float(v) for k, v in d["values"].items()}
        arch = tuple(int(c) for c in d["arch"])
        return cls(**{**d, "arch": arch, "values": values, "measured": measured})


def retrain(
    result: SearchResult,
    evaluator: TrainingEvaluator,
    folder: str | Path,
    *,
    top: int = 5,
    archs: Sequence[Arch] | None = None,
    on_epoch: Callable[[Arch, dict[str, float]], None] | None = None,
) -> list[Retrained]:
    """Train ``top`` networks of the front, or these ``archs``, by the evaluator's recipe.

    Those of the front are :meth:`~latbench.result.SearchResult.final`: what broke its limit when measured is left out.
    ``folder`` is the run's. The outcome also goes into ``result.provenance["retrained"]``, in place of what was there
    for the same architectures. Under ``torchrun`` the first process writes the files. Raises :class:`ConfigError` where
    there is nothing to train, or for networks that do not fit the data.
    """
    chosen = [result.problem.space.validate(a) for a in archs] if archs else [c.arch for c in result.final(top)]
    if not chosen:
        raise ConfigError("the search found nothing that keeps its limits: name architectures to retrain")
    evaluator.check(result.problem.space)
    out = []
    for arch in dict.fromkeys(chosen):
        done = _one(result, evaluator, Path(folder) / FOLDER, arch, on_epoch)
        out.append(done if evaluator.replaces else with_latency(done, result))
    keep(result, out)
    return out


def keep(result: SearchResult, done: Sequence[Retrained]) -> None:
    """Put these into ``result.provenance["retrained"]``, in place of what was there for the same architectures."""
    others = [d for d in result.provenance.get("retrained", []) if tuple(d["arch"]) not in {r.arch for r in done}]
    result.provenance["retrained"] = [*others, *(r.to_json() for r in done)]


def with_latency(done: Retrained, result: SearchResult) -> Retrained:
    """With the latencies that :func:`latbench.validate.validate` measured for this architecture."""
    seen = {
        v.value: (v.measured.latency_ms, v.measured.low_ms, v.measured.high_ms)
        for v in result.validated
        if v.arch == done.arch and v.measured is not None
    }
    return replace(done, measured={**done.measured, **seen})


def with_own_latency(done: Retrained, folder: str | Path, device: Device, protocol: Protocol | None) -> Retrained:
    """With the latency of the very network that was trained (a detector), measured on an open device now."""
    if not done.weights:
        return done
    m = device.measure(load_network(Path(folder) / FOLDER / done.weights), protocol)
    return replace(done, measured={"latency_ms": (m.latency_ms, m.low_ms, m.high_ms)})


def retrained(folder: str | Path) -> list[Retrained]:
    """What was retrained in a run's folder, by architecture; empty where nothing was.

    Raises :class:`FileFormatError` for a damaged record.
    """
    return sorted((_read(f) for f in (Path(folder) / FOLDER).glob("*.json")), key=lambda r: r.arch)


def retrained_networks(folder: str | Path) -> dict[Arch, Network]:
    """Architecture → its network with the weights of its final training, of those that did not diverge."""
    return {r.arch: load_network(Path(folder) / FOLDER / r.weights) for r in retrained(folder) if r.weights}


def save_network(file: Path, net: Network) -> str:
    """Write a network with its weights; gives the file's SHA-256."""
    from latbench.checkpoints import save_tensors
    from latbench.with_torch import torch

    arrays = {n: {k: torch.from_numpy(np.array(a)) for k, a in w.items()} for n, w in (net.weights or {}).items()}
    save_tensors(file, {"network": net.to_json(), "weights": arrays})
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_network(file: Path) -> Network:
    """What :func:`save_network` wrote. Raises :class:`FileFormatError` for a missing or damaged file."""
    from latbench.checkpoints import load_tensors

    state = load_tensors(file)
    weights = {n: {k: t.numpy() for k, t in w.items()} for n, w in state["weights"].items()}
    return Network.from_json(state["network"]).replace(weights=weights)


def _one(
    result: SearchResult,
    evaluator: TrainingEvaluator,
    folder: Path,
    arch: Arch,
    on_epoch: Callable[[Arch, dict[str, float]], None] | None,
) -> Retrained:
    from latbench.network_training import trained_network
    from latbench.training_setup import share_of_batches

    stem, space = file_stem(arch), result.problem.space
    record = folder / f"{stem}.json"
    if record.exists() and (found := _read(record)).recipe == evaluator.recipe and _intact(folder, found):
        return found
    net = evaluator.network(space.network(arch))
    # Another recipe's checkpoint is of no use here.
    part = folder / f"{stem}.{hashlib.sha256(evaluator.recipe.encode()).hexdigest()[:8]}.part.pt"
    module, fitted = evaluator.train(
        net, checkpoint=part, on_epoch=(lambda row: on_epoch(arch, row)) if on_epoch else None
    )
    values = evaluator.judge(net, module, "test") if fitted.ok else {}
    weights, checksum = "", ""
    first = share_of_batches()[0] == 0
    if values and all(map(isfinite, values.values())):
        net = trained_network(net, module)
        weights = f"{stem}.pt"
        checksum = save_network(folder / weights, net) if first else ""
    else:
        values = {}
    done = Retrained(arch, evaluator.recipe, values, net.params, net.macs, len(fitted.course), weights, checksum)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(done.to_json(), indent=1, allow_nan=False).encode())
        for file in folder.glob(f"{stem}.*.part.pt"):
            file.unlink()
    return done


def _intact(folder: Path, found: Retrained) -> bool:
    if not found.weights:
        return True
    file = folder / found.weights
    return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == found.sha256


def _read(file: Path) -> Retrained:
    try:
        return Retrained.from_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise FileFormatError(f"{file}: damaged, or no record of a final training: {e!r}; remove it") from e
