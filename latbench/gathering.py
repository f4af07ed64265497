"""What a store holds of one Setting, summed up: what a fit may learn from, and the networks that check it.

:class:`Gathered` takes a Setting's Visits, drift removed, and gives :class:`FitData` by any statistic. A network that
was ever measured for validation is never part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from latbench.card import Card, device_option
from latbench.errors import ConfigError, DeviceError, NotEnoughDataError, UnknownOpError, UnsupportedOpError
from latbench.metric import LATENCY
from latbench.network import Network
from latbench.predictor import FitData, MeasuredNetwork, Predictor
from latbench.protocol import Statistic
from latbench.setting import Setting
from latbench.space import SearchSpace
from latbench.validation import Validation
from latbench.visit import Measurement

if TYPE_CHECKING:
    from latbench.arch_times import ArchTimes
    from latbench.device import Device
    from latbench.store import Store


#: Between a held-out network's name and the reason, in the notes of a card.
LEFT_OUT = " was left out of the validation: "


class Gathered:
    """The evidence of one Setting in a store, ready to be summed up by any statistic."""

    def __init__(
        self,
        store: Store,
        setting: Setting,
        profile: str,
        space: SearchSpace | str | None,
        campaigns: Sequence[str] | None,
        *,
        pooled: Sequence[Setting] = (),
        metric: str = LATENCY,
    ) -> None:
        """``pooled`` are Settings of other devices of the same model, whose Visits are brought to this one's level."""
        from latbench.evidence import Evidence
        from latbench.pooling import PooledEvidence

        self.setting, self.metric = setting, metric
        self._store = store
        self._settings = settings = [setting, *pooled]
        records = [r for s in settings for r in store.campaigns(setting=s)]
        self._records = [r for r in records if campaigns is None or r.id in campaigns]
        if campaigns is not None and (unknown := set(campaigns) - {r.id for r in self._records}):
            raise ConfigError(f"campaigns: no campaign {', '.join(sorted(unknown))} of this Setting in {store.address}")
        each = [store.visits(s) for s in settings]
        # A network may calibrate in one campaign and validate in another. What was ever held out stays held out, also
        # where only some of the campaigns are asked for.
        self._held_out = {v.subject for of_device in each for v in of_device if v.purpose == "validation"}
        if campaigns is not None:
            each = [[v for c in campaigns for v in store.visits(s, campaign=c)] for s in settings]
        parts = [Evidence(v, s) for i, (v, s) in enumerate(zip(each, settings, strict=True)) if v or not i]
        self._pooled = PooledEvidence(parts) if len(parts) > 1 else None
        self._evidence = self._pooled or parts[0]
        taken = [v for of_device in each for v in of_device]
        visits = [v for v in taken if v.metric == metric]
        self.unsupported = {v.subject: v.unsupported.message for v in visits if v.unsupported and v.role == "op"}
        self._nets = store.subjects({v.subject for v in visits if v.role == "network"})
        self._space = space
        spec = self._space_spec()
        self._card = Card(
            predictor="",
            setting=setting,
            protocol=self._records[0].protocol.model_dump(mode="json") if self._records else {},
            device={"profile": profile, "hardware": _hardware(profile), **store.devices().get(setting.device, {})},
            space=spec,
            data={
                "campaigns": [r.id for r in self._records],
                "visits": len(visits),
                "visits_by_purpose": dict(Counter(v.purpose or v.role for v in visits)),
                "first": iso(min((v.started for v in visits), default=0.0)),
                "last": iso(max((v.ended for v in visits), default=0.0)),
            },
            created=iso(datetime.now(UTC).timestamp()),
            metric=metric,
        )

    @property
    def protocol_statistic(self) -> Statistic:
        """The statistic of the newest campaign's protocol."""
        return self._records[0].protocol.statistic if self._records else "p50"

    def data(self, predictor: str, statistic: Statistic) -> FitData:
        """What a fit may learn from, by one statistic."""
        measured = self._measured("calibration", statistic)
        calibration = tuple(n for k, n in measured.items() if k not in self._held_out)
        notes, card = self._card.notes, self._card
        if self._pooled is not None:
            notes = (*notes, *self._pooled.notes(statistic))
            card = card.replace(data={**card.data, "pool": self._pooled.report(statistic)})
        if kept_out := len(measured) - len(calibration):
            text = "measured for calibration and for validation: held out, kept out of the fit"
            notes = (*notes, f"{kept_out} network{'s' * (kept_out > 1)} {text}")
        return FitData(
            card.replace(predictor=predictor, statistic=self._named(statistic), notes=notes),
            self._measurements("op", statistic),
            calibration,
            self.unsupported,
            self._arch_times(calibration),
        )

    def held_out_ops(self, statistic: Statistic) -> dict[str, Measurement]:
        """Ops by key that were measured for validation and for nothing else."""
        found = self._evidence.measurements(statistic=statistic, purpose="validation")
        fitted = self._evidence.subjects("op")
        return {k: m for k, m in found.items() if k.startswith("op1:") and k not in set(fitted)}

    @property
    def space(self) -> SearchSpace | None:
        """The one space of all networks; None where there is none, or it cannot be made here."""
        from latbench import load_space

        if isinstance(self._space, SearchSpace):
            return self._space
        spec = dict(self._card.space or {})
        try:
            return load_space(spec.pop("name"), **spec) if spec else None
        except ConfigError:
            return None

    def sources(self, statistic: Statistic) -> tuple[dict[str, ArchTimes], list[str]]:
        """As :func:`source_archs`, of the store's other Settings; none where there is no space."""
        space = self.space
        if space is None:
            return {}, []
        return source_archs(self._store, space, statistic, without=self._settings, metric=self.metric)

    def _arch_times(self, networks: Sequence[MeasuredNetwork]) -> ArchTimes | None:
        """The networks as architectures of the one space; None where there is none."""
        from latbench.arch_times import ArchTimes

        space = self.space
        of_space = [n for n in networks if space is not None and n.net.origin.get("space") == space.spec]
        if space is None or not of_space:
            return None
        return ArchTimes.of(space, [n.net.origin["arch"] for n in of_space], [n.value for n in of_space])

    def validate(self, predictor: Predictor, statistic: Statistic, level: float) -> tuple[Validation | None, list[str]]:
        """The predictor's errors on held-out networks, and notes for the card."""
        held_out = self.networks("validation", statistic)
        notes, estimates = [], {}
        for key, n in held_out.items():
            try:
                estimates[key] = predictor.predict(n.net, level=level)
            except (UnknownOpError, UnsupportedOpError) as e:
                notes.append(f"held-out network {n.net.name}{LEFT_OUT}{e}".splitlines()[0])
        if not estimates:
            how = self._card.profile_command + ("" if self._card.space else " --hold-out OTHER.onnx")
            return None, [*notes, f"not validated: no held-out networks; measure them: {how}"]
        keys = list(estimates)
        measured = [held_out[k].value for k in keys]
        replicas = [self.networks("validation", statistic, r) for r in (0, 1)]
        both = [k for k in keys if all(k in r for r in replicas)]
        twice = ([replicas[0][k].value for k in both], [replicas[1][k].value for k in both])
        calibration = list(self.networks("calibration", statistic).values())
        baselines = {}
        if len(calibration) >= 3:
            baselines["MACs"] = macs_regression(calibration, [held_out[k].net for k in keys])
        return (
            Validation.of(
                [estimates[k].value for k in keys],
                [estimates[k].interval.low for k in keys],
                [estimates[k].interval.high for k in keys],
                measured,
                level=level,
                statistic=self._named(statistic),
                twice=twice if both else None,
                baselines=baselines,
            ),
            notes,
        )

    def networks(self, purpose: str, statistic: Statistic, replica: int | None = None) -> dict[str, MeasuredNetwork]:
        """Measured networks of the space by key, for one purpose: "calibration" without any that was ever held out."""
        found = self._measured(purpose, statistic, replica)
        return {k: n for k, n in found.items() if purpose != "calibration" or k not in self._held_out}

    def _measured(self, purpose: str, statistic: Statistic, replica: int | None = None) -> dict[str, MeasuredNetwork]:
        found = self._measurements(purpose, statistic, replica)
        nets = {k: self._nets.get(k) for k in found}
        return {
            k: MeasuredNetwork(n, found[k]) for k, n in nets.items() if isinstance(n, Network) and self._of_space(n)
        }

    def _measurements(self, purpose: str, statistic: Statistic, replica: int | None = None) -> dict[str, Measurement]:
        if self.metric == LATENCY or self._pooled is not None:
            return self._evidence.measurements(statistic=statistic, purpose=purpose, replica=replica)
        return self._evidence.other_measurements(self.metric, purpose, replica)

    def _named(self, statistic: Statistic) -> str:
        """Statistics are of a Visit's runs: a metric that is one number a Visit has none."""
        return statistic if self.metric == LATENCY else ""

    def _of_space(self, net: Network) -> bool:
        spec = net.origin.get("space") or {}
        if self._space is None:
            return True
        return bool(spec.get("name") == self._space if isinstance(self._space, str) else spec == self._space.spec)

    def _space_spec(self) -> Mapping[str, Any] | None:
        """The spec of the space asked for, else of the one space that all networks come from."""
        if self._space is not None and not isinstance(self._space, str):
            return self._space.spec
        specs = [n.origin.get("space") for n in self._nets.values() if isinstance(n, Network) and self._of_space(n)]
        distinct = [s for i, s in enumerate(specs) if s not in specs[:i]]
        if len(distinct) > 1 and self._space is not None:
            raise ConfigError(f"space: the store holds several spaces named {self._space!r}; give the space itself")
        return distinct[0] if len(distinct) == 1 else None


