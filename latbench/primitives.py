"""The rules of every primitive: attributes and their defaults, output shape, weights and work.

A rule is a :class:`Primitive`; :func:`rule` finds it by kind. How a primitive is written as ONNX or as a torch module
is the business of :mod:`latbench.onnx_export` and :mod:`latbench.torch_build`, which dispatch on the same kinds and
agree on these meanings (axis 1 is the channel axis, ``n`` the number of spatial dimensions):

``conv``, ``conv_transpose``
    Zero padding; ``pads`` are n begins, then n ends. Weights as in torch: (out, in / groups, \\*kernel), transposed
    (in, out / groups, \\*kernel). ``output_padding`` adds to the end of a transposed convolution's output.
``linear``
    ``x @ weight.T + bias`` over the last axis, weight (out, in).
``batch_norm``
    ``(x - mean) / sqrt(var + eps) * scale + shift`` with stored statistics; eps 1e-5.
``layer_norm``
    Over the axes from ``axis`` on, biased variance, eps 1e-5; ``affine`` = scale, ``bias`` = shift (needs ``affine``).
``max_pool``, ``avg_pool``
    Padding never wins a maximum. An average divides by the window's elements inside the input, or with
    ``count_include_pad`` by those inside the padded input. ``ceil_mode`` rounds the output size up, but no window
    starts in the end padding.
``lrn``
    ``x / (bias + alpha / size * Σ x²)^beta``, the sum over ``size`` channels around each (``(size-1)//2`` before).
``softmax``
    Over the one axis ``axis``.
activations
    ``relu6`` = clip to [0, 6]; ``clip`` to [``low``, ``high``] (default: the float32 range); ``hardsigmoid`` =
    max(0, min(1, ``alpha`` x + ``beta``)) with alpha 1/6, beta 1/2; ``hardswish`` = x · hardsigmoid(x) with these;
    ``silu`` = x · sigmoid(x); ``gelu`` with erf, or ``approximate="tanh"``; ``elu`` with ``alpha`` 1; ``softplus`` =
    log(1 + eˣ); ``leaky_relu`` with slope ``alpha`` 0.01; ``prelu`` with learned ``slope`` of ``slope_shape`` (default:
    one a channel), broadcast to the input.
element-wise of two
    Two inputs with numpy broadcasting; or one input and a weight of shape ``const``; or one input and the number
    ``scalar``. With ``swap`` the constant is the first operand. ``max`` and ``min`` are element-wise here.
``zero``
    Zeros of the input's shape. ``identity``: the input.
``flatten``
    To two dimensions, cut at ``axis``. ``reshape`` to the full ``shape``, ``transpose`` by ``perm``.
``pad``
    ``pads``: a begin for every dimension, then an end; ``mode`` constant (with ``value``), reflect or edge.
``slice``
    ``starts`` and ``stops`` for every dimension, step 1. ``gather``: the fixed ``indices`` along ``axis``.
``channel_shuffle``
    (groups, channels / groups) → transposed (Zhang et al. 2018).
``resize``
    Of the spatial dimensions to ``size``; ``mode`` nearest or linear; ``coordinates`` half_pixel (as torch's
    ``align_corners=False``), asymmetric (as torch's nearest), align_corners, pytorch_half_pixel; ``rounding`` floor,
    ceil, round_prefer_floor, round_prefer_ceil for nearest.
``onnx``
    An operator that no rule covers: one node of an ONNX graph, kept as it came; see :mod:`latbench.onnx_opaque`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, prod
from typing import TYPE_CHECKING, Any, TypeAlias

from latbench import attributes
from latbench.attributes import OPTIONAL, Attribute
from latbench.errors import ModelError
from latbench.op import TensorSpec

if TYPE_CHECKING:
    from latbench.op import Op

Specs: TypeAlias = "tuple[TensorSpec, ...]"
Attrs: TypeAlias = Mapping[str, Any]
Shapes: TypeAlias = "dict[str, tuple[int, ...]]"

#: Element-wise functions of one tensor.
ACTIVATIONS = (
    "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "softplus",
    "leaky_relu", "clip", "exp", "erf", "sqrt", "neg", "abs", "log", "reciprocal",
)  # fmt: skip
#: Element-wise functions of two tensors, with broadcasting.
BINARY = ("add", "mul", "sub", "div", "pow", "max", "min")

FLOAT32_MAX = 3.4028234663852886e38


def _nothing(_: Specs, __: Attrs) -> Shapes:
    return {}


def _zero(_: Specs, __: Attrs) -> int:
    return 0


def _all_learned(_: Attrs) -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True)
class Primitive:
    """The rule of one kind; the functions get the attributes with their defaults filled in.

    ``infer`` gives the output specs, ``params`` the weights' shapes, ``macs`` the multiply-accumulates, ``attributes``
    the schema, ``fixed`` the weights that are not learned.
    """

    infer: Callable[[Specs, Attrs], Specs]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    params: Callable[[Specs, Attrs], Shapes] = _nothing
    macs: Callable[[Specs, Attrs], int] = _zero
    fixed: Callable[[Attrs], frozenset[str]] = _all_learned


def rule(kind: str) -> Primitive:
    """The rule of a primitive kind. Raises :class:`ModelError` for an unknown one."""
    try:
        return RULES[kind]
    except KeyError:
        raise ModelError(f"unknown primitive {kind!r}; known: {', '.join(sorted(RULES))}") from None


def defaults(kind: str, inputs: Specs) -> dict[str, Any]:
    """The defaults of a primitive's attributes (the required and the optional ones are absent)."""
    return _defaults(kind, _spatial(inputs))


