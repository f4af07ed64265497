"""Artefacts for onnxruntime: what is optimised once, kept on disk, and loaded on the device as it is.

:class:`Artefacts` keeps them in a folder, by the name of the subject, and builds what is missing in batches: a whole
network is its optimised graph; an Op is cut out of its context (:mod:`.onnx_context`), and where that does not come out
clean it is optimised alone, and the artefact says why.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latbench.errors import DeviceDiedError, DeviceTimeoutError, LatbenchError, ModelError, UnsupportedOpError
from latbench.network import Network
from latbench.op import Op, TensorSpec
from latbench.runtime import Artefact, write_atomically
from latbench.visit import Boundary, Failure

from .onnx_context import Wrapped, cut_block, cut_unit, reorder_model, wrap
from .onnx_graph import REORDERS, RuntimeGraph
from .onnx_lower import lowered, written

if TYPE_CHECKING:
    import onnx

    #: Optimises (name, model) pairs on the device: name → the optimised model, or why there is none.
    Optimise = Callable[[Sequence[tuple[str, onnx.ModelProto | bytes]]], dict[str, onnx.ModelProto | Failure]]

#: Models that are optimised in one go: few enough to keep in memory.
BATCH = 16


class Artefacts:
    """Artefacts of one target in ``folder``. ``block`` is the block size of the device's blocked layout.

    Networks are written for ``opset`` and ``ir_version``; users' files stay as they are up to ``kept``, both of them.
    ``network_io`` says how whole networks are run ("feeds", "bound"). Where a provider compiles, nothing is optimised
    ahead or cut: everything is compiled as it is loaded, at level ``compiled_at``, and Ops are networks of their own.
    """

    network_io = "feeds"
    compiled_at: str | None = None

    def __init__(
        self, folder: Path, block: int, opset: int, ir_version: int, kept: tuple[int, int], optimise: Optimise
    ) -> None:
        self.folder, self.block, self.opset, self.ir_version, self.kept = folder, block, opset, ir_version, kept
        self._optimise = optimise
        self._memory: dict[str, Artefact] = {}

    def get(self, subjects: Iterable[Op | Network]) -> list[Artefact]:
        """The artefact of each subject; what is missing is optimised on the device in batches and cut here."""
        wanted = [(file_name(s), s) for s in subjects]
        missing: dict[str, Op | Network] = {}
        for name, s in wanted:
            if name in missing or self._is_there(name):
                continue
            if (known := self._cached(name)) is None:
                missing[name] = s
            else:
                self._memory[name] = known
        todo = list(missing.items())
        for i in range(0, len(todo), BATCH):
            self._memory.update(self._build(dict(todo[i : i + BATCH])))
        return [self._memory[name] for name, _ in wanted]

    def _is_there(self, name: str) -> bool:
        """True if an artefact is known, and its file, marked as used now, is still there."""
        known = self._memory.get(name)
        if known is None:
            return False
        if known.path is None:
            return True
        try:
            for f in (known.path, known.path.with_suffix(".json")):
                os.utime(f)
        except PermissionError:
            return known.path.exists()
        except OSError:
            del self._memory[name]
            return False
        return True

    def _cached(self, name: str) -> Artefact | None:
        meta = self.folder / f"{name}.json"
        try:
            d = json.loads(meta.read_text("utf-8"))
            made = Artefact(self.folder / f"{name}.onnx", d["boundary"], dict(d["run"]), dict(d["note"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing or damaged: it is built again
        try:
            os.utime(self.folder / f"{name}.onnx")  # marked as used now, so that it is not pruned
            os.utime(meta)
        except FileNotFoundError:
            return None
        except PermissionError:
            pass  # somebody else's cache, which they look after
        return made if made.path is not None and made.path.exists() else None

    def _store(self, name: str, model: bytes, boundary: Boundary, io: str, note: Mapping[str, Any]) -> Artefact:
        write_atomically(self.folder / f"{name}.onnx", model)
        run = {"level": self.compiled_at or "none", "io": io}
        meta = {"boundary": boundary, "run": run, "note": dict(note)}
        write_atomically(self.folder / f"{name}.json", json.dumps(meta).encode())
        return Artefact(self.folder / f"{name}.onnx", boundary, run, note)

    def _each(self, models: Sequence[tuple[str, onnx.ModelProto | bytes]]) -> dict[str, onnx.ModelProto | Failure]:
        """The result of each model. One that ends the runner, or takes it too long, is a failure of its own.

        A loss of the device itself raises: then the probe does not come through either.
        """
        try:
            return self._optimise(models)
        except (DeviceDiedError, DeviceTimeoutError) as e:
            if len(models) == 1:
                self._optimise([("probe", probe_model(self.opset, self.ir_version))])
                name = models[0][0]
                return {name: Failure(type(e).__name__, f"optimising it ended the runner: {e}")}
        made: dict[str, onnx.ModelProto | Failure] = {}
        for model in models:
            made.update(self._each([model]))
        return made

    def _build_whole(self, subjects: Mapping[str, Op | Network]) -> dict[str, Artefact]:
        """Artefacts for a provider that compiles: the models as they are."""
        made: dict[str, Artefact] = {}
        for name, s in subjects.items():
            try:
                if isinstance(s, Network):
                    model, note = self._model(s)
                    made[name] = self._store(name, model, "whole", self.network_io, note)
                else:
                    model = self.to_onnx(wrap(s, context=False).net).SerializeToString()
                    why = {"isolated_because": "the provider compiles what it gets as a whole; nothing can be cut out"}
                    made[name] = self._store(name, model, "isolated", "bound", why)
            except LatbenchError as e:
                made[name] = no_artefact(e)
        return made

    def _build(self, subjects: Mapping[str, Op | Network]) -> dict[str, Artefact]:
        """Artefacts of one batch: first in context, what does not come out clean alone."""
        if self.compiled_at is not None:
            return self._build_whole(subjects)
        made: dict[str, Artefact] = {}
        alone: dict[str, str] = {}
        wrapped: dict[str, Wrapped] = {}
        notes: dict[str, dict[str, Any]] = {}
        models: list[tuple[str, onnx.ModelProto | bytes]] = []
        for name, s in subjects.items():
            try:
                if isinstance(s, Network):
                    model, notes[name] = self._model(s)
                    models.append((name, model))
                elif s.kind in REORDERS.values() and s.level == "unit":
                    model = reorder_model(s, self.ir_version, self.opset)
                    made[name] = self._store(name, model, "in-context", "bound", {})
                else:
                    wrapped[name] = wrap(s)
                    models.append((name, self.to_onnx(wrapped[name].net)))
            except LatbenchError as e:
                made[name] = no_artefact(e)
        for name, result in self._each(models).items():
            s = subjects[name]
            if isinstance(result, Failure):
                if isinstance(s, Network):
                    made[name] = no_artefact(result)
                else:
                    alone[name] = result.message
            elif isinstance(s, Network):
                for i, node in enumerate(result.graph.node):
                    node.name = node.name or f"node_{i}"  # the profiler tells nodes by name
                made[name] = self._store(name, result.SerializeToString(), "whole", self.network_io, notes[name])
            else:
                graph = self._graph(result, wrapped[name])
                try:
                    model = (cut_unit(graph, s) if s.level == "unit" else None) or cut_block(graph, wrapped[name])
                except ModelError as e:
                    alone[name] = str(e)
                else:
                    made[name] = self._store(name, model, "in-context", "bound", {})
        made.update(self._build_alone({n: subjects[n] for n in alone}, alone))
        return made

    def _build_alone(self, subjects: Mapping[str, Any], why: Mapping[str, str]) -> dict[str, Artefact]:
        """Ops optimised without context, boundary "isolated", with the reason in their Visits' environment."""
        made: dict[str, Artefact] = {}
        wrapped: dict[str, Wrapped] = {}
        models = []
        for name, op in subjects.items():
            try:
                wrapped[name] = wrap(op, context=False)
                models.append((name, self.to_onnx(wrapped[name].net)))
            except LatbenchError as e:
                made[name] = no_artefact(e)
        for name, result in self._each(models).items():
            op = subjects[name]
            if isinstance(result, Failure):
                made[name] = no_artefact(result)
            elif op.level == "unit" and (model := self._cut_unit(result, wrapped[name], op)):
                made[name] = self._store(name, model, "in-context", "bound", {})
            else:
                note = {"isolated_because": why[name]}
                made[name] = self._store(name, result.SerializeToString(), "isolated", "bound", note)
        return made

    def _cut_unit(self, model: onnx.ModelProto, w: Wrapped, op: Op) -> bytes | None:
        try:
            return cut_unit(self._graph(model, w), op)
        except ModelError:
            return None

    def _graph(self, model: onnx.ModelProto, w: Wrapped) -> RuntimeGraph:
        return RuntimeGraph(model, w.net, {n.name: n.outputs[0] for n in w.net.nodes}, self.block)

    def _model(self, net: Network) -> tuple[bytes, dict[str, Any]]:
        """A network as the device can read it, and what was done to a user's own file for that."""
        if net.source is None:
            return self.to_onnx(net).SerializeToString(), {}
        return lowered(net.source, *self.kept, net.name)

    def to_onnx(self, net: Network) -> onnx.ModelProto:
        """A network in the profile's operator set, or a newer one that its operators need and the device reads."""
        return written(net, self.opset, self.ir_version, self.kept[0])


