"""Intervals without assuming how errors are distributed: jackknife+ on relative residuals.

A latency model is calibrated on ``n`` measured networks. Refitting it ``n`` times, each time without one network, gives
residuals that no fit has seen. The jackknife+ (Barber, Candès, Ramdas and Tibshirani 2021, "Predictive inference with
the jackknife+", Annals of Statistics 49, section 1.1) makes an interval of them with the finite-sample quantile. For
networks exchangeable with those of the calibration its theorem 1 guarantees coverage of at least 1 − 2α at level 1 − α:
80 % at 90 %; typically it reaches about 1 − α. Two things here are not that theorem's: residuals are relative, so that
an interval is a pair of factors that multiplies the estimate and costs two multiplications an architecture, and the
factors are medians over the calibration networks instead of computed anew at each point. The held-out networks of a
validation show what is reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.errors import ConfigError, NotEnoughDataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Conformal:
    """Interval factors from leave-one-out fits.

    ``residuals`` (n,): |measured / predicted − 1| of each network by the fit that left it out. ``ratios`` (n, m): the
    prediction of that fit at m reference networks over the prediction of the full fit: how far the fit itself moves.
    ``extra`` widens every residual (in relative terms), for estimates that rest on more than the calibration saw.
    """

    residuals: Floats
    ratios: Floats

    @classmethod
    def from_fits(cls, measured: npt.ArrayLike, left_out: npt.ArrayLike, full: npt.ArrayLike) -> Conformal:
        """Of the n networks' ``measured`` (n,), the predictions of the fit without network i at all networks in
        row i of ``left_out`` (n, n), and those of the fit with all networks, ``full`` (n,); any one unit.

        Raises :class:`NotEnoughDataError` without networks.
        """
        y, loo, mu = (np.asarray(a, np.float64) for a in (measured, left_out, full))
        if not len(y):
            raise NotEnoughDataError("an interval needs at least one calibration network")
        return cls(np.abs(y / np.diagonal(loo) - 1), loo / mu)

    def factors(self, level: float = 0.9, *, extra: float = 0.0) -> tuple[float, float]:
        """``(low, high)`` that multiply an estimate: its interval at ``level``, 0 < low ≤ 1 ≤ high.

        Jackknife+ at each reference network, then the median over them, in the place of an interval computed from the
        fits' predictions at the point that is asked for. Where n is too small for the level, the largest
        residual is used (see :meth:`enough`).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level: an interval's level is between 0 and 1, not {level}")
        n = len(self.residuals)
        r = np.hypot(self.residuals, extra)[:, None]
        # The k-th smallest, counted from 1, clipped to what there is.
        low = min(max(floor((1 - level) * (n + 1) + 1e-9), 1), n) - 1
        high = min(ceil(level * (n + 1) - 1e-9), n) - 1
        lows = np.sort(self.ratios * (1 - r), axis=0)[low]
        highs = np.sort(self.ratios * (1 + r), axis=0)[high]
        return float(np.clip(np.median(lows), 1e-6, 1.0)), float(max(np.median(highs), 1.0))

    def enough(self, level: float) -> bool:
        """True if n networks suffice for the level: ceil(level × (n + 1)) ≤ n."""
        return ceil(level * (len(self.residuals) + 1) - 1e-9) <= len(self.residuals)

    @property
    def attainable(self) -> float:
        """The highest level that n networks can give: n / (n + 1)."""
        return len(self.residuals) / (len(self.residuals) + 1)

    def warnings(self, level: float) -> tuple[str, ...]:
        """What an estimate must say where the level is more than the calibration can give."""
        return () if self.enough(level) else (_most(len(self.residuals)),)

    def describe(self, level: float) -> dict[str, Any]:
        """What the card says of the intervals."""
        n = len(self.residuals)
        # An interval of very few networks that are far off has no upper end, and JSON no infinity.
        low, high = (f if isfinite(f) else None for f in self.factors(level))
        note = "" if self.enough(level) else f"{n} networks are too few for {level:.0%}: the largest residual is used"
        note += "; it has no upper end" if high is None else ""
        return {"method": "jackknife+", "networks": n, "level": level, "low": low, "high": high, "note": note}

    def to_arrays(self, prefix: str = "conformal") -> dict[str, Floats]:
        """Arrays for an npz file."""
        return {f"{prefix}_residuals": self.residuals, f"{prefix}_ratios": self.ratios}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "conformal") -> Conformal:
        """The inverse of :meth:`to_arrays`. Raises :class:`KeyError`."""
        return cls(
            np.asarray(arrays[f"{prefix}_residuals"], np.float64), np.asarray(arrays[f"{prefix}_ratios"], np.float64)
        )


