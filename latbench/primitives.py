"""The rules of every primitive: output shape, weights and work.

A rule is a :class:`Primitive`; :func:`rule` finds it by kind. How a primitive is written as ONNX or as a torch module
is the business of :mod:`latbench.onnx_export` and :mod:`latbench.torch_build`, which dispatch on the same kinds.
Operators that no rule covers are the kind ``onnx``: one node of an ONNX graph, kept as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, TypeAlias

from latbench.errors import ModelError
from latbench.op import TensorSpec

Specs: TypeAlias = "tuple[TensorSpec, ...]"
Attrs: TypeAlias = Mapping[str, Any]
Shapes: TypeAlias = "dict[str, tuple[int, ...]]"

#: Element-wise functions of one tensor. Those with a parameter name it after a colon in their docs, not here.
ACTIVATIONS = (
    "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "softplus",
    "leaky_relu", "clip", "exp", "erf", "sqrt", "neg", "abs", "log", "reciprocal",
)  # fmt: skip
#: Element-wise functions of two tensors, with broadcasting.
BINARY = ("add", "mul", "sub", "div", "pow", "max", "min")


def _nothing(_: Specs, __: Attrs) -> Shapes:
    return {}


def _zero(_: Specs, __: Attrs) -> int:
    return 0


@dataclass(frozen=True)
class Primitive:
    """``infer`` gives the output specs, ``params`` the weights' shapes, ``macs`` the multiply-accumulates."""

    infer: Callable[[Specs, Attrs], Specs]
    params: Callable[[Specs, Attrs], Shapes] = _nothing
    macs: Callable[[Specs, Attrs], int] = _zero


def rule(kind: str) -> Primitive:
    """The rule of a primitive kind. Raises :class:`ModelError` for an unknown one."""
    try:
        return RULES[kind]
    except KeyError:
        raise ModelError(f"unknown primitive {kind!r}; known: {', '.join(sorted(RULES))}") from None


def _one(inputs: Specs, kind: str, rank: int | None = None) -> TensorSpec:
    if len(inputs) != 1:
        raise ModelError(f"{kind} takes one input, got {len(inputs)}")
    if rank is not None and len(inputs[0].shape) < rank:
        raise ModelError(f"{kind} needs an input of at least {rank} dimensions, got {inputs[0]}")
    return inputs[0]


def _same(inputs: Specs, _: Attrs) -> Specs:
    return (inputs[0],)


# -- windows: convolution and pooling -------------------------------------------------------------------------------


def window(size: tuple[int, ...], a: Attrs, kind: str) -> tuple[int, ...]:
    """Output size of a sliding window. Attributes: kernel, stride, pads (begins then ends), dilation, ceil_mode."""
    n = len(size)
    kernel, stride, pads = a["kernel"], a.get("stride", (1,) * n), a.get("pads", (0,) * 2 * n)
    dilation = a.get("dilation", (1,) * n)
    if not (len(kernel) == len(stride) == len(dilation) == n and len(pads) == 2 * n):
        raise ModelError(f"{kind}: kernel {kernel}, stride {stride}, pads {pads} do not fit {n} spatial dimensions")
    out = []
    for i in range(n):
        span = size[i] + pads[i] + pads[n + i] - dilation[i] * (kernel[i] - 1) - 1
        steps = ceil(span / stride[i]) if a.get("ceil_mode") else span // stride[i]
        # A window that would start in the end padding does not count (as in ONNX and torch).
        if a.get("ceil_mode") and steps * stride[i] >= size[i] + pads[i]:
            steps -= 1
        if span < 0:
            raise ModelError(f"{kind}: kernel {kernel} is larger than its padded input {size}")
        out.append(steps + 1)
    return tuple(out)


def _conv(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "conv", 3)
    if x.shape[1] % a["groups"] or a["out_channels"] % a["groups"]:
        raise ModelError(f"conv: {x.shape[1]} → {a['out_channels']} channels do not divide by {a['groups']} groups")
    return (TensorSpec((x.shape[0], a["out_channels"], *window(x.shape[2:], a, "conv")), x.dtype),)


