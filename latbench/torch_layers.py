"""Every primitive as a torch layer: those with weights as modules, the others as functions.

What each primitive means is written in :mod:`latbench.primitives`. Weights have torch's names: batch norm's ``scale,
shift, mean, var`` are ``weight, bias, running_mean, running_var`` (:data:`WEIGHT_NAMES`); all others are named as in
``Op.param_shapes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from latbench.errors import NotInstalledError, UnsupportedOpError
from latbench.network import Node
from latbench.primitives import window

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ModuleNotFoundError as e:
    raise NotInstalledError("torch", "pip install 'latbench[search]'", "networks as torch modules need it") from e

__all__ = ["FLOATS", "WEIGHT_NAMES", "Tensor", "layer", "nn", "torch"]

Attrs = Mapping[str, Any]
FLOATS = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
#: Names of an Op's weights → names in the torch module, by kind.
WEIGHT_NAMES: Mapping[str, Mapping[str, str]] = {
    "batch_norm": {"scale": "weight", "shift": "bias", "mean": "running_mean", "var": "running_var"},
    "layer_norm": {"scale": "weight", "shift": "bias"},
}


def layer(node: Node) -> nn.Module:
    """The module of a node, weights as torch initialises them.

    Raises :class:`UnsupportedOpError` naming the node where torch has no form of it.
    """
    kind = node.op.kind
    if kind in MODULES:
        return MODULES[kind](node)
    if kind in FUNCTIONS:
        return Function(kind, node.op.attributes)
    what = f"ONNX operator {node.op['op_type']}" if kind == "onnx" else f"primitive {kind}"
    raise UnsupportedOpError(node.name, f"{what} has no torch form")


# -- with weights ---------------------------------------------------------------------------------------------------


def _spatial_pads(pads: Sequence[int]) -> list[int]:
    """Begins then ends → the order of ``torch.nn.functional.pad``: last axis first, its begin and its end."""
    n = len(pads) // 2
    return [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]


class _PadFirst(nn.Module):  # type: ignore[misc]
    """Mixin: pads its input before the layer, for padding that differs between the ends of an axis."""

    pads: list[int]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads))


class _PaddedConv1d(_PadFirst, nn.Conv1d):  # type: ignore[misc]
    pass


class _PaddedConv2d(_PadFirst, nn.Conv2d):  # type: ignore[misc]
    pass


class _PaddedConv3d(_PadFirst, nn.Conv3d):  # type: ignore[misc]
    pass


_CONVS = {1: (nn.Conv1d, _PaddedConv1d), 2: (nn.Conv2d, _PaddedConv2d), 3: (nn.Conv3d, _PaddedConv3d)}


def _rank(node: Node, most: int = 3) -> int:
    n = len(node.op.inputs[0].shape) - 2
    if not 1 <= n <= most:
        raise UnsupportedOpError(node.name, f"torch has {node.op.kind} over 1 to {most} dimensions, not over {n}")
    return n


def _conv(node: Node) -> nn.Module:
    a, n = node.op.attributes, _rank(node)
    pads = a["pads"]
    same = pads[:n] == pads[n:]
    conv = _CONVS[n][not same](
        node.op.inputs[0].shape[1], a["out_channels"], a["kernel"], a["stride"], pads[:n] if same else 0,
        a["dilation"], a["groups"], a["bias"],
    )  # fmt: skip
    if not same:
        conv.pads = _spatial_pads(pads)
    return conv


class _CroppedTranspose(nn.Module):  # type: ignore[misc]
    """Mixin: crops the output of a transposed convolution, for padding that differs between the ends of an axis."""

    pads: list[int]

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), [-p for p in self.pads])


class _CroppedTranspose1d(_CroppedTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    pass


class _CroppedTranspose2d(_CroppedTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    pass


class _CroppedTranspose3d(_CroppedTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    pass


_TRANSPOSES = {1: _CroppedTranspose1d, 2: _CroppedTranspose2d, 3: _CroppedTranspose3d}


def _conv_transpose(node: Node) -> nn.Module:
    a = node.op.attributes
    conv = _TRANSPOSES[_rank(node)](
        node.op.inputs[0].shape[1], a["out_channels"], a["kernel"], a["stride"], 0, a["output_padding"], a["groups"],
        a["bias"], a["dilation"],
    )  # fmt: skip
    conv.pads = _spatial_pads(a["pads"])
    return conv


def _linear(node: Node) -> nn.Module:
    a = node.op.attributes
    return nn.Linear(node.op.inputs[0].shape[-1], a["out_features"], a["bias"])


def _batch_norm(node: Node) -> nn.Module:
    shape, eps = node.op.inputs[0].shape, node.op["eps"]
    norms = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if len(shape) not in norms:
        raise UnsupportedOpError(node.name, f"torch has no batch norm of {len(shape)} dimensions")
    return norms[len(shape)](shape[1], eps=eps)


def _layer_norm(node: Node) -> nn.Module:
    a, shape = node.op.attributes, node.op.inputs[0].shape
    return nn.LayerNorm(shape[a["axis"] % len(shape) :], a["eps"], a["affine"], a["affine"] and a["bias"])


class PReLU(nn.Module):  # type: ignore[misc]
    """Parametric ReLU whose ``slope`` broadcasts against its input."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full(node.op.param_shapes["slope"], 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, self.slope * x)


