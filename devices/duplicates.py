"""Nodes that compute again what another has computed: runtimes merge them, and so must whoever reads their graphs."""

from __future__ import annotations

from latbench.network import Network, Node


def without_duplicates(net: Network) -> tuple[Network, dict[str, str]]:
    """The network without nodes that compute again what another has computed, with equal weights if it has any.

    Runtimes merge such nodes. The second value maps the tensors that are gone to those that stand for them.
    """
    merged: dict[str, str] = {}
    seen: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    nodes: list[Node] = []
    for n in net.nodes:
        inputs = tuple(merged.get(t, t) for t in n.inputs)
        alike = seen.setdefault((n.op.key, inputs), [])
        first = next((m for m in alike if _equal_weights(net, n, m)), None)
        if first is not None:
            merged.update(zip(n.outputs, first.outputs, strict=True))
        else:
            alike.append(n)
            nodes.append(Node(n.name, n.op, inputs, n.outputs) if inputs != n.inputs else n)
    if not merged:
        return net, merged
    return net.replace(nodes=tuple(nodes), outputs=tuple(merged.get(t, t) for t in net.outputs)), merged


def _equal_weights(net: Network, a: Node, b: Node) -> bool:
    if not a.op.param_shapes:
        return True
    # Generated weights differ from node to node; those of a file may be one constant that several nodes read.
    if net.source is None or net.weights is None or not (a.name in net.weights and b.name in net.weights):
        return False
    x, y = net.weights[a.name], net.weights[b.name]
    return x.keys() == y.keys() and all(x[k].tobytes() == y[k].tobytes() for k in x)
