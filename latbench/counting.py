"""Parameters and multiply-accumulates as different papers count them.

``m1``
    Weights of convolutions and linear layers × output positions; parameters with biases and batch-norm scale and shift.
    What MobileNetV2, ProxylessNAS, FairNAS and MoGA publish.
``condensenet``
    CondenseNet (Huang et al. 2018) and DPP-Net: convolutions' multiply-accumulates, one operation an element of every
    ReLU's input, one an element of every pooling window, and the classifier with its biases.
``rcnet``
    RCNet (Xiong et al. 2019): convolutions only.

Parameters are the same in all three.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from latbench.errors import ModelError
from latbench.op import Op

if TYPE_CHECKING:
    from latbench.network import Network


class Counts(NamedTuple):
    """Learned parameters, and multiply-accumulates of one pass at the network's batch size."""

    params: int
    macs: int


def count(net: Network, convention: str) -> Counts:
    """Counts by a convention's name. Raises :class:`ModelError` for an unknown one."""
    if convention not in CONVENTIONS:
        raise ModelError(f"unknown counting convention {convention!r}; known: {', '.join(CONVENTIONS)}")
    macs = CONVENTIONS[convention]
    return Counts(net.params, sum(macs(op) for op in net.primitives))


def _m1(op: Op) -> int:
    return op.macs


def _condensenet(op: Op) -> int:
    if op.kind in ("conv", "conv_transpose"):
        return op.macs
    if op.kind in ("relu", "relu6"):
        return op.inputs[0].numel
    if op.kind in ("avg_pool", "max_pool"):
        return int(op.outputs[0].numel * prod(op["kernel"]))
    if op.kind in ("global_avg_pool", "global_max_pool"):
        return op.inputs[0].numel
    if op.kind == "linear":
        x = op.inputs[0]
        return int(op.macs + (x.numel // x.shape[-1]) * op["out_features"] * op["bias"])
    return 0


def _rcnet(op: Op) -> int:
    return op.macs if op.kind in ("conv", "conv_transpose") else 0


#: Name of a convention → multiply-accumulates of one primitive.
CONVENTIONS: dict[str, Callable[[Op], int]] = {"m1": _m1, "condensenet": _condensenet, "rcnet": _rcnet}