def file_name(subject: Op | Network) -> str:
    """The name of a subject's artefact: of the very file or weights for a network that has them, else of its key."""
    if isinstance(subject, Op) or (subject.source is None and not subject.weights):
        return hashlib.sha256(subject.key.encode()).hexdigest()[:32]
    # Networks do not change, and hashing hundreds of megabytes once is enough.
    name: str | None = subject.__dict__.get("_artefact_name")
    if name is None:
        h = hashlib.sha256(subject.key.encode() + (subject.source or b""))
        for node, weights in sorted((subject.weights or {}).items() if subject.source is None else ()):
            for weight, array in sorted(weights.items()):
                h.update(f"{node}.{weight}{array.shape}{array.dtype}".encode() + array.tobytes())
        name = subject.__dict__["_artefact_name"] = h.hexdigest()[:32]
    return name


def probe_model(opset: int, ir_version: int) -> onnx.ModelProto:
    """One small convolution; how it is laid out says how many channels a block has."""
    spec = TensorSpec((1, 8, 4, 4))
    op = Op.make(
        "conv", [spec], out_channels=8, kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1), dilation=(1, 1), groups=1,
        bias=False,
    )  # fmt: skip
    return op.expand().to_onnx(opset=opset, ir_version=ir_version)


def block_size(probe: onnx.ModelProto) -> int:
    """Channels in a block of the blocked layout, read off the probe's reordered weights; 0 if it stays unblocked."""
    weights = {i.name: list(i.dims) for i in probe.graph.initializer}
    for n in probe.graph.node:
        if n.op_type == "Conv" and n.domain:
            return int(weights[n.input[1]][0])
    return 0


def no_artefact(e: LatbenchError | Failure) -> Artefact:
    """The artefact of a subject that has none, and why."""
    f = e if isinstance(e, Failure) else failure_of(e)
    return Artefact(None, failure=f, unsupported=f.kind == "UnsupportedOpError")


def failure_of(e: LatbenchError) -> Failure:
    """An error as a Visit keeps it."""
    about = {"layer": e.layer, "rule": e.rule} if isinstance(e, UnsupportedOpError) else {}
    return Failure(type(e).__name__, str(e), **about)
