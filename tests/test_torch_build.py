"""Networks as torch modules: the outputs of their ONNX form, and the manners of any other module."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latbench import Network, NetworkBuilder, load_space
from latbench.errors import ModelError, UnsupportedOpError

torch = pytest.importorskip("torch")
from latbench.torch_build import TorchNetwork, to_torch  # noqa: E402
from latbench.weights import random_input  # noqa: E402

SPACES: list[dict[str, Any]] = [
    {"name": "mobilenetv3", "resolution": 32, "width_mult": 0.25, "num_classes": 10},
    {"name": "proxyless", "resolution": 32, "width_mult": 0.25, "num_classes": 10},
    {"name": "nasbench201", "num_cells": 1, "channels": 8, "resolution": 16},
    {"name": "nasbench201", "num_cells": 1, "channels": 8, "resolution": 16, "dead_edges": True},
]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _onnx_outputs(net: Network, inputs: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(net.to_onnx().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {t.name: x for t, x in zip(session.get_inputs(), inputs, strict=True)}))


def _agree(net: Network, tolerance: float = 1e-4) -> None:
    inputs = [random_input(net.tensors[t], seed=i) for i, t in enumerate(net.inputs)]
    with torch.no_grad():
        ours = net.to_torch()(*(torch.from_numpy(x) for x in inputs))
    ours = ours if isinstance(ours, tuple) else (ours,)
    theirs = _onnx_outputs(net, inputs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert tuple(a.shape) == b.shape
        assert float(np.std(b)) > 1e-3 or not b.any(), "outputs that hardly vary prove nothing"
        np.testing.assert_allclose(a.numpy(), b, rtol=tolerance, atol=tolerance)


# -- same outputs as the ONNX form ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPACES, ids=lambda s: s["name"] + ("-eager" if s.get("dead_edges") else ""))
def test_networks_of_spaces_agree_with_onnxruntime(spec: dict[str, Any]) -> None:
    space = load_space(**spec)
    for seed in range(3):
        _agree(space.network(space.sample(seed)))


@pytest.mark.data
@pytest.mark.parametrize("name", ["proxyless_gpu", "fairnas_a", "moga_a", "mobilenet_v2", "rcnet_cifar100"])
def test_published_block_lists_agree_with_onnxruntime(data_dir: Path, name: str) -> None:
    lists = json.loads((data_dir / "architectures.json").read_text(encoding="utf-8"))["block_lists"]
    spec = next(b for b in lists if b["name"] == name)
    net = Network.from_blocks({**spec, "input": [3, 32, 32]})
    assert sum(p.numel() for p in net.to_torch().parameters()) == net.params
    _agree(net)


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet", "inception_v1", "densenet121"])
def test_models_of_other_exporters_agree_with_onnxruntime(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    file = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    if not file.is_file():
        pytest.skip(f"this onnx package has no {file.name}")
    # Their own weights are all the same number: generated ones tell more.
    _agree(Network.from_onnx(file).replace(weights=None, source=None))


def test_a_network_read_back_from_onnx_has_the_same_outputs(net: Network) -> None:
    again = Network.from_onnx(net.to_onnx(seed=4).SerializeToString())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.to_torch()(x), net.to_torch(seed=4)(x), rtol=1e-4, atol=1e-5)


def _network(kind: str, *shapes: tuple[int, ...], **attrs: Any) -> Network:
    b = NetworkBuilder(kind)
    inputs = [b.input(s, f"input{i or ''}") for i, s in enumerate(shapes)]
    return b.build(b.op(kind, *inputs, **attrs))


@pytest.mark.parametrize(
    ("kind", "shapes", "attrs"),
    [
        (
            "conv",
            [(1, 4, 9, 7)],
            {"out_channels": 6, "kernel": (3, 2), "groups": 2, "pads": (0, 1, 2, 0), "bias": True},
        ),
        ("conv", [(2, 3, 20)], {"out_channels": 5, "kernel": (3,), "stride": (2,), "dilation": (2,)}),
        ("conv", [(1, 2, 5, 6, 7)], {"out_channels": 3, "kernel": (3, 3, 3), "pads": (1,) * 6}),
        ("conv_transpose", [(1, 4, 5, 6)], {"out_channels": 6, "kernel": (3, 3), "stride": (2, 2), "groups": 2}),
        (
            "conv_transpose",
            [(1, 4, 5, 6)],
            {"out_channels": 2, "kernel": (4, 3), "stride": (2, 3), "pads": (0, 1, 1, 1), "output_padding": (1, 0)},
        ),
        ("linear", [(3, 7)], {"out_features": 5, "bias": True}),
        ("linear", [(1, 4, 7)], {"out_features": 5}),
        ("matmul", [(2, 3, 4), (2, 4, 5)], {}),
        ("batch_norm", [(2, 5, 4, 4)], {"eps": 1e-3}),
        ("batch_norm", [(2, 5)], {}),
        ("layer_norm", [(2, 5, 6)], {"axis": 1}),
        ("layer_norm", [(2, 5, 6)], {"affine": True, "bias": False}),
        ("lrn", [(1, 7, 4, 4)], {"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
        ("softmax", [(2, 5, 3)], {"axis": 1}),
        ("prelu", [(1, 5, 4, 4)], {}),
        ("prelu", [(1, 5, 4, 4)], {"slope_shape": (1,)}),
        ("max_pool", [(1, 3, 9, 9)], {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1)}),
        ("max_pool", [(1, 3, 9, 8)], {"kernel": (3, 2), "stride": (2, 2), "pads": (0, 0, 1, 1)}),
        ("max_pool", [(1, 3, 10, 9)], {"kernel": (3, 3), "stride": (2, 2), "ceil_mode": True}),
        ("max_pool", [(1, 3, 10, 9)], {"kernel": (3, 3), "dilation": (2, 2)}),
        ("avg_pool", [(1, 3, 9, 9)], {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1)}),
        ("avg_pool", [(1, 3, 9, 9)], {"kernel": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": True}),
        ("avg_pool", [(1, 3, 9, 8)], {"kernel": (3, 2), "stride": (2, 2), "pads": (0, 0, 1, 1)}),
        ("avg_pool", [(1, 3, 10, 9)], {"kernel": (3, 3), "stride": (2, 2), "ceil_mode": True}),
        ("avg_pool", [(1, 3, 9, 8)], {"kernel": (3, 2), "pads": (0, 0, 1, 1), "count_include_pad": True}),
        ("global_avg_pool", [(2, 3, 4, 5)], {}),
        ("global_max_pool", [(2, 3, 4, 5)], {}),
        ("reduce_mean", [(2, 3, 4, 5)], {"axes": (2, 3)}),
        ("reduce_sum", [(2, 3, 4)], {"axes": (-1,), "keepdims": False}),
        ("concat", [(1, 2, 3, 3), (1, 4, 3, 3)], {"axis": 1}),
        ("flatten", [(2, 3, 4)], {"axis": 2}),
        ("reshape", [(2, 6, 4)], {"shape": (2, 3, 8)}),
        ("transpose", [(2, 3, 4)], {"perm": (0, 2, 1)}),
        ("pad", [(1, 2, 5, 5)], {"pads": (0, 0, 1, 2, 0, 0, 3, 0), "value": 1.5}),
        ("pad", [(1, 2, 5, 5)], {"pads": (0, 0, 1, 2, 0, 0, 3, 0), "mode": "reflect"}),
        ("pad", [(1, 2, 5, 5)], {"pads": (0, 0, 1, 2, 0, 0, 3, 0), "mode": "edge"}),
        ("pad", [(1, 2, 5, 5)], {"pads": (0, 0, 0, 4, 0, 0, 0, 1), "mode": "reflect"}),
        ("pad", [(1, 3, 5)], {"pads": (0, 2, 0, 0, 0, 1), "mode": "reflect"}),
        ("slice", [(1, 6, 5, 5)], {"starts": (0, 2, 0, 1), "stops": (1, 5, 5, 3)}),
        ("gather", [(1, 6, 4)], {"indices": (5, 0, 2, 2), "axis": 1}),
        ("channel_shuffle", [(1, 6, 4, 4)], {"groups": 3}),
        ("add", [(1, 3, 4, 4), (1, 3, 1, 1)], {}),
        ("sub", [(1, 3, 4, 4)], {"const": (3, 1, 1), "swap": True}),
        ("div", [(1, 3, 4, 4)], {"scalar": 2.5}),
        ("pow", [(1, 3, 4, 4)], {"scalar": 2.0}),
        ("max", [(1, 3, 4), (1, 3, 4)], {}),
        ("min", [(1, 3, 4)], {"scalar": 0.5}),
        ("clip", [(1, 3, 4)], {"low": -0.5, "high": 0.75}),
        ("hardsigmoid", [(1, 3, 4)], {"alpha": 0.2}),
        ("gelu", [(1, 3, 4)], {}),
        ("gelu", [(1, 3, 4)], {"approximate": "tanh"}),
        ("elu", [(1, 3, 4)], {"alpha": 0.7}),
        ("leaky_relu", [(1, 3, 4)], {"alpha": 0.2}),
        ("identity", [(1, 3, 4)], {}),
        ("zero", [(1, 3, 4)], {}),
        *((k, [(1, 3, 4)], {}) for k in ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu")),
        *((k, [(1, 3, 4)], {}) for k in ("softplus", "exp", "erf", "neg", "abs", "reciprocal")),
    ],
)
def test_each_primitive_agrees_with_onnxruntime(
    kind: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any]
) -> None:
    _agree(_network(kind, *shapes, **attrs), 1e-3 if kind == "reciprocal" else 1e-4)


@pytest.mark.parametrize("kind", ["sqrt", "log"])
def test_functions_of_positive_numbers_agree_with_onnxruntime(kind: str) -> None:
    b = NetworkBuilder(kind)
    _agree(b.build(b.op(kind, b.op("sigmoid", b.input((1, 3, 5))))))


def test_local_response_norm_of_even_size_starts_one_channel_later() -> None:
    # Not every runtime has it, so the formula of the primitive is the judge.
    x = np.random.default_rng(0).standard_normal((1, 7, 2, 2)).astype(np.float32)
    rows = [x[:, max(0, c - 1) : c + 3] for c in range(7)]
    total = np.stack([(r**2).sum(axis=1) for r in rows], axis=1)
    ours = _network("lrn", x.shape, size=4, alpha=0.5).to_torch()(torch.from_numpy(x))
    np.testing.assert_allclose(ours.numpy(), x / (1 + 0.5 / 4 * total) ** 0.75, rtol=1e-5)


@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_agrees_with_onnxruntime(mode: str, coordinates: str) -> None:
    for size in ((9, 4), (3, 12)):
        _agree(_network("resize", (1, 2, 6, 8), size=size, mode=mode, coordinates=coordinates))


# -- manners --------------------------------------------------------------------------------------------------------


@pytest.fixture
def net() -> Network:
    return load_space(**SPACES[0]).network([3] * 14)


def test_parameters_carry_the_names_of_the_nodes(net: Network) -> None:
    names = set(net.to_torch().state_dict())
    assert {"positions.3.expand.weight", "positions.3.expand_bn.running_var", "classifier.linear.bias"} <= names
    weighted = {n.name for n in net.nodes if n.op.param_shapes}
    assert {n.rsplit(".", 1)[0] for n in names} == weighted


def test_weights_are_the_networks_own_where_it_has_them(net: Network) -> None:
    from latbench.weights import network_weights

    own = network_weights(net, seed=9)
    module = net.replace(weights=own).to_torch(seed=0)
    assert np.array_equal(module.get_parameter("stem.conv.weight").detach().numpy(), own["stem.conv"]["weight"])


def test_seeds_make_the_weights(net: Network) -> None:
    a, b, c = net.to_torch(seed=1), net.to_torch(seed=1), net.to_torch(seed=2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


@pytest.mark.parametrize("spec", SPACES[:3], ids=lambda s: s["name"])
def test_the_batch_size_is_free(spec: dict[str, Any]) -> None:
    space = load_space(**spec)
    net = space.network(space.sample(1))
    module, x = net.to_torch(), torch.randn(5, 3, spec["resolution"], spec["resolution"])
    with torch.no_grad():
        together = module(x)
        apart = torch.cat([module(row[None]) for row in x])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_it_learns(net: Network) -> None:
    module, generator = net.to_torch().train(), torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 4
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    before = module.get_buffer("stem.conv_bn.running_mean").clone()
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), y)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None for p in module.parameters())
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    assert not torch.equal(before, module.get_buffer("stem.conv_bn.running_mean"))


def test_copies_and_saved_states_give_the_same_outputs_and_share_nothing(net: Network) -> None:
    module, x = net.to_torch(), torch.randn(1, 3, 32, 32)
    twin, file = copy.deepcopy(module), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = net.to_torch(seed=5)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = module(x)
        for p in module.parameters():
            p.zero_()
        assert torch.equal(twin(x), expected)
        assert torch.equal(loaded(x), expected)


def test_half_precision_networks_are_half_precision_modules() -> None:
    net = load_space(**SPACES[0], dtype="bf16").network([0] * 14)
    module = net.to_torch()
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert module(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).isfinite().all()


def test_several_inputs_and_outputs_come_in_order() -> None:
    b = NetworkBuilder("two")
    x, y = b.input((1, 3), "x"), b.input((1, 3), "y")
    difference = b.op("sub", x, y)
    net = b.build(difference, x, b.op("neg", difference))
    one, two, three = net.to_torch()(torch.full((4, 3), 5.0), torch.full((4, 3), 2.0))
    assert [float(t[0, 0]) for t in (one, two, three)] == [3.0, 5.0, -3.0]
    with pytest.raises(ModelError, match="takes 2 inputs, got 1"):
        net.to_torch()(torch.ones(4, 3))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "a.b", "a.b.c", "", "..", "forward", "train.x", "a/b", "weight"]), max_size=6))
def test_any_node_name_gets_a_module_of_its_own(names: list[str]) -> None:
    b = NetworkBuilder("named")
    x = b.input((1, 4))
    for name in names:
        x = b.op("linear", x, name=name, out_features=4)
    net = b.build(b.op("relu", x))
    module = to_torch(net)
    assert len(set(module.paths.values())) == len(net.nodes)
    assert sum(p.numel() for p in module.parameters()) == net.params
    module(torch.ones(1, 4))


def test_a_missing_or_misshapen_weight_is_named(net: Network) -> None:
    from latbench.weights import network_weights

    module, weights = TorchNetwork(net), network_weights(net)
    weights["stem.conv"] = {"weight": np.zeros((1, 1, 1, 1), np.float32)}
    with pytest.raises(ModelError, match=r"'weight' of node 'stem.conv' has shape \(1, 1, 1, 1\)"):
        module.set_weights(weights)
    weights["stem.conv"] = {}
    with pytest.raises(ModelError, match=r"'weight' of node 'stem\.conv' is missing"):
        module.set_weights(weights)


def test_an_opaque_operator_is_refused_by_name() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="determinant")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    net = Network.from_onnx(model.SerializeToString())
    with pytest.raises(UnsupportedOpError, match="'determinant' is unsupported: ONNX operator Det has no torch form"):
        net.to_torch()


def test_without_torch_the_error_names_the_extra_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None
import latbench
from latbench.errors import NotInstalledError
space = latbench.load_space("nasbench201", num_cells=1)
for use in (space.network([1] * 6).to_torch, space.supernet):
    try:
        use()
    except NotInstalledError as e:
        print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("run `pip install 'latbench[search]'`") == 2
