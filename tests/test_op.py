"""Ops: keys that survive a round trip, defaults that do not show, nonsense that is refused, work that is right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from op_samples import MAP, PRIMITIVES, blocks, ops, specs

from latbench.blocks import block_op
from latbench.errors import ModelError
from latbench.op import Op, Step, TensorSpec
from latbench.primitives import RULES


@given(ops)
def test_a_key_parses_back_to_an_equal_op(op: Op) -> None:
    again = Op.parse(op.key)
    assert again == op
    assert again.key == op.key
    assert (again.level, again.kind, again.inputs, again.attrs) == (op.level, op.kind, op.inputs, op.attrs)
    assert (again.quant, again.density, again.body, again.outputs_of_body) == (
        op.quant, op.density, op.body, op.outputs_of_body,
    )  # fmt: skip
    assert (again.outputs, again.macs, again.params, again.weight_bytes) == (
        op.outputs, op.macs, op.params, op.weight_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("op", PRIMITIVES, ids=str)
def test_every_primitive_survives_its_key(op: Op) -> None:
    assert Op.parse(op.key) == op
    assert Op.parse(op.key).outputs == op.outputs


def test_the_samples_hold_every_primitive_kind() -> None:
    assert {op.kind for op in PRIMITIVES} == set(RULES)


@given(specs)
def test_a_tensor_spec_survives_its_text(spec: TensorSpec) -> None:
    assert TensorSpec.parse(str(spec)) == spec


@given(blocks())
def test_a_blocks_work_is_the_sum_of_its_primitives(op: Op) -> None:
    net = op.expand()
    assert (op.macs, op.params) == (net.macs, net.params)
    assert op.outputs == tuple(net.tensors[t] for t in net.outputs)


def test_an_attribute_at_its_default_is_the_same_op() -> None:
    plain = Op.make("conv", [MAP], out_channels=16, kernel=(3, 3))
    spelled = Op.make(
        "conv",
        [MAP],
        out_channels=16,
        kernel=[3, 3],
        stride=(1, 1),
        pads=[0] * 4,
        dilation=(1, 1),
        groups=1,
        bias=False,
    )
    assert spelled == plain
    assert spelled.key == plain.key == 'op1:primitive:conv:f32[2,8,9,11]:{"kernel":[3,3],"out_channels":16}'
    assert plain["stride"] == (1, 1)
    assert block_op("conv", [MAP], out=16, bn=True).key == block_op("conv", [MAP], out=16).key


def test_an_integer_where_a_float_belongs_is_the_same_op() -> None:
    assert Op.make("elu", [MAP], alpha=2).key == Op.make("elu", [MAP], alpha=2.0).key
    assert Op.make("elu", [MAP], alpha=-0.0).key == Op.make("elu", [MAP], alpha=0.0).key


def test_an_axis_counted_from_the_end_is_the_same_op() -> None:
    assert Op.make("softmax", [MAP], axis=3).key == Op.make("softmax", [MAP]).key
    assert Op.make("concat", [MAP, MAP], axis=-3) == Op.make("concat", [MAP, MAP], axis=1)
    assert Op.make("reduce_mean", [MAP], axes=(-1, 2)) == Op.make("reduce_mean", [MAP], axes=(2, 3))


def test_conv_work_matches_the_closed_form() -> None:
    op = Op.make("conv", [TensorSpec((2, 32, 56, 56))], out_channels=64, kernel=(3, 3), stride=(2, 2), pads=(1,) * 4,
                 groups=4, bias=True)  # fmt: skip
    assert op.outputs == (TensorSpec((2, 64, 28, 28)),)
    assert op.macs == 2 * 64 * 28 * 28 * (32 // 4) * 9
    assert op.params == 64 * 8 * 9 + 64
    assert op.weight_bytes == 4 * op.params
    assert Op.parse(op.key.replace("f32", "f16")).weight_bytes == 2 * op.params


def test_running_statistics_and_scalars_are_no_parameters() -> None:
    norm = Op.make("batch_norm", [MAP])
    assert (norm.params, norm.weight_bytes) == (16, 4 * 32)
    assert Op.make("mul", [MAP], scalar=2.0).params == 0
    assert Op.make("mul", [MAP], const=(8, 1, 1)).params == 8


def test_quantised_weights_take_fewer_bytes() -> None:
    op = Op.make("linear", [TensorSpec((1, 10))], out_features=10, quant="w4a16")
    assert op.weight_bytes == 50


@pytest.mark.parametrize(
    ("kind", "attrs", "says"),
    [
        ("conv", {"kernel": (3, 3)}, "out_channels"),
        ("conv", {"out_channels": 8}, "kernel"),
        ("conv", {"out_channels": 8, "kernel": (3,)}, "2 entries"),
        ("conv", {"out_channels": 8, "kernel": (3, 3), "strides": (1, 1)}, "strides"),
        ("conv", {"out_channels": 8.5, "kernel": (3, 3)}, "out_channels"),
        ("conv", {"out_channels": True, "kernel": (3, 3)}, "out_channels"),
        ("conv", {"out_channels": 9, "kernel": (3, 3), "groups": 2}, "groups"),
        ("conv", {"out_channels": 8, "kernel": (30, 30)}, "larger than"),
        ("conv", {"out_channels": 8, "kernel": (3, 3), "stride": (0, 1)}, "stride"),
        ("elu", {"alpha": float("nan")}, "alpha"),
        ("gelu", {"approximate": "erf"}, "approximate"),
        ("softmax", {"axis": 4}, "axis 4"),
        ("reshape", {"shape": (1, 2)}, "elements"),
        ("transpose", {"perm": (0, 1, 1, 2)}, "order"),
        ("gather", {"indices": (8,)}, "outside"),
        ("slice", {"starts": (0, 0, 0, 5), "stops": (2, 8, 9, 4)}, "not inside"),
        ("add", {}, "two inputs"),
        ("add", {"scalar": 1.0, "const": (8, 1, 1)}, "two inputs"),
        ("reduce_mean", {"axes": (1, -3)}, "twice"),
        ("max_pool", {"kernel": (2, 2), "pads": (2, 2, 2, 2)}, "whole window"),
        ("convolution", {}, "unknown primitive"),
    ],
)
def test_a_primitive_that_makes_no_sense_is_refused(kind: str, attrs: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Op.make(kind, [MAP], **attrs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "conv",
        "op1:primitive:conv",
        "op0:primitive:relu:f32[1]:{}",
        "op1:network:relu:f32[1]:{}",
        "op1:primitive:relu:f32[1]:[]",
        "op1:primitive:relu:f32[1]:{",
        "op1:primitive:relu:f32[1]:{}}",
        "op1:primitive:relu:f32[x]:{}",
        "op1:primitive:relu:f33[1]:{}",
        'op1:primitive:relu:f32[1]:{"@density":0}',
        'op1:primitive:relu:f32[1]:{"@density":"1"}',
        'op1:primitive:relu:f32[1]:{"@quant":8}',
        'op1:primitive:relu:f32[1]:{"alpha":1}',
        'op1:primitive:elu:f32[1]:{"alpha":NaN}',
        'op1:primitive:conv:f32[1,3,8,8]:{"out_channels":4,"kernel":[3,3],"level":"unit"}',
        "op1:unit:u:f32[1]:{}",
        'op1:unit:u:f32[1]:{"@body":[["relu:f32[1]:{}",[0]]],"@outputs":[0]}',
        'op1:unit:u:f32[1]:{"@body":[["relu:f32[2]:{}",[-1]]],"@outputs":[0]}',
        'op1:unit:u:f32[1]:{"@body":[["relu:f32[1]:{}",[-1]]],"@outputs":[1]}',
        'op1:block:mb conv:f32[1]:{"out":1}',
        'op1:block:mbconv:f32[1]:{"Out":null}',
    ],
)
def test_text_that_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ModelError):
        Op.parse(key)


@given(st.text())
def test_any_other_text_is_refused_with_a_model_error(text: str) -> None:
    with pytest.raises(ModelError):
        Op.parse(f"op1:{text}")


def test_a_unit_may_read_the_second_output_of_a_step() -> None:
    import base64

    from onnx import helper

    node = helper.make_node("TopK", ["i0", "c0"], ["o0", "o1"])
    x = TensorSpec((1, 8))
    top = Op.make(
        "onnx", [x], node=base64.b64encode(node.SerializeToString()).decode(), op_type="TopK", opset=17,
        outputs=["f32[1,2]", "i64[1,2]"], consts=[("c0", "i64", (1,), (2,))],
    )  # fmt: skip
    unit = Op.unit("topk", [x], [Step(top, (-1,)), Step(Op.make("neg", [top.outputs[1]]), (1,))], outputs=(0, 2))
    assert Op.parse(unit.key) == unit
    assert [str(t) for t in unit.outputs] == ["f32[1,2]", "i64[1,2]"]
    assert len(unit.expand().outputs) == 2


def test_a_unit_whose_steps_do_not_fit_is_refused() -> None:
    relu, other = Op.make("relu", [MAP]), Op.make("relu", [TensorSpec((1, 2))])
    with pytest.raises(ModelError, match="is given"):
        Op.unit("u", [MAP], [Step(other, (-1,))])
    with pytest.raises(ModelError, match="not there yet"):
        Op.unit("u", [MAP], [Step(relu, (1,)), Step(relu, (0,))])
    with pytest.raises(ModelError, match="outputs"):
        Op.unit("u", [MAP], [Step(relu, (-1,))], outputs=(3,))


def test_blocks_refuse_wrong_attributes() -> None:
    with pytest.raises(ModelError, match="no width"):
        block_op("mbconv", [MAP], out=8, kernel=3, mid=8, width=3)
    with pytest.raises(ModelError, match="needs mid"):
        block_op("mbconv", [MAP], out=8, kernel=3)
    with pytest.raises(ModelError, match="kernel must be an integer"):
        block_op("mbconv", [MAP], out=8, kernel="3", mid=8)
    with pytest.raises(ModelError, match="unknown block"):
        block_op("mbconv9", [MAP], out=8)


def test_a_block_of_a_plugin_that_is_not_installed_parses_and_says_so_when_expanded() -> None:
    op = Op.parse('op1:block:someones_block:f32[1,8,4,4]:{"out":8}')
    assert op.attributes == {"out": 8}
    with pytest.raises(ModelError, match="someones_block"):
        op.expand()


def test_a_label_says_what_it_is() -> None:
    op = block_op("mbconv", [TensorSpec((1, 24, 56, 56))], out=40, kernel=5, mid=144, stride=2, se=6)
    assert str(op) == "mbconv k5 24→144→40 /2 se relu6 @56"
