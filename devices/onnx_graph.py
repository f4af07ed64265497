"""Reading the graph that onnxruntime really runs, in terms of the network that it was made from.

onnxruntime writes its optimised graph as a model. Fused nodes keep the network's tensor names on their outputs, except
in its blocked layout (domain ``com.microsoft.nchwc``): there tensors are called ``reorder_token_N`` and the nodes are
named after the tensor that they make, ``<tensor>_nchwc``; ``ReorderInput`` and ``ReorderOutput`` convert layouts.
:class:`RuntimeGraph` finds the network's tensor behind each runtime tensor and the primitives behind each runtime node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latbench.device import Unit
from latbench.errors import ModelError
from latbench.network import Network, Node
from latbench.op import Op, Step, TensorSpec
from latbench.primitives import ACTIVATIONS, BINARY

from .duplicates import without_duplicates

if TYPE_CHECKING:
    import onnx

NCHWC = "com.microsoft.nchwc"
#: Prefix of the 32-bit copies of 16-bit tensors, where the runtime has no 16-bit kernels.
WIDENED = "InsertedPrecisionFreeCast_"
REORDERS = {"ReorderInput": "reorder_input", "ReorderOutput": "reorder_output"}
#: Primitives that the blocked layout fuses into the convolution before them.
_FUSIBLE = frozenset({*ACTIVATIONS, *BINARY, "batch_norm", "identity"})
#: Primitives that leave no work behind when they are fused; they do not appear in the kind of a unit.
_SILENT = frozenset({"identity", "flatten", "reshape"})


@dataclass
class Group:
    """Runtime nodes that count as one unit: a node, with those before it whose tensors the network does not know."""

    nodes: list[int]
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


class RuntimeGraph:
    """An optimised graph and the network that it runs.

    ``block`` is the number of channels in a block of the blocked layout (0 where there is none), ``names`` maps the
    names of the original model's nodes to the tensors that they made.
    """

    def __init__(self, model: onnx.ModelProto, net: Network, names: Mapping[str, str], block: int) -> None:
        self.model, self.block = model, block
        self.net, self.merged = without_duplicates(net)
        self.makers = {n.outputs[0]: n.name for n in net.nodes}
        self.nodes = list(model.graph.node)
        self.constants = {i.name for i in model.graph.initializer} | {
            i.values.name for i in model.graph.sparse_initializer
        }
        self.producer = {t: i for i, n in enumerate(self.nodes) for t in n.output if t}
        self.outputs = [o.name for o in model.graph.output]
        self.alias: dict[str, str] = {}
        self.blocked: set[str] = set()
        #: Runtime tensors that are 32-bit though the network's are 16-bit.
        self.widened: set[str] = set()
        self._name_tensors(names)

    def _name_tensors(self, names: Mapping[str, str]) -> None:
        """Find the network's tensor behind each runtime tensor, and which of them are blocked."""
        known = self.net.tensors
        self.alias = {i.name: i.name for i in self.model.graph.input if i.name in known}
        stem: dict[int, str] = {}
        for i, n in enumerate(self.nodes):
            if n.domain == NCHWC and n.op_type == "ReorderOutput":
                if (t := n.output[0].removeprefix(WIDENED)) in known:
                    self.alias.setdefault(n.input[0], self.merged.get(t, t))
                continue
            # A batch norm that stands alone becomes a depthwise convolution called <tensor>_bn_nchwc.
            name = n.name.removeprefix(WIDENED)
            made = re.fullmatch(r"((.+?)(?:_bn)?)_nchwc(?:_token_\d+)?", name) if n.domain == NCHWC else None
            for t in (n.output[0].removeprefix(WIDENED), *(made.groups() if made else ()), names.get(n.name, "")):
                if t in known or t in self.merged:
                    stem[i] = self.merged.get(t, t)
                    break
        claimed = set(stem.values())
        for i, n in enumerate(self.nodes):
            is_reorder = n.domain == NCHWC and n.op_type in REORDERS
            if n.op_type != "ReorderOutput" and (n.domain == NCHWC or any(t in self.blocked for t in n.input)):
                self.blocked.update(n.output)
            if any(t.startswith(WIDENED) for t in n.output) or (
                n.op_type != "Cast" and any(t in self.widened for t in n.input)
            ):
                self.widened.update(n.output)
            for t in n.output:
                plain = t.removeprefix(WIDENED)
                if plain in known or plain in self.merged:
                    self.alias[t] = self.merged.get(plain, plain)
            first = n.output[0]
            if first in self.alias:
                continue
            if is_reorder and n.input[0] in self.alias:
                self.alias[first] = self.alias[n.input[0]]
            elif i not in stem and (found := self._by_inputs(n, claimed)):
                self.alias[first] = found
                claimed.add(found)
            elif i in stem:
                self.alias[first] = stem[i]
                if n.domain == NCHWC and (len(n.input) > 3 or any(a.name == "activation" for a in n.attribute)):
                    reads = {self.alias[t] for t in n.input if t in self.alias}
                    self.alias[first] = self._after_fusion(stem[i], reads, claimed)

    def _by_inputs(self, n: onnx.NodeProto, claimed: set[str]) -> str | None:
        """What a nameless node makes: the tensor that the network computes of the same tensors by the same operator."""
        reads = tuple(self.alias.get(t, "") for t in n.input if t and t not in self.constants)
        for c in self._readers(reads[0]) if reads else ():
            same = c.op.kind.replace("_", "") == n.op_type.lower() or c.op.kind == "onnx"
            if same and c.inputs == reads and c.outputs[0] not in claimed:
                return c.outputs[0]
        return None

    def _after_fusion(self, stem: str, reads: set[str], claimed: set[str]) -> str:
        """What a node named after ``stem`` really makes: additions and activations may be fused behind it."""
        reach, last = {stem}, stem
        for n in self.net.nodes:
            if (
                n.op.kind in _FUSIBLE
                and not claimed.intersection(n.outputs)
                and reach.intersection(n.inputs)
                and all(t in reach or t in reads for t in n.inputs)
            ):
                reach.update(n.outputs)
                last = n.outputs[0]
        inner = reach - set(self.net.outputs)
        escaping = reach - {t for t in inner if all(c.outputs[0] in reach for c in self._readers(t))}
        return last if escaping == {last} else stem

    def _readers(self, tensor: str) -> list[Node]:
        return self._consumers.get(tensor, [])

    @cached_property
    def _consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for n in self.net.nodes:
            for t in n.inputs:
                found.setdefault(t, []).append(n)
        return found

    @cached_property
    def groups(self) -> list[Group]:
        """All groups in execution order. Nodes that make only tensors unknown to the network join their consumer."""
        consumers: dict[str, list[int]] = {}
        for i, n in enumerate(self.nodes):
            for t in n.input:
                consumers.setdefault(t, []).append(i)
        root = list(range(len(self.nodes)))

        def find(i: int) -> int:
            while root[i] != i:
                i = root[i]
            return i

        for i in reversed(range(len(self.nodes))):
            outputs = [t for t in self.nodes[i].output if t]
            if any(t in self.alias or t in self.outputs for t in outputs):
                continue
            for c in {c for t in outputs for c in consumers.get(t, ())}:
                a, b = sorted((find(i), find(c)))
                root[a] = b
        members: dict[int, list[int]] = {}
        for i in range(len(self.nodes)):
            members.setdefault(find(i), []).append(i)
        made = []
        for r in sorted(members):
            g = Group(members[r])
            inside = {t for i in g.nodes for t in self.nodes[i].output}
            reads = [t for i in g.nodes for t in self.nodes[i].input]
            g.inputs = [t for t in dict.fromkeys(reads) if t and t not in inside and t not in self.constants]
            used = set(self.outputs) | {t for t in inside if any(c not in g.nodes for c in consumers.get(t, ()))}
            g.outputs = [t for i in g.nodes for t in self.nodes[i].output if t in used]
            made.append(g)
        return made

    @cached_property
    def units(self) -> list[Unit]:
        """One Unit for each group. Raises :class:`ModelError` where a group cannot be told in the network's terms."""
        taken: set[str] = set()
        out = []
        for g in self.groups:
            unit = self._unit(g, taken)
            taken.update(unit.nodes)
            out.append(unit)
        return out

    def _unit(self, g: Group, taken: set[str]) -> Unit:
        last = self.nodes[g.nodes[-1]]
        ends = list(dict.fromkeys(self._tensor(t) for t in g.outputs or last.output[:1]))
        begins = list(dict.fromkeys(self._tensor(t) for t in g.inputs))
        blocked = any(t in self.blocked for t in (*g.outputs, *g.inputs, *last.output))
        attrs: dict[str, Any] = {"layout": f"nchw{self.block}c"} if blocked else {}
        if self.widened.intersection(last.output):
            attrs["compute"] = "f32"
        specs = [self.net.tensors[t] for t in begins]
        # onnxruntime numbers conversions differently each time: their tensor is the better name.
        given = last.name and not (last.domain == NCHWC and last.op_type in REORDERS)
        name = last.name if given else f"{last.op_type}({ends[0]})"
        covered = self._between(begins, ends)
        if not covered:
            spec = self.net.tensors[ends[0]]
            kind = REORDERS.get(last.op_type, last.op_type.lower())
            body = [Step(Op.make("identity", [spec]), (-1,))]
            return Unit(Op.unit(kind, [spec], body, **attrs), (), (ends[0],), name)
        place = {t: -i for i, t in enumerate(begins, 1)}
        steps, values = [], 0
        for n in covered:
            steps.append(Step(n.op, tuple(place[t] for t in n.inputs)))
            place.update((t, values + k) for k, t in enumerate(n.outputs))
            values += len(n.op.outputs)
        kind = _kind([n.op.kind for n in covered])
        op = Op.unit(kind, specs, steps, [place[t] for t in ends], **attrs)
        nodes = [m for n in covered for m in (n.name, *self._twins(n)) if m not in taken]
        return Unit(op, tuple(nodes), tuple(ends), name)

    def _twins(self, node: Node) -> list[str]:
        """Names of the nodes that were merged into one."""
        return [self.makers[t] for t, kept in self.merged.items() if kept == node.outputs[0]]

    def _tensor(self, runtime_tensor: str) -> str:
        try:
            return self.alias[runtime_tensor]
        except KeyError:
            raise ModelError(
                f"{self.net.name}: the runtime's tensor {runtime_tensor!r} is no tensor of the network"
            ) from None

    def _between(self, begins: Sequence[str], ends: Iterable[str]) -> list[Node]:
        """The network's nodes on the way from ``begins`` to ``ends``, in topological order."""
        seen: set[str] = set()
        todo = [t for t in ends if t not in begins]
        while todo:
            t = todo.pop()
            node = self.net.producers.get(t)
            if node is None:
                raise ModelError(
                    f"{self.net.name}: {list(ends)} also need {t!r}, which the runtime does not read there"
                )
            if node.name not in seen:
                seen.add(node.name)
                todo += [i for i in node.inputs if i not in begins]
        return [n for n in self.net.nodes if n.name in seen]

    # -- cutting ------------------------------------------------------------------------------------------------

    def cut(self, nodes: Iterable[int], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        """Some runtime nodes as a model of their own; inputs in the blocked layout get their padded channels."""
        import onnx
        from onnx import helper

        chosen = [self.nodes[i] for i in sorted(nodes)]
        used = {t for n in chosen for t in n.input}
        graph = helper.make_graph(
            chosen,
            "cut",
            [helper.make_tensor_value_info(t, *self._shape(t)) for t in inputs],
            [helper.make_tensor_value_info(t, self._shape(t)[0], None) for t in outputs],
            [i for i in self.model.graph.initializer if i.name in used],
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        assert isinstance(model, onnx.ModelProto)
        return bytes(model.SerializeToString())

    def _shape(self, t: str) -> tuple[int, list[int]]:
        spec = self.net.tensors[self._tensor(t)]
        shape = list(spec.shape)
        if t in self.blocked:
            shape[1] = -(-shape[1] // self.block) * self.block
        return onnx_type(replace(spec, dtype="f32") if t in self.widened else spec), shape


def _kind(kinds: Sequence[str]) -> str:
    """A unit's kind, e.g. ``conv+hardswish``: its primitives, but for those that fusing leaves no work of."""
    fused_norm = any(k.startswith(("conv", "linear")) for k in kinds)
    loud = [k for k in kinds if k not in _SILENT and not (k == "batch_norm" and fused_norm)]
    return "+".join(loud or kinds[:1])


def onnx_type(spec: TensorSpec) -> int:
    """ONNX's number for a data type."""
    from onnx import TensorProto as T

    types = {
        "f64": T.DOUBLE, "f32": T.FLOAT, "f16": T.FLOAT16, "bf16": T.BFLOAT16, "i64": T.INT64, "i32": T.INT32,
        "i16": T.INT16, "i8": T.INT8, "u8": T.UINT8, "i4": T.INT4, "bool": T.BOOL,
    }  # fmt: skip
    return int(types[spec.dtype])


def node_names(model: onnx.ModelProto) -> dict[str, str]:
    """Node name → first output, of a model as it was before optimisation."""
    return {n.name: n.output[0] for n in model.graph.node if n.name and n.output}
