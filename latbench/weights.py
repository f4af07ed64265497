"""Seeded weights and inputs that keep activations at one scale, so that timing never meets denormals.

A weight is a standard draw that depends on (seed, node name, weight name) alone, times a scale. For a node by itself
the scale is that of He et al. 2015; in a network it follows from :mod:`latbench.moments`, so that every convolution
gives outputs of variance 1 however deep it stands, whatever lies before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from math import prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from latbench.errors import ModelError
from latbench.moments import UNIT, Moments, propagate
from latbench.network import Network, Node
from latbench.op import TensorSpec
from latbench.primitives import weight_dtype

Array = npt.NDArray[Any]

#: Moments of a rectified standard normal: what a node by itself is taken to stand behind.
BEHIND_RELU = Moments(mean=0.3989, constant=0.1592, square=0.5)


def node_weights(node: Node, seed: int = 0, given: Moments = BEHIND_RELU) -> dict[str, Array]:
    """Weights of one node by name, shaped as ``op.param_shapes`` says; ``given`` are the moments of its first input.

    Raises :class:`ModelError` for a data type that numpy cannot hold.
    """
    return {
        name: _weight(node, name, shape, np.random.default_rng(_entropy(seed, node.name, name)), given)
        for name, shape in node.op.param_shapes.items()
    }


def network_weights(net: Network, seed: int = 0) -> dict[str, dict[str, Array]]:
    """Weights of all nodes that have any: node name → weight name → array. Real ones of ``net.weights`` come first."""
    real = net.weights or {}
    known = propagate(net)
    return {
        n.name: dict(real[n.name]) if n.name in real else node_weights(n, seed, known.get(_first(n.inputs), UNIT))
        for n in net.nodes
        if n.op.param_shapes
    }


def random_input(spec: TensorSpec, seed: int = 0) -> Array:
    """An input: normal for floats, 0 or 1 for wide integers (inside any index range), all values for 8-bit ones."""
    rng = np.random.default_rng(_entropy(seed, str(spec)))
    dtype = numpy_dtype(spec.dtype)
    if dtype == np.bool_:
        return np.asarray(rng.random(spec.shape) < 0.5)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        low, high = (info.min, info.max + 1) if info.bits == 8 else (0, 2)
        return np.asarray(rng.integers(low, high, spec.shape, dtype=dtype))
    return _normal(rng, spec.shape, dtype, 1.0)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of a data type's name. Raises :class:`ModelError` for one that numpy does not have."""
    plain = {"f64": "f8", "f32": "f4", "f16": "f2", "i64": "i8", "i32": "i4", "i16": "i2", "i8": "i1"}
    plain |= {"u64": "u8", "u32": "u4", "u16": "u2", "u8": "u1", "bool": "?"}
    if name in plain:
        return np.dtype(plain[name])
    import ml_dtypes

    try:
        extra = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "i4": "int4", "u4": "uint4"}
        made: np.dtype[Any] = np.dtype(getattr(ml_dtypes, extra[name]))
    except KeyError as e:
        raise ModelError(f"numpy has no data type {name!r}") from e
    return made


def _first(names: Iterable[str]) -> str:
    return next(iter(names), "")


def _entropy(seed: int, *names: str) -> list[int]:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return [seed & (2**64 - 1), int.from_bytes(digest[:8], "little")]


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any], std: float) -> Array:
    return _without_denormals(np.asarray(rng.standard_normal(shape, dtype=np.float32)) * np.float32(std), dtype)


def _without_denormals(draw: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.itemsize >= 4:
        # A normal draw is a denormal of float32 once in 1e37.
        return np.asarray(draw).astype(dtype, copy=False)
    import ml_dtypes

    smallest = float(ml_dtypes.finfo(dtype).tiny)  # type: ignore[no-untyped-call]
    return np.where(np.abs(draw) < smallest, np.copysign(np.float32(smallest), draw), draw).astype(dtype)


def _weight(node: Node, name: str, shape: tuple[int, ...], rng: np.random.Generator, given: Moments) -> Array:
    op = node.op
    dtype = numpy_dtype(weight_dtype(op, name))
    if dtype == np.bool_ or np.issubdtype(dtype, np.integer) or dtype.name in ("int4", "uint4"):
        # Quantised weights take all values; wider integers are indices or shifts, and zero is inside any range.
        small = dtype.itemsize == 1 and dtype.name in ("int8", "uint8")
        return rng.integers(0, 128, shape).astype(dtype) if small else np.zeros(shape, dtype)

    def near_one(spread: float = 0.2) -> Array:
        return np.asarray(1 + spread * (2 * rng.random(shape) - 1)).astype(dtype)

    if op.kind in ("conv", "conv_transpose", "linear") and name == "weight":
        draw = rng.standard_normal(shape, dtype=np.float32)
        if op.kind == "conv_transpose":
            # Every output position is reached by kernel / stride positions of the input.
            fan_in = max(1, prod(op["kernel"]) * shape[0] // op["groups"] // prod(op["stride"]))
            draw /= np.float32(sqrt(fan_in))
        else:
            # Every filter gets the length that it has on average: short filters differ much, and deep networks
            # of them would drift.
            rows = draw.reshape(shape[0], -1)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        weight = _without_denormals(draw / np.float32(sqrt(max(given.square, 1e-6))), dtype)
        if op.density < 1:
            weight = np.where(rng.random(shape) < op.density, weight, 0).astype(dtype)
        return weight
    if op.kind == "batch_norm":
        if name == "var":
            return (near_one() * max(given.variance, 1e-6)).astype(dtype)
        if name == "mean":
            return (given.mean + 0.1 * sqrt(max(given.variance, 1e-6)) * rng.standard_normal(shape)).astype(dtype)
        return near_one() if name == "scale" else _normal(rng, shape, dtype, 0.1)
    if op.kind == "layer_norm":
        return near_one() if name == "scale" else _normal(rng, shape, dtype, 0.1)
    if op.kind == "prelu":
        return (near_one() / 4).astype(dtype)
    if op.kind in ("mul", "div", "pow"):
        return near_one()
    # Biases, constants that are added, weights of opaque Ops.
    return _normal(rng, shape, dtype, 0.1)
