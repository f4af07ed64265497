"""From Visits in a store to a latency model: ``lb.fit("table", store=…, device=…)``.

:func:`fit` takes the newest Setting of a device, sums up its Visits by the protocol's statistic unless the caller names
another one, fits the predictor, and checks it on held-out measured networks. What it took and how right it was is in
the predictor's card. A network that was ever measured for validation is never part of a fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy.typing as npt

from latbench import plugins
from latbench.card import GIVEN, Card
from latbench.errors import ConfigError, NotEnoughDataError
from latbench.gathering import Gathered, iso, profile_name, setting_of
from latbench.metric import ASKABLE, LATENCY
from latbench.predictor import FitData, Predictor
from latbench.protocol import Statistic
from latbench.setting import Setting
from latbench.space import SearchSpace
from latbench.statistics import widened
from latbench.validation import Validation
from latbench.visit import Interval

if TYPE_CHECKING:
    from latbench.arch_times import ArchTimes
    from latbench.device import Device
    from latbench.store import Store

#: Name of another device → its architectures (n, positions) and their times in milliseconds (n,).
Sources: TypeAlias = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]

#: What "auto" chooses among.
STATISTICS: tuple[Statistic, ...] = ("p50", "p25", "min", "sustained")
#: Another statistic than the protocol's must lower the cross-validated RMSPE by this share to be chosen.
MIN_GAIN = 0.05


def fit(
    name: str,
    *,
    store: Store | str | Path | None = None,
    device: Device | str | None = None,
    space: SearchSpace | str | None = None,
    statistic: Statistic | Literal["auto"] | None = None,
    level: float = 0.9,
    seed: int = 0,
    campaigns: Sequence[str] | None = None,
    pool: bool = False,
    archs: npt.ArrayLike | None = None,
    latency_ms: npt.ArrayLike | None = None,
    order: npt.ArrayLike | None = None,
    sources: Sources | None = None,
    metric: str | None = None,
    **options: Any,
) -> Predictor:
    """Fit the predictor of an entry point's name to the Visits of a device's newest Setting.

    ``device`` is a profile's name or ``.toml`` file, an identity, or a Device (if it is open, its very Setting);
    without it the store must hold one device. ``space`` keeps only networks of that space (a name keeps those of that
    name). ``statistic`` is one of
    :data:`latbench.protocol.Statistic`, None for the one of the newest campaign's protocol (p50 unless set otherwise).
    "auto" lets cross-validation on the calibration networks choose among :data:`STATISTICS`: each is then compared with
    its own target (the fit by ``min`` predicts the networks' ``min``), so that the choice says which statistic adds up
    best, not which latency a user will see; :attr:`Estimate.statistic` names it.
    ``level`` is that of the intervals that the validation checks and the card describes; an estimate has the level that
    :meth:`Predictor.predict` is asked for. ``campaigns`` (ids) limits the evidence. ``pool`` takes the Visits of all
    devices of that model (Settings equal but for the device), each brought to the device's level by an offset from its
    control Ops (:mod:`latbench.pooling`); a profile's name then means the device with most Visits.

    Without a store, ``archs`` (n, positions) of ``space`` and their ``latency_ms`` (n,), measured elsewhere, are what
    is fitted to; ``order`` (n,) says when each was measured, ``device`` is a name for the card. ``sources`` maps names
    of other devices to their ``(archs, latency_ms)`` in that space; with a store, its other Settings that measured
    enough networks of the space are sources too. ``metric`` is what is predicted, from the Visits taken for it:
    latency unless another is named, one that adds up over Ops (``energy_mj``) by "table" or "kernels",
    ``peak_memory_bytes`` by "memory", which predicts nothing else. "roofline" needs no store, only
    the profile of ``device``. ``options`` go to the predictor. Raises :class:`PoolingError` where the
    devices are too different, :class:`NotEnoughDataError` naming the command that measures what is missing, and
    :class:`ConfigError`.
    """
    from latbench.store import Store

    cls: type[Predictor] = plugins.load("predictors", name)
    if (archs is not None or latency_ms is not None) and not cls.takes_archs:
        able = [n for n in plugins.names("predictors") if plugins.load("predictors", n).takes_archs]
        raise ConfigError(
            f"fit({name!r}): {name} does not learn from archs and latency_ms but from the store of a campaign "
            f"(latbench profile); those that learn from given arrays: {', '.join(able)}"
        )
    if sources and not cls.uses_sources:
        raise ConfigError(f"fit({name!r}): sources: {name} does not learn from other devices; use transfer")
    if order is not None and not cls.uses_order:
        raise ConfigError(f"fit({name!r}): order: {name} has no drift term; leave order out, or use network")
    metric = _metric(cls, metric)
    if metric != LATENCY and (archs is not None or pool or statistic is not None or sources):
        raise ConfigError(f"metric={metric!r}: archs, sources, pool and statistic are for latency alone")
    if archs is not None or latency_ms is not None:
        if store is not None or pool or campaigns is not None or statistic is not None:
            raise ConfigError(
                f"fit({name!r}): archs and latency_ms were measured elsewhere: they take no store, "
                "statistic, campaigns or pool"
            )
        data = _elsewhere(name, device, space, archs, latency_ms, order, sources)
        return cls.fit(data, level=level, seed=seed, **options)
    if store is None and not cls.needs_data:
        from latbench.profile_data import profile_data

        return cls.fit(profile_data(name, device, space), level=level, seed=seed, **options)
    if store is None:
        raise ConfigError(f"fit({name!r}): store is missing; give the store that the campaign wrote")
    if statistic not in (None, "auto", *get_args(Statistic)):
        known = ", ".join(("auto", *get_args(Statistic)))
        raise ConfigError(f"statistic: no statistic named {statistic!r}; known: {known}")
    if isinstance(store, Store):
        return _fit(cls, store, device, space, statistic, level, seed, campaigns, pool, sources, metric, options)
    with Store.open(store) as opened:
        return _fit(cls, opened, device, space, statistic, level, seed, campaigns, pool, sources, metric, options)


def _metric(cls: type[Predictor], metric: str | None) -> str:
    """What to fit to. Raises :class:`ConfigError` for what cannot be measured, or not be predicted by this one."""
    if metric is None:
        return cls.metrics[0]
    if metric not in ASKABLE:
        raise ConfigError(f"metric: {metric!r} is not measured by itself; what is: {', '.join(ASKABLE)}")
    if not cls.can_predict(metric):
        able = [n for n in plugins.names("predictors") if plugins.load("predictors", n).can_predict(metric)]
        raise ConfigError(f"{cls.name} does not predict {metric}; those that do: {', '.join(able) or 'none'}")
    return metric


def _fit(
    cls: type[Predictor],
    store: Store,
    device: Device | str | None,
    space: SearchSpace | str | None,
    statistic: Statistic | Literal["auto"] | None,
    level: float,
    seed: int,
    campaigns: Sequence[str] | None,
    pool: bool,
    sources: Sources | None,
    metric: str,
    options: Mapping[str, Any],
) -> Predictor:
    from latbench import pooling

    is_named = pool and isinstance(device, str)
    setting = pooling.reference_setting(store, str(device)) if is_named else setting_of(store, device)
    others = pooling.same_model(store, setting) if pool else []
    gathered = Gathered(store, setting, profile_name(store, device), space, campaigns, pooled=others, metric=metric)
    scores: dict[Statistic, float] = {}
    chosen = gathered.protocol_statistic
    if statistic == "auto":
        scores = _statistic_scores({s: gathered.data(cls.name, s) for s in dict.fromkeys((chosen, *STATISTICS))})
        best = min(scores, key=lambda s: scores[s], default=chosen)
        if best != chosen and (chosen not in scores or scores[best] < (1 - MIN_GAIN) * scores[chosen]):
            chosen = best
    elif statistic is not None:
        chosen = statistic
    data = gathered.data(cls.name, chosen)
    if cls.uses_sources:
        found, left_out = gathered.sources(chosen)
        card = data.card.replace(notes=(*data.card.notes, *left_out))
        data = replace(data, card=card, sources={**found, **_given(gathered.space, sources)})
    predictor = cls.fit(data, level=level, seed=seed, **options)
    card = predictor.card
    if scores:
        card = card.replace(model={**card.model, "statistics_tried": scores})
    if setting.clock == "simulated":
        card = card.replace(
            intervals={**card.intervals, "model_error": setting.model_error},
            notes=(*card.notes, _simulated(setting, level)),
        )
    validation, notes = gathered.validate(predictor, chosen, level)
    return predictor.with_card(
        card.replace(validation=validation.to_json() if validation else None, notes=(*card.notes, *notes))
    )


def _elsewhere(
    name: str,
    device: Device | str | None,
    space: SearchSpace | str | None,
    archs: npt.ArrayLike | None,
    latency_ms: npt.ArrayLike | None,
    order: npt.ArrayLike | None,
    sources: Sources | None,
) -> FitData:
    """Architectures that were measured elsewhere. Raises :class:`ConfigError`."""
    from latbench.arch_times import ArchTimes

    if archs is None or latency_ms is None:
        raise ConfigError(f"fit({name!r}): archs and latency_ms go together; one is missing")
    if not isinstance(space, SearchSpace):
        raise ConfigError(f"fit({name!r}): give the space of the archs, e.g. lb.load_space('nasbench201')")
    if device is not None and not isinstance(device, str):
        raise ConfigError(f"fit({name!r}): archs were measured elsewhere: device is a name for the card")
    times = ArchTimes.of(space, archs, latency_ms, order)
    setting = Setting(device or "elsewhere", "unknown", "")
    card = Card(
        predictor=name,
        setting=setting,
        device={"profile": setting.device},
        space=space.spec,
        data={"origin": GIVEN, "networks": len(times)},
        created=iso(datetime.now(UTC).timestamp()),
    )
    return FitData(card, {}, archs=times, sources=_given(space, sources))


def _given(space: SearchSpace | None, sources: Sources | None) -> dict[str, ArchTimes]:
    """Other devices' measured architectures, checked. Raises :class:`ConfigError`."""
    from latbench.arch_times import ArchTimes

    if not sources:
        return {}
    if space is None:
        raise ConfigError("sources: their architectures belong to a space: give space too")
    right = "sources={'phone': (archs, latency_ms), …}"
    if not isinstance(sources, Mapping):
        raise ConfigError(
            f"sources: other devices' names and what they measured, {right}; not a {type(sources).__name__}"
        )
    found = {}
    for name, pair in sources.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ConfigError(f"sources[{name!r}]: its architectures and their times, two arrays: {right}")
        found[name] = ArchTimes.of(space, *pair, what=f"sources[{name!r}]")
    return found


def validation_of(predictor: Predictor) -> Validation | None:
    """The validation in a predictor's card, None where there were no held-out networks."""
    found = predictor.card.validation
    return None if found is None else Validation.from_json(found)


def _statistic_scores(datas: Mapping[Statistic, FitData]) -> dict[Statistic, float]:
    """Leave-one-out RMSPE of the calibrated table by statistic; empty where no table can be made."""
    from latbench.predictors.table import Table

    scores = {}
    for statistic, data in datas.items():
        try:
            table = Table.fit(data)
        except NotEnoughDataError:
            continue
        scores[statistic] = min(float(m["cv_rmspe"]) for m in table.card.model.values())
    return scores


def _simulated(setting: Setting, level: float) -> str:
    """What a card must say of numbers that a simulator computed."""
    x = widened(Interval(1.0, 1.0, 1.0), setting.model_error, level)
    own = f"{level:.0%} intervals hold {x.low - 1:+.0%} … {x.high - 1:+.0%} for its own error"
    return "times are simulated: the validation compares with the simulator itself, not with a chip; " + (
        own if setting.model_error else "nothing is known of its own error"
    )
