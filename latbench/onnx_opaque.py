"""Opaque Ops: one node of an ONNX graph that no primitive's rule covers, kept as it came and still measurable.

Such an Op is the primitive kind ``onnx``. Its attributes: ``node`` (the serialized NodeProto in base64, under
canonical names), ``op_type``, ``domain``, ``opset`` (of that domain), ``outputs`` (specs as text), ``weights``
(constants known by shape: name, data type, shape) and ``consts`` (small constants known by value: name, data type,
shape, values). Canonical names: activations that the node or its subgraphs read ``i0, i1, …`` in the order of the Op's
inputs, constants ``c0, …``, outputs ``o0, …``, names inside subgraphs ``t0, …``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from latbench.errors import ModelError
from latbench.onnx_names import dtype_name
from latbench.op import Op, TensorSpec

if TYPE_CHECKING:
    from latbench.onnx_export import GraphWriter
    from latbench.weights import Array

#: Constants up to these many elements are part of the Op's key: they are sizes, axes, scales, not weights.
MAX_INTS, MAX_FLOATS = 256, 8


def opaque(
    node: onnx.NodeProto,
    inputs: Mapping[str, TensorSpec],
    constants: Mapping[str, Array],
    outputs: Mapping[str, TensorSpec],
    opsets: Mapping[str, int],
) -> tuple[Op, tuple[str, ...], dict[str, Array]]:
    """``(op, inputs, weights)`` of a node: its opaque Op, the activations it reads, its big constants by new name.

    ``inputs`` and ``constants`` know at least the tensors that the node or its subgraphs read from outside,
    ``outputs`` those that it makes, ``opsets`` the version of each domain.
    """
    inner = inner_names(node)
    read = [*node.input, *sorted(outer_names(node) - set(node.input))]
    names: dict[str, str] = {}
    for t in read:
        if t and t not in names:
            letter = "c" if t in constants else "i"
            names[t] = f"{letter}{sum(v[0] == letter for v in names.values())}"
    activations = tuple(t for t in names if t not in constants)
    kept = tuple(t for t in names if t in constants)
    names |= {t: f"o{i}" for i, t in enumerate(node.output) if t}
    names |= {t: f"t{i}" for i, t in enumerate(inner)}
    canonical = renamed(node, lambda t: names[t])
    _strip(canonical)
    values = {names[t]: constants[t] for t in kept}
    small = {n: v for n, v in values.items() if _by_value(v)}
    op = Op.make(
        "onnx",
        (inputs[t] for t in activations),
        node=base64.b64encode(canonical.SerializeToString(deterministic=True)).decode(),
        op_type=node.op_type,
        domain=_domain(node.domain),
        opset=_oldest(node, opsets),
        outputs=tuple(str(outputs[t]) for t in node.output if t),
        weights=tuple((n, _dtype(v), v.shape) for n, v in values.items() if n not in small),
        consts=tuple((n, _dtype(v), v.shape, tuple(v.reshape(-1).tolist())) for n, v in small.items()),
    )
    return op, activations, {n: v for n, v in values.items() if n not in small}


def _oldest(node: onnx.NodeProto, opsets: Mapping[str, int]) -> int:
    """The version to remember: of the default domain the oldest in which all means the same, so that keys agree."""
    domain = _domain(node.domain)
    if domain:
        return opsets[domain]
    return max(1, *(_since(n.op_type, opsets[""]) for n in all_nodes(node) if not _domain(n.domain)))


def node_of(op: Op) -> onnx.NodeProto:
    """The node of an opaque Op, under canonical names. Raises :class:`ModelError` where the key was tampered with."""
    node = onnx.NodeProto()
    try:
        node.ParseFromString(base64.b64decode(op["node"], validate=True))
    except (ValueError, DecodeError) as e:
        raise ModelError(f"the opaque Op of {op['op_type']!r} holds no ONNX node") from e
    if node.op_type != op["op_type"]:
        raise ModelError(f"the opaque Op of {op['op_type']!r} holds a node of {node.op_type!r}")
    return node


def write_opaque(g: GraphWriter) -> None:
    """Write an opaque Op back as the node that it was."""
    from latbench.weights import numpy_dtype

    op, place = g.node.op, g.node
    names = {f"i{i}": t for i, t in enumerate(place.inputs)}
    names |= {n: g.weight(n) for n, _, _ in op["weights"]}
    for n, dtype, shape, values in op["consts"]:
        names[n] = g.array(n, np.array(values).astype(numpy_dtype(dtype)).reshape(shape))
    node = node_of(op)
    made = [t for t in node.output if t]
    names |= dict(zip(made, place.outputs, strict=True))
    names |= {t: g.fresh(f"{place.name}/{t}") for t in inner_names(node)}
    try:
        back = renamed(node, lambda t: names[t])
    except KeyError as e:
        raise ModelError(f"layer {place.name!r}: its node reads {e}, which the Op does not have") from None
    back.name = place.name
    g.nodes.append(back)


def opset_range(op: Op) -> tuple[int, int, dict[str, int]]:
    """``(lowest, highest, others)``: operator sets in which an opaque Op means the same, versions of other domains.

    The node counts, and every node of its subgraphs.
    """
    newest = onnx.defs.onnx_opset_version()
    low, high, others = 1, newest, dict[str, int]()
    for node in all_nodes(node_of(op)):
        domain = _domain(node.domain)
        if domain:
            others[domain] = op["opset"] if domain == op["domain"] else 1
            continue
        if op["domain"]:
            continue
        since = _since(node.op_type, op["opset"])
        low = max(low, since)
        later = (v for v in range(op["opset"] + 1, newest + 1) if _since(node.op_type, v) != since)
        high = min(high, next(later, newest + 1) - 1)
    return low, max(high, op["opset"] if not op["domain"] else high), others


def _since(op_type: str, opset: int) -> int:
    """The operator set that gave an operator its meaning at ``opset``; 0 where it is gone or not there yet."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return 0
    return 0 if schema.deprecated else int(schema.since_version)


