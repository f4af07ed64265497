"""What a regressor sees of an Op: its kind, and numbers that say how much work it is and of which shape.

Kinds follow what kernels do, not what is fused into them: a depthwise, a pointwise and a dense convolution run through
different code and obey different limits, while an activation at the end of one changes its time by little and is a
feature. An Op's features are made of its primitives, so units, blocks and primitives are treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt

from latbench.op import Op

Floats = npt.NDArray[np.float64]

#: Quantities that enter as logarithms: they span orders of magnitude and times are products of their powers.
AMOUNTS = (
    "macs", "weight_bytes", "input_bytes", "output_bytes", "in_channels", "out_channels", "in_positions",
    "out_positions", "kernel_area", "group_channels",
)  # fmt: skip
#: Quantities that enter as they are.
FLAGS = (
    "stride", "blocked", "steps", "residual", "gate", "relu", "hardswish", "hardsigmoid", "sigmoid", "other_activation",
    "squeeze",
)  # fmt: skip
ROOFLINE = ("roofline_ms",)
NAMES = (*(f"log_{a}" for a in AMOUNTS), *FLAGS, *(f"log_{r}" for r in ROOFLINE))
#: Features in which time can only grow.
MONOTONE = frozenset({"log_macs", "log_weight_bytes", "log_input_bytes", "log_output_bytes"})

_ACTIVATIONS = frozenset({
    "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "softplus", "leaky_relu",
    "clip", "prelu",
})  # fmt: skip


@lru_cache(maxsize=65536)
def kernel_kind(op: Op) -> str:
    """The kind whose regressor an Op belongs to, e.g. ``conv depthwise``.

    Blocks go by their own kind. Units and primitives with a convolution go by its form: depthwise, vector (one output
    position: a matrix-vector product), pointwise, grouped or dense; others by their own kind.
    """
    if op.level == "block":
        return f"block {op.kind}"
    main = max(op.primitives, key=lambda p: p.macs, default=op)
    if main.kind == "onnx":
        return f"onnx {main.attributes.get('op_type', '')}"
    if main.kind != "conv":
        return op.kind if main.macs == 0 else main.kind
    a, channels = main.attributes, main.inputs[0].shape[1]
    groups = a.get("groups", 1)
    if groups == channels == a["out_channels"] and groups > 1:
        return "conv depthwise"
    if groups > 1:
        return "conv grouped"
    if prod(main.outputs[0].shape[2:]) == 1:
        return "conv vector"
    return "conv pointwise" if prod(a["kernel"]) == 1 else "conv dense"


@lru_cache(maxsize=65536)
def _amounts(op: Op) -> tuple[float, ...]:
    """Values of :data:`AMOUNTS` and :data:`FLAGS`."""
    prims = op.primitives
    main = max(prims, key=lambda p: (p.macs, p.activation_bytes), default=op)
    x = main.inputs[0].shape if main.inputs else (1, 1)
    y = main.outputs[0].shape
    a = main.attributes
    kernel = a.get("kernel", (1,))
    stride = a.get("stride", (1,))
    kinds = [p.kind for p in prims]
    rest = [k for p, k in zip(prims, kinds, strict=True) if p is not main]
    channels, out_channels = (s[1] if len(s) > 1 else s[-1] if s else 1 for s in (x, y))
    amounts = (
        op.macs, op.weight_bytes, sum(t.nbytes for t in op.inputs), sum(t.nbytes for t in op.outputs), channels,
        out_channels, prod(x[2:]), prod(y[2:]), prod(kernel) if isinstance(kernel, tuple) else kernel**2,
        channels // a.get("groups", 1),
    )  # fmt: skip
    named = ("relu", "hardswish", "hardsigmoid", "sigmoid")
    flags = (
        max(stride) if isinstance(stride, tuple) and stride else 1,
        float(bool(op.attributes.get("layout"))),
        len(kinds),
        float("add" in rest),
        float("mul" in rest),
        *(rest.count(n) + (rest.count("relu6") if n == "relu" else 0) for n in named),
        sum(k in _ACTIVATIONS and k not in (*named, "relu6") for k in rest),
        float("global_avg_pool" in rest),
    )
    return (*map(float, amounts), *map(float, flags))


def roofline_ms(op: Op, peak_gflops: float | None, bandwidth_gbs: float | None) -> float:
    """The least time that peaks allow (Williams, Waterman and Patterson 2009): two operations a MAC, each byte moved
    once. 0 where no peak is known."""
    compute = 2 * op.macs / (peak_gflops * 1e6) if peak_gflops else 0.0
    memory = (op.activation_bytes + op.weight_bytes) / (bandwidth_gbs * 1e6) if bandwidth_gbs else 0.0
    return max(compute, memory)


def features(ops: Sequence[Op], hardware: Mapping[str, float | None] | None = None) -> Floats:
    """(n, len(NAMES)). ``hardware`` holds ``peak_gflops`` and ``bandwidth_gbs`` where they are known."""
    peaks = hardware or {}
    peak, bandwidth = peaks.get("peak_gflops"), peaks.get("bandwidth_gbs")
    rows = np.array([(*_amounts(op), roofline_ms(op, peak, bandwidth)) for op in ops], np.float64)
    rows = rows.reshape(len(ops), len(NAMES))
    n = len(AMOUNTS)
    rows[:, :n] = np.log(np.maximum(rows[:, :n], 1.0))
    rows[:, -1] = np.log(np.maximum(rows[:, -1], 1e-9))
    return rows