@lru_cache(maxsize=512)
def _defaults(kind: str, n: int) -> dict[str, Any]:
    return attributes.defaults(rule(kind).attributes, n)


def canonical(kind: str, inputs: Specs, attrs: Attrs) -> dict[str, Any]:
    """The attributes checked and in canonical form, see :func:`latbench.attributes.canonical`."""
    n = _spatial(inputs)
    rank = len(inputs[0].shape) if inputs else 0
    return attributes.canonical(kind, rule(kind).attributes, _defaults(kind, n), attrs, n, rank)


def _spatial(inputs: Specs) -> int:
    return max(len(inputs[0].shape) - 2, 0) if inputs else 0


def weight_dtype(op: Op, name: str) -> str:
    """Data type of one of a primitive's weights: the input's, except where an opaque Op says otherwise."""
    if op.kind == "onnx":
        return next(str(dtype) for n, dtype, _ in op["weights"] if n == name)
    return op.inputs[0].dtype


def _one(inputs: Specs, kind: str, rank: int | None = None) -> TensorSpec:
    if len(inputs) != 1:
        raise ModelError(f"{kind} takes one input, got {len(inputs)}")
    if rank is not None and len(inputs[0].shape) < rank:
        raise ModelError(f"{kind} needs an input of at least {rank} dimensions, got {inputs[0]}")
    return inputs[0]


def _same(kind: str, rank: int = 0) -> Callable[[Specs, Attrs], Specs]:
    return lambda inputs, _: (_one(inputs, kind, rank),)


def _axis(axis: int, rank: int, kind: str) -> int:
    if not -rank <= axis < rank:
        raise ModelError(f"{kind}: axis {axis} is outside a tensor of {rank} dimensions")
    return axis % rank


# -- windows: convolution and pooling -------------------------------------------------------------------------------


def window(size: tuple[int, ...], a: Attrs, kind: str) -> tuple[int, ...]:
    """Output size of a sliding window. Attributes: kernel, stride, pads (begins then ends), dilation, ceil_mode."""
    n = len(size)
    out = []
    for i in range(n):
        padded, stride = size[i] + a["pads"][i] + a["pads"][n + i], a["stride"][i]
        span = padded - a["dilation"][i] * (a["kernel"][i] - 1) - 1
        if span < 0:
            raise ModelError(f"{kind}: kernel {a['kernel']} is larger than its padded input {size}")
        steps = ceil(span / stride) if a.get("ceil_mode") else span // stride
        # A window that would start in the end padding does not count (as in ONNX and torch).
        if a.get("ceil_mode") and steps * stride >= size[i] + a["pads"][i]:
            steps -= 1
        out.append(steps + 1)
    return tuple(out)


