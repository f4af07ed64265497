"""The schema of a primitive's attributes: type, default, bounds; and their canonical form.

An Op's key holds only the attributes that differ from their default, in their declared types, so that one operator has
one key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from numbers import Integral, Real
from typing import Any, NamedTuple

from latbench.errors import ModelError


class _Mark(NamedTuple):
    word: str


#: In place of a default: the attribute must be given; may be left unset.
REQUIRED, OPTIONAL = _Mark("required"), _Mark("optional")


class Attribute(NamedTuple):
    """Type and default of an attribute.

    ``type`` is int, float, bool, str, ints (a tuple), axis, axes (in an Op's key counted from the front) or any. A
    callable default is given the number of spatial dimensions. ``low`` bounds ints (each entry); ``choices`` lists the
    allowed strings; ``length`` gives, from the number of spatial dimensions, how many entries a tuple has.
    """

    type: str
    default: Any = REQUIRED
    low: int | None = None
    choices: tuple[str, ...] = ()
    length: Callable[[int], int] | None = None


Schema = Mapping[str, Attribute]


def defaults(schema: Schema, n: int) -> dict[str, Any]:
    """Defaults for ``n`` spatial dimensions; the required and the optional attributes are absent."""
    given = {k: a.default for k, a in schema.items() if not isinstance(a.default, _Mark)}
    return {k: d(n) if callable(d) else d for k, d in given.items()}


def canonical(
    kind: str, schema: Schema, base: Mapping[str, Any], attrs: Mapping[str, Any], n: int, rank: int
) -> dict[str, Any]:
    """The attributes checked, in their declared types, without those that equal their default in ``base``.

    ``n`` is the number of spatial dimensions, ``rank`` that of all dimensions of the first input. Raises
    :class:`ModelError` that names the attribute: unknown, missing, of a wrong type or out of range.
    """
    if unknown := [k for k in attrs if k not in schema]:
        has = f"has {', '.join(schema)}" if schema else "has no attributes"
        raise ModelError(f"{kind} has no attribute {', '.join(map(repr, unknown))}; it {has}")
    out = {}
    for name, a in schema.items():
        if name not in attrs:
            if a.default is REQUIRED:
                raise ModelError(f"{kind} needs the attribute {name!r}")
            continue
        value = _from_front(a, _typed(kind, name, a, attrs[name], n), rank)
        if name not in base or value != _from_front(a, base[name], rank):
            out[name] = value
    return out


def _from_front(a: Attribute, value: Any, rank: int) -> Any:
    if a.type == "axis":
        return value + rank if -rank <= value < 0 else value
    if a.type == "axes":
        return tuple(sorted(v + rank if -rank <= v < 0 else v for v in value))
    return value


def _typed(kind: str, name: str, a: Attribute, value: Any, n: int) -> Any:
    wrong = ModelError(f"{kind}: {name} must be {_article(a)}, not {value!r}")
    if a.type == "any":
        return value
    if a.type == "bool":
        if not isinstance(value, bool):
            raise wrong
        return value
    if a.type == "str":
        if not isinstance(value, str) or (a.choices and value not in a.choices):
            raise wrong
        return value
    if a.type == "float":
        if isinstance(value, bool) or not isinstance(value, (float, int, Real)) or not isfinite(value):
            raise wrong
        return float(value)
    single = a.type in ("int", "axis")
    entries = (value,) if single else value
    if not isinstance(entries, (tuple, list)):
        raise wrong
    for v in entries:
        if isinstance(v, bool) or not isinstance(v, (int, Integral)) or (a.low is not None and v < a.low):
            raise wrong
    if a.length is not None and len(entries) != a.length(n):
        raise ModelError(f"{kind}: {name} needs {a.length(n)} entries for {n} spatial dimensions, not {value!r}")
    return int(value) if single else tuple(map(int, entries))


def _article(a: Attribute) -> str:
    words = {"int": "an integer", "float": "a finite number", "bool": "true or false", "ints": "a tuple of integers"}
    words |= {"axis": "an axis", "axes": "a tuple of axes"}
    text = words.get(a.type) or ("one of " + ", ".join(a.choices) if a.choices else "a string")
    return f"{text} ≥ {a.low}" if a.low is not None else text
