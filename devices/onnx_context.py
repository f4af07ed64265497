"""Measuring an Op as it runs inside a network: wrap it, optimise, and cut its own runtime nodes out again.

Alone, a block pays for layout conversions at its boundary that no network pays, and loses fusions that every network
has. So a 1×1 convolution is put before each of its feature maps and one behind each (images of up to 4 channels and
tensors of two dimensions get none; they are boundaries of networks too), the whole is optimised by the device's own
runtime, and the Op's nodes are cut out along the convolutions. A second reader of the first convolutions keeps them
from being fused with the Op.
"""

from __future__ import annotations

from dataclasses import dataclass

from latbench.device import Unit
from latbench.errors import ModelError
from latbench.network import Network, NetworkBuilder
from latbench.op import Op, TensorSpec

from .onnx_graph import NCHWC, RuntimeGraph, onnx_type

#: Channels up to which a feature map counts as an image.
IMAGE_CHANNELS = 4


@dataclass(frozen=True)
class Wrapped:
    """An Op in its context: the network, and which tensors are the Op's own inputs and outputs."""

    net: Network
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


class NotCleanError(ModelError):
    """The Op's runtime nodes cannot be told from those of its context."""


def wrap(op: Op, *, context: bool = True) -> Wrapped:
    """The Op between 1×1 convolutions (without any, if ``context`` is false)."""
    inner = op.expand()
    b = NetworkBuilder("context", inner.tensors[inner.inputs[0]].dtype if inner.inputs else "f32")
    names: dict[str, str] = {}
    before, after, outputs = [], [], []
    for i, t in enumerate(inner.inputs):
        spec = inner.tensors[t]
        source = b.input(spec.shape, f"context_in{i}", spec.dtype)
        names[t] = source
        if context and _is_map(spec):
            names[t] = b.conv(source, spec.shape[1], name=f"context_before{i}")
            outputs.append(b.conv(names[t], 16, name=f"context_beside{i}"))
            before.append(names[t])
    with_scope = {n: f"op.{n.name}" for n in inner.nodes}
    for n in inner.nodes:
        made = b.node(n.op, [names[t] for t in n.inputs], with_scope[n])
        names.update(zip(n.outputs, made, strict=True))
    for i, t in enumerate(inner.outputs):
        if context and _is_map(inner.tensors[t]):
            after.append(b.conv(names[t], inner.tensors[t].shape[1], name=f"context_after{i}"))
            outputs.append(after[-1])
        else:
            outputs.append(names[t])
    inputs = tuple(names[t] for t in inner.inputs)
    return Wrapped(b.build(*outputs), inputs, tuple(names[t] for t in inner.outputs), tuple(before), tuple(after))


def _is_map(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and spec.shape[1] > IMAGE_CHANNELS and spec.dtype.startswith("f")


def cut_block(graph: RuntimeGraph, w: Wrapped) -> bytes:
    """The Op's runtime nodes as a model. Raises :class:`NotCleanError` that says why they cannot be separated."""
    owner = {t: g for g, group in enumerate(graph.groups) for t in group.outputs}
    alone = {u.nodes[0]: g for g, u in enumerate(graph.units) if len(u.nodes) == 1}
    producers = graph.net.producers
    border: set[int] = set()
    for t in w.before:
        if (g := alone.get(producers[t].name)) is None:
            raise NotCleanError(f"the runtime fuses {t!r}, the layer before, with the Op")
        border.add(g)
    tails = {producers[a].inputs[0]: a for a in w.after}
    if set(w.inputs) & {graph.alias.get(r) for t in w.after for r in _read_by(graph, t)}:
        raise NotCleanError("the runtime removes it: nothing of it is left in a network")
    ends: list[str] = []
    for t in w.outputs:
        tail = tails.get(t)
        if tail is None:
            ends.append(t)
            continue
        if (g := alone.get(producers[tail].name)) is None:
            raise NotCleanError(f"the runtime fuses {tail!r}, the layer behind, with the Op")
        found = [r for r in graph.groups[g].inputs if graph.alias.get(r) == t]
        if len(found) != 1 or len(graph.groups[g].inputs) != 1:
            raise NotCleanError(f"the layer behind reads {graph.groups[g].inputs}")
        ends.append(found[0])
    chosen: set[int] = set()
    begins: list[str] = []
    todo = list(ends)
    while todo:
        t = todo.pop()
        g = owner.get(t)
        if g is None or g in border:
            if graph.alias.get(t) not in w.inputs:
                raise NotCleanError(f"the Op also reads {t!r}")
            begins.append(t)
        elif g not in chosen:
            chosen.add(g)
            todo += graph.groups[g].inputs
    if not chosen:
        raise NotCleanError("the runtime removes it: nothing of it is left in a network")
    nodes = [i for g in chosen for i in graph.groups[g].nodes]
    return graph.cut(nodes, sorted(set(begins), key=begins.index), list(dict.fromkeys(ends)))


def _read_by(graph: RuntimeGraph, tensor: str) -> list[str]:
    """What the group reads that makes a tensor of the network."""
    return [r for g in graph.groups if any(graph.alias.get(t) == tensor for t in g.outputs) for r in g.inputs]


def cut_unit(graph: RuntimeGraph, op: Op) -> bytes | None:
    """The runtime nodes of a unit as a model, or None if the graph has no such unit."""
    for group, unit in zip(graph.groups, graph.units, strict=True):
        if same_unit(unit, op):
            return graph.cut(group.nodes, group.inputs, group.outputs)
    return None


def same_unit(unit: Unit, op: Op) -> bool:
    """True if a graph's unit is this Op."""
    return unit.op.key == op.key


def reorder_model(op: Op, ir_version: int, opset: int) -> bytes:
    """A layout conversion as a model of its own."""
    from onnx import helper

    spec = TensorSpec(op.inputs[0].shape, op.attributes.get("compute", op.inputs[0].dtype))
    block = int(str(op["layout"]).removeprefix("nchw").removesuffix("c"))
    padded = [spec.shape[0], -(-spec.shape[1] // block) * block, *spec.shape[2:]]
    into = op.kind == "reorder_input"
    node = helper.make_node(
        "ReorderInput" if into else "ReorderOutput", ["x"], ["y"], domain=NCHWC,
        **({} if into else {"channels": spec.shape[1]}), channels_last=0,
    )  # fmt: skip
    x = helper.make_tensor_value_info("x", onnx_type(spec), list(spec.shape) if into else padded)
    y = helper.make_tensor_value_info("y", onnx_type(spec), None)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(NCHWC, 1)]
    model = helper.make_model(
        helper.make_graph([node], "reorder", [x], [y]), opset_imports=imports, ir_version=ir_version
    )
    return bytes(model.SerializeToString())
