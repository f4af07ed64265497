"""A first guess without any measurement: the roofline of the device's profile.

Every primitive takes the longer of two times (Williams, Waterman and Patterson 2009, "Roofline: an insightful visual
performance model for multicore architectures", Communications of the ACM 52(4)): its operations at the profile's peak
rate (two a MAC) and its bytes at the profile's bandwidth, each moved once; and, where the profile says it, what
starting a kernel costs. Activations, batch norms and changes of shape alone are taken to be done by the kernel before
them. Kernels do not reach the peaks: :data:`EFFICIENCY` and :data:`PRIOR_SPREAD` say how far they usually are from
them. Where a store holds measured networks of the device, efficiency and overhead are fitted to those
(:mod:`latbench.predictors.additive`), and the intervals are conformal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from latbench.card import Card
from latbench.conformal import Conformal
from latbench.errors import ConfigError, FileFormatError, PredictorError, UnsupportedOpError
from latbench.network import Network
from latbench.op import Op
from latbench.predictor import FitData, Predictor
from latbench.predictors import files
from latbench.predictors.additive import MIN_NETWORKS, Calibration, calibrate, group, megabytes, number
from latbench.predictors.features import roofline_ms
from latbench.predictors.gather import estimate_archs
from latbench.space import SearchSpace
from latbench.statistics import widened
from latbench.uncertainty import require
from latbench.visit import ArchEstimates, Estimate, Interval, Part

Floats = npt.NDArray[np.float64]

#: Share of the roofline that networks reach, and standard deviation of its logarithm over devices and networks.
#: Measured over roofline was, in the median of 60 networks of NAS-Bench-201: 2.2 (GeForce 2080 Ti, batch 256, 8 µs a
#: launch), 2.5 (1080 Ti, likewise), 3.0 (Cortex-A76, TFLite) and 4.5 (Pixel 3); 0.7 to 2.3 of mobile networks under
#: onnxruntime on a server's core. That is 0.45 between devices and up to 0.5 within one. Where the profile does not say
#: what a launch costs, a GPU at batch 1 is far beyond that: 300 (with 8 µs: 6 to 7).
EFFICIENCY, PRIOR_SPREAD = 0.4, 0.7
#: Primitives that runtimes do in the kernel before them, or not at all.
FOLDED = frozenset({
    "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "softplus", "leaky_relu",
    "clip", "prelu", "batch_norm", "identity", "dropout", "flatten", "reshape",
})  # fmt: skip
#: Origin of what takes no time of its own, so that its 0 ms are not taken for an answer.
INSIDE = "in the kernel before"
PRIOR = "share of the roofline that is usual"
_PEAKS = ("peak_gflops", "bandwidth_gbs")
#: What starting a kernel costs on the GPUs above, in µs. Where a profile does not say, and as much a kernel would be
#: more than the whole estimate, that is a warning.
USUAL_LAUNCH_US = 8.0


class Roofline(Predictor):
    """The roofline of a profile. ``peaks`` holds ``peak_gflops``, ``bandwidth_gbs``, ``launch_us`` and, by data type,
    ``peak_gflops_of``; ``unsupported`` maps Op keys that the device refused to its rule."""

    name = "roofline"
    needs_data = False

    def __init__(
        self,
        card: Card,
        peaks: Mapping[str, Any],
        calibration: Calibration,
        conformal: Conformal | None = None,
        unsupported: Mapping[str, str] | None = None,
    ) -> None:
        self.card = card
        self.peaks, self.calibration = dict(peaks), calibration
        self.unsupported = dict(unsupported or {})
        self._conformal = conformal
        self._cache: dict[str, Any] = {}

    # -- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        data: FitData,
        *,
        level: float = 0.9,
        seed: int = 0,
        peak_gflops: float | None = None,
        bandwidth_gbs: float | None = None,
        launch_us: float | None = None,
        **options: Any,
    ) -> Self:
        """The roofline of the card's hardware, or of the peaks that are given (GFLOP/s, GB/s, µs a kernel).

        With at least :data:`~latbench.predictors.additive.MIN_NETWORKS` measured networks its efficiency is fitted to
        them. ``seed`` changes nothing. Raises :class:`ConfigError` naming the profile's key that is missing.
        """
        if options:
            raise ConfigError(
                f"roofline has no option {', '.join(options)}; its options: peak_gflops, bandwidth_gbs, launch_us"
            )
        given = {"peak_gflops": peak_gflops, "bandwidth_gbs": bandwidth_gbs, "launch_us": launch_us}
        peaks, source = _peaks(data, {k: v for k, v in given.items() if v is not None})
        bare = cls(data.card, peaks, Calibration(), None, data.unsupported)
        notes = [*data.card.notes, f"peaks: {source}"]
        rows = [(n, uses) for n in data.calibration if (uses := bare._costs(n.net)) is not None]
        prior = Calibration(scale=1 / EFFICIENCY, form=PRIOR)
        if len(rows) < MIN_NETWORKS:
            calibration, conformal = prior, None
            spread = NormalDist().inv_cdf((1 + level) / 2) * PRIOR_SPREAD
            intervals: dict[str, Any] = {
                "method": "prior", "networks": 0, "level": level, "low": exp(-spread), "high": exp(spread),
                "note": f"no measured networks: efficiency {EFFICIENCY:g}, known to a factor",
            }  # fmt: skip
            model: dict[str, Any] = calibration.to_json()
            notes.append(
                f"a first guess: {EFFICIENCY:.0%} of the roofline, as devices usually reach; {MIN_NETWORKS} measured "
                f"networks make it one of this device: {data.card.profile_command}"
            )
        else:
            groups = sorted({group(op) for _, uses in rows for op, _, _ in uses})
            parts, work = np.zeros((len(rows), len(groups))), np.zeros((len(rows), 2))
            for i, (_, uses) in enumerate(rows):
                for op, _, ms in uses:
                    parts[i, groups.index(group(op))] += ms
                work[i] = sum(megabytes(op) for op, _, _ in uses), sum(ms > 0 for _, _, ms in uses)
            fitted = calibrate(parts, [n.value for n, _ in rows], groups, work, forms="affine")
            calibration, conformal = fitted.calibration, fitted.conformal
            intervals = conformal.describe(level)
            model = {
                **calibration.to_json(), "networks": fitted.networks, "cv_rmspe": fitted.rmspe,
                "tried": dict(fitted.tried),
            }  # fmt: skip
        card = data.card.replace(
            predictor=cls.name, model={"peaks": peaks, "roofline": model}, intervals=intervals, notes=tuple(notes)
        )
        return cls(card, peaks, calibration, conformal, data.unsupported)

    # -- asking it ----------------------------------------------------------------------------------------------

    def predict(self, net: Network, *, level: float = 0.9, max_uncertainty: float | None = None) -> Estimate:
        """Latency of a network, one part of the breakdown a distinct primitive.

        Raises :class:`UnsupportedOpError` for an Op that the device refused when it was measured, and
        :class:`UncertainError`.
        """
        low, high = self.factors(level)
        refused = next((x for x in _refusable(net) if x[0].key in self.unsupported), None)
        if refused is not None:
            raise UnsupportedOpError(refused[1], self.unsupported[refused[0].key])
        merged: dict[str, tuple[Op, float, list[str]]] = {}
        for op, name, ms in self._costs(net) or ():
            merged.setdefault(op.key, (op, ms, []))[2].append(name)
        parts = [
            Part(
                key,
                op.label,
                len(names),
                self.calibration.op_ms(op, ms) * len(names),
                INSIDE if op.kind in FOLDED else "roofline",
                tuple(names),
            )
            for key, (op, ms, names) in merged.items()
        ]
        warnings = self.calibration.warnings(sum(p.value for p in parts))
        if self._conformal is None:
            first = "a first guess from the profile's peaks: nothing was measured"
            warnings = (first, *self._unknown_launches(parts), *warnings)
        if self.overhead_ms:
            parts.append(Part("overhead", "overhead", 1, self.overhead_ms, "overhead"))
        value = float(sum(p.value for p in parts))
        if not value > 0:
            raise PredictorError(f"{net.name}: a network that neither computes nor moves anything has no roofline")
        metrics = {self.metric: Interval(value, value * low, value * high)}
        attainable = 1.0
        if self._conformal is not None:
            warnings, attainable = (*warnings, *self._conformal.warnings(level)), self._conformal.attainable
        estimate = Estimate(
            self.setting, metrics, tuple(parts), level, warnings, self.card.statistic, attainable=attainable
        )
        return require(estimate, max_uncertainty, self.card)

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike, *, level: float = 0.9) -> ArchEstimates:
        """Latencies of an (n, positions) integer array of architectures, milliseconds."""
        return estimate_archs(self, space, archs, self.factors(level), self._cache)

    def _unknown_launches(self, parts: Sequence[Part]) -> tuple[str, ...]:
        """A warning where what the profile does not say of launches may be most of the time."""
        kernels = sum(p.count for p in parts if p.value > 0)
        launches = kernels * USUAL_LAUNCH_US * 1e-3
        if "launch_us" in self.peaks or launches <= sum(p.value for p in parts):
            return ()
        return (
            f"hardware.launch_us is not known: were it {USUAL_LAUNCH_US:g} µs, as on GPUs, the starts of {kernels} "
            f"kernels would take {launches:.3g} ms by themselves, which the estimate leaves out",
        )

    def op_costs(self, keys: list[str]) -> Floats:
        """What each Op key adds, milliseconds; NaN where the device refused it."""
        out = np.zeros(len(keys))
        for i, key in enumerate(keys):
            op = Op.parse(key)
            if key in self.unsupported:
                out[i] = np.nan
            else:
                primitives = (op,) if op.level == "primitive" else op.primitives
                out[i] = sum(self.calibration.op_ms(p, self.primitive_ms(p)) for p in primitives)
        return out

    @property
    def overhead_ms(self) -> float:
        """Constant per network in milliseconds: 0 without measured networks."""
        return self.calibration.overhead_ms

    def primitive_ms(self, op: Op) -> float:
        """The roofline of one primitive in milliseconds, before the efficiency; 0 for what is folded."""
        if op.kind in FOLDED:
            return 0.0
        dtype = op.outputs[0].dtype if op.outputs else "f32"
        peak = self.peaks.get("peak_gflops_of", {}).get(dtype, self.peaks["peak_gflops"])
        launch_us = float(self.peaks.get("launch_us", 0.0))
        return roofline_ms(op, peak, self.peaks["bandwidth_gbs"]) + launch_us * 1e-3

    def factors(self, level: float = 0.9) -> tuple[float, float]:
        """What multiplies an estimate to give the ends of its interval."""
        if not 0 < level < 1:
            raise ConfigError(f"level: an interval's level is between 0 and 1, not {level}")
        if self._conformal is not None:
            low, high = self._conformal.factors(level)
        else:
            high = exp(NormalDist().inv_cdf((1 + level) / 2) * PRIOR_SPREAD)
            low = 1 / high
        x = widened(Interval(1.0, low, high), self.setting.model_error, level)
        return x.low, x.high

    def _costs(self, net: Network) -> list[tuple[Op, str, float]] | None:
        """Primitive, node and milliseconds before the efficiency; None for a network that holds what was refused."""
        if any(op.key in self.unsupported for op, _ in _refusable(net)):
            return None
        return [(n.op, n.name, self.primitive_ms(n.op)) for n in net.nodes]

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write ``card.json``, ``roofline.json`` and, where networks were measured, ``roofline.npz``."""
        content = {"peaks": self.peaks, "calibration": self.calibration.to_json(), "unsupported": self.unsupported}
        data = {"roofline.json": files.as_json(content)}
        if self._conformal is not None:
            data["roofline.npz"] = files.npz(**self._conformal.to_arrays())
        folder, _ = files.write_folder(path, self.card, data)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises :class:`FileFormatError`."""
        folder = files.read_folder(path, cls.name)
        d = folder.json("roofline.json")
        try:
            conformal = None
            if "roofline.npz" in folder.files:
                conformal = Conformal.from_arrays(folder.arrays("roofline.npz"))
            peaks = {k: v if k == "peak_gflops_of" else number(v, k) for k, v in d["peaks"].items()}
            if not all(peaks[k] > 0 for k in _PEAKS):
                raise ValueError(f"peaks are above 0, not {peaks}")
            return cls(folder.card, peaks, Calibration(**d["calibration"]), conformal, dict(d["unsupported"]))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise FileFormatError(f"{folder.path}: not a roofline: {e!r}") from e


def _refusable(net: Network) -> list[tuple[Op, str]]:
    """What a device may have refused of a network, with its name: blocks and primitives."""
    return [*((b.op, b.name) for b in net.blocks), *((n.op, n.name) for n in net.nodes)]


def _peaks(data: FitData, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Peaks and where they come from. Raises :class:`ConfigError` naming the key that is missing."""
    from latbench.host_peaks import host_peaks
    from latbench.profile import find_profile

    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigError(f"roofline: {name} is a number above 0, not {value!r}")
    profile = str(data.card.device.get("profile") or data.setting.device)
    known = dict(data.card.device.get("hardware") or {})
    source = str(known.get("source") or f"the profile {profile}")
    if any(k not in known and k not in given for k in _PEAKS):
        try:
            host = host_peaks(find_profile(profile), data.setting.threads)
        except ConfigError:  # a profile that is not at hand
            host = {}
        if host:
            source = str(host.pop("source"))
            known = {**host, **known}
    peaks = {k: known[k] for k in (*_PEAKS, "launch_us", "peak_gflops_of") if k in known}
    peaks |= {k: float(v) for k, v in given.items()}
    if missing := [key for key in _PEAKS if key not in peaks]:
        raise ConfigError(
            f"{profile}: {' and '.join(f'hardware.{key}' for key in missing)}: missing, and a roofline needs it; add "
            "it to the profile's TOML from the data sheet ([hardware] peak_gflops = cores in use × GHz × FLOP a "
            "cycle, bandwidth_gbs = what their memory gives), or give "
            f"{' and '.join(f'the option {key}' for key in missing)}"
        )
    return peaks, "given" if all(k in given for k in _PEAKS) else source