def _conv_params(inputs: Specs, a: Attrs) -> Shapes:
    p: Shapes = {"weight": (a["out_channels"], inputs[0].shape[1] // a["groups"], *a["kernel"])}
    if a.get("bias"):
        p["bias"] = (a["out_channels"],)
    return p


def _conv_macs(inputs: Specs, a: Attrs) -> int:
    out = _conv(inputs, a)[0]
    return out.numel * (inputs[0].shape[1] // a["groups"]) * prod(a["kernel"])


def _conv_transpose(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "conv_transpose", 3)
    n = len(x.shape) - 2
    pads, extra = a.get("pads", (0,) * 2 * n), a.get("output_padding", (0,) * n)
    size = tuple(
        (x.shape[2 + i] - 1) * a["stride"][i]
        - pads[i]
        - pads[n + i]
        + a.get("dilation", (1,) * n)[i] * (a["kernel"][i] - 1)
        + extra[i]
        + 1
        for i in range(n)
    )
    return (TensorSpec((x.shape[0], a["out_channels"], *size), x.dtype),)


def _conv_transpose_params(inputs: Specs, a: Attrs) -> Shapes:
    p: Shapes = {"weight": (inputs[0].shape[1], a["out_channels"] // a["groups"], *a["kernel"])}
    if a.get("bias"):
        p["bias"] = (a["out_channels"],)
    return p


def _conv_transpose_macs(inputs: Specs, a: Attrs) -> int:
    return inputs[0].numel * (a["out_channels"] // a["groups"]) * prod(a["kernel"])


def _pool(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "pool", 3)
    return (TensorSpec((*x.shape[:2], *window(x.shape[2:], a, "pool")), x.dtype),)


def _global_pool(inputs: Specs, _: Attrs) -> Specs:
    x = _one(inputs, "global_avg_pool", 3)
    return (TensorSpec((*x.shape[:2], *(1 for _ in x.shape[2:])), x.dtype),)


# -- linear algebra -------------------------------------------------------------------------------------------------


def _linear(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "linear", 2)
    return (TensorSpec((*x.shape[:-1], a["out_features"]), x.dtype),)


def _linear_params(inputs: Specs, a: Attrs) -> Shapes:
    p: Shapes = {"weight": (a["out_features"], inputs[0].shape[-1])}
    if a.get("bias"):
        p["bias"] = (a["out_features"],)
    return p


def _linear_macs(inputs: Specs, a: Attrs) -> int:
    return int(inputs[0].numel * a["out_features"])


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    out = []
    for dims in zip(*((1,) * (rank - len(s)) + s for s in shapes), strict=True):
        sizes = {d for d in dims if d != 1}
        if len(sizes) > 1:
            raise ModelError(f"shapes {' and '.join(map(str, shapes))} do not broadcast")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def _matmul(inputs: Specs, _: Attrs) -> Specs:
    if len(inputs) != 2 or min(len(t.shape) for t in inputs) < 2:
        raise ModelError("matmul takes two inputs of at least two dimensions")
    x, y = (t.shape for t in inputs)
    if x[-1] != y[-2]:
        raise ModelError(f"matmul: {x} × {y} do not fit")
    return (TensorSpec((*_broadcast(x[:-2], y[:-2]), x[-2], y[-1]), inputs[0].dtype),)


def _matmul_macs(inputs: Specs, a: Attrs) -> int:
    # Both operands are activations: no weights, hence no MACs in the convention "weights × positions".
    return 0


# -- element-wise, norms, reductions --------------------------------------------------------------------------------


def _binary(inputs: Specs, a: Attrs) -> Specs:
    """Two activations, or one and a constant of shape ``const`` (a weight)."""
    shapes = [t.shape for t in inputs]
    if "const" in a:
        shapes.append(a["const"])
    if len(shapes) < 2:
        raise ModelError("an element-wise operator of two tensors got one")
    return (TensorSpec(_broadcast(*shapes), inputs[0].dtype),)


def _binary_params(_: Specs, a: Attrs) -> Shapes:
    return {"const": a["const"]} if "const" in a else {}


def _batch_norm_params(inputs: Specs, _: Attrs) -> Shapes:
    return dict.fromkeys(("scale", "shift", "mean", "var"), (inputs[0].shape[1],))


def _layer_norm_params(inputs: Specs, a: Attrs) -> Shapes:
    shape = inputs[0].shape[a.get("axis", -1) :] if a.get("axis", -1) < 0 else inputs[0].shape[a["axis"] :]
    return {"scale": shape, "shift": shape} if a.get("affine", True) else {}


def _prelu_params(inputs: Specs, a: Attrs) -> Shapes:
    return {"slope": a.get("slope_shape", (inputs[0].shape[1], *(1 for _ in inputs[0].shape[2:])))}


def _reduce(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "reduce")
    axes = {i % len(x.shape) for i in a["axes"]}
    dims = [(1 if i in axes else d, i in axes) for i, d in enumerate(x.shape)]
    keep = a.get("keepdims", True)
    return (TensorSpec(tuple(d for d, gone in dims if keep or not gone), x.dtype),)


# -- shapes ---------------------------------------------------------------------------------------------------------


def _concat(inputs: Specs, a: Attrs) -> Specs:
    axis = a["axis"] % len(inputs[0].shape)
    rest = {t.shape[:axis] + t.shape[axis + 1 :] for t in inputs}
    if len(rest) > 1:
        raise ModelError(f"concat: inputs {', '.join(map(str, inputs))} differ outside axis {axis}")
    shape = list(inputs[0].shape)
    shape[axis] = sum(t.shape[axis] for t in inputs)
    return (TensorSpec(tuple(shape), inputs[0].dtype),)


def _flatten(inputs: Specs, a: Attrs) -> Specs:
    x, axis = _one(inputs, "flatten"), a.get("axis", 1)
    return (TensorSpec((prod(x.shape[:axis]), prod(x.shape[axis:])), x.dtype),)


def _reshape(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "reshape")
    if prod(a["shape"]) != x.numel:
        raise ModelError(f"reshape: {x} has not the {prod(a['shape'])} elements of {a['shape']}")
    return (TensorSpec(tuple(a["shape"]), x.dtype),)


def _transpose(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "transpose")
    return (TensorSpec(tuple(x.shape[i] for i in a["perm"]), x.dtype),)


def _pad(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "pad")
    n = len(x.shape)
    return (TensorSpec(tuple(d + a["pads"][i] + a["pads"][n + i] for i, d in enumerate(x.shape)), x.dtype),)


def _slice(inputs: Specs, a: Attrs) -> Specs:
    """``starts`` and ``stops`` per axis, contiguous; one entry for every dimension."""
    x = _one(inputs, "slice")
    return (TensorSpec(tuple(e - s for s, e in zip(a["starts"], a["stops"], strict=True)), x.dtype),)


def _gather(inputs: Specs, a: Attrs) -> Specs:
    """A fixed selection of ``indices`` (a tuple) along ``axis``: the index layer of learned group convolution."""
    x = _one(inputs, "gather")
    shape = list(x.shape)
    shape[a.get("axis", 1)] = len(a["indices"])
    return (TensorSpec(tuple(shape), x.dtype),)


def _shuffle(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "channel_shuffle", 3)
    if x.shape[1] % a["groups"]:
        raise ModelError(f"channel_shuffle: {x.shape[1]} channels do not divide by {a['groups']} groups")
    return (x,)


def _resize(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "resize", 3)
    return (TensorSpec((*x.shape[:2], *a["size"]), x.dtype),)


def _opaque(_: Specs, a: Attrs) -> Specs:
    """``outputs``: the specs as text. The node itself is in ``node``, see :mod:`latbench.onnx_import`."""
    return tuple(TensorSpec.parse(t) for t in a["outputs"])


def _opaque_params(_: Specs, a: Attrs) -> Shapes:
    return {n: tuple(s) for n, s in a.get("weights", ())}


RULES: dict[str, Primitive] = {
    "conv": Primitive(_conv, _conv_params, _conv_macs),
    "conv_transpose": Primitive(_conv_transpose, _conv_transpose_params, _conv_transpose_macs),
    "linear": Primitive(_linear, _linear_params, _linear_macs),
    "matmul": Primitive(_matmul, macs=_matmul_macs),
    "batch_norm": Primitive(_same, _batch_norm_params),
    "layer_norm": Primitive(_same, _layer_norm_params),
    "lrn": Primitive(_same),
    "softmax": Primitive(_same),
    "prelu": Primitive(_same, _prelu_params),
    "identity": Primitive(_same),
    "zero": Primitive(_same),
    "max_pool": Primitive(_pool),
    "avg_pool": Primitive(_pool),
    "global_avg_pool": Primitive(_global_pool),
    "global_max_pool": Primitive(_global_pool),
    "reduce_mean": Primitive(_reduce),
    "reduce_sum": Primitive(_reduce),
    "concat": Primitive(_concat),
    "flatten": Primitive(_flatten),
    "reshape": Primitive(_reshape),
    "transpose": Primitive(_transpose),
    "pad": Primitive(_pad),
    "slice": Primitive(_slice),
    "gather": Primitive(_gather),
    "channel_shuffle": Primitive(_shuffle),
    "resize": Primitive(_resize),
    "onnx": Primitive(_opaque, _opaque_params),
    **{k: Primitive(_same) for k in ACTIVATIONS},
    **{k: Primitive(_binary, _binary_params) for k in BINARY},
}