_WINDOW = {
    "kernel": Attribute("ints", low=1, length=lambda n: n),
    "stride": Attribute("ints", lambda n: (1,) * n, 1, length=lambda n: n),
    "pads": Attribute("ints", lambda n: (0,) * 2 * n, 0, length=lambda n: 2 * n),
    "dilation": Attribute("ints", lambda n: (1,) * n, 1, length=lambda n: n),
}
_CONV = {
    "out_channels": Attribute("int", low=1),
    **_WINDOW,
    "groups": Attribute("int", 1, 1),
    "bias": Attribute("bool", False),
}
_CONV_TRANSPOSE = {**_CONV, "output_padding": Attribute("ints", lambda n: (0,) * n, 0, length=lambda n: n)}
_POOL = {**_WINDOW, "ceil_mode": Attribute("bool", False)}


def _channels(inputs: Specs, a: Attrs, kind: str) -> TensorSpec:
    x = _one(inputs, kind, 3)
    if x.shape[1] % a["groups"] or a["out_channels"] % a["groups"]:
        raise ModelError(f"{kind}: {x.shape[1]} → {a['out_channels']} channels do not divide by {a['groups']} groups")
    return x


def _conv(inputs: Specs, a: Attrs) -> Specs:
    x = _channels(inputs, a, "conv")
    return (TensorSpec((x.shape[0], a["out_channels"], *window(x.shape[2:], a, "conv")), x.dtype),)


