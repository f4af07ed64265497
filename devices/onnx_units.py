"""The units of a network under one Setting's onnxruntime: read, checked, kept as JSON, and planned without a device."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from latbench.device import Unit
from latbench.errors import LatbenchError, ModelError, NotInstalledError
from latbench.network import Network
from latbench.op import Op
from latbench.runtime import artefact_folder, write_atomically
from latbench.setting import Setting
from latbench.work import work

from .fusion import units_by_rule
from .onnx_graph import RuntimeGraph, node_names
from .onnx_lower import lowered, written
from .onnx_optimise import CPU, whole_unit
from .onnxruntime_versions import kept

if TYPE_CHECKING:
    import onnx

    Optimise = Callable[[onnx.ModelProto], onnx.ModelProto]


#: Providers that compile parts of a network as a whole, whatever nodes these have: there is no graph to read or cut.
COMPILING = (
    "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "OpenVINOExecutionProvider", "QNNExecutionProvider",
    "CoreMLExecutionProvider", "NnapiExecutionProvider", "MIGraphXExecutionProvider", "VitisAIExecutionProvider",
)  # fmt: skip


def check_coverage(units: Sequence[Unit], net: Network) -> None:
    """Raises :class:`ModelError` unless every primitive that multiplies matrices is covered exactly once."""
    times = Counter(n for u in units for n in u.nodes)
    wrong = [n.name for n in net.nodes if work(n.op) and times[n.name] != 1]
    if wrong:
        raise ModelError(f"{net.name}: the runtime's graph covers {wrong[:5]} {[times[n] for n in wrong[:5]]} times")


def graph_of(optimised: onnx.ModelProto, net: Network, block: int) -> RuntimeGraph:
    """An optimised graph in terms of the network that it was made from."""
    import onnx

    if net.source is None:
        names = {n.name: n.outputs[0] for n in net.nodes}
    else:
        names = node_names(onnx.load_model_from_string(net.source))
    return RuntimeGraph(optimised, net, names, block)


def units_of(
    optimised: onnx.ModelProto, net: Network, block: int, to_onnx: Callable[[Network], onnx.ModelProto], again: Optimise
) -> list[Unit]:
    """Units read from an optimised graph. Where a file's own tensor names do not fit, the network is written anew.

    Raises :class:`ModelError`.
    """
    try:
        units = graph_of(optimised, net, block).units
        check_coverage(units, net)
    except ModelError:
        if net.source is None:
            raise
        bare = net.replace(source=None)
        return units_of(again(to_onnx(bare)), bare, block, to_onnx, again)
    return units


def units_name(net: Network) -> str:
    """The name of the file that keeps a network's units. Of a model file the content counts, too: weights that are
    equal, or made by nodes, lead the optimiser elsewhere."""
    text = f"{net.key}:{(net.origin.get('sha256') or len(net.source)) if net.source else 0}"
    return f"units-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def kept_units(path: Path, net: Network, provider: str, make: Callable[[], list[Unit]]) -> list[Unit]:
    """A network's units from the file that keeps them; made, and kept, where it is missing or damaged.

    Other providers than the CPU's leave to the CPU what they do not have: where a unit runs is kept with it.
    """
    try:
        units = units_from_json(path.read_text("utf-8"), net)
        check_coverage(units, net)
        with suppress(OSError):
            os.utime(path)  # so that it is not pruned
    except (OSError, ValueError, TypeError, LookupError, LatbenchError):
        units = make()
        write_atomically(path, units_to_json(units, net).encode())
    return placed(units, provider)


def placed(units: Iterable[Unit], provider: str) -> list[Unit]:
    """The units with what is known of where they run: all that is the CPU's is the CPU's."""
    return [replace(u, provider=provider) if provider == CPU else u for u in units]


def units_to_json(units: Sequence[Unit], net: Network) -> str:
    """Units as JSON that fits every network of the same key: nodes and tensors are given by number."""
    number = {n.name: i for i, n in enumerate(net.nodes)}
    tensor = {t: i for i, t in enumerate(_tensors(net))}
    rows = []
    for u in units:
        where = [u.provider] if u.provider else []
        rows.append([u.op.key, [number[n] for n in u.nodes], [tensor[t] for t in u.outputs], u.name, *where])
    return json.dumps(rows)


def units_from_json(text: str, net: Network) -> list[Unit]:
    """The inverse of :func:`units_to_json`."""
    names, tensors = [n.name for n in net.nodes], _tensors(net)
    return [
        Unit(_parse(key), tuple(names[i] for i in nodes), tuple(tensors[i] for i in outputs), str(name), *provider)
        for key, nodes, outputs, name, *provider in json.loads(text)
    ]


@lru_cache(maxsize=4096)
def _parse(key: str) -> Op:
    return Op.parse(key)


def _tensors(net: Network) -> list[str]:
    return [*net.inputs, *(t for n in net.nodes for t in n.outputs)]


def compiled_units(net: Network, provider: str, fused: Sequence[str] | None) -> list[Unit]:
    """The units of a provider that compiles: by the patterns that were measured, without any the network as a whole."""
    if fused is None:
        return [whole_unit(net, provider)]
    return [replace(u, provider=provider) for u in units_by_rule(net, fused)]


# -- without a device -----------------------------------------------------------------------------------------------


def plan(setting: Setting, net: Network) -> list[Unit]:
    """The units of a network in a Setting, optimised on this host; cached on disk by the network's key.

    Raises :class:`NotInstalledError` where this host's onnxruntime is missing or of another version, and
    :class:`ModelError` where it lays tensors out differently (another kind of CPU): ask an open device then.
    """
    o = setting.options
    if o["provider"] in COMPILING:
        return compiled_units(net, str(o["provider"]), o.get("fusion"))
    target = {"plan": setting.runtime, "version": setting.runtime_version, **o}
    path = artefact_folder(target) / units_name(net)
    return kept_units(path, net, str(o["provider"]), lambda: _plan(setting, net))


def _plan(setting: Setting, net: Network) -> list[Unit]:
    import onnx

    from .onnx_artefacts import block_size, probe_model

    o, version = setting.options, setting.runtime_version
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise NotInstalledError("onnxruntime", f"pip install onnxruntime=={version}") from None
    if onnxruntime.__version__ != version:
        raise NotInstalledError(
            f"onnxruntime {version}", f"pip install onnxruntime=={version}",
            f"this host has {onnxruntime.__version__}, which may run the network differently",
        )  # fmt: skip

    def optimise(model: onnx.ModelProto) -> onnx.ModelProto:
        return optimise_here(model.SerializeToString(), str(o["graph_optimization"]), str(o["provider"]))

    opset, ir_version = int(o["opset"]), int(o["ir_version"])
    most = kept(o, version)

    def to_onnx(n: Network) -> onnx.ModelProto:
        return written(n, opset, ir_version, most[0])

    if (here := block_size(optimise(probe_model(opset, ir_version)))) != o["nchwc_block"]:
        raise ModelError(
            f"this host's CPU lays out channels in blocks of {here}, device {setting.device} in blocks of "
            f"{o['nchwc_block']}: open the device and ask its units"
        )
    first = onnx.load_model_from_string(lowered(net.source, *most, net.name)[0]) if net.source else to_onnx(net)
    return units_of(optimise(first), net, int(o["nchwc_block"]), to_onnx, optimise)


def optimise_here(model: bytes, level: str, provider: str) -> onnx.ModelProto:
    """A model as this host's onnxruntime runs it. Raises :class:`NotInstalledError` where it lacks the provider."""
    import tempfile

    import onnx
    import onnxruntime as ort

    levels = {"none": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}
    so = ort.SessionOptions()
    so.graph_optimization_level = getattr(ort.GraphOptimizationLevel, "ORT_" + levels[level])
    so.intra_op_num_threads, so.log_severity_level = 1, 4
    with tempfile.TemporaryDirectory(prefix="latbench-") as tmp:
        so.optimized_model_filepath = f"{tmp}/optimised.onnx"
        there = provider in ort.get_available_providers()
        if not there or ort.InferenceSession(model, so, providers=[provider]).get_providers()[0] != provider:
            raise NotInstalledError(f"onnxruntime with {provider}", "pip install onnxruntime-gpu", "on this host")
        return onnx.load_model(so.optimized_model_filepath)
