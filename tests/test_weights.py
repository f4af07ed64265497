"""Generated weights: the same for a seed, of one scale through deep networks, free of denormals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from op_samples import MAP, PRIMITIVES

from latbench.network import Network, NetworkBuilder, Node
from latbench.op import Op, TensorSpec
from latbench.weights import network_weights, node_weights, random_input


def _activations(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    model = net.to_onnx(seed=seed)
    made = [t for n in net.nodes for t in n.outputs]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in made)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    feeds = {t: random_input(net.tensors[t], seed) for t in net.inputs}
    return dict(zip(made, session.run(made, feeds), strict=True))


def _mobilenet(act: str, se: int) -> Callable[[NetworkBuilder, str], str]:
    def body(b: NetworkBuilder, x: str) -> str:
        for i in range(30):
            kernel, residual = 3 + 2 * (i % 3), i % 5 != 0
            x = b.block("mbconv", x, scope=f"{i}", out=40, kernel=kernel, mid=240, act=act, residual=residual, se=se)
        return x

    return body


def _plain_residual_dense(b: NetworkBuilder, x: str) -> str:
    for i in range(10):
        x = b.act(b.conv(x, 16, 3, bias=True, name=f"conv{i}"), "relu")
        y = b.conv(b.act(b.op("batch_norm", x), "silu"), 16, 3, groups=4)
        y = b.op("channel_shuffle", y, groups=4)
        x = b.conv(b.op("concat", x, y, axis=1), 16)
        x = b.op("add", x, b.op("avg_pool", x, kernel=(3, 3), pads=(1,) * 4))
    return x


def _transformer(b: NetworkBuilder, x: str) -> str:
    x = b.op("transpose", b.op("reshape", x, shape=(1, 16, 256)), perm=(0, 2, 1))
    for _ in range(12):
        h = b.op("layer_norm", x)
        scores = b.op("matmul", b.linear(h, 16), b.op("transpose", b.linear(h, 16), perm=(0, 2, 1)))
        scores = b.op("mul", scores, scalar=0.25)
        x = b.op("add", x, b.linear(b.op("matmul", b.op("softmax", scores), b.linear(h, 16)), 16))
        x = b.op("add", x, b.linear(b.op("gelu", b.linear(b.op("layer_norm", x), 64)), 16))
    return x


BODIES = {
    "mobilenet relu6": _mobilenet("relu6", 0),
    "mobilenet hardswish se": _mobilenet("hardswish", 60),
    "mobilenet sigmoid": _mobilenet("sigmoid", 0),
    "plain, residual, dense": _plain_residual_dense,
    "transformer": _transformer,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_activations_keep_their_scale_and_hold_no_denormals(body: Callable[[NetworkBuilder, str], str]) -> None:
    b = NetworkBuilder("deep")
    net = b.build(body(b, b.input((1, 16, 16, 16))))
    values = _activations(net)
    tiny = float(np.finfo(np.float32).tiny)
    for name, v in values.items():
        assert not ((v != 0) & (np.abs(v) < tiny)).any(), name
        assert np.isfinite(v).all(), name
    for node in net.nodes:
        if node.op.kind in ("conv", "linear"):
            rms = np.sqrt(np.mean(values[node.outputs[0]] ** 2))
            # Gates of gates of gates: thirty squeeze-and-excitations may drift further, but never near overflow.
            assert 1 / 20 < rms < (1000 if "se_reduce" in str(net.nodes) else 20), node.name


def test_weights_depend_on_seed_and_node_name_alone() -> None:
    op = Op.make("conv", [MAP], out_channels=8, kernel=(3, 3))
    a, b = Node("a", op, ("x",), ("y",)), Node("b", op, ("x",), ("y",))
    one = node_weights(a, 0)["weight"]
    assert np.array_equal(one, node_weights(a, 0)["weight"])
    assert not np.array_equal(one, node_weights(a, 1)["weight"])
    assert not np.array_equal(one, node_weights(b, 0)["weight"])


def test_a_node_by_itself_gets_he_scaling() -> None:
    op = Op.make("conv", [TensorSpec((1, 64, 8, 8))], out_channels=128, kernel=(3, 3))
    weight = node_weights(Node("n", op, ("x",), ("y",)), 0)["weight"]
    assert np.std(weight) == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.02)


@pytest.mark.parametrize("op", PRIMITIVES, ids=str)
def test_weights_have_the_shapes_and_types_that_the_op_says(op: Op) -> None:
    weights = node_weights(Node("n", op, ("x",), ("y",)), 3)
    assert {n: w.shape for n, w in weights.items()} == op.param_shapes
    assert sum(w.nbytes for w in weights.values()) == op.weight_bytes


def test_half_precision_weights_hold_no_denormals() -> None:
    op = Op.make("linear", [TensorSpec((1, 4096), "f16")], out_features=256)
    weight = node_weights(Node("n", op, ("x",), ("y",)), 0)["weight"]
    assert weight.dtype == np.float16
    assert np.abs(weight).min() >= np.finfo(np.float16).tiny


def test_density_is_the_share_of_non_zero_weights() -> None:
    op = Op.make("conv", [TensorSpec((1, 64, 8, 8))], out_channels=64, kernel=(3, 3), density=0.25)
    weight = node_weights(Node("n", op, ("x",), ("y",)), 0)["weight"]
    assert np.mean(weight != 0) == pytest.approx(0.25, abs=0.01)


def test_real_weights_come_before_generated_ones() -> None:
    b = NetworkBuilder("n")
    net = b.build(b.linear(b.linear(b.input((1, 4)), 3, name="one"), 2, name="two"))
    real = {"one": {"weight": np.ones((3, 4), np.float32), "bias": np.zeros(3, np.float32)}}
    weights = network_weights(net.replace(weights=real))
    assert weights["one"]["weight"] is real["one"]["weight"]
    assert set(weights["two"]) == {"weight", "bias"}


@pytest.mark.parametrize("dtype", ["f32", "f16", "f64", "bf16", "i64", "i32", "i8", "u8", "bool", "u16"])
def test_inputs_have_their_type_and_are_seeded(dtype: str) -> None:
    spec = TensorSpec((4, 100), dtype)
    x = random_input(spec, 1)
    assert x.shape == spec.shape
    assert x.nbytes == spec.nbytes
    assert np.array_equal(x, random_input(spec, 1))
    assert not np.array_equal(x, random_input(spec, 2))
    scalar = random_input(TensorSpec((), dtype), 1)
    assert isinstance(scalar, np.ndarray)
    assert (scalar.shape, scalar.dtype) == ((), x.dtype)
    if dtype in ("i64", "i32", "u16"):
        assert set(np.unique(x)) == {0, 1}
