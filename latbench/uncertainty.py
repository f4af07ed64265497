"""Refusing an answer that is too uncertain: ``model.predict(net, max_uncertainty=0.2)``.

The uncertainty of an Estimate is the half-width of its interval over its value, at the interval's level: 0.2 stands for
± 20 %. :func:`require` is what every predictor's ``predict`` ends with; ``None`` asks for nothing. The error names the
value, its interval, and what would narrow it.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING

from latbench.card import GIVEN
from latbench.errors import ConfigError, UncertainError

if TYPE_CHECKING:
    from latbench.card import Card
    from latbench.visit import Estimate

#: Key of the one part of an estimate that was not made of Ops.
WHOLE = "network"
#: Estimated parts that the error names.
_NAMED = 3
#: Fewest networks that the command which measures more of them asks for.
_MORE = 40


def uncertainty(estimate: Estimate) -> float:
    """Half of the interval's width over the value, at the estimate's level; infinite where an end is."""
    x = estimate.interval
    return (x.high - x.low) / 2 / x.value if x.value > 0 and isfinite(x.high) else inf


def require(estimate: Estimate, max_uncertainty: float | None, card: Card) -> Estimate:
    """The estimate, if it is as certain as asked for; ``max_uncertainty`` None asks for nothing.

    ``card`` is the predictor's: it knows the command that measures more. Raises :class:`UncertainError`, and
    :class:`ConfigError` for a limit that is no positive number.
    """
    if max_uncertainty is None:
        return estimate
    if isinstance(max_uncertainty, bool) or not max_uncertainty > 0:
        raise ConfigError(f"max_uncertainty: a share above 0, e.g. 0.2 for at most ± 20 %, not {max_uncertainty!r}")
    if (found := uncertainty(estimate)) > max_uncertainty:
        raise UncertainError(estimate, found, max_uncertainty, _remedies(estimate, max_uncertainty, card))
    return estimate


def _remedies(estimate: Estimate, limit: float, card: Card) -> list[str]:
    """What would narrow the interval, the likeliest first."""
    from statistics import NormalDist

    said = []
    own = estimate.setting.model_error * NormalDist().inv_cdf((1 + estimate.level) / 2)
    if own >= limit:
        said.append(
            f"the simulator's own error is ± {own:.0%} of it at level {estimate.level:g}, and no fit is better than "
            "that: ask for less, or measure on the device"
        )
    total = sum(abs(p.value) for p in estimate.breakdown) or 1.0
    guessed = sorted((p for p in estimate.breakdown if p.origin == "estimated"), key=lambda p: -p.value)
    whole = any(p.key == WHOLE for p in guessed)
    command = _more_networks(card) if whole else card.profile_command
    if whole:
        name = (card.space or {}).get("name")
        said.append(
            f"{card.predictor} estimates the network as a whole, from measured networks"
            f"{f' of {name}' if name else ''}; measure more of them, and fit again: {command}"
        )
    elif guessed:
        named = ", ".join(p.label for p in guessed[:_NAMED])
        share = sum(p.value for p in guessed) / total
        said.append(
            f"{share:.0%} of the estimate is {_ops(len(guessed))} never measured ({named}"
            f"{', …' if len(guessed) > _NAMED else ''}); measure them: {card.profile_command}"
        )
    if note := card.intervals.get("note"):
        said.append(note if whole else f"{note}; measure more: {command}")
    if estimate.warnings and not guessed:
        said.append(estimate.warnings[0])
    if not said:
        said.append(f"calibrate on more networks like this one: {command}")
    return said


def _ops(n: int) -> str:
    return "1 Op that was" if n == 1 else f"{n} Ops that were"


def _more_networks(card: Card) -> str:
    """The command that measures more whole networks than this fit had, and no Ops."""
    if card.data.get("origin") == GIVEN:
        return "give lb.fit more archs and latency_ms"
    if not card.space:
        return card.profile_command
    had = int(card.model.get("networks") or card.intervals.get("networks") or 0)
    return f"{card.profile_command} --level none --networks {max(_MORE, 2 * had)}"
