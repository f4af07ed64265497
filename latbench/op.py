"""The operator: one frozen value that devices measure, tables hold and networks are made of.

An :class:`Op` has one of three levels. A *primitive* is one operator (a convolution, an addition). A *unit* is
what a runtime runs in one go: a few primitives fused, possibly across branches. A *block* is one choice of a search
space. Units carry their primitives in ``body``; blocks expand through the registry of :mod:`latbench.blocks`.
Whatever the level, an Op knows its work and its canonical key, and the key parses back to an equal Op.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import isfinite, prod
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from latbench.errors import ModelError

if TYPE_CHECKING:
    from latbench.network import Network

Level: TypeAlias = Literal["primitive", "unit", "block"]
Attr: TypeAlias = "bool | int | float | str | tuple[Any, ...]"

SCHEMA = "op1"
#: Bytes of one element, by data type.
DTYPE_BYTES: Mapping[str, float] = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "i4": 0.5,
    "u64": 8, "u32": 4, "u16": 2, "u8": 1, "u4": 0.5, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """Shape (batch first) and data type of a tensor."""

    shape: tuple[int, ...]
    dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ModelError(f"unknown data type {self.dtype!r}; known: {', '.join(DTYPE_BYTES)}")
        if any(d < 0 for d in self.shape):
            raise ModelError(f"negative dimension in shape {self.shape}")

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes, dense."""
        return int(self.numel * DTYPE_BYTES[self.dtype])

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Read the form that ``str`` writes, e.g. ``f32[1,3,224,224]``."""
        m = re.fullmatch(r"(\w+)\[((?:\d+(?:,\d+)*)?)\]", text)
        if m is None:
            raise ModelError(f"not a tensor: {text!r}; expected e.g. 'f32[1,3,224,224]'")
        return cls(tuple(map(int, m[2].split(","))) if m[2] else (), m[1])


@dataclass(frozen=True)
class Step:
    """One primitive inside a unit.

    ``inputs`` refer to the unit's own inputs as ``-1, -2, …`` and to the values made by earlier steps as ``0, 1, …``:
    the outputs of the steps in order, so that value ``i`` is step ``i`` unless a step before it has several outputs.
    """

    op: Op
    inputs: tuple[int, ...]


_KIND = re.compile(r"[A-Za-z0-9_.+/-]+")
_QUANT = re.compile(r"[a-z0-9_.-]*")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _freeze(value: Any) -> Attr:
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, Integral)):
        return int(value)
    if isinstance(value, (float, Real)) and isfinite(value):
        return float(value) + 0.0  # -0.0 and 0.0 are one number, hence one key
    raise ModelError(f"an Op attribute must be a finite number, a string or a tuple of them, not {value!r}")


def _frozen(attrs: Mapping[str, Any]) -> tuple[tuple[str, Attr], ...]:
    if wrong := [n for n in attrs if not _NAME.fullmatch(n)]:
        raise ModelError(f"attribute names are lower-case words, not {', '.join(map(repr, wrong))}")
    return tuple(sorted((k, _freeze(v)) for k, v in attrs.items()))


@dataclass(frozen=True, eq=False)
class Op:
    """A frozen operator, equal to another where their keys are; see the module's text for its three levels.

    ``attrs`` are sorted name-value pairs in canonical form: those that equal their default are left out
    (:attr:`attributes` has them all); use :meth:`make` to build an Op from keywords. ``quant`` names a quantisation
    form (``""`` for none, else e.g. ``"w8a8"``), ``density`` the share of non-zero weights. ``outputs_of_body`` are
    the values of ``body`` that leave a unit, numbered as :class:`Step` says.
    """

    level: Level
    kind: str
    inputs: tuple[TensorSpec, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()
    quant: str = ""
    density: float = 1.0
    body: tuple[Step, ...] = field(default=(), repr=False)
    outputs_of_body: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ModelError(f"not the name of an Op kind: {self.kind!r}")
        if not _QUANT.fullmatch(self.quant):
            raise ModelError(f"{self.kind}: not the name of a quantisation form: {self.quant!r}")
        if not 0 < self.density <= 1:
            raise ModelError(f"{self.kind}: density is the share of non-zero weights, in (0, 1]; got {self.density}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @classmethod
    def make(
        cls,
        kind: str,
        inputs: Iterable[TensorSpec],
        level: Level = "primitive",
        quant: str = "",
        density: float = 1.0,
        **attrs: Any,
    ) -> Op:
        """An Op of level primitive or block from keywords; lists become tuples.

        A primitive's attributes are checked against :mod:`latbench.primitives`, and its output shape is inferred.
        Blocks are checked by :func:`latbench.blocks.block_op`. Raises :class:`ModelError`.
        """
        return cls._make(level, kind, tuple(inputs), quant, density, attrs)

    @classmethod
    def _make(
        cls, level: str, kind: str, inputs: tuple[TensorSpec, ...], quant: str, density: float, attrs: Mapping[str, Any]
    ) -> Op:
        if level == "primitive":
            return _primitive(kind, inputs, quant, density, _Attrs(attrs))
        if level == "block":
            from latbench.blocks import block_defaults

            # As `block_op` writes it: one block has one key. Kinds of plugins that are not here keep what is given.
            given, missing = _frozen(attrs), object()
            defaults = block_defaults(kind)
            return cls(
                "block", kind, inputs, tuple(a for a in given if a[1] != defaults.get(a[0], missing)), quant, density
            )
        raise ModelError(f"Op.make builds primitives and blocks, not {level!r}; units come from Op.unit")

    @classmethod
    def unit(
        cls, kind: str, inputs: Iterable[TensorSpec], body: Iterable[Step], outputs: Iterable[int] = (-1,), **attrs: Any
    ) -> Op:
        """A unit of fused primitives. ``outputs`` number the values of ``body``; -1 is the last one.

        Raises :class:`ModelError` where the steps do not fit together.
        """
        specs, steps = tuple(inputs), tuple(body)
        values: list[TensorSpec] = []
        for i, step in enumerate(steps):
            if step.op.level != "primitive":
                raise ModelError(f"unit {kind!r}, step {i}: a unit is made of primitives, not of a {step.op.level}")
            if any(not -len(specs) <= r < len(values) for r in step.inputs):
                raise ModelError(f"unit {kind!r}, step {i} ({step.op.kind}) refers to a value that is not there yet")
            given = tuple(specs[-r - 1] if r < 0 else values[r] for r in step.inputs)
            if given != step.op.inputs:
                raise ModelError(
                    f"unit {kind!r}, step {i} ({step.op.kind}) takes {', '.join(map(str, step.op.inputs))}, "
                    f"and is given {', '.join(map(str, given))}"
                )
            values.extend(step.op.outputs)
        out = tuple(o if o >= 0 else len(values) + o for o in outputs)
        if not steps or not out or any(not 0 <= o < len(values) for o in out):
            raise ModelError(f"unit {kind!r}: outputs {out} are not among its {len(values)} values")
        return cls("unit", kind, specs, _frozen(attrs), body=steps, outputs_of_body=out)

    # -- the key ------------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """Canonical text: ``op1:level:kind:inputs:attributes``; :meth:`parse` reads it back to an equal Op."""
        extra: dict[str, Any] = dict(self.attrs)
        if self.quant:
            extra["@quant"] = self.quant
        if self.density != 1.0:
            extra["@density"] = self.density
        if self.body:
            extra["@body"] = [[*s.op.key.split(":", 2)[2:], list(s.inputs)] for s in self.body]
            extra["@outputs"] = list(self.outputs_of_body)
        text = json.dumps(extra, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return f"{SCHEMA}:{self.level}:{self.kind}:{'+'.join(map(str, self.inputs))}:{text}"

    @classmethod
    def parse(cls, key: str) -> Op:
        """The Op that a key stands for. Raises :class:`ModelError` for text that is no key.

        A block of a kind that nobody registered parses (a table may hold one of a plugin that is not installed here);
        expanding it is the error.
        """
        try:
            schema, level, kind, specs, text = key.split(":", 4)
            if schema != SCHEMA:
                raise ModelError(f"Op key of schema {schema!r}; this version reads {SCHEMA!r}: {_short(key)}")
            extra = json.loads(text)
            inputs = tuple(TensorSpec.parse(s) for s in specs.split("+")) if specs else ()
            quant, density = extra.pop("@quant", ""), extra.pop("@density", 1.0)
            if level != "unit":
                return cls._make(level, kind, inputs, quant, density, extra)
            body = [Step(cls.parse(f"{SCHEMA}:primitive:{k}"), tuple(map(int, i))) for k, i in extra.pop("@body")]
            return cls.unit(kind, inputs, body, tuple(map(int, extra.pop("@outputs"))), **extra)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:
            raise ModelError(f"not an Op key: {_short(key)}") from e

    def __str__(self) -> str:
        return self.label

    # -- reading it ---------------------------------------------------------------------------------------------

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes as a dictionary, defaults included (an optional attribute that is not set is absent)."""
        if self.level == "primitive":
            from latbench.primitives import defaults

            return {**defaults(self.kind, self.inputs), **dict(self.attrs)}
        if self.level == "block":
            from latbench.blocks import block_defaults

            return {**block_defaults(self.kind), **dict(self.attrs)}
        return dict(self.attrs)

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Shapes and data types of what it produces."""
        if self.level == "primitive":
            from latbench.primitives import rule

            return rule(self.kind).infer(self.inputs, self.attributes)
        if self.level == "unit":
            values = [spec for step in self.body for spec in step.op.outputs]
            return tuple(values[i] for i in self.outputs_of_body)
        net = self.expand()
        return tuple(net.tensors[o] for o in net.outputs)

    @cached_property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a primitive's weights, in the order that builders use."""
        from latbench.primitives import rule

        if self.level != "primitive":
            raise ModelError(f"param_shapes is for primitives; expand() the {self.level} {self.kind!r} first")
        return rule(self.kind).params(self.inputs, self.attributes)

    @cached_property
    def primitives(self) -> tuple[Op, ...]:
        """The primitives that it is made of (itself, for a primitive)."""
        if self.level == "primitive":
            return (self,)
        if self.level == "unit":
            return tuple(s.op for s in self.body)
        return self.expand().primitives

    def expand(self) -> Network:
        """The Op as a small :class:`~latbench.network.Network` of primitives with the Op's own inputs."""
        from latbench.blocks import expand

        return expand(self)

    # -- its work -----------------------------------------------------------------------------------------------

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates: weights of convolutions and linear layers × output positions."""
        from latbench.primitives import rule

        if self.level == "primitive":
            return rule(self.kind).macs(self.inputs, self.attributes)
        return sum(p.macs for p in self.primitives)

    @cached_property
    def params(self) -> int:
        """Learned parameters: weights, biases and batch-norm scale and shift (its running statistics are not)."""
        if self.level == "primitive":
            from latbench.primitives import rule

            fixed = rule(self.kind).fixed(self.attributes)
            return sum(prod(s) for n, s in self.param_shapes.items() if n not in fixed)
        return sum(p.params for p in self.primitives)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weights, all of them, dense, in the Op's data type."""
        if self.level == "primitive":
            from latbench.primitives import weight_dtype

            bits = re.match(r"w(\d+)", self.quant)
            return sum(
                int(prod(s) * (int(bits[1]) / 8 if bits else DTYPE_BYTES[weight_dtype(self, n)]))
                for n, s in self.param_shapes.items()
            )
        return sum(p.weight_bytes for p in self.primitives)

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes read from its inputs plus bytes written to its outputs."""
        return sum(t.nbytes for t in self.inputs) + sum(t.nbytes for t in self.outputs)

    @cached_property
    def label(self) -> str:
        """A short name for people, e.g. ``mbconv k5 24→144→40 /2 relu6 @56``; a unit goes by its main primitive."""
        if self.level == "unit" and self.body:
            named = (s.op for s in self.body if self.kind.startswith(s.op.kind))
            first = next(named, self.body[0].op)
            return self.kind + first.label.removeprefix(first.kind)
        a = self.attributes
        shape = self.inputs[0].shape if self.inputs else ()
        parts = [f"onnx.{a['op_type']}" if self.kind == "onnx" else self.kind]
        if kernel := a.get("kernel"):
            sides = kernel if isinstance(kernel, tuple) else (kernel,)
            parts.append("k" + ("x".join(map(str, sides)) if len(set(sides)) > 1 else str(sides[0])))
        out = a.get("out") or a.get("out_channels") or a.get("out_features")
        if out and len(shape) > 1:
            channels = shape[-1] if self.kind == "linear" and self.level == "primitive" else shape[1]
            parts.append(f"{channels}→{a['mid']}→{out}" if "mid" in a else f"{channels}→{out}")
        strides = a.get("stride", 1)
        strides = strides if isinstance(strides, tuple) else (strides,)
        if set(strides) - {1}:
            parts.append("/" + "x".join(map(str, strides if len(set(strides)) > 1 else strides[:1])))
        if isinstance(groups := a.get("groups", 1), int) and groups > 1:
            parts.append("dw" if groups == out == shape[1] else f"g{groups}")
        if a.get("se"):
            parts.append("se")
        if a.get("act", "none") != "none":
            parts.append(str(a["act"]))
        if len(shape) == 4:
            parts.append(f"@{shape[2]}" if shape[2] == shape[3] else f"@{shape[2]}x{shape[3]}")
        return " ".join(parts)


class _Attrs:
    """Attributes as given, as a cache key: by their text, in which 1, 1.0 and True differ."""

    __slots__ = ("given", "text")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.text = given, repr(given)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Attrs) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@lru_cache(maxsize=1 << 15)
def _primitive(kind: str, inputs: tuple[TensorSpec, ...], quant: str, density: float, attrs: _Attrs) -> Op:
    # A space builds the same few hundred primitives again and again; their key and work are computed once.
    from latbench.primitives import canonical

    op = Op("primitive", kind, inputs, _frozen(canonical(kind, inputs, attrs.given)), quant, density)
    _ = op.outputs
    return op


def _short(key: str) -> str:
    return repr(key if len(key) <= 200 else f"{key[:200]}…")
