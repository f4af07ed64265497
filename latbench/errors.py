"""Every error that latbench raises on purpose, as one tree.

::

    LatbenchError
    ├── ConfigError             a profile, plan or option is wrong: names the file and the dotted key
    │   ├── NotInstalledError   an extra or runtime is missing: names the command that installs it
    │   └── MetricError         a metric that the device cannot measure: says why, and which it can
    ├── ModelError              a network cannot be read or built: names the file and the node
    │   ├── DynamicShapeError   an input dimension is not a number
    │   ├── UnsupportedOpError  a layer that a builder, runtime or chip does not have: layer and rule
    │   └── ArchitectureError   a tuple that is not an architecture of the space
    ├── NotAdditiveError        the space's cost is not a sum over positions
    ├── DeviceError             the device did not do what was asked
    │   ├── TransportError      it could not be reached, or the connection broke
    │   │   ├── ConnectionLostError  it broke while in use: open the device again
    │   │   │   └── RebootedError   because the device restarted: what ran and lay there is gone
    │   │   ├── HostKeyError    the device's key is unknown or another one: names the command that mends it
    │   │   ├── AuthError       it refuses us: names the keys that were tried
    │   │   └── DiskFullError   no room for the session's files: names the folder
    │   ├── DeviceTimeoutError  it did not answer in time
    │   ├── DeviceDiedError     its process ended before its work did
    │   ├── ProtocolError       it answered something that is not a measurement
    │   ├── OutOfMemoryError    it has not enough memory for what was asked
    │   ├── WrongAbiError       a program or library is made for another machine: names both
    │   ├── BuildError          a program or kernel for it cannot be compiled: the compiler's first lines
    │   ├── SensorError         a sensor cannot tell what was asked: says how much came, and what to do
    │   ├── TooHotError         it did not cool down in the time that the profile gives it
    │   ├── DriverMissingError  it has no driver or library of that kind: names what was looked for
    │   └── DeviceBusyError     another campaign holds it: names the holder
    ├── StoreError              the store cannot be opened, migrated or written
    │   └── SlotLostError       a slot whose item was given to another device meanwhile
    ├── PredictorError          a latency model cannot be fitted, loaded or asked
    │   ├── UnknownOpError      the Op was never measured: names it and the nearest known ones
    │   ├── SettingMismatchError  the table or predictor is for another device or setting
    │   ├── PoolingError        devices whose Visits no one factor brings together: says by how much they differ
    │   ├── NotEnoughDataError  too few measurements: names the command that takes them
    │   ├── MissingMetricError  a number of another metric was asked for than the model has: names both
    │   ├── UncertainError      an estimate is less certain than was asked for: its interval, and what would narrow it
    │   └── FileFormatError     a saved predictor or result is truncated, tampered with or too new
    └── SearchError             a problem, searcher or result is unusable
        └── InfeasibleError     no architecture keeps the limits: names the cheapest one
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from latbench.visit import Estimate


class LatbenchError(Exception):
    """Base of all errors that latbench raises on purpose."""


class ConfigError(LatbenchError):
    """A profile, plan or option is wrong; the text names the file and the dotted key."""


class NotInstalledError(ConfigError):
    """A library or runtime is missing.

    ``what`` is its name, ``install`` the command that provides it.
    """

    def __init__(self, what: str, install: str, why: str = "") -> None:
        self.what, self.install = what, install
        # An extra of latbench itself; who works in a clone wants it of that.
        extra = install.partition("latbench[")[2].partition("]")[0]
        clone = f", or in a clone `pip install -e '.[{extra}]'`" if extra else ""
        super().__init__(f"{what} is not installed{f' ({why})' if why else ''}: run `{install}`{clone}")


class MetricError(ConfigError):
    """A metric that a device cannot measure; ``metric`` is its name, ``why`` the reason where it is known."""

    def __init__(
        self, metric: str, device: str, metrics: Sequence[str], why: str = "", *, known: Sequence[str]
    ) -> None:
        self.metric, self.why = metric, why
        reason = why if metric in known else f"there is no such metric; known: {', '.join(known)}"
        text = f": {reason}" if reason else ""
        super().__init__(f"{device} cannot measure {metric}{text}; it can measure {', '.join(metrics)}")


class ModelError(LatbenchError):
    """A network cannot be read or built; the text names the file and the node."""


class DynamicShapeError(ModelError):
    """An input of the model has a dimension that is not a number."""


class UnsupportedOpError(ModelError):
    """A layer that the builder, runtime or chip does not have.

    ``layer`` is the node's name, ``rule`` the rule that it breaks.
    """

    def __init__(self, layer: str, rule: str) -> None:
        self.layer, self.rule = layer, rule
        super().__init__(f"layer {layer!r} is unsupported: {rule}")


class ArchitectureError(ModelError):
    """A tuple that is not an architecture of the space."""


class NotAdditiveError(LatbenchError):
    """The cost of this space is not a sum over its positions, so it has no cost matrix."""


class DeviceError(LatbenchError):
    """The device did not do what was asked."""

    #: True where trying again does not help until somebody has taken the step that the text names.
    permanent: ClassVar[bool] = False


class TransportError(DeviceError):
    """The device could not be reached, or the connection broke."""


class ConnectionLostError(TransportError):
    """The connection broke while it was in use; what ran on the device is ended. Opening it again may help."""


class RebootedError(ConnectionLostError):
    """The device restarted while it was in use."""


class HostKeyError(TransportError):
    """The key by which a device proves who it is, is unknown, or is not the one that is known."""

    permanent = True


class AuthError(TransportError):
    """The device refuses the user or every key that was offered."""

    permanent = True


class DiskFullError(TransportError):
    """A file did not fit on the device."""


class DeviceTimeoutError(DeviceError):
    """The device did not answer in time."""


class DeviceDiedError(DeviceError):
    """The measuring process on the device ended before its work did."""


class ProtocolError(DeviceError):
    """The device answered something that is not a measurement (NaN, negative, empty, not JSON)."""


class OutOfMemoryError(DeviceError):
    """The device has not enough memory for a model: take a smaller one, or a smaller batch or resolution."""


class WrongAbiError(DeviceError):
    """A program or library that the device cannot load because it was made for another machine or system."""

    permanent = True


class BuildError(DeviceError):
    """A program or kernel for the device cannot be compiled; the text holds the first lines of the compiler's."""


