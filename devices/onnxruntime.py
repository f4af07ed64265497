"""onnxruntime: the embedded default runtime.

Everything is optimised once, on the device and by the device's own onnxruntime, at the profile's level; what is then
timed is that optimised graph, loaded without further optimisation. A whole network is its optimised graph; an Op is cut
out of its context (:mod:`.onnx_context`), so that the kernel measured alone and the kernel in a network are the same.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from latbench.device import Job, Unit
from latbench.errors import ConfigError, DeviceError, ModelError, UnsupportedOpError
from latbench.network import Network
from latbench.op import Op
from latbench.profile import Profile, parse_section
from latbench.protocol import Protocol
from latbench.runtime import ARTEFACT_VERSION, Artefact, artefact_folder, prune, write_atomically
from latbench.setting import Setting
from latbench.transport import Transport
from latbench.visit import Failure, Visit

from .cores import CoresOptions, CoresRuntime
from .fusion import measured_rule
from .onnx_artefacts import Artefacts, block_size, probe_model
from .onnx_optimise import CPU, optimise, profile, with_providers
from .onnx_units import (
    COMPILING,
    compiled_units,
    graph_of,
    kept_units,
    placed,
    units_from_json,
    units_name,
    units_of,
    units_to_json,
)
from .onnxruntime_versions import default, kept, limits, newest
from .python_runner import PythonRunnerOptions, PythonRunnerRuntime, cuda_versions

if TYPE_CHECKING:
    import onnx

#: Providers of NVIDIA GPUs.
ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class OnnxOptions(CoresOptions):
    """What the profile's ``[runtime]`` section says of onnxruntime, whatever drives it.

    ``opset`` and ``ir_version`` are the newest that models are written for, and that a user's file may have; without
    them 17 and 8, or what the device's onnxruntime can read where that is less, and for files all that it can read.
    ``provider_options`` are the execution provider's own. ``fusion`` names a file of what was measured to be fused
    (`latbench fusion`), for a provider that compiles and shows no graph.
    """

    execution_mode: Literal["sequential", "parallel"] = "sequential"
    graph_optimization: Literal["all", "extended", "basic", "none"] = "all"
    provider: str = CPU
    provider_options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    left_to_cpu: list[str] = Field(default_factory=list)
    fusion: str | None = Field(None, pattern=r"\.json$")
    opset: int | None = Field(None, ge=7)
    ir_version: int | None = Field(None, ge=3)


class OnnxRuntimeOptions(OnnxOptions, PythonRunnerOptions):
    """The profile's ``[runtime]`` section for ``kind = "onnxruntime"``."""

    kind: Literal["onnxruntime"] = "onnxruntime"