def source_archs(
    store: Store,
    space: SearchSpace,
    statistic: Statistic | None = None,
    *,
    without: Collection[Setting] = (),
    metric: str = LATENCY,
) -> tuple[dict[str, ArchTimes], list[str]]:
    """What a store's Settings tell a new one about a space, and notes that name those with too few networks to count.

    By device and Setting, all but ``without``; ``statistic`` None: each its own.
    """
    from latbench.predictors.transfer_prior import MIN_SOURCE

    found: dict[str, ArchTimes] = {}
    notes: list[str] = []
    for setting in store.settings():
        if setting in without:
            continue
        g = Gathered(store, setting, setting.device, space, None, metric=metric)
        how = statistic or g.protocol_statistic
        nets = {**g._measured("calibration", how), **g._measured("validation", how)}
        if (times := g._arch_times(tuple(nets.values()))) is None:
            continue
        name = f"{setting.device} {setting.hash[:6]}"
        if len(times) >= MIN_SOURCE:
            found[name] = times
        else:
            count = f"{len(times)} measured network{'s' * (len(times) > 1)}"
            notes.append(f"{name} was left out: {count} of the space, and {MIN_SOURCE} make a source")
    return found, notes


def macs_regression(calibration: Sequence[MeasuredNetwork], nets: Iterable[Network]) -> np.ndarray[Any, Any]:
    """The baseline of latency as an affine function of MACs, fitted to relative errors; (n,) milliseconds."""
    y = np.array([n.value for n in calibration])
    macs = np.array([n.net.macs for n in calibration], float)
    scale = float(np.median(macs)) or 1.0
    design = np.stack([np.ones(len(y)), macs / scale], axis=1)
    beta = np.linalg.lstsq(design / y[:, None], np.ones(len(y)), rcond=None)[0]
    return np.asarray(beta[0] + beta[1] * np.array([n.macs for n in nets], float) / scale)


