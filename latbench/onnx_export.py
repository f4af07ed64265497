"""Networks as ONNX models, for any operator set from 7 on.

Node names are the network's node names and tensor names the network's tensor names, so that a runtime's optimised
graph can be mapped back. Where a primitive takes several ONNX nodes, the inner tensors are ``<tensor>/1``,
``<tensor>/2`` …, the inner nodes ``<node>/1`` …, and the last node has the primitive's own name. Weights are
initializers named ``<node>.<weight>``. How each kind is written stands in :mod:`latbench.onnx_ops`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from latbench.errors import ModelError, UnsupportedOpError
from latbench.network import Network, Node
from latbench.onnx_names import tensor_type
from latbench.onnx_opaque import opset_range
from latbench.weights import Array, network_weights

DEFAULT_OPSET = 17
OLDEST_OPSET = 7


def to_onnx(
    net: Network, *, opset: int | None = None, ir_version: int = 8, seed: int = 0, name: str | None = None
) -> onnx.ModelProto:
    """The network as an ONNX model with its weights, or seeded ones where it has none.

    ``opset`` is the newest operator set allowed: the model is written for it, or for an older one where an opaque Op
    demands that. Without ``opset`` it is 17, or whatever the opaque Ops need. Newer operators are written with older
    ones where that is possible (HardSwish below 14 as HardSigmoid and Mul). Raises :class:`UnsupportedOpError` naming
    the layer and the rule where it is not, :class:`ModelError` for an operator set outside 7 … the installed onnx's.
    """
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ModelError(f"{net.name}: cannot write operator set {opset}; from {OLDEST_OPSET} to {newest} is possible")
    version, domains = _choose(net, opset)
    g = GraphWriter(version, {*net.tensors, *(n.name for n in net.nodes)})
    weights = network_weights(net, seed)
    for node in net.nodes:
        g.start(node, weights.get(node.name, {}))
        g.write()
    inputs = [_value(net, t) for t in net.inputs]
    if ir_version < 4:
        # Older readers want every initializer among the graph's inputs.
        inputs += [helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in g.initializers]
    outputs = [_value(net, t) for t in net.outputs]
    graph = helper.make_graph(g.nodes, name or net.name, inputs, outputs, g.initializers)
    imports = [helper.make_opsetid("", version), *(helper.make_opsetid(d, v) for d, v in sorted(domains.items()))]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="latbench")


def _value(net: Network, tensor: str) -> onnx.ValueInfoProto:
    spec = net.tensors[tensor]
    return helper.make_tensor_value_info(tensor, tensor_type(spec.dtype), spec.shape)


def _choose(net: Network, opset: int | None) -> tuple[int, dict[str, int]]:
    """The operator set to write, and the versions of other domains."""
    low, high, domains = OLDEST_OPSET, onnx.defs.onnx_opset_version(), dict[str, int]()
    who = ""
    for n in net.nodes:
        if n.op.kind != "onnx":
            continue
        lowest, highest, others = opset_range(n.op)
        for d, v in others.items():
            if domains.setdefault(d, v) != v:
                raise UnsupportedOpError(n.name, f"it is of {d} version {v}, another layer of version {domains[d]}")
        if lowest > high or highest < low:
            raise UnsupportedOpError(
                n.name, f"its {n.op['op_type']} exists in operator sets {lowest} to {highest}, that of {who} does not"
            )
        if lowest > low:
            low, who = lowest, n.name
        high = min(high, highest)
    if opset is None:
        return max(low, min(DEFAULT_OPSET, high)), domains
    if opset < low:
        raise UnsupportedOpError(who, f"it needs operator set {low}, and {opset} is the newest allowed")
    return min(opset, high), domains


class GraphWriter:
    """Collects ONNX nodes and initializers; what :mod:`latbench.onnx_ops` writes a primitive with."""

    def __init__(self, opset: int, taken: set[str]) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._taken = taken
        self.node: Node
        self.weights: dict[str, Array] = {}

    def start(self, node: Node, weights: dict[str, Array]) -> None:
        """Go to the next primitive."""
        self.node, self.weights = node, weights
        self._inner = 0

    def write(self) -> None:
        """Write the primitive by the rule of its kind."""
        from latbench.onnx_ops import WRITERS

        op = self.node.op
        if op.quant:
            raise UnsupportedOpError(self.node.name, f"quantisation form {op.quant!r} has no ONNX form here")
        WRITERS[op.kind](self, op.attributes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Tensors that the primitive reads."""
        return self.node.inputs

    @property
    def x(self) -> str:
        """The primitive's first input."""
        return self.node.inputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first input."""
        return self.node.op.inputs[0].shape

    def last(self, op_type: str, *inputs: str, **attrs: Any) -> None:
        """Write the node that makes the primitive's output."""
        self._add(op_type, inputs, self.node.outputs[0], self.node.name, attrs)

    def inner(self, op_type: str, *inputs: str, **attrs: Any) -> str:
        """Write a node before the last one; gives its output ``<tensor>/i``."""
        self._inner += 1
        out = self.fresh(f"{self.node.outputs[0]}/{self._inner}")
        self._add(op_type, inputs, out, f"{self.node.name}/{self._inner}", attrs)
        return out

    def _add(self, op_type: str, inputs: tuple[str, ...], out: str, name: str, attrs: dict[str, Any]) -> None:
        given = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], name=name, **given))

    def weight(self, name: str, *, transpose: bool = False) -> str:
        """One of the primitive's weights as an initializer; gives its name."""
        value = self.weights[name]
        return self.array(name, value.T if transpose else value)

    def array(self, name: str, value: Array) -> str:
        """A constant tensor named ``<node>.<name>``. A constant of one repeated number is kept as small as it is."""
        unique = self.fresh(f"{self.node.name}.{name}")
        if value.size > 64 and not any(value.strides):
            one = onnx.numpy_helper.from_array(value.reshape(-1)[:1].copy())
            dims = onnx.numpy_helper.from_array(np.array(value.shape, np.int64), f"{unique}.shape")
            self.initializers.append(dims)
            self.nodes.append(
                helper.make_node("ConstantOfShape", [dims.name], [unique], name=f"{unique}.fill", value=one)
            )
            return unique
        self.initializers.append(onnx.numpy_helper.from_array(np.asarray(value, order="C"), unique))
        return unique

    def ints(self, name: str, *values: int) -> str:
        """A constant vector of 64-bit integers."""
        return self.array(name, np.array(values, np.int64))

    def number(self, name: str, value: float) -> str:
        """A constant scalar in the data type of the first input."""
        from latbench.weights import numpy_dtype

        dtype = numpy_dtype(self.node.op.inputs[0].dtype)
        if np.issubdtype(dtype, np.integer) and value != int(value):
            raise UnsupportedOpError(self.node.name, f"{value} is no number of type {dtype}")
        if np.issubdtype(dtype, np.floating):
            value = float(np.clip(value, np.finfo(dtype).min, np.finfo(dtype).max))
        return self.array(name, np.asarray(value).astype(dtype))

    def need(self, opset: int, what: str) -> None:
        """Refuse the primitive below an operator set."""
        if self.opset < opset:
            raise UnsupportedOpError(
                self.node.name, f"{what} needs operator set {opset}, and {self.opset} is the newest allowed"
            )

    def fresh(self, name: str) -> str:
        """The name, or one like it that nothing else has."""
        unique, i = name, 1
        while unique in self._taken:
            i += 1
            unique = f"{name}~{i}"
        self._taken.add(unique)
        return unique
