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
from dataclasses import dataclass
from math import ceil, floor
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

    def describe(self, level: float) -> dict[str, Any]:
        """What the card says of the intervals."""
        n = len(self.residuals)
        low, high = self.factors(level)
        note = "" if self.enough(level) else f"{n} networks are too few for {level:.0%}: the largest residual is used"
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
