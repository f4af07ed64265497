"""Which operator set and IR version each onnxruntime can read.

Found by loading models of every operator set and IR version with the released wheels of each version, on the CPU. The
documentation's table (docs/reference/compatibility on onnxruntime.ai) agrees on the operator sets; for some versions it
names a lower IR version than is really read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: (major, minor) of onnxruntime → newest operator set, newest IR version.
NEWEST = {
    (1, 3): (12, 7), (1, 4): (12, 7), (1, 5): (12, 7), (1, 6): (13, 7), (1, 7): (13, 7), (1, 8): (14, 7),
    (1, 9): (15, 8), (1, 10): (15, 8), (1, 11): (16, 8), (1, 12): (17, 8), (1, 13): (17, 8), (1, 14): (18, 8),
    (1, 15): (19, 9), (1, 16): (19, 9), (1, 17): (20, 9), (1, 18): (21, 10), (1, 19): (21, 10), (1, 20): (21, 10),
    (1, 21): (22, 10), (1, 22): (22, 10), (1, 23): (23, 11), (1, 24): (25, 13),
}  # fmt: skip


def newest(version: str) -> tuple[int, int]:
    """Newest operator set and IR version that an onnxruntime such as ``1.10.0`` reads.

    Of versions that are not in the table what the last one before them reads: newer ones read all that older ones do.
    """
    numbers = [int(n) for n in re.findall(r"\d+", version)[:2]]
    known = [v for v in NEWEST if v <= (*numbers, 0, 0)[:2]]
    return NEWEST[max(known, default=min(NEWEST))]


def default(version: str) -> tuple[int, int]:
    """Operator set and IR version that networks are written for: 17 and 8, where that much is read."""
    opset, ir_version = newest(version)
    return min(17, opset), min(8, ir_version)


def limits(opset: int | None, ir_version: int | None, version: str) -> list[str]:
    """What a profile names although it is the default: in a Setting's ``limits``, as its ``opset`` and ``ir_version``
    do not tell that it was named."""
    named = {"opset": opset, "ir_version": ir_version}
    return [key for key, usual in zip(named, default(version), strict=True) if named[key] == usual]


def kept(options: Mapping[str, Any], version: str) -> tuple[int, int]:
    """Up to which operator set and IR version a user's file stays as it is, by a Setting's options: all that its
    onnxruntime reads, unless the profile named one; another than the default was named, too."""
    named = options.get("limits", ())
    opset, ir_version = (
        options[key] if key in named or options[key] != usual else most
        for key, usual, most in zip(("opset", "ir_version"), default(version), newest(version), strict=True)
    )
    return opset, ir_version
