"""The networks that a search picked, measured: a model brought right where it was trusted most.

A search takes the networks that a model finds fast, and so those that it is most wrong about to the fast side (the
winner's curse). They are not exchangeable with the networks that calibrated it, and its intervals hold for them less
often than they say. A few of them measured give a factor for the model's values and one for the widths of its
intervals: both of them shrunk to 1, because few measurements say little. The answer is a model for networks that were
picked like those.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from latbench.card import Card
from latbench.errors import ConfigError, FileFormatError, NotEnoughDataError
from latbench.network import Network
from latbench.predictor import FitData, MeasuredNetwork, Predictor
from latbench.predictors import files
from latbench.space import SearchSpace
from latbench.uncertainty import require
from latbench.visit import ArchEstimates, Estimate, Interval

Floats = npt.NDArray[np.float64]

#: Fewest measured winners.
MIN_WINNERS = 3
#: How many measurements the model's own claims are worth: of its interval's width, and of its values.
WIDTH_WORTH, VALUE_WORTH = 4.0, 1.0
#: The level at which intervals are compared with errors, whatever level is asked for later.
_LEVEL = 0.9


class Recalibrated(Predictor):
    """Another model, its values times ``factor`` and its intervals' logarithmic half-widths times ``width``."""

    name = "recalibrated"

    def __init__(self, card: Card, model: Predictor, factor: float, width: float) -> None:
        self.card, self.model, self.factor, self.width = card, model, factor, width

    @classmethod
    def fit(cls, data: FitData, *, level: float = 0.9, seed: int = 0, **options: Any) -> Self:
        """It is made of another model: raises :class:`ConfigError` saying how."""
        raise ConfigError("recalibrated is made of a fitted model: model.recalibrated(measured networks)")

    @classmethod
    def of(cls, model: Predictor, measured: Sequence[MeasuredNetwork]) -> Self:
        """Of a model and networks that were picked by it and then measured in its Setting.

        The factor is the mean logarithmic ratio of measured and predicted, each weighed by the model's own interval and
        the whole as if :data:`VALUE_WORTH` further network had been right; the width is the root mean square of what is
        left, in units of the model's own deviations, as if :data:`WIDTH_WORTH` further networks had been as far off as
        the model says, with the factor's own uncertainty on top. Raises :class:`NotEnoughDataError` for fewer than
        :data:`MIN_WINNERS` networks, :class:`ConfigError` for a measurement of another metric or of a model that is
        recalibrated already, and what ``predict`` raises.
        """
        if isinstance(model, Recalibrated):
            raise ConfigError(
                "the model is recalibrated already: recalibrate the model behind it (.model) by all winners"
            )
        if len(measured) < MIN_WINNERS:
            raise NotEnoughDataError(
                f"{len(measured)} measured networks; at least {MIN_WINNERS} of those that were picked are needed: "
                "measure them, e.g. with latbench validate"
            )
        for m in measured:
            if m.measurement.metric != model.metric:
                raise ConfigError(
                    f"{m.net.name}: measured {m.measurement.metric}, but the model predicts {model.metric}"
                )
        estimates = [model.predict(m.net, level=_LEVEL) for m in measured]
        off = np.log([m.measurement.interval.value / e.value for m, e in zip(measured, estimates, strict=True)])
        factor, width = factors(off, np.array([_deviation(e.interval) for e in estimates]))
        said = {"factor": factor, "width": width, "networks": len(measured), "base": model.name}
        card = model.card.replace(
            predictor=cls.name,
            model={**model.card.model, "recalibrated": said},
            validation=None,
            files={},
            notes=(
                *model.card.notes,
                f"recalibrated on {len(measured)} networks that it had picked: for others like those",
            ),
        )
        return cls(card, model, factor, width)

    def predict(
        self,
        net: Network,
        *,
        level: float = 0.9,
        max_uncertainty: float | None = None,
        unknown: Literal["error", "estimate"] = "error",
    ) -> Estimate:
        """The model's estimate, recalibrated. ``unknown`` is passed on to a model that can estimate unknown Ops; one
        that cannot refuses them as ever. Raises what the model raises, and :class:`UncertainError`."""
        ask: Any = self.model.predict
        more = {"unknown": unknown} if "unknown" in inspect.signature(ask).parameters else {}
        e: Estimate = ask(net, level=level, **more)
        x = e.interval
        low, high = self._ends(np.array([x.value]), np.array([x.low]), np.array([x.high]))
        interval = Interval(x.value * self.factor, float(low[0]), float(high[0]))
        parts = tuple(replace(p, value=p.value * self.factor) for p in e.breakdown)
        return require(
            replace(e, metrics={**e.metrics, self.metric: interval}, breakdown=parts), max_uncertainty, self.card
        )

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9) -> ArchEstimates:
        """The model's estimates, recalibrated. Raises what the model raises."""
        e = self.model.predict_archs(space, archs, level=level)
        low, high = self._ends(e.value, e.low, e.high)
        return replace(e, value=e.value * self.factor, low=low, high=high)

    def op_costs(self, keys: list[str]) -> Floats:
        """The model's, times the factor. Raises what the model raises."""
        return np.asarray(self.model.op_costs(keys) * self.factor)

    @property
    def overhead_ms(self) -> float:
        """The model's, times the factor."""
        return self.model.overhead_ms * self.factor

    def _ends(self, value: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        now = value * self.factor
        with np.errstate(divide="ignore"):  # an end at 0 stays there
            return (
                now * np.exp(self.width * np.log(np.maximum(low, 0) / value)),
                now * np.exp(self.width * np.log(high / value)),
            )

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the model's own files, its card as ``model.json``, and the card with the two factors."""
        with tempfile.TemporaryDirectory() as t:
            inner = self.model.save(Path(t) / "model")
            data = {("model.json" if f.name == files.CARD else f.name): f.read_bytes() for f in inner.iterdir()}
        said = {"factor": self.factor, "width": self.width}
        folder, _ = files.write_folder(path, self.card, {**data, "recalibrated.json": files.as_json(said)})
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises :class:`FileFormatError`."""
        folder = files.read_folder(path, cls.name)
        said = folder.json("recalibrated.json")
        inner_card = Card.loads(folder.bytes("model.json"), str(folder.path / "model.json"))
        t = Path(tempfile.mkdtemp())
        try:
            for name, data in folder.files.items():
                if name != "recalibrated.json":
                    (t / (files.CARD if name == "model.json" else name)).write_bytes(data)
            model = files.kind_of(inner_card).load(t)
            return cls(folder.card, model, float(said["factor"]), float(said["width"]))
        except (KeyError, TypeError, ValueError) as e:
            raise FileFormatError(f"{folder.path}: not a recalibrated model: {e!r}") from e
        finally:
            shutil.rmtree(t, ignore_errors=True)


def factors(off: npt.ArrayLike, deviation: npt.ArrayLike) -> tuple[float, float]:
    """``(factor, width)`` of logarithmic ratios measured over predicted (n,), where a model is unsure by deviations."""
    r, sd = np.asarray(off, np.float64), np.maximum(np.asarray(deviation, np.float64), 1e-6)
    # Weights by the median deviation, so that one network with a tiny one does not decide alone.
    w = 1 / (sd**2 + np.median(sd) ** 2)
    shift = float((w @ r) / (w.sum() + VALUE_WORTH * float(np.median(w))))
    left = (r - shift) / sd
    scale = np.sqrt((WIDTH_WORTH + float((left**2).sum())) / (WIDTH_WORTH + len(r)))
    return float(np.exp(shift)), float(scale * np.sqrt(1 + 1 / (len(r) + VALUE_WORTH)))


def _deviation(x: Interval) -> float:
    """The standard deviation of a logarithm that an interval at :data:`_LEVEL` stands for, if errors were normal."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    low = max(x.low, 1e-9 * x.value)
    return float(np.log(x.high / low)) / (2 * z)
