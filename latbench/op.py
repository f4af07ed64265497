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
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from latbench.errors import ModelError

if TYPE_CHECKING:
    from latbench.network import Network

Level: TypeAlias = Literal["primitive", "unit", "block"]
Attr: TypeAlias = "bool | int | float | str | tuple[Any, ...]"

SCHEMA = "op1"
#: Bytes of one element, by data type.
DTYPE_BYTES: Mapping[str, float] = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "i4": 0.5, "bool": 1,
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

    ``inputs`` refer to the unit's own inputs as ``-1, -2, …`` and to the outputs of earlier steps as ``0, 1, …``.
    """

    op: Op
    inputs: tuple[int, ...]


def _freeze(value: Any) -> Attr:
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, (bool, int, float, str)):
        return value
    raise ModelError(f"an Op attribute must be a number, a string or a tuple of them, not {value!r}")


@dataclass(frozen=True)
class Op:
    """A frozen operator; see the module's text for its three levels.

    ``attrs`` are sorted name-value pairs; use :meth:`make` to build one from keywords. ``quant`` names a quantisation
    form (``""`` for none, else e.g. ``"w8a8"``), ``density`` the share of non-zero weights. ``outputs`` of ``body`` is
    the tuple of step indices that leave a unit.
    """

    level: Level
    kind: str
    inputs: tuple[TensorSpec, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()
    quant: str = ""
    density: float = 1.0
    body: tuple[Step, ...] = field(default=(), repr=False)
    outputs_of_body: tuple[int, ...] = field(default=(), repr=False)

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
        """An Op from keywords; lists become tuples. Primitives are checked by inferring their output shape."""
        op = cls(level, kind, tuple(inputs), tuple(sorted((k, _freeze(v)) for k, v in attrs.items())), quant, density)
        if level == "primitive":
            _ = op.outputs
        return op

    @classmethod
    def unit(
        cls, kind: str, inputs: Iterable[TensorSpec], body: Iterable[Step], outputs: Iterable[int] = (-1,), **attrs: Any
    ) -> Op:
        """A unit of fused primitives. ``outputs`` index ``body``; -1 is its last step."""
        steps = tuple(body)
        out = tuple(o if o >= 0 else len(steps) + o for o in outputs)
        frozen = tuple(sorted((k, _freeze(v)) for k, v in attrs.items()))
        return cls("unit", kind, tuple(inputs), frozen, body=steps, outputs_of_body=out)

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
        """The Op that a key stands for. Raises :class:`ModelError` for text that is no key."""
        try:
            schema, level, kind, specs, text = key.split(":", 4)
            extra = json.loads(text)
        except ValueError as e:
            raise ModelError(f"not an Op key: {key!r}") from e
        if schema != SCHEMA:
            raise ModelError(f"Op key of schema {schema!r}; this version reads {SCHEMA!r}: {key!r}")
        if level not in ("primitive", "unit", "block") or not isinstance(extra, dict):
            raise ModelError(f"not an Op key: {key!r}")
        body = tuple(Step(cls.parse(f"{SCHEMA}:primitive:{k}"), tuple(i)) for k, i in extra.pop("@body", ()))
        outputs = tuple(extra.pop("@outputs", ()))
        quant, density = extra.pop("@quant", ""), extra.pop("@density", 1.0)
        inputs = tuple(TensorSpec.parse(s) for s in specs.split("+")) if specs else ()
        attrs = tuple(sorted((k, _freeze(v)) for k, v in extra.items()))
        return cls(level, kind, inputs, attrs, quant, density, body, outputs)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.label

    # -- reading it ---------------------------------------------------------------------------------------------

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes as a dictionary."""
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
            return tuple(self.body[i].op.outputs[0] for i in self.outputs_of_body)
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
            learned = (s for n, s in self.param_shapes.items() if n not in ("mean", "var"))
            return sum(prod(s) for s in learned)
        return sum(p.params for p in self.primitives)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weights, all of them, dense, in the Op's data type."""
        if self.level == "primitive":
            width = DTYPE_BYTES["i8"] if self.quant.startswith("w8") else DTYPE_BYTES[self.inputs[0].dtype]
            return int(sum(prod(s) for s in self.param_shapes.values()) * width)
        return sum(p.weight_bytes for p in self.primitives)

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes read from its inputs plus bytes written to its outputs."""
        return sum(t.nbytes for t in self.inputs) + sum(t.nbytes for t in self.outputs)

    @cached_property
    def label(self) -> str:
        """A short name for people, e.g. ``mbconv k5 e6 24→40 /2 @56``."""
        a = self.attributes
        shape = self.inputs[0].shape if self.inputs else ()
        parts = [self.kind]
        if "kernel" in a:
            k = a["kernel"]
            parts.append(
                "k"
                + (
                    "x".join(map(str, k))
                    if isinstance(k, tuple) and len(set(k)) > 1
                    else str(k if isinstance(k, int) else k[0])
                )
            )
        out = a.get("out") or a.get("out_channels") or a.get("out_features")
        if out and len(shape) > 1:
            mid = f"→{a['mid']}" if "mid" in a else ""
            parts.append(f"{shape[1]}{mid}→{out}")
        s = a.get("stride", 1)
        s = s[0] if isinstance(s, tuple) and s else s
        if s not in (1, ()):
            parts.append(f"/{s}")
        if a.get("se"):
            parts.append("se")
        if a.get("act") and a["act"] != "none":
            parts.append(str(a["act"]))
        if len(shape) == 4:
            parts.append(f"@{shape[2]}")
        return " ".join(parts)
