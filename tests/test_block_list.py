"""Block lists: every key of the form means what it says, and a wrong one is named with its layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latbench.errors import ModelError
from latbench.network import Network


def build(*layers: dict[str, Any], input: tuple[int, int, int] = (8, 16, 16), **more: Any) -> Network:
    return Network.from_blocks({"name": "n", "input": list(input), "layers": list(layers)}, **more)


def kinds(net: Network) -> list[str]:
    return [op.kind for op in net.primitives]


def shape(net: Network) -> tuple[int, ...]:
    return net.tensors[net.outputs[0]].shape


@pytest.mark.data
def test_published_networks_are_exact(data_dir: Path) -> None:
    lists = json.loads((data_dir / "architectures.json").read_text())["block_lists"]
    assert len(lists) == 5
    for spec in lists:
        net = Network.from_blocks(spec)
        assert (net.params, net.macs) == (spec["params"], spec["macs"]), spec["name"]
        assert len(net.blocks) == len(spec["layers"])


def test_conv_defaults() -> None:
    net = build({"op": "conv", "out": 4, "kernel": 3})
    assert kinds(net) == ["conv", "batch_norm"]
    assert net.params == 4 * 8 * 9 + 2 * 4
    assert shape(net) == (1, 4, 16, 16)


def test_conv_without_norm_with_bias_and_groups() -> None:
    net = build(
        {"op": "conv", "out": 4, "kernel": 1, "bn": False, "bias": True, "groups": 2, "act": "relu", "stride": 2}
    )
    assert kinds(net) == ["conv", "relu"]
    assert net.params == 4 * 4 + 4
    assert shape(net) == (1, 4, 8, 8)


@pytest.mark.parametrize(("kernel", "size"), [(1, 16), (2, 17), (3, 16), (4, 17), (5, 16)])
def test_padding_is_half_the_kernel_rounded_down(kernel: int, size: int) -> None:
    assert shape(build({"op": "conv", "out": 4, "kernel": kernel})) == (1, 4, size, size)


def test_sepconv() -> None:
    net = build({"op": "sepconv", "out": 8, "kernel": 3, "act": "relu", "se": 2, "residual": True})
    assert kinds(net) == [
        "conv", "batch_norm", "relu", "global_avg_pool", "conv", "relu", "conv", "hardsigmoid", "mul", "conv",
        "batch_norm", "add",
    ]  # fmt: skip
    assert net.params == 8 * 9 + 16 + (8 * 2 + 2 + 2 * 8 + 8) + 64 + 16


def test_mbconv_leaves_out_an_expansion_to_the_same_width() -> None:
    layer = {"op": "mbconv", "out": 16, "kernel": 3, "mid": 8}
    assert kinds(build(layer)).count("conv") == 2
    assert kinds(build({**layer, "expand": True})).count("conv") == 3
    assert kinds(build({**layer, "mid": 16})).count("conv") == 3


def test_mbconv_with_everything() -> None:
    layer = {
        "op": "mbconv", "out": 16, "kernel": 5, "mid": 32, "stride": 2, "se": 4, "groups": [2, 4], "act": "relu6",
        "residual": True, "shortcut_conv": True,
    }  # fmt: skip
    net = build(layer)
    assert kinds(net) == [
        "conv", "batch_norm", "relu6", "channel_shuffle", "conv", "batch_norm", "relu6", "global_avg_pool", "conv",
        "relu", "conv", "hardsigmoid", "mul", "conv", "batch_norm", "channel_shuffle", "conv", "batch_norm", "add",
    ]  # fmt: skip
    expand, depthwise, project, shortcut = 32 * 8 // 2, 32 * 25, 16 * 32 // 4, 16 * 8
    squeeze = 32 * 4 + 4 + 4 * 32 + 32
    assert net.params == expand + depthwise + squeeze + project + shortcut + 2 * (32 + 32 + 16 + 16)
    assert net.macs == expand * 256 + (depthwise + project + shortcut) * 64 + 2 * 32 * 4
    assert shape(net) == (1, 16, 8, 8)


def test_a_shortcut_convolution_needs_no_residual_flag() -> None:
    layer = {"op": "mbconv", "out": 8, "kernel": 3, "mid": 8, "shortcut_conv": True}
    assert kinds(build({**layer, "residual": False})) == kinds(build({**layer, "residual": True}))
    assert kinds(build(layer))[-1] == "add"


def test_null_and_false_mean_the_default() -> None:
    plain = build({"op": "mbconv", "out": 8, "kernel": 3, "mid": 16, "act": "none"})
    spelled = build({"op": "mbconv", "out": 8, "kernel": 3, "mid": 16, "act": None, "se": False, "groups": None})
    assert spelled.key == plain.key


def test_linear_flattens_a_map_and_has_a_bias() -> None:
    net = build({"op": "linear", "out": 10})
    assert kinds(net) == ["flatten", "linear"]
    assert net.params == 8 * 256 * 10 + 10
    net = build({"op": "global_avg_pool"}, {"op": "linear", "out": 10, "bias": False}, {"op": "linear", "out": 2})
    assert net.params == 80 + 22


def test_batch_and_data_type() -> None:
    net = build({"op": "conv", "out": 4}, batch=3, dtype="f16")
    assert str(net.tensors["input"]) == "f16[3,8,16,16]"
    assert net.macs == 3 * build({"op": "conv", "out": 4}).macs


def test_every_layer_is_one_block() -> None:
    net = build({"op": "conv", "out": 8}, {"op": "mbconv", "out": 8, "kernel": 3, "mid": 16}, {"op": "global_avg_pool"})
    assert [b.name for b in net.blocks] == ["layers.0", "layers.1", "layers.2"]
    assert [n for b in net.blocks for n in b.nodes] == [n.name for n in net.nodes]
    assert sum(b.op.macs for b in net.blocks) == net.macs


def test_the_network_can_be_made_again_from_its_origin() -> None:
    net = build({"op": "conv", "out": 8}, {"op": "linear", "out": 3})
    assert Network.from_blocks(json.loads(json.dumps(net.origin["blocks"]))).key == net.key


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"out": 8}, "'op'"),
        ("conv", "'op'"),
        ({"op": "convolution", "out": 8}, "'convolution' is unknown"),
        ({"op": "conv"}, "'out' is missing"),
        ({"op": "conv", "out": 0}, "out must be an integer ≥ 1"),
        ({"op": "conv", "out": "8"}, "out must be an integer"),
        ({"op": "conv", "out": True}, "out must be an integer"),
        ({"op": "conv", "out": 8, "kernal": 3}, "'kernal'"),
        ({"op": "conv", "out": 8, "act": "relu7"}, "'relu7'"),
        ({"op": "conv", "out": 8, "bn": 1}, "bn must be true or false"),
        ({"op": "conv", "out": 8, "stride": 0}, "stride"),
        ({"op": "conv", "out": 8, "groups": [2, 2]}, "one integer"),
        ({"op": "conv", "out": 8, "groups": 3}, "groups"),
        ({"op": "conv", "out": 8, "kernel": [3, 3]}, "kernel"),
        ({"op": "mbconv", "out": 8, "kernel": 3}, "'mid' is missing"),
        ({"op": "mbconv", "out": 8, "kernel": 3, "mid": 16, "groups": 2}, r"\[expand, project\]"),
        ({"op": "mbconv", "out": 8, "kernel": 3, "mid": 16, "groups": [1]}, "groups"),
        ({"op": "mbconv", "out": 8, "kernel": 3, "mid": 16, "groups": [3, 1]}, "groups"),
        ({"op": "mbconv", "out": 9, "kernel": 3, "mid": 16, "residual": True}, "shortcut_conv"),
        ({"op": "mbconv", "out": 8, "kernel": 3, "mid": 16, "stride": 2, "residual": True}, "stride 2"),
        ({"op": "mbconv", "out": 8, "kernel": 3, "mid": 16, "se": -1}, "se must be"),
        ({"op": "global_avg_pool", "out": 3}, "it has none"),
        ({"op": "linear"}, "'out' is missing"),
    ],
)
def test_a_wrong_layer_is_named_with_its_index_and_key(layer: Any, says: str) -> None:
    with pytest.raises(ModelError, match=rf"layers\[1\].*{says}"):
        build({"op": "conv", "out": 8}, layer)


def test_a_map_layer_behind_a_linear_one_is_refused() -> None:
    with pytest.raises(ModelError, match=r"layers\[1\].*behind a linear"):
        build({"op": "linear", "out": 8}, {"op": "conv", "out": 8})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ([], "mapping"),
        ({"input": [3, 8, 8], "layers": [{"op": "global_avg_pool"}]}, "'name'"),
        ({"name": "n", "layers": [{"op": "global_avg_pool"}]}, "'input'"),
        ({"name": "n", "input": [3, 8, 8]}, "'layers'"),
        ({"name": "n", "input": [3, 8], "layers": [{"op": "global_avg_pool"}]}, "input must be"),
        ({"name": "n", "input": [3, 8, -8], "layers": [{"op": "global_avg_pool"}]}, "input must be"),
        ({"name": "n", "input": [3, 8, 8], "layers": []}, "at least one layer"),
    ],
)
def test_a_list_that_is_none_is_refused(spec: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Network.from_blocks(spec)


@given(
    st.sampled_from([8, 16, 24]), st.sampled_from([8, 16, 48]), st.sampled_from([1, 3, 5, 7]), st.integers(1, 2),
    st.sampled_from([0, 2, 5]), st.sampled_from([(1, 1), (2, 4), (4, 1), (8, 8)]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_mbconv_counts_match_the_closed_form(
    out: int, mid: int, k: int, stride: int, se: int, groups: tuple[int, int], shortcut: bool, expand: bool
) -> None:
    net = build({
        "op": "mbconv", "out": out, "mid": mid, "kernel": k, "stride": stride, "se": se, "groups": list(groups),
        "shortcut_conv": shortcut, "expand": expand,
    })  # fmt: skip
    size = (16 - 1) // stride + 1
    first = expand or mid != 8
    weights = first * mid * 8 // groups[0] * 256
    weights += (mid * k * k + out * mid // groups[1] + shortcut * out * 8) * size * size + 2 * mid * se
    assert net.macs == weights
    learned = first * (mid * 8 // groups[0] + 2 * mid) + mid * k * k + 2 * mid + out * mid // groups[1] + 2 * out
    learned += (2 * mid * se + se + mid if se else 0) + shortcut * (out * 8 + 2 * out)
    assert net.params == learned