class OnnxSessions(CoresRuntime):
    """onnxruntime, whatever program drives it: artefacts, units and the Setting. ``options`` is set by the subclass."""

    options: OnnxOptions

    # -- the runner ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Say hello, check runtime, provider and cores, find the layout's block size."""
        if self.profile.clock == "device-event":
            raise ConfigError(f"{self.where}:\n  clock: onnxruntime tells no times of the device's own; leave it away")
        super().open()
        self._check_provider()
        self._fused = self._fusion_rule()
        self.opset, self.ir_version = self._readable()
        self.folder = artefact_folder(self._target())
        prune(self.folder)
        self._units: dict[str, str] = {}  # those of the last time it was open may be another version's
        self.block = 0 if self.compiles else self._block()
        most = kept(self._written, self.version)
        self._artefacts = Artefacts(self.folder, self.block, self.opset, self.ir_version, most, self._optimise)
        if self.options.provider != CPU:
            self._artefacts.network_io = "bound"
        if self.compiles:
            self._artefacts.compiled_at = self.options.graph_optimization

    @property
    def compiles(self) -> bool:
        """True for a provider that compiles parts of the network, which nobody can write as a graph and cut."""
        return self.options.provider in COMPILING

    def hello_options(self) -> dict[str, Any]:
        """The provider, so that the runner says on which device it computes."""
        return {"provider": self.options.provider, "provider_options": self.options.provider_options}

    def _check_provider(self) -> None:
        """Raises :class:`ConfigError` where onnxruntime does not have the provider, :class:`DeviceError` no GPU."""
        provider = self.options.provider
        if provider not in self.hello["providers"]:
            gpu = "; CUDA and TensorRT need the package onnxruntime-gpu" if provider in ON_CUDA else ""
            raise ConfigError(
                f"{self.where}:\n  runtime.provider: onnxruntime {self.version} on the device has no {provider!r}; "
                f"it has: {', '.join(self.hello['providers'])}{gpu}"
            )
        if error := self.hello.get("device_error"):
            raise DeviceError(f"{self.where}: {provider} cannot run here: {error}")

    def _fusion_rule(self) -> list[str] | None:
        """What was measured to be fused. Raises :class:`ConfigError` where the optimised graph says it anyway."""
        if self.options.fusion is None:
            return None
        if not self.compiles:
            raise ConfigError(
                f"{self.where}:\n  runtime.fusion: {self.options.provider} shows what it fuses in its optimised graph; "
                "leave the key away"
            )
        return measured_rule(self.where, self.options.fusion, self.identity(), self.name, self.version)

    def _readable(self) -> tuple[int, int]:
        """Operator set and IR version to write. Raises :class:`ConfigError` for what the device cannot read."""
        o, limits = self.options, newest(self.version)
        for key, wanted, limit in (("opset", o.opset, limits[0]), ("ir_version", o.ir_version, limits[1])):
            if wanted is not None and wanted > limit:
                raise ConfigError(
                    f"{self.where}:\n  runtime.{key}: onnxruntime {self.version} on the device reads {key} {limit} at "
                    f"most, not {wanted}; leave the key away, or set {key} = {limit}"
                )
        usual = default(self.version)
        return o.opset or usual[0], o.ir_version or usual[1]

    @property
    def _written(self) -> dict[str, Any]:
        """Options of the Setting: what models are written for, and which of it is a limit for users' files as well."""
        named = limits(self.options.opset, self.options.ir_version, self.version)
        return {"opset": self.opset, "ir_version": self.ir_version, **({"limits": named} if named else {})}

    def _target(self) -> dict[str, Any]:
        o = self.options
        return {
            "device": self.identity(), "runtime": self.name, "version": self.version, "provider": o.provider,
            "graph_optimization": o.graph_optimization, "opset": self.opset, "ir_version": self.ir_version,
            "kept": kept(self._written, self.version),
            **({"provider_options": o.provider_options} if o.provider_options else {}),
        }  # fmt: skip

    def runner_options(self) -> dict[str, Any]:
        """What sessions are made with, and the cores to stay on."""
        o = self.options
        return {
            **super().runner_options(), "execution_mode": o.execution_mode, "provider": o.provider,
            "provider_options": o.provider_options, "left_to_cpu": o.left_to_cpu,
        }  # fmt: skip

    @property
    def setting(self) -> Setting:
        """Device, version and options; the layout's block size says which kernels this CPU gets.

        The environment variables of the profile belong to it: they may change what a runtime does.
        """
        o, env = self.options, dict(self.profile.transport.get("env") or {})
        return Setting(
            device=self.identity(), runtime=self.name, runtime_version=self.version, threads=o.threads,
            affinity=self.affinity, power_mode=self.profile.power_mode, clock=self.profile.clock,
            options={
                "provider": o.provider, "execution_mode": o.execution_mode, **self._written,
                "graph_optimization": o.graph_optimization, "nchwc_block": self.block,
                "artefacts": ARTEFACT_VERSION, **({"env": env} if env else {}), **self._elsewhere(),
                **({"fusion": self._fused} if self._fused is not None else {}),
            },
        )  # fmt: skip

    def _elsewhere(self) -> dict[str, Any]:
        """Options that only count where they are given, or where it is not the CPU that computes: there nothing is
        copied from and to it."""
        options = self.options.provider_options
        if self.options.provider == CPU:
            return {"provider_options": options} if options else {}
        versions = cuda_versions(self.hello, ("cuda", "cudnn", "tensorrt"))
        return {"io": "bound", "provider_options": options, **versions}

    def _block(self) -> int:
        cached = self.folder / "block.json"
        if not cached.exists():
            (made,) = self._optimise([("block", probe_model(self.opset, self.ir_version))]).values()
            if isinstance(made, Failure):
                raise DeviceError(f"{self.where}: onnxruntime cannot even run one convolution: {made.message}")
            write_atomically(cached, json.dumps(block_size(made)).encode())
        return int(json.loads(cached.read_text()))

    # -- artefacts ----------------------------------------------------------------------------------------------

    def artefacts(self, subjects: Iterable[Op | Network]) -> list[Artefact]:
        """The artefact of each subject; what is missing is optimised on the device in batches and cut here."""
        return self._artefacts.get(subjects)

    def _optimise(self, models: Sequence[tuple[str, onnx.ModelProto | bytes]]) -> dict[str, onnx.ModelProto | Failure]:
        return optimise(self, models, self.options.graph_optimization, self.folder)

    # -- visits -------------------------------------------------------------------------------------------------

    def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
        """As the base class; an Op that the provider left to the CPU is a failure, unless ``left_to_cpu`` has it.

        A network that it left in part is measured: its ``environment`` says what ran where, and its Measurement warns.
        """
        ops = {j.slot: j.subject for j in jobs if isinstance(j.subject, Op)}
        stream = super().visits(jobs, protocol)
        try:
            for v in stream:
                op = ops.get(v.slot) if v.role == "op" else None
                yield self._not_left(v, op) if op else v
        finally:
            if isinstance(stream, Generator):
                stream.close()

    def _not_left(self, visit: Visit, op: Op) -> Visit:
        provider, allowed = self.options.provider, self.options.left_to_cpu
        nodes = visit.environment.get("providers")
        if not visit.ok or provider == CPU or not isinstance(nodes, Mapping) or nodes.get(provider):
            return visit
        if "*" in allowed or op.kind in allowed:
            return visit
        why = (
            f"no node of {op.kind} runs on {provider}; all are left to {', '.join(nodes) or 'nobody'}: where that is "
            f'how the network runs, set runtime.left_to_cpu = ["{op.kind}"]'
        )
        empty = np.empty(0, np.int64)
        return replace(
            visit, samples_ns=empty, wait_ns=None, warmup_ns=empty, metrics={}, failure=Failure("ConfigError", why)
        )

    # -- units --------------------------------------------------------------------------------------------------

    def units(self, net: Network) -> list[Unit]:
        """The runtime's nodes for a network, layout conversions included, in execution order."""
        name = units_name(net)
        if name not in self._units:
            made = kept_units(self.folder / name, net, self.options.provider, lambda: self._read_units(net))
            self._units[name] = units_to_json(made, net)
            return made
        return placed(units_from_json(self._units[name], net), self.options.provider)

    def _read_units(self, net: Network) -> list[Unit]:
        import onnx

        if self.compiles:
            return compiled_units(net, self.options.provider, self._fused)
        (artefact,) = self.artefacts([net])
        if artefact.path is None:
            raise _error(artefact)
        model = onnx.load_model(artefact.path)
        units = units_of(model, net, self.block, self._artefacts.to_onnx, self._optimised)
        if self.options.provider == CPU:
            return units
        said = profile(self, artefact.path, "none", runs=1, warmup=0)["providers"]
        return with_providers(units, graph_of(model, net, self.block), said)

    def _optimised(self, model: onnx.ModelProto) -> onnx.ModelProto:
        result = self._optimise([("plan", model)])["plan"]
        if isinstance(result, Failure):
            raise ModelError(result.message)
        return result

    @classmethod
    def plan(cls, setting: Setting, net: Network) -> list[Unit]:
        """The units of a Setting without its device; see :mod:`.onnx_units`."""
        from .onnx_units import plan

        return plan(setting, net)

    def profile_units(self, net: Network, runs: int = 20, *, fastest: bool = False) -> dict[str, float]:
        """Unit name → median (or shortest) nanoseconds over ``runs``, by onnxruntime's profiler; of nodes the sum.

        Of the CPU's provider alone: of others the profiler only knows how long it took to queue the work.
        """
        import onnx

        if self.options.provider != CPU:
            return {}
        (artefact,) = self.artefacts([net])
        if artefact.path is None:
            raise _error(artefact)
        found = profile(self, artefact.path, "none", runs)["fastest" if fastest else "nodes"]
        us = {str(n): float(t) for n, t in found.items()}
        graph = graph_of(onnx.load_model(artefact.path), net, self.block)
        return {
            u.name: 1000.0 * sum(us.get(graph.nodes[i].name, 0.0) for i in g.nodes)
            for g, u in zip(graph.groups, graph.units, strict=True)
        }


class OnnxRuntime(OnnxSessions, PythonRunnerRuntime):
    """onnxruntime through the Python runner. See :class:`~latbench.runtime.Runtime`."""

    name: ClassVar[str] = "onnxruntime"
    backend: ClassVar[str] = "onnxruntime"
    options: OnnxRuntimeOptions

    def __init__(self, section: Mapping[str, Any], where: str, profile: Profile, transport: Transport | None) -> None:
        super().__init__(section, where, profile, transport)
        self.options = parse_section(OnnxRuntimeOptions, dict(section), where, "runtime")

    @property
    def setting(self) -> Setting:
        """As of onnxruntime, and which runner, where it is not latbench's own."""
        made = super().setting
        return replace(made, options={**made.options, **self.replaced})


def _error(a: Artefact) -> ModelError:
    message = a.failure.message if a.failure else ""
    return UnsupportedOpError("network", message) if a.unsupported else ModelError(message)
