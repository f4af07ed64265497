"""Constants of an ONNX graph: what a node computes from constants alone is computed when the file is read.

Shapes are static here, so Shape is a constant too, and the chains that exporters build of Shape, Gather, Concat and
Reshape disappear.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latbench.op import TensorSpec
from latbench.weights import Array

_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def fold(
    node: onnx.NodeProto, constants: Mapping[str, Array], tensors: Mapping[str, TensorSpec], opsets: Mapping[str, int]
) -> dict[str, Array] | None:
    """The node's outputs, if they follow from constants and static shapes; else None."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM:
        return None
    if node.op_type in ("Shape", "Size") and node.input[0] not in constants:
        return {node.output[0]: _shape(node, tensors[node.input[0]])} if node.input[0] in tensors else None
    if any(t and t not in constants for t in node.input) or any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    given = {t: constants[t] for t in node.input if t}
    if node.op_type == "ConstantOfShape":
        filled = _filled(node, next(iter(given.values())))
        return None if filled is None else {node.output[0]: filled}
    if node.op_type in ("Expand", "Tile") and given[node.input[0]].dtype.kind == "f" and given[node.input[0]].size > 1:
        # A weight that is repeated for the batch (a class token) stays one weight.
        return None
    return _evaluate(node, given, opsets)


def dense(sparse: onnx.SparseTensorProto) -> Array:
    """A sparse initializer as a plain array."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        out.reshape(-1)[indices] = values
    else:
        out[tuple(indices.T)] = values
    return out


def _shape(node: onnx.NodeProto, spec: TensorSpec) -> Array:
    if node.op_type == "Size":
        return np.array(spec.numel, np.int64)
    cut = {a.name: a.i for a in node.attribute}
    return np.array(spec.shape[cut.get("start", 0) : cut.get("end", len(spec.shape))], np.int64)


def _filled(node: onnx.NodeProto, shape: Array) -> Array | None:
    # A view of one number: VGG's filled weights take no memory.
    try:
        given = [numpy_helper.to_array(a.t).reshape(-1)[0] for a in node.attribute if a.name == "value"]
        return np.broadcast_to(given[0] if given else np.float32(0), tuple(int(d) for d in shape.reshape(-1)))
    except (ValueError, IndexError, KeyError):
        # No number, or a shape that is negative or beyond all memory: for shape inference to refuse.
        return None


def _evaluate(node: onnx.NodeProto, given: Mapping[str, Array], opsets: Mapping[str, int]) -> dict[str, Array] | None:
    from onnx.reference import ReferenceEvaluator

    made = [onnx.ValueInfoProto(name=t) for t in node.output if t]
    graph = helper.make_graph([node], "constant", [onnx.ValueInfoProto(name=t) for t in given], made)
    # A model and not the node alone: only with one does the evaluator take the operator as its set defines it.
    imports = [helper.make_opsetid(d, v) for d, v in opsets.items()]
    try:
        values = ReferenceEvaluator(helper.make_model(graph, opset_imports=imports)).run(None, dict(given))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        # The reference implementation does not cover every operator; the node stays in the graph instead.
        return None
    if not all(isinstance(v, (np.ndarray, np.generic)) for v in values):
        return None
    return {v.name: np.asarray(value) for v, value in zip(made, values, strict=True)}
