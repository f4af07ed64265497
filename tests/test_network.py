"""Networks: names, blocks, keys and JSON."""

from __future__ import annotations

import json

import pytest

from latbench.blocks import block_op
from latbench.errors import ModelError
from latbench.network import Network, NetworkBuilder
from latbench.op import Op, TensorSpec


def small(name: str = "n", prefix: str = "") -> Network:
    b = NetworkBuilder(name)
    x = b.input((1, 8, 8, 8), name=f"{prefix}input")
    x = b.block("conv", x, scope=f"{prefix}stem", out=8, kernel=3, act="relu")
    y = b.block("mbconv", x, scope=f"{prefix}positions.0", choice=2, out=8, kernel=3, mid=16, residual=True)
    return b.build(b.op("concat", x, y, axis=1, name=f"{prefix}concat"), origin={"made": "here"})


def test_a_network_survives_json() -> None:
    net = small()
    again = Network.from_json(net.to_json())
    assert again == net
    assert again.key == net.key
    assert again.origin == net.origin
    assert (again.params, again.macs) == (net.params, net.macs)


def test_the_key_is_of_the_structure_and_not_of_the_names() -> None:
    assert small("a").key == small("b", "other.").key
    b = NetworkBuilder("n")
    x = b.input((1, 8, 8, 8))
    assert b.build(b.op("relu", x)).key != b.build(x).key


def test_the_key_tells_which_tensor_goes_where() -> None:
    def net(first: bool) -> Network:
        b = NetworkBuilder("n")
        x, y = b.input((1, 4), "x"), b.input((1, 4), "y")
        return b.build(b.op("sub", *((x, y) if first else (y, x))))

    assert net(True).key != net(False).key


def test_blocks_know_their_nodes_and_tensors() -> None:
    net = small()
    stem, position = net.blocks
    assert (position.name, position.choice, position.inputs) == ("positions.0", 2, stem.outputs)
    assert all(n.startswith("positions.0.") for n in position.nodes)
    assert net.producers[position.outputs[0]].name == "positions.0.residual"
    assert net.ops()[stem.op.key] == 1


def test_names_are_unique_and_tensors_are_named_after_their_nodes() -> None:
    b = NetworkBuilder("n")
    x = b.input((1, 4), "relu")
    x = b.op("relu", b.op("relu", x))
    net = b.build(x)
    assert len({n.name for n in net.nodes}) == 2
    assert set(net.tensors) == {"relu", *(t for n in net.nodes for t in n.outputs)}
    assert len(net.tensors) == 3


def test_an_output_that_is_no_tensor_is_refused() -> None:
    b = NetworkBuilder("n")
    b.input((1, 4))
    with pytest.raises(ModelError, match="'y'"):
        b.build("y")
    with pytest.raises(ModelError, match="'nowhere'"):
        b.op("relu", "nowhere")
    with pytest.raises(ModelError, match="input"):
        b.input((1, 4))


def _broken(**changes: object) -> str:
    d = json.loads(small().to_json())
    d.update(changes)
    return json.dumps(d)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '"network"',
        small().to_json()[:-20],
        _broken(nodes=[["a", "relu", ["input"], ["y"]]]),
        _broken(nodes=[["a", Op.make("relu", [TensorSpec((1, 8, 8, 8))]).key, ["later"], ["y"]]]),
        _broken(nodes=[["a", Op.make("relu", [TensorSpec((1, 2))]).key, ["input"], ["y"]]]),
        _broken(outputs=["nothing"]),
        _broken(tensors={"input": "f32[1,8,8]"}),
    ],
)
def test_json_that_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        Network.from_json(text)


@pytest.mark.parametrize(("quant", "density"), [("w8a8", 1.0), ("", 0.25)])
def test_quantised_and_sparse_blocks_are_made_of_such_primitives(quant, density):
    op = block_op("mbconv", [TensorSpec((1, 16, 8, 8))], quant, density, out=16, kernel=3, mid=32, act="relu")
    assert Op.parse(op.key) == op
    weighted = [p for p in op.primitives if "weight" in p.param_shapes]
    assert {(p.quant, p.density) for p in weighted} == {(quant, density)}
    assert {p.density for p in op.primitives if "weight" not in p.param_shapes} == {1.0}
    b = NetworkBuilder("net", quant=quant, density=density)
    x = b.block("mbconv", b.input((1, 16, 8, 8)), scope="a", out=16, kernel=3, mid=32, act="relu")
    net = b.build(x)
    assert net.blocks[0].op == op
    assert net.primitives == op.primitives


def test_a_quantised_block_weighs_less_than_the_float_one():
    spec = [TensorSpec((1, 16, 8, 8))]
    plain, small = block_op("conv", spec, out=32, kernel=3), block_op("conv", spec, "w8a8", out=32, kernel=3)
    assert small.weight_bytes < 0.3 * plain.weight_bytes


def test_one_block_has_one_key_however_it_was_written():
    spec = [TensorSpec((1, 16, 8, 8))]
    written = Op.make("conv", spec, level="block", out=32, kernel=3, bn=True, stride=1)
    assert written.key == block_op("conv", spec, out=32, kernel=3).key
    assert Op.parse(written.key.replace('{"kernel"', '{"bn":true,"kernel"')) == written