def setting_of(store: Store, device: Device | str | None) -> Setting:
    """The Setting of a device's newest Visits. Raises :class:`ConfigError`, :class:`NotEnoughDataError`."""
    if device is None:
        found = store.settings()
        if len({s.device for s in found}) != 1:
            known = ", ".join(sorted({s.device for s in found})) or "none"
            raise ConfigError(f"device: say which; {store.address} holds {known}")
        return found[0]
    if isinstance(device, str):
        return store.latest_setting(device)
    try:
        setting = device.setting
    except DeviceError:  # not open: it cannot say more than its profile
        return store.latest_setting(device.profile.name)
    stored = store.settings(setting.device)
    if setting not in stored:
        other = f"; its newest Setting there: {'; '.join(stored[0].differences(setting))}" if stored else ""
        raise NotEnoughDataError(
            f"{store.address}: nothing was measured on {setting.device} in its present Setting{other}; "
            f"run `latbench profile {device_option(device.profile.name)} --space …`"
        )
    return setting


def profile_name(store: Store, device: Device | str | None) -> str:
    """The profile's name, for the card and for commands in error texts."""
    if isinstance(device, str):
        from latbench.profile import find_profile

        return find_profile(device).name if device.endswith(".toml") else device
    if device is not None:
        return device.profile.name
    setting = setting_of(store, None)
    return next((name for name, hashes in store.profiles().items() if setting.hash in hashes), setting.device)


def _hardware(profile: str) -> dict[str, Any]:
    """What the profile's data sheets say; nothing where the profile is not at hand."""
    from latbench.profile import find_profile

    try:
        return find_profile(profile).hardware.model_dump(exclude_none=True, exclude_defaults=True)
    except ConfigError:
        return {}


def iso(seconds: float) -> str:
    """A moment as cards write it: UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
