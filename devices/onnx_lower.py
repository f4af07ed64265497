"""Networks and users' own ONNX files in operator sets and IR versions that a device reads.

Networks are written for one operator set to begin with (:mod:`latbench.onnx_export`), or a newer one that the device
reads where an operator of theirs needs it (:func:`written`). A file stays as it is; one that is newer than the device
reads is converted down by onnx's own version converter, and where that does not know how, the node that is in the way
is named (:func:`lowered`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latbench.errors import ModelError, UnsupportedOpError

if TYPE_CHECKING:
    import onnx

    from latbench.network import Network


def written(net: Network, opset: int, ir_version: int, most: int) -> onnx.ModelProto:
    """A network in this operator set; where ``most`` is above it, in the default one or whatever its operators need.

    Raises :class:`UnsupportedOpError` naming the node that needs more than ``most``.
    """
    if most > opset:
        model = net.to_onnx(ir_version=ir_version)
        if next(o.version for o in model.opset_import if not o.domain) <= most:
            return model
    return net.to_onnx(opset=max(opset, most), ir_version=ir_version)


def lowered(source: bytes, opset: int, ir_version: int, name: str) -> tuple[bytes, dict[str, Any]]:
    """A file's model with at most this operator set and IR version, and a note of what it was before.

    A file that the device reads as it is comes back as it is. Raises :class:`UnsupportedOpError` naming the node and
    the operator set where it cannot be written in the older one.
    """
    import onnx

    model = onnx.load_model_from_string(source)
    had = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    version, note = had.get("ai.onnx", 0), {}
    if version <= opset and model.ir_version <= ir_version:
        return source, {}
    if version > opset:
        note["lowered_from_opset"] = version
        model = _convert(model, opset, version, name)
    if model.ir_version > ir_version:
        note["lowered_from_ir_version"] = model.ir_version
        model.ir_version = ir_version
    return model.SerializeToString(), note


def _convert(model: onnx.ModelProto, opset: int, version: int, name: str) -> onnx.ModelProto:
    from onnx import checker, version_converter

    newest = {
        n.name or n.output[0]: since
        for n in model.graph.node
        if not n.domain and (since := _since(n.op_type, version)) is not None and _since(n.op_type, opset) is None
    }
    if newest:
        node, since = next(iter(newest.items()))
        raise UnsupportedOpError(node, f"its operator came with operator set {since}; the device reads {opset} at most")
    try:
        lower = version_converter.convert_version(model, opset)
        checker.check_model(lower)
    except (RuntimeError, ValueError, checker.ValidationError) as e:
        text = str(e).strip().splitlines()[-1] if str(e).strip() else type(e).__name__
        in_the_way = next((n.name or n.output[0] for n in model.graph.node if n.op_type in text), None)
        rule = f"operator set {version} cannot be written as {opset}, which is what the device reads: {text}"
        if in_the_way is None:
            raise ModelError(f"{name}: {rule}") from e
        raise UnsupportedOpError(in_the_way, rule) from e
    return lower


def _since(op_type: str, opset: int) -> int | None:
    """The operator set in which an operator got the form that it has in ``opset``; None if it is not there yet."""
    from onnx import defs

    try:
        return int(defs.get_schema(op_type, opset, "").since_version)
    except defs.SchemaError:
        return None
