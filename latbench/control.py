"""Control ops: three fixed Ops that every run measures again and again, to see the machine drift.

One is bound by compute (a convolution that stays in the second-level cache), one by memory (a stream larger than the
last-level cache), one by the cost of starting anything at all. Contention slows them by different factors, which is why
there are three.
"""

from __future__ import annotations

from latbench.op import Op, TensorSpec

#: Role by which a control op is known, in the order in which :func:`control_ops` gives them.
CONTROL_KINDS = ("compute", "memory", "launch")


def control_ops(last_level_kib: int | None = None) -> dict[str, Op]:
    """Kind → Op.

    The memory-bound one reads and writes once the size of the last-level cache each (a power of two, 4–32 MiB), so
    that its stream is twice as large as the cache.
    """
    size = 1 << min(25, max(22, ((last_level_kib or 32768) * 1024 - 1).bit_length()))
    conv = Op.make(
        "conv", [TensorSpec((1, 64, 14, 14))], out_channels=64, kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1),
        dilation=(1, 1), groups=1, bias=False,
    )  # fmt: skip
    stream = Op.make("relu", [TensorSpec((1, size // 4))])
    return {"compute": conv, "memory": stream, "launch": Op.make("relu", [TensorSpec((1, 16))])}


def control_subject(kind: str) -> str:
    """The subject of a control Visit, e.g. ``control:memory``."""
    return f"control:{kind}"
