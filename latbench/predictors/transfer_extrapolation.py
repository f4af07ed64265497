"""How much wider ``transfer``'s intervals are for architectures unlike all that the new device measured.

Left-out errors vouch for the posterior's deviation among networks like the measured ones alone. Where an architecture
holds a kind of choice that no measured network has anywhere (:mod:`latbench.predictors.network_extrapolation`), the
deviation counts in full, the part that no error checked as a normal one; and each such choice may set the device as far
apart from what was expected before it measured anything as its measurements are. Sources that measured such choices and
foretold the measured networks well so need little more; where no source is believed, it is what idealised devices left
open. More work than that of any measured network adds the least growth that regressions on Ops have; less of it is only
nearer to what an empty network takes. A choice that is new at its position alone is not told apart: a choice costs
about the same anywhere, and the usual errors hold such choices.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from latbench.predictors.encodings import KINDS, encode, encoder
from latbench.predictors.extrapolation import LEAST_GROWTH
from latbench.predictors.network_extrapolation import Extent, Extrapolation, Growth, kinds_of_choices, warnings_of
from latbench.predictors.network_inputs import space_views
from latbench.predictors.transfer_posterior import Posterior

Floats = npt.NDArray[np.float64]

#: The quantile of what measured networks were off before they were measured.
_QUANTILE = 0.9


class Outside:
    """What lies outside the measured networks of a posterior, and the ``growth`` of intervals there."""

    def __init__(self, posterior: Posterior, growth: Growth) -> None:
        self.growth = growth
        self._space = posterior.priors[0].space
        self._views = space_views(self._space, posterior.archs, KINDS)
        kinds = kinds_of_choices(self._space, self._views)
        rows = [encode(self._space, posterior.archs, kind) for kind in KINDS]
        every = [Extent.of(x, k) for x, k in zip(rows, kinds, strict=True)]
        extents = tuple(replace(e, low=np.full(len(e.low), -np.inf)) for e in every)
        self._extrapolation = Extrapolation(extents, growth)

    @classmethod
    def of(cls, posterior: Posterior, usual: float) -> Outside:
        """Of a posterior whose intervals usually reach ``usual`` up and down, as a logarithm."""
        least = max(usual, posterior.noise)
        off = [np.quantile(np.abs(r), _QUANTILE) for r in posterior.unexplained]
        unknown = float(np.sqrt(np.average(np.square(off), weights=posterior.shares))) / least
        return cls(posterior, Growth(0.0, unknown, LEAST_GROWTH / least, LEAST_GROWTH / least))

    def new(self, archs: npt.ArrayLike) -> Floats:
        """(n, 3) what is new about architectures, as :meth:`Extent.new` without choices that are known elsewhere."""
        found = self._extrapolation.new([encode(self._space, np.asarray(archs), kind) for kind in KINDS])
        return np.asarray(found * np.array([0.0, 1.0, 1.0]))

    def halves(self, new: Floats, sd: Floats, limit: float, factor: float, level: float) -> Floats:
        """(n,) logarithms by which intervals at ``level`` reach up and down, of deviations (n,), of which ``limit`` is
        the largest that was checked, and the ``factor`` on those that were."""
        checked = np.minimum(sd, limit)
        normal = NormalDist().inv_cdf((1 + level) / 2)
        unchecked = np.where(new[:, 1] > 0, normal**2 * (sd**2 - checked**2), 0.0)
        return np.asarray(np.sqrt((factor * checked * self.growth.widths(new)) ** 2 + unchecked))

    def warnings(self, new: Floats) -> tuple[str, ...]:
        """What an estimate must say of a network, from its row (3,) of :meth:`new`."""
        return warnings_of(new, self._views, "the interval is widened by what the sources left open")

    def unknown(self) -> tuple[str, ...]:
        """The kinds of choices that no measured network has anywhere."""
        names: dict[str, None] = {}
        for view, extent in zip(self._views, self._extrapolation.extents, strict=True):
            labels = encoder(self._space, view.kind).names[: view.choices]
            names |= {n.partition("=")[2]: None for n, known in zip(labels, extent.known, strict=True) if not known}
        return tuple(names)
