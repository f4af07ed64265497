"""A new device from ten or twenty measured networks, and what other devices have measured: ``transfer``.

``lb.fit("transfer", space=space, archs=archs, latency_ms=ms, sources={"phone": (archs, ms), …})``, or with a store,
whose other Settings are the sources. Which networks to measure, :func:`latbench.choose_networks` says. Sources give a
prior (:mod:`latbench.predictors.transfer_prior`), the measurements a posterior that may as well believe no source
(:mod:`latbench.predictors.transfer_posterior`); sources in the part of the new device say how far the intervals must
reach (:mod:`latbench.predictors.transfer_errors`, :class:`latbench.conformal.Normalised`). All sources count alike: a
device that was measured in several ways is as many sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from latbench.arch_times import ArchTimes, arch_times
from latbench.card import Card
from latbench.conformal import Normalised
from latbench.errors import (
    ConfigError,
    FileFormatError,
    NotEnoughDataError,
    PredictorError,
    UnknownOpError,
    UnsupportedOpError,
)
from latbench.network import Network
from latbench.predictor import FitData, Predictor
from latbench.predictors import files
from latbench.predictors.network_extrapolation import Growth
from latbench.predictors.transfer_errors import LIMIT, episodes, widest
from latbench.predictors.transfer_extrapolation import Outside
from latbench.predictors.transfer_posterior import LeftOut, Posterior
from latbench.predictors.transfer_prior import Prior, learn
from latbench.space import SearchSpace
from latbench.statistics import widened
from latbench.uncertainty import require
from latbench.visit import ArchEstimates, Estimate, Interval, Part

Floats = npt.NDArray[np.float64]

#: Fewest measured networks that a fit accepts.
MIN_NETWORKS = 5


class Transfer(Predictor):
    """A posterior over the latencies of one space's architectures, and a factor for its intervals."""

    name = "transfer"
    uses_sources: ClassVar[bool] = True
    takes_archs: ClassVar[bool] = True

    def __init__(
        self,
        card: Card,
        posterior: Posterior,
        intervals: Normalised,
        limit: float,
        unsupported: Mapping[str, str],
        outside: Outside | None = None,
    ) -> None:
        # ``limit``: the largest deviation that the intervals follow among networks like the measured ones. Files of
        # earlier versions know no ``outside``: there they follow none that is larger anywhere.
        self.card, self._posterior, self._intervals = card, posterior, intervals
        self._limit, self._outside = limit, outside
        self.unsupported = dict(unsupported)

    @property
    def space(self) -> SearchSpace:
        """The space that it knows."""
        return self._posterior.priors[0].space

    @property
    def source_share(self) -> float:
        """How much the sources have to say against the device's own measurements alone: 0 to 1."""
        return self._posterior.shares[0] if len(self._posterior.priors) > 1 else 0.0

    @property
    def left_out(self) -> LeftOut:
        """What the other measurements say of each one that it was fitted to: logarithms, and deviations."""
        return self._posterior.left_out

    @classmethod
    def fit(cls, data: FitData, *, level: float = 0.9, seed: int = 0, **options: Any) -> Self:
        """Fit to the measured networks, which are of one space, with ``data.sources``.

        ``seed`` draws the rows of the sources that are learnt from.

        Raises :class:`NotEnoughDataError` for fewer than :data:`MIN_NETWORKS` measured networks of a space, or sources
        with too few, and :class:`ConfigError` for an option: it has none.
        """
        if options:
            raise ConfigError(f"transfer has no option {', '.join(options)}; it has none")
        times = arch_times(data)
        if times is None or len(times) < MIN_NETWORKS:
            raise NotEnoughDataError(
                f"transfer: {0 if times is None else len(times)} measured networks of one space; at least "
                f"{MIN_NETWORKS} are needed: {data.card.profile_command}"
            )
        alone = learn(times.space, {}, seed)
        priors = [alone]
        if data.sources:
            known = learn(times.space, data.sources, seed)
            priors = [known.noisier(), alone]
        posterior = Posterior(priors, times.archs, np.log(times.values), rounding(times))
        limit = widest(posterior.left_out)
        own = (posterior.y - posterior.left_out.mean) / np.minimum(posterior.left_out.sd, limit)
        intervals = Normalised.from_left_out(own)
        if data.sources:
            intervals = Normalised.from_devices(own, *episodes(known, alone, data.sources, len(times), seed))
        outside = Outside.of(posterior, intervals.factor(0.9) * limit / LIMIT)
        left_out = np.exp(posterior.left_out.mean) / times.values - 1
        model = {
            "networks": len(times), "sources": {k: len(v) for k, v in data.sources.items()},
            "source_share": posterior.shares[0] if data.sources else 0.0, "noise": posterior.noise,
            "cv_rmspe": float(np.sqrt(np.mean(left_out**2))),
            "extrapolation": {"width_per": asdict(outside.growth), "unknown_choices": list(outside.unknown())},
        }  # fmt: skip
        notes = data.card.notes
        if not data.sources:
            notes = (*notes, "no other device measured this space: fitted to its own measurements alone")
        if lacking := outside.unknown():
            notes = (*notes, f"no measured network has {', '.join(lacking)}: estimates with it are extrapolated")
        card = data.card.replace(
            predictor=cls.name, space=times.space.spec, model=model, intervals=intervals.describe(level), notes=notes
        )
        return cls(card, posterior, intervals, limit, data.unsupported, outside)

    # -- asking it ----------------------------------------------------------------------------------------------

    def predict(self, net: Network, *, level: float = 0.9, max_uncertainty: float | None = None) -> Estimate:
        """Latency of a network of its space.

        Raises :class:`UnknownOpError` for an Op that the space does not have, :class:`PredictorError` for another
        network that is not of the space, :class:`UnsupportedOpError`, and :class:`UncertainError`.
        """
        for name, op in [*((b.name, b.op) for b in net.blocks), *((n.name, n.op) for n in net.nodes)]:
            if op.key in self.unsupported:
                raise UnsupportedOpError(name, self.unsupported[op.key])
        arch = self._arch(net)
        found = self.predict_archs(self.space, [arch], level=level)
        value = float(found.value[0])
        interval = Interval(value, float(found.low[0]), float(found.high[0]))
        part = Part("network", "whole network", 1, value, "estimated", tuple(n.name for n in net.nodes))
        far = () if self._outside is None else self._outside.warnings(self._outside.new([arch])[0])
        warnings = (*far, *self._intervals.warnings(level))
        estimate = Estimate(
            self.setting, {self.metric: interval}, (part,), level, warnings, self.card.statistic, self.metric,
            self._intervals.attainable,
        )  # fmt: skip
        return require(estimate, max_uncertainty, self.card)

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9) -> ArchEstimates:
        """Latencies of an (n, positions) integer array of architectures. Raises :class:`PredictorError` for those of
        another space than it was fitted in."""
        factor = self._intervals.factor(level)
        if space != self.space:
            raise PredictorError(f"transfer: fitted to architectures of {self.space}; these are of {space}")
        mean, sd = self._posterior(archs)
        x = widened(Interval(1.0, np.exp(-1.0), np.exp(1.0)), self.setting.model_error, level)
        own = np.log(x.high) ** 2 - 1  # the simulator's own error as a variance, 0 where the device is no simulator
        if self._outside is None or not len(mean):
            new, half = np.zeros((len(mean), 3)), factor * np.minimum(sd, self._limit)
        else:
            new = self._outside.new(archs)
            half = self._outside.halves(new, sd, self._limit, factor, level)
        half = np.minimum(np.sqrt(half**2 + own), 20.0)
        value = np.exp(mean)
        supported = np.ones(len(value), bool)
        if self.unsupported and len(value):
            keys, counts = space.usage(archs)
            supported = counts @ np.array([k in self.unsupported for k in keys], np.float64) == 0
            value[~supported] = np.nan
        low, high = value * np.exp(-half), value * np.exp(half)
        return ArchEstimates(value, low, high, supported, self.metric, np.asarray(new.any(axis=1)))

    def _arch(self, net: Network) -> list[int]:
        origin = net.origin or {}
        if origin.get("space") == self.space.spec and "arch" in origin:
            return list(origin["arch"])
        known = {op.key for op in self.space.ops()}
        for block in net.blocks:
            if block.op.key not in known:
                raise UnknownOpError(block.op.key, label=block.op.label, remedy=f"it knows networks of {self.space}")
        raise PredictorError(f"transfer: {net.name} is no network of {self.space}, the only ones that it knows")

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write ``card.json`` and ``transfer.npz``: the priors, the measurements and the scores of the intervals."""
        p = self._posterior
        arrays: dict[str, npt.NDArray[Any]] = {
            "archs": p.archs, "y": p.y, "extra": p.extra, **self._intervals.to_arrays(),
            "limit": np.array(self._limit),
            "unsupported": np.array([[k, v] for k, v in self.unsupported.items()], np.str_).reshape(-1, 2),
        }  # fmt: skip
        if self._outside is not None:
            arrays["growth"] = np.array(astuple(self._outside.growth))
        for i, prior in enumerate(p.priors):
            arrays |= {f"prior{i}_{k}": v for k, v in prior.to_arrays().items()}
        folder, _ = files.write_folder(path, self.card, {"transfer.npz": files.npz(**arrays)})
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises :class:`FileFormatError`."""
        from latbench import load_space

        folder = files.read_folder(path, cls.name)
        arrays = folder.arrays("transfer.npz")
        try:
            spec = dict(folder.card.space or {})
            space = load_space(spec.pop("name"), **spec)
            priors = [
                Prior.from_arrays(space, _prefixed(arrays, f"prior{i}_"))
                for i in (0, 1)
                if f"prior{i}_thetas" in arrays
            ]
            archs = space.validate_archs(arrays["archs"])
            posterior = Posterior(priors, archs, arrays["y"].astype(np.float64), arrays["extra"].astype(np.float64))
            # Earlier versions knew no limit.
            limit = float(arrays.get("limit", np.inf))
            lacking = dict(arrays["unsupported"].tolist()) if "unsupported" in arrays else {}
            growth = Growth(*arrays["growth"].tolist()) if "growth" in arrays else None
            outside = None if growth is None else Outside(posterior, growth)
            return cls(folder.card, posterior, Normalised.from_arrays(arrays), limit, lacking, outside)
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise FileFormatError(f"{folder.path}: not a transfer: {e!r}") from e


def rounding(times: ArchTimes) -> Floats:
    """(n,) the variance of each logarithm that rounding to whole units adds; 0 where values are not whole."""
    whole = bool((times.values == np.round(times.values)).all())
    return np.asarray(np.where(whole, 1 / 12 / times.values**2, 0.0), np.float64)


def _prefixed(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