def _conv_params(inputs: Specs, a: Attrs) -> Shapes:
    p: Shapes = {"weight": (a["out_channels"], inputs[0].shape[1] // a["groups"], *a["kernel"])}
    return {**p, "bias": (a["out_channels"],)} if a["bias"] else p


def _conv_macs(inputs: Specs, a: Attrs) -> int:
    return int(_conv(inputs, a)[0].numel * (inputs[0].shape[1] // a["groups"]) * prod(a["kernel"]))


def _conv_transpose(inputs: Specs, a: Attrs) -> Specs:
    x = _channels(inputs, a, "conv_transpose")
    size = []
    for i, d in enumerate(x.shape[2:]):
        pads = a["pads"][i] + a["pads"][len(x.shape) - 2 + i]
        size.append((d - 1) * a["stride"][i] - pads + a["dilation"][i] * (a["kernel"][i] - 1) + 1)
        size[-1] += a["output_padding"][i]
    if min(size) < 1:
        raise ModelError(f"conv_transpose: padding {a['pads']} leaves nothing of the output of {x}")
    return (TensorSpec((x.shape[0], a["out_channels"], *size), x.dtype),)


def _conv_transpose_params(inputs: Specs, a: Attrs) -> Shapes:
    p: Shapes = {"weight": (inputs[0].shape[1], a["out_channels"] // a["groups"], *a["kernel"])}
    return {**p, "bias": (a["out_channels"],)} if a["bias"] else p


def _conv_transpose_macs(inputs: Specs, a: Attrs) -> int:
    return int(inputs[0].numel * (a["out_channels"] // a["groups"]) * prod(a["kernel"]))


def _pool(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "pool", 3)
    if any(p >= d * (k - 1) + 1 for p, k, d in zip(a["pads"], a["kernel"] * 2, a["dilation"] * 2, strict=True)):
        raise ModelError(f"pool: pads {a['pads']} hold a whole window of kernel {a['kernel']}")
    return (TensorSpec((*x.shape[:2], *window(x.shape[2:], a, "pool")), x.dtype),)


def _global_pool(inputs: Specs, _: Attrs) -> Specs:
    x = _one(inputs, "a global pool", 3)
    return (TensorSpec((*x.shape[:2], *(1 for _ in x.shape[2:])), x.dtype),)


# -- linear algebra -------------------------------------------------------------------------------------------------


def _linear(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "linear", 2)
    return (TensorSpec((*x.shape[:-1], a["out_features"]), x.dtype),)


def _linear_params(inputs: Specs, a: Attrs) -> Shapes:
    p: Shapes = {"weight": (a["out_features"], inputs[0].shape[-1])}
    return {**p, "bias": (a["out_features"],)} if a["bias"] else p


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
    """Two activations: no weights, hence no MACs in the convention "weights × positions"."""
    if len(inputs) != 2 or min(len(t.shape) for t in inputs) < 2:
        raise ModelError("matmul takes two inputs of at least two dimensions")
    x, y = (t.shape for t in inputs)
    if x[-1] != y[-2]:
        raise ModelError(f"matmul: {x} × {y} do not fit")
    return (TensorSpec((*_broadcast(x[:-2], y[:-2]), x[-2], y[-1]), inputs[0].dtype),)


# -- element-wise, norms, reductions --------------------------------------------------------------------------------

_BINARY = {
    "const": Attribute("ints", OPTIONAL, 1),
    "scalar": Attribute("float", OPTIONAL),
    "swap": Attribute("bool", False),
}


def _binary(inputs: Specs, a: Attrs) -> Specs:
    constants = [n for n in ("const", "scalar") if n in a]
    if len(inputs) + len(constants) != 2 or not inputs:
        raise ModelError(
            f"an element-wise operator takes two inputs, or one and const or scalar; got {len(inputs)} and "
            f"{' and '.join(constants) or 'no constant'}"
        )
    if a["swap"] and not constants:
        raise ModelError("an element-wise operator swaps its input with a constant, and has none")
    if len({t.dtype for t in inputs}) > 1:
        raise ModelError(f"an element-wise operator takes one data type, got {' and '.join(map(str, inputs))}")
    shapes = [t.shape for t in inputs] + ([a["const"]] if "const" in a else [])
    return (TensorSpec(_broadcast(*shapes), inputs[0].dtype),)


def _binary_params(_: Specs, a: Attrs) -> Shapes:
    return {"const": a["const"]} if "const" in a else {}


def _batch_norm_params(inputs: Specs, _: Attrs) -> Shapes:
    return dict.fromkeys(("scale", "shift", "mean", "var"), (inputs[0].shape[1],))


def _layer_norm(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "layer_norm", 1)
    _axis(a["axis"], len(x.shape), "layer_norm")
    if a["bias"] and not a["affine"]:
        raise ModelError("layer_norm: bias needs affine; set bias to false")
    return (x,)


def _layer_norm_params(inputs: Specs, a: Attrs) -> Shapes:
    shape = inputs[0].shape[_axis(a["axis"], len(inputs[0].shape), "layer_norm") :]
    return {n: shape for n, there in (("scale", a["affine"]), ("shift", a["bias"])) if there}


def _softmax(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "softmax", 1)
    _axis(a["axis"], len(x.shape), "softmax")
    return (x,)


def _slope_shape(inputs: Specs, a: Attrs) -> tuple[int, ...]:
    x = inputs[0].shape
    return tuple(a["slope_shape"]) if "slope_shape" in a else (x[1], *(1 for _ in x[2:]))


def _prelu(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "prelu", 2)
    if _broadcast(x.shape, _slope_shape(inputs, a)) != x.shape:
        raise ModelError(f"prelu: a slope of shape {_slope_shape(inputs, a)} does not broadcast to {x}")
    return (x,)


def _prelu_params(inputs: Specs, a: Attrs) -> Shapes:
    return {"slope": _slope_shape(inputs, a)}


def _reduce(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "reduce")
    axes = {_axis(i, len(x.shape), "reduce") for i in a["axes"]}
    if len(axes) != len(a["axes"]) or not axes:
        raise ModelError(f"reduce: axes {a['axes']} name an axis twice, or none")
    dims = [(1 if i in axes else d, i in axes) for i, d in enumerate(x.shape)]
    return (TensorSpec(tuple(d for d, gone in dims if a["keepdims"] or not gone), x.dtype),)


# -- shapes ---------------------------------------------------------------------------------------------------------


def _concat(inputs: Specs, a: Attrs) -> Specs:
    if not inputs:
        raise ModelError("concat takes at least one input")
    axis = _axis(a["axis"], len(inputs[0].shape), "concat")
    if len({(t.dtype, len(t.shape), t.shape[:axis], t.shape[axis + 1 :]) for t in inputs}) > 1:
        raise ModelError(f"concat: inputs {', '.join(map(str, inputs))} differ outside axis {axis}")
    shape = list(inputs[0].shape)
    shape[axis] = sum(t.shape[axis] for t in inputs)
    return (TensorSpec(tuple(shape), inputs[0].dtype),)


def _flatten(inputs: Specs, a: Attrs) -> Specs:
    x, axis = _one(inputs, "flatten"), a["axis"]
    if axis > len(x.shape):
        raise ModelError(f"flatten: axis {axis} is outside {x}")
    return (TensorSpec((prod(x.shape[:axis]), prod(x.shape[axis:])), x.dtype),)


def _reshape(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "reshape")
    if prod(a["shape"]) != x.numel:
        raise ModelError(f"reshape: {x} has not the {prod(a['shape'])} elements of {a['shape']}")
    return (TensorSpec(a["shape"], x.dtype),)


def _transpose(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "transpose")
    if sorted(a["perm"]) != list(range(len(x.shape))):
        raise ModelError(f"transpose: {a['perm']} is no order of the {len(x.shape)} axes of {x}")
    return (TensorSpec(tuple(x.shape[i] for i in a["perm"]), x.dtype),)


def _pad(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "pad")
    n = len(x.shape)
    if len(a["pads"]) != 2 * n:
        raise ModelError(f"pad: {x} needs {2 * n} pads, got {a['pads']}")
    shape = tuple(d + a["pads"][i] + a["pads"][n + i] for i, d in enumerate(x.shape))
    if min(shape, default=1) < 0:
        raise ModelError(f"pad: {a['pads']} cut away more than {x}")
    return (TensorSpec(shape, x.dtype),)


def _slice(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "slice")
    if not len(a["starts"]) == len(a["stops"]) == len(x.shape):
        raise ModelError(f"slice: {x} needs a start and a stop for each of its {len(x.shape)} dimensions")
    if any(not 0 <= s <= e <= d for s, e, d in zip(a["starts"], a["stops"], x.shape, strict=True)):
        raise ModelError(f"slice: {a['starts']} to {a['stops']} is not inside {x}")
    return (TensorSpec(tuple(e - s for s, e in zip(a["starts"], a["stops"], strict=True)), x.dtype),)


def _gather(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "gather")
    axis = _axis(a["axis"], len(x.shape), "gather")
    if not a["indices"] or max(a["indices"]) >= x.shape[axis]:
        raise ModelError(f"gather: an index of {a['indices'][:8]}… is outside axis {axis} of {x}")
    return (TensorSpec((*x.shape[:axis], len(a["indices"]), *x.shape[axis + 1 :]), x.dtype),)


def _shuffle(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "channel_shuffle", 3)
    if x.shape[1] % a["groups"]:
        raise ModelError(f"channel_shuffle: {x.shape[1]} channels do not divide by {a['groups']} groups")
    return (x,)


def _resize(inputs: Specs, a: Attrs) -> Specs:
    x = _one(inputs, "resize", 3)
    return (TensorSpec((*x.shape[:2], *a["size"]), x.dtype),)


_ONNX = {
    "node": Attribute("str"),
    "op_type": Attribute("str"),
    "domain": Attribute("str", ""),
    "opset": Attribute("int", low=1),
    "outputs": Attribute("any"),
    "weights": Attribute("any", ()),
    "consts": Attribute("any", ()),
}


def _opaque(_: Specs, a: Attrs) -> Specs:
    """``outputs`` are specs as text; ``weights`` and ``consts`` as :mod:`latbench.onnx_opaque` writes them."""
    try:
        for _name, dtype, shape in (*a["weights"], *((n, t, s) for n, t, s, _ in a["consts"])):
            TensorSpec(tuple(shape), dtype)
        return tuple(TensorSpec.parse(t) for t in a["outputs"])
    except (TypeError, ValueError) as e:
        raise ModelError(f"an opaque Op of {a['op_type']!r} whose outputs, weights or consts cannot be read") from e


def _opaque_params(_: Specs, a: Attrs) -> Shapes:
    return {n: tuple(s) for n, _, s in a["weights"]}


def _opaque_fixed(a: Attrs) -> frozenset[str]:
    """Index tables are not learned; 8-bit and 4-bit weights are."""
    return frozenset(n for n, dtype, _ in a["weights"] if dtype in ("i64", "i32", "i16", "u64", "u32", "u16", "bool"))


_AXIS = Attribute("axis", -1)
_ALPHA = {
    "elu": {"alpha": Attribute("float", 1.0)},
    "leaky_relu": {"alpha": Attribute("float", 0.01)},
    "hardsigmoid": {"alpha": Attribute("float", 1 / 6), "beta": Attribute("float", 0.5)},
    "clip": {"low": Attribute("float", -FLOAT32_MAX), "high": Attribute("float", FLOAT32_MAX)},
    "gelu": {"approximate": Attribute("str", "none", choices=("none", "tanh"))},
}
_REDUCE = {"axes": Attribute("axes"), "keepdims": Attribute("bool", True)}

RULES: dict[str, Primitive] = {
    "conv": Primitive(_conv, _CONV, _conv_params, _conv_macs),
    "conv_transpose": Primitive(_conv_transpose, _CONV_TRANSPOSE, _conv_transpose_params, _conv_transpose_macs),
    "linear": Primitive(
        _linear,
        {"out_features": Attribute("int", low=1), "bias": Attribute("bool", False)},
        _linear_params,
        _linear_macs,
    ),
    "matmul": Primitive(_matmul),
    "batch_norm": Primitive(
        _same("batch_norm", 2),
        {"eps": Attribute("float", 1e-5)},
        _batch_norm_params,
        fixed=lambda _: frozenset(("mean", "var")),
    ),
    "layer_norm": Primitive(
        _layer_norm,
        {
            "axis": _AXIS,
            "eps": Attribute("float", 1e-5),
            "affine": Attribute("bool", True),
            "bias": Attribute("bool", True),
        },
        _layer_norm_params,
    ),
    "lrn": Primitive(
        _same("lrn", 3),
        {
            "size": Attribute("int", low=1),
            "alpha": Attribute("float", 1e-4),
            "beta": Attribute("float", 0.75),
            "bias": Attribute("float", 1.0),
        },
    ),
    "softmax": Primitive(_softmax, {"axis": _AXIS}),
    "prelu": Primitive(_prelu, {"slope_shape": Attribute("ints", OPTIONAL, 1)}, _prelu_params),
    "identity": Primitive(_same("identity")),
    "zero": Primitive(_same("zero")),
    "max_pool": Primitive(_pool, _POOL),
    "avg_pool": Primitive(_pool, {**_POOL, "count_include_pad": Attribute("bool", False)}),
    "global_avg_pool": Primitive(_global_pool),
    "global_max_pool": Primitive(_global_pool),
    "reduce_mean": Primitive(_reduce, _REDUCE),
    "reduce_sum": Primitive(_reduce, _REDUCE),
    "concat": Primitive(_concat, {"axis": Attribute("axis")}),
    "flatten": Primitive(_flatten, {"axis": Attribute("int", 1, 0)}),
    "reshape": Primitive(_reshape, {"shape": Attribute("ints", low=0)}),
    "transpose": Primitive(_transpose, {"perm": Attribute("ints", low=0)}),
    "pad": Primitive(
        _pad,
        {
            "pads": Attribute("ints"),
            "mode": Attribute("str", "constant", choices=("constant", "reflect", "edge")),
            "value": Attribute("float", 0.0),
        },
    ),
    "slice": Primitive(_slice, {"starts": Attribute("ints", low=0), "stops": Attribute("ints", low=0)}),
    "gather": Primitive(_gather, {"indices": Attribute("ints", low=0), "axis": Attribute("axis", 1)}),
    "channel_shuffle": Primitive(_shuffle, {"groups": Attribute("int", low=1)}),
    "resize": Primitive(
        _resize,
        {
            "size": Attribute("ints", low=1, length=lambda n: n),
            "mode": Attribute("str", "nearest", choices=("nearest", "linear")),
            "coordinates": Attribute(
                "str",
                "asymmetric",
                choices=("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
            ),
            "rounding": Attribute("str", "floor", choices=("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
        },
    ),
    "onnx": Primitive(_opaque, _ONNX, _opaque_params, fixed=_opaque_fixed),
    **{k: Primitive(_same(k), _ALPHA.get(k, {})) for k in ACTIVATIONS},
    **{k: Primitive(_binary, _BINARY, _binary_params) for k in BINARY},
}