class Binary(nn.Module):  # type: ignore[misc]
    """An element-wise function of two tensors, of one and its weight ``const``, or of one and a number."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        a = node.op.attributes
        self.kind, self.swap, self.scalar = node.op.kind, a["swap"], a.get("scalar")
        if "const" in a and node.op.inputs[0].dtype in FLOATS:
            self.const = nn.Parameter(torch.ones(a["const"]))
        elif "const" in a:
            self.register_buffer("const", torch.ones(a["const"]))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = self.const if self.scalar is None else torch.as_tensor(self.scalar, dtype=x.dtype, device=x.device)
        return _BINARY[self.kind](y, x) if self.swap else _BINARY[self.kind](x, y)

    def extra_repr(self) -> str:
        return self.kind


_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "sub": torch.sub,
    "div": torch.div,
    "pow": torch.pow,
    "max": torch.maximum,
    "min": torch.minimum,
}
MODULES: dict[str, Callable[[Node], nn.Module]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "prelu": PReLU,
    "slice": lambda node: _slice(node),
    **dict.fromkeys(_BINARY, Binary),
}

# -- without weights ------------------------------------------------------------------------------------------------


class Function(nn.Module):  # type: ignore[misc]
    """A primitive without weights."""

    def __init__(self, kind: str, attrs: Attrs) -> None:
        super().__init__()
        self.kind, self.attrs = kind, dict(attrs)

    def forward(self, *xs: Tensor) -> Tensor:
        return FUNCTIONS[self.kind](self.attrs, *xs)

    def extra_repr(self) -> str:
        return self.kind


def _pool(a: Attrs, x: Tensor, kind: str) -> Tensor:
    n = len(a["kernel"])
    kernel, stride, pads, dilation, ceil_mode = a["kernel"], a["stride"], a["pads"], a["dilation"], a["ceil_mode"]
    plain = pads[:n] == pads[n:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
    if kind == "max":
        if not plain:
            x, pads = F.pad(x, _spatial_pads(pads), value=-torch.inf), (0,) * 2 * n
        return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1](x, kernel, stride, pads[:n], dilation, ceil_mode)
    counted = a["count_include_pad"]
    if plain and set(dilation) == {1}:
        return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1](x, kernel, stride, pads[:n], ceil_mode, counted)
    # Uneven or dilated windows: the sum over the window as a depthwise convolution, over how many elements it counted.
    beyond = [0] * n + _beyond(x.shape[2:], a)
    ones = F.pad(torch.ones_like(x[:1]), _spatial_pads(pads), value=float(counted))

    def total(y: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        y = F.pad(y, _spatial_pads(beyond))
        return conv(y, y.new_ones((y.shape[1], 1, *kernel)), None, stride, 0, dilation, y.shape[1])

    return total(F.pad(x, _spatial_pads(pads))) / total(ones)


def _beyond(size: Sequence[int], a: Attrs) -> list[int]:
    """How far the last window of a pooling that rounds up reaches beyond its padded input, by axis."""
    n, k, s, p, d = len(size), a["kernel"], a["stride"], a["pads"], a["dilation"]
    last = [(o - 1) * s[i] + d[i] * (k[i] - 1) + 1 for i, o in enumerate(window(tuple(size), a, "avg_pool"))]
    return [max(0, last[i] - size[i] - p[i] - p[n + i]) for i in range(n)]


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _reduce(a: Attrs, x: Tensor, how: Callable[..., Tensor]) -> Tensor:
    return how(x, dim=a["axes"], keepdim=a["keepdims"])


def _flatten(a: Attrs, x: Tensor) -> Tensor:
    axis = a["axis"]
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _slice(node: Node) -> nn.Module:
    bounds = zip(node.op["starts"], node.op["stops"], node.op.inputs[0].shape, strict=True)
    # A dimension that is kept whole is left alone: the batch may have another size.
    parts = [(axis, start, stop - start) for axis, (start, stop, size) in enumerate(bounds) if stop - start < size]
    return Function("slice", {"parts": parts})


def _narrow(a: Attrs, x: Tensor) -> Tensor:
    for axis, start, length in a["parts"]:
        x = x.narrow(axis, start, length)
    return x


def _shuffle(a: Attrs, x: Tensor) -> Tensor:
    n, c, *size = x.shape
    return x.reshape(n, a["groups"], c // a["groups"], *size).transpose(1, 2).reshape(n, c, *size)


def _lrn(a: Attrs, x: Tensor) -> Tensor:
    size = a["size"]
    squares = F.pad((x * x).movedim(1, -1), ((size - 1) // 2, size // 2))
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (a["bias"] + a["alpha"] / size * total) ** a["beta"]


def _pad(a: Attrs, x: Tensor) -> Tensor:
    if a["mode"] == "constant":
        return F.pad(x, _spatial_pads(a["pads"]), value=a["value"])
    for axis, size in enumerate(x.shape):
        begin, end = a["pads"][axis], a["pads"][x.dim() + axis]
        if begin or end:
            at = torch.arange(-begin, size + end, device=x.device)
            at = at.clamp(0, size - 1) if a["mode"] == "edge" else (size - 1 - (size - 1 - at).abs()).abs()
            x = x.index_select(axis, at)
    return x


def _resize(a: Attrs, x: Tensor) -> Tensor:
    for axis, out in enumerate(a["size"], 2):
        at = _source(a["coordinates"], x.shape[axis], out)
        if a["mode"] == "nearest":
            x = x.index_select(axis, _ROUND[a["rounding"]](at).long().clamp(0, x.shape[axis] - 1).to(x.device))
            continue
        at = at.clamp(0, x.shape[axis] - 1)
        low = at.floor().long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        share = (at - low).to(x).reshape(-1, *(1 for _ in x.shape[axis + 1 :]))
        x = x.index_select(axis, low.to(x.device)) * (1 - share) + x.index_select(axis, high.to(x.device)) * share
    return x


def _source(coordinates: str, size: int, out: int) -> Tensor:
    """Where each output position of an axis lies in the input (ONNX Resize, coordinate_transformation_mode)."""
    i = torch.arange(out, dtype=torch.float64)
    if coordinates == "align_corners":
        return i * (size - 1) / max(out - 1, 1)
    if coordinates == "asymmetric":
        return i * size / out
    if coordinates == "pytorch_half_pixel" and out == 1:
        return torch.zeros(1, dtype=torch.float64)
    return (i + 0.5) * size / out - 0.5


_ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
}


#: Kind → function of the attributes and the inputs.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": lambda a, x: F.relu(x),
    "relu6": lambda a, x: F.relu6(x),
    "hardswish": lambda a, x: F.hardswish(x),
    "hardsigmoid": lambda a, x: (a["alpha"] * x + a["beta"]).clamp(0, 1),
    "sigmoid": lambda a, x: torch.sigmoid(x),
    "tanh": lambda a, x: torch.tanh(x),
    "silu": lambda a, x: F.silu(x),
    "gelu": lambda a, x: F.gelu(x, approximate=a["approximate"]),
    "elu": lambda a, x: F.elu(x, a["alpha"]),
    "softplus": lambda a, x: F.softplus(x),
    "leaky_relu": lambda a, x: F.leaky_relu(x, a["alpha"]),
    "clip": lambda a, x: x.clamp(a["low"], a["high"]),
    "exp": lambda a, x: torch.exp(x),
    "erf": lambda a, x: torch.erf(x),
    "sqrt": lambda a, x: torch.sqrt(x),
    "neg": lambda a, x: torch.neg(x),
    "abs": lambda a, x: torch.abs(x),
    "log": lambda a, x: torch.log(x),
    "reciprocal": lambda a, x: torch.reciprocal(x),
    "identity": lambda a, x: x,
    "zero": lambda a, x: x.mul(0.0),
    "softmax": lambda a, x: torch.softmax(x, a["axis"]),
    "lrn": _lrn,
    "matmul": lambda a, x, y: torch.matmul(x, y),
    "max_pool": lambda a, x: _pool(a, x, "max"),
    "avg_pool": lambda a, x: _pool(a, x, "average"),
    "global_avg_pool": lambda a, x: x.mean(_spatial(x), keepdim=True),
    "global_max_pool": lambda a, x: x.amax(_spatial(x), keepdim=True),
    "reduce_mean": lambda a, x: _reduce(a, x, torch.mean),
    "reduce_sum": lambda a, x: _reduce(a, x, torch.sum),
    "concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "flatten": _flatten,
    # The first dimension is left open: it scales with the batch.
    "reshape": lambda a, x: x.reshape(-1, *a["shape"][1:]) if a["shape"] else x.reshape(()),
    "transpose": lambda a, x: x.permute(*a["perm"]),
    "pad": _pad,
    "slice": _narrow,
    "gather": lambda a, x: x.index_select(a["axis"], torch.tensor(a["indices"], device=x.device)),
    "channel_shuffle": _shuffle,
    "resize": _resize,
}