class DriverMissingError(DeviceError):
    """The device has no driver or library of that kind; the text names what was looked for, and where."""

    permanent = True


class SensorError(DeviceError):
    """A sensor cannot tell what was asked: it is not there, too slow, or charging; the text says what to do."""


class TooHotError(DeviceError):
    """The device did not cool down within the profile's ``thermal.max_wait_s``."""

    permanent = True


class DeviceBusyError(DeviceError):
    """Another campaign holds the device; ``holder`` says who."""

    def __init__(self, identity: str, holder: str) -> None:
        self.identity, self.holder = identity, holder
        super().__init__(f"device {identity} is being measured by {holder}; wait for it (--wait SECONDS), or stop it")


class StoreError(LatbenchError):
    """The store cannot be opened, migrated or written."""


class SlotLostError(StoreError):
    """A slot that cannot be filled any more: its item was taken back from a device that seemed to be gone."""


class PredictorError(LatbenchError):
    """A latency model cannot be fitted, loaded or asked."""


class UnknownOpError(PredictorError):
    """An Op that the model has never seen.

    ``key`` is the Op's key, ``nearest`` the keys of the most similar known Ops. ``label`` and ``nearest_labels`` are
    what the text shows of them: a fused Op's key is no reading for people.
    """

    def __init__(
        self,
        key: str,
        nearest: Sequence[str] = (),
        remedy: str = "",
        *,
        label: str = "",
        nearest_labels: Sequence[str] = (),
    ) -> None:
        self.key, self.nearest, self.label = key, tuple(nearest), label or key
        known = "".join(f"\n  nearest known: {k}" for k in dict.fromkeys(nearest_labels or self.nearest))
        super().__init__(f"unknown Op {self.label}{known}{f'{chr(10)}  {remedy}' if remedy else ''}")


class SettingMismatchError(PredictorError):
    """A table, predictor or Visit belongs to another Setting than the one asked for."""


class PoolingError(PredictorError):
    """Devices whose Visits no one factor brings together; the text says by how much they differ."""


class NotEnoughDataError(PredictorError):
    """Too few measurements to answer; the text names the command that takes them."""


class MissingMetricError(PredictorError):
    """``asked`` for of what holds another metric: ``metric``."""

    def __init__(self, asked: str, metric: str) -> None:
        self.asked, self.metric = asked, metric
        super().__init__(f"this holds {metric}, not {asked}: take metrics[{metric!r}], or a model of {asked}")


class UncertainError(PredictorError):
    """An estimate whose interval is wider than was asked for.

    ``estimate`` is what would have been the answer, ``uncertainty`` half its interval's width over its value,
    ``allowed`` what was asked for, ``remedies`` what would narrow it.
    """

    def __init__(self, estimate: Estimate, uncertainty: float, allowed: float, remedies: Sequence[str]) -> None:
        self.estimate, self.uncertainty, self.allowed = estimate, uncertainty, allowed
        self.remedies = tuple(remedies)
        x = estimate.interval
        super().__init__(
            f"too uncertain: {estimate.metric} {x.value:.4g} with {estimate.reached:.0%} interval {x.low:.4g} to "
            f"{x.high:.4g} is ± {uncertainty:.1%}, at most ± {allowed:.1%} was asked for"
            + "".join(f"\n  {r}" for r in remedies)
        )


class FileFormatError(PredictorError):
    """A saved predictor or result is truncated, tampered with or of a newer version."""


class SearchError(LatbenchError):
    """A problem, searcher or result is unusable."""


class InfeasibleError(SearchError):
    """No architecture keeps the limits; the text names the cheapest one found."""