#: Own errors are trusted as a scale within these factors of what the model expects.
_OWN = (0.3, 6.0)
#: How far the intervals follow a device's own leave-one-out errors: the powers that are tried.
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: A device's own errors are the least where they are larger than those of this share of the others.
_WORSE = 0.75
#: Quantiles that stand for a distribution of scores.
_GRID = np.linspace(0.0, 1.0, 2001)


@dataclass(frozen=True)
class Normalised:
    """Intervals for a model that says how unsure it is at each point: a factor on its own deviation.

    A score is |error| over the model's deviation there, so that an interval is wider where the model knows less
    (normalised conformal prediction: Lei et al. 2018, "Distribution-free predictive inference for regression", section
    5.2). With ten measurements of a device their own quantile could only take steps of 1/11. Where other devices played
    the part of the new one, their scores give the shape (Dunn, Wasserman and Ramdas 2022, "Distribution-free prediction
    sets for two-layer hierarchical models": every device has the same weight, their distributions are pooled), and the
    new device's own leave-one-out errors the scale: their mean absolute score to a ``power`` that the other devices
    agreed on. What is guaranteed: over devices exchangeable with those that gave the shape, coverage tends to the level
    as their number grows. For one certain device, or one unlike them all, nothing is guaranteed, but what its own
    errors say: where they are larger than those of three quarters of the devices in its part, their finite-sample
    quantile is the least that the factor may be, so that a noisy device among calm ones does not get the intervals of
    those (were it the least everywhere, exchangeable devices would hold 93 % at 90 %: it errs to the wide side of one
    network in n). Without other devices it is the jackknife's finite-sample quantile of the own scores, whose guarantee
    needs networks exchangeable with the measured ones; chosen networks are not, though they are chosen to be harder.

    ``scores`` (m,) sorted; ``own`` the scale of the device's own errors, ``devices`` how many others gave the shape,
    ``floor`` (n,) the device's own scores, sorted, where they are the least; else, and in earlier files, empty.
    """

    scores: Floats
    own: float = 1.0
    power: float = 0.0
    devices: int = 0
    floor: Floats = field(default_factory=lambda: np.empty(0))

    @classmethod
    def from_left_out(cls, scores: npt.ArrayLike) -> Normalised:
        """Of the device's own n leave-one-out scores. Raises :class:`NotEnoughDataError` without any."""
        s = np.sort(np.abs(np.asarray(scores, np.float64)))
        if not len(s):
            raise NotEnoughDataError("an interval needs at least one calibration network")
        return cls(s)

    @classmethod
    def from_devices(cls, left_out: npt.ArrayLike, others_left_out: npt.ArrayLike, others: npt.ArrayLike) -> Normalised:
        """Of the device's own leave-one-out scores (n,), and those of other devices in its part.

        Row i of ``others_left_out`` (e, n) are the leave-one-out scores of a device in the part of the new one, of
        ``others`` (e, m) its scores at networks that it had not measured then.
        """
        s, shape = np.abs(np.asarray(others_left_out, np.float64)), np.abs(np.asarray(others, np.float64))
        if not len(shape):
            return cls.from_left_out(left_out)
        scales = _scale(s)
        ends = np.quantile(shape, 0.9, axis=1)
        spreads = [float(np.std(np.log(ends / scales**p))) for p in _POWERS]
        power = _POWERS[int(np.argmin(spreads))]
        pooled = np.quantile(shape / scales[:, None] ** power, _GRID)
        mine = np.sort(np.abs(np.asarray(left_out, np.float64)))
        own = float(_scale(mine[None])[0])
        floor = mine if own > np.quantile(scales, _WORSE) else np.empty(0)
        return cls(np.asarray(pooled, np.float64), own, power, len(shape), floor)

    def factor(self, level: float = 0.9) -> float:
        """What multiplies the model's deviation to give half an interval at ``level``; above 0."""
        if not 0 < level < 1:
            raise ConfigError(f"level: an interval's level is between 0 and 1, not {level}")
        if not self.devices:
            return max(_finite_sample(self.scores, level), 1e-6)
        least = _finite_sample(self.floor, level) if len(self.floor) else 0.0
        return max(float(np.interp(level, _GRID, self.scores) * self.own**self.power), least, 1e-6)

    def enough(self, level: float) -> bool:
        """True if what it rests on suffices for the level."""
        n = len(self.scores)
        return bool(self.devices) or ceil(level * (n + 1) - 1e-9) <= n

    @property
    def attainable(self) -> float:
        """The highest level that n own scores can give, n / (n + 1); other devices' shape has no such bound."""
        return 1.0 if self.devices else len(self.scores) / (len(self.scores) + 1)

    def warnings(self, level: float) -> tuple[str, ...]:
        """What an estimate must say where the level is more than the calibration can give."""
        return () if self.enough(level) else (_most(len(self.scores)),)

    def describe(self, level: float) -> dict[str, Any]:
        """What the card says of the intervals."""
        n = len(self.scores)
        short = "" if self.enough(level) else f"{n} networks are too few for {level:.0%}: the largest score is used"
        if not self.devices:
            return {"method": "normalised jackknife", "networks": n, "level": level,
                    "factor": self.factor(level), "note": short}  # fmt: skip
        return {"method": "shape of other devices, scale of its own errors", "episodes": self.devices, "level": level,
                "factor": self.factor(level), "own": self.own, "power": self.power, "note": ""}  # fmt: skip

    def to_arrays(self, prefix: str = "normalised") -> dict[str, Floats]:
        """Arrays for an npz file."""
        return {f"{prefix}_scores": self.scores, f"{prefix}_scale": np.array([self.own, self.power, self.devices]),
                f"{prefix}_floor": self.floor}  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "normalised") -> Normalised:
        """The inverse of :meth:`to_arrays`. Raises :class:`KeyError`, :class:`ValueError`."""
        own, power, devices = (float(x) for x in arrays[f"{prefix}_scale"])
        floor = np.asarray(arrays.get(f"{prefix}_floor", np.empty(0)), np.float64)
        return cls(np.asarray(arrays[f"{prefix}_scores"], np.float64), own, power, int(devices), floor)


def _scale(scores: Floats) -> Floats:
    """(e,) mean absolute scores of (e, n), none counted beyond 4 and none taken further than :data:`_OWN`; a normal
    error's mean absolute score is 0.8."""
    return np.asarray(np.clip(np.minimum(scores, 4.0).mean(axis=1) / 0.8, *_OWN), np.float64)


def _finite_sample(scores: Floats, level: float) -> float:
    """The ceil(level × (n + 1))-th smallest of n sorted scores, the largest where n is too small for the level."""
    n = len(scores)
    return float(scores[min(ceil(level * (n + 1) - 1e-9), n) - 1])


def _most(n: int) -> str:
    networks = f"{n} calibration network{'s' * (n > 1)}"
    return f"{networks} give{'s' * (n == 1)} at most a level of {n}/{n + 1}"