# -- names of nodes with subgraphs ----------------------------------------------------------------------------------


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The node's own subgraphs (not those nested in them)."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else []) + list(a.graphs)]


def all_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node and every node of its subgraphs."""
    return [node, *(m for g in subgraphs(node) for n in g.node for m in all_nodes(n))]


def _defined(graph: onnx.GraphProto) -> list[str]:
    made = [v.name for v in graph.input] + [i.name for i in graph.initializer]
    made += [i.values.name for i in graph.sparse_initializer]
    return made + [t for n in graph.node for t in n.output if t]


def inner_names(node: onnx.NodeProto) -> list[str]:
    """Names that the node's subgraphs define, each once, in order."""
    out: dict[str, None] = {}
    for g in subgraphs(node):
        out |= dict.fromkeys(_defined(g))
        for n in g.node:
            out |= dict.fromkeys(inner_names(n))
    return list(out)


def outer_names(node: onnx.NodeProto) -> set[str]:
    """Names that the node's subgraphs read from outside."""
    out: set[str] = set()
    for g in subgraphs(node):
        read = {v.name for v in g.output}
        for n in g.node:
            read |= {t for t in n.input if t} | outer_names(n)
        out |= read - set(_defined(g))
    return out


def renamed(node: onnx.NodeProto, name: Callable[[str], str]) -> onnx.NodeProto:
    """A copy of the node with every tensor renamed, in subgraphs too. The empty name stays."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename(copy, lambda t: name(t) if t else "")
    return copy


def _rename(node: onnx.NodeProto, name: Callable[[str], str]) -> None:
    node.input[:] = [name(t) for t in node.input]
    node.output[:] = [name(t) for t in node.output]
    for g in subgraphs(node):
        del g.value_info[:]
        for v in (*g.input, *g.output, *g.initializer):
            v.name = name(v.name)
        for s in g.sparse_initializer:
            s.values.name = name(s.values.name)
        for n in g.node:
            _rename(n, name)


def _strip(node: onnx.NodeProto) -> None:
    """Remove what says nothing about the work: names of nodes and graphs, notes, the order of attributes."""
    for name in ("name", "doc_string", "metadata_props", *(() if _domain(node.domain) else ("domain",))):
        node.ClearField(name)
    ordered = sorted(node.attribute, key=lambda a: a.name)
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in ordered]
    del node.attribute[:]
    node.attribute.extend(copies)
    for a in node.attribute:
        a.ClearField("doc_string")
    for i, g in enumerate(subgraphs(node)):
        g.name = f"g{i}"
        g.ClearField("doc_string")
        g.ClearField("metadata_props")
        for n in g.node:
            _strip(n)


def _by_value(v: Array) -> bool:
    if v.dtype.kind in "iub":
        return v.size <= MAX_INTS
    return v.dtype in (np.float32, np.float64) and v.size <= MAX_FLOATS and bool(np.isfinite(v).all())


def _dtype(v: Array) -> str:
    return dtype_name(onnx.helper.np_dtype_to_tensor_dtype(v.dtype), "a constant")


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
