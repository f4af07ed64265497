"""Search spaces: what they hold, what their networks are, what they refuse."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latbench import Network, blocks, load_space, plugins
from latbench.errors import ArchitectureError, ConfigError, ModelError, NotInstalledError
from latbench.op import Op
from latbench.space import Arch, SearchSpace
from latbench.spaces.params import ACTS, make_divisible
from latbench.testing.searchers import ToySpace
from latbench.testing.spaces import HashedCosts, SpaceConformance

MOGA_A = (6, 10, 2, 3, 1, 3, 2, 10, 9, 10, 2, 2, 7, 7)
#: Zero where a stage has fewer layers than cells.
PROXYLESS_GPU = (2, 6, 6, 6, 4, 0, 6, 6, 5, 2, 6, 6, 3, 0, 2, 6, 5, 5, 5, 3, 5)
GPU_WIDTHS = (40, 24, 32, 56, 112, 128, 256, 432, 1728)
SMALL: dict[str, dict[str, Any]] = {
    "mobilenetv3": {"resolution": 32, "width_mult": 0.1, "num_classes": 10},
    "proxyless": {"resolution": 32, "width_mult": 0.1, "num_classes": 10},
    "nasbench201": {"num_cells": 1, "channels": 8, "resolution": 16},
}


class TestMobileNetV3(SpaceConformance):
    @pytest.fixture
    def space(self) -> SearchSpace:
        return load_space("mobilenetv3", **SMALL["mobilenetv3"])


class TestMobileNetV3WithoutSqueezeAndExcitation(SpaceConformance):
    @pytest.fixture
    def space(self) -> SearchSpace:
        return load_space("mobilenetv3", act="relu6", se=False, batch=2, **SMALL["mobilenetv3"])


class TestProxyless(SpaceConformance):
    @pytest.fixture
    def space(self) -> SearchSpace:
        return load_space("proxyless", **SMALL["proxyless"])


# -- published networks ---------------------------------------------------------------------------------------------


def test_moga_a_has_its_published_parameters_and_macs() -> None:
    net = load_space("mobilenetv3").network(MOGA_A)
    assert (net.params, net.macs) == (5_159_802, 304_042_176)


def test_proxyless_gpu_has_its_published_parameters_and_macs() -> None:
    net = load_space("proxyless", widths=GPU_WIDTHS).network(PROXYLESS_GPU)
    assert (net.params, net.macs) == (7_119_848, 465_260_160)


def test_sizes_are_those_of_the_papers() -> None:
    assert load_space("mobilenetv3").size == 12**14
    assert load_space("mobilenetv3", se=False).size == 6**14
    # A shortcut at 15 of the 21 edges: the first cell of each of the six stages has none.
    assert load_space("proxyless").size == 6**6 * 7**15


def test_choices_are_ordered_kernel_expand_squeeze_with_the_last_fastest() -> None:
    space = load_space("mobilenetv3")
    assert [space.choice_label(0, c) for c in (0, 1, 2, 4, 11)] == ["k3 e3", "k3 e3 se", "k3 e6", "k5 e3", "k7 e6 se"]
    space = load_space("proxyless")
    assert [space.choice_label(1, c) for c in (0, 1, 2, 5, 6)] == ["k3 e3", "k3 e6", "k5 e3", "k7 e6", "zero"]


def test_a_zero_edge_leaves_no_trace_in_the_network() -> None:
    space = load_space("proxyless", **SMALL["proxyless"])
    arch = tuple(n - 1 for n in space.num_choices)
    names = {b.name for b in space.network(arch).blocks if b.name.startswith("positions.")}
    assert names == {f"positions.{i}" for i, n in enumerate(space.num_choices) if n == 6}


@pytest.mark.parametrize("act", ["relu", "relu6", "hardswish"])
def test_one_activation_can_be_set_everywhere(act: str) -> None:
    net = load_space("mobilenetv3", act=act, se=False, **SMALL["mobilenetv3"]).network([5] * 14)
    kinds = {op.kind for op in net.primitives}
    assert kinds & {"relu", "relu6", "hardswish", "hardsigmoid"} == {act}


def test_proxyless_activates_by_relu6_unless_told_otherwise() -> None:
    for act, kind in ((None, "relu6"), ("silu", "silu")):
        space = load_space("proxyless", act=act, **SMALL["proxyless"])
        blocks = [op for op in space.ops() if op.kind in ("conv", "mbconv")]
        kinds = [Counter(p.kind for p in op.expand().primitives) for op in blocks]
        assert all(k[kind] >= 1 and not set(ACTS) - {kind} & set(k) for k in kinds)


def test_batch_and_data_type_reach_every_tensor() -> None:
    net = load_space("proxyless", batch=3, dtype="f16", **SMALL["proxyless"]).network([0] * 21)
    assert {t.dtype for t in net.tensors.values()} == {"f16"}
    assert {t.shape[0] for t in net.tensors.values()} == {3}


@given(st.floats(8, 4000))
def test_rounded_widths_divide_by_eight_and_lose_at_most_a_tenth(channels: float) -> None:
    width = make_divisible(channels)
    assert width % 8 == 0
    assert 0.9 * channels <= width <= channels + 8


# -- costs ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.integers(0, 2**32 - 1))
def test_any_network_is_made_of_listed_ops(name: str, seed: int) -> None:
    space = _space(name)
    arch = space.sample(seed)
    net = space.network(arch)
    assert {b.op.key for b in net.blocks} <= {op.key for op in space.ops()}
    model = HashedCosts()
    expected = sum(model.op_cost(b.op.key) for b in net.blocks) + model.overhead_ms
    assert model.predict_archs(space, [arch]).value == pytest.approx([expected])


_SPACES: dict[str, SearchSpace] = {}


def _space(name: str) -> SearchSpace:
    return _SPACES.setdefault(name, load_space(name, **SMALL[name]))


def _pixel1_key(op: Op) -> str | None:
    """The key of a block in the published Pixel-1 table; None for pooling, which that table leaves out."""
    _, c, h, w = op.inputs[0].shape
    if op.kind == "global_avg_pool":
        return None
    if op.kind == "linear":
        return f"Logits-input:7x7x{c}-output:{op['out']}"
    _, out, oh, ow = op.outputs[0].shape
    sizes = f"input:{h}x{w}x{c}-output:{oh}x{ow}x{out}"
    if op.kind == "conv":
        return f"{'Conv' if c == 3 else 'Conv_1'}-{sizes}"
    expand = f"expand:{op['mid'] // c}-kernel:{op['kernel']}-stride:{op['stride']}-idskip:{int(op['residual'])}"
    return f"expanded_conv-{sizes}-{expand}"


class _Pixel1(HashedCosts):
    overhead_ms = 0.0

    def __init__(self, data_dir: Path) -> None:
        with open(data_dir / "proxyless_pixel1_lut_ms.csv", newline="", encoding="utf-8") as f:
            self.ms = {row["op_key"]: float(row["mean_ms"]) for row in csv.DictReader(f)}

    def op_cost(self, key: str) -> float:
        name = _pixel1_key(Op.parse(key))
        return 0.0 if name is None else self.ms[name]


@pytest.mark.data
def test_the_pixel1_table_sums_to_its_golden_values(data_dir: Path) -> None:
    space = load_space("proxyless")
    matrix, constant = space.cost_matrix(_Pixel1(data_dir))
    same = {c: constant + matrix[:, c].sum() for c in range(6)}
    shallow = constant + sum(0.0 if n == 7 else matrix[i, 0] for i, n in enumerate(space.num_choices))
    assert same[0] == pytest.approx(76.0481, abs=5e-5)
    assert same[1] == pytest.approx(136.4663, abs=5e-5)
    assert same[5] == pytest.approx(191.0299, abs=5e-5)
    assert shallow == pytest.approx(29.6088, abs=5e-5)
    assert constant + np.nanmean(matrix, axis=1).sum() == pytest.approx(113.9881, abs=5e-5)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "space", "arch"),
    [
        ("moga_a", {"name": "mobilenetv3"}, MOGA_A),
        ("proxyless_gpu", {"name": "proxyless", "widths": GPU_WIDTHS}, PROXYLESS_GPU),
    ],
)
def test_published_networks_equal_their_block_lists(
    data_dir: Path, name: str, space: dict[str, Any], arch: tuple[int, ...]
) -> None:
    lists = json.loads((data_dir / "architectures.json").read_text(encoding="utf-8"))["block_lists"]
    net = load_space(**space).network(arch)
    assert net.key == Network.from_blocks(next(b for b in lists if b["name"] == name)).key


# -- bad input ------------------------------------------------------------------------------------------------------


def test_an_unknown_parameter_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter resolutoin; its parameters: resolution, batch"):
        load_space("mobilenetv3", resolutoin=32)


@pytest.mark.parametrize(
    ("space", "params", "said"),
    [
        ("mobilenetv3", {"resolution": "big"}, "resolution must be an integer of at least 1"),
        ("mobilenetv3", {"resolution": 0}, "resolution must be"),
        ("mobilenetv3", {"batch": True}, "batch must be"),
        ("mobilenetv3", {"dtype": "float"}, "dtype must be one of 'f32'"),
        ("mobilenetv3", {"width_mult": float("nan")}, "width_mult must be a positive number"),
        ("mobilenetv3", {"act": "swish"}, "act must be one of None, 'relu'"),
        ("mobilenetv3", {"se": 1}, "se must be true or false"),
        ("proxyless", {"widths": (32, 16)}, "widths must be 9 integers"),
        ("proxyless", {"widths": (32, 16, 24, 40, 80, 96, 192, -1, 1280)}, r"widths\[7\] must be an integer"),
        ("nasbench201", {"resolution": 30}, "multiple of 4"),
        ("nasbench201", {"num_cells": 0}, "num_cells must be"),
        ("nasbench201", {"width_mult": 0}, "width_mult must be a positive number"),
        ("nasbench201", {"act": "swish"}, "act must be one of 'relu'"),
    ],
)
def test_an_unusable_parameter_is_named(space: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_space(space, **params)


def test_an_unknown_space_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no space named 'mobilenet'; known: .*mobilenetv3"):
        load_space("mobilenet")


def test_a_bad_row_among_many_architectures_is_named() -> None:
    space = load_space("mobilenetv3")
    archs = space.sample_archs(5, seed=0)
    archs[3, 2] = 12
    with pytest.raises(ArchitectureError, match=r"row 3: mobilenetv3: position 2 has choices 0–11; got 12"):
        space.validate_archs(archs)
    with pytest.raises(ArchitectureError, match=r"\(n, 14\) array of integers"):
        space.validate_archs(archs.astype(float))


def test_a_choice_that_no_covering_architecture_holds_does_not_cost_nothing() -> None:
    class Forgetful(ToySpace):
        def covering_archs(self) -> list[Arch]:
            return [a for a in super().covering_archs() if a[2] != 1]

    with pytest.raises(ModelError, match=r"covering_archs\(\) holds no architecture with choice 1 at position 0"):
        Forgetful(4, 3).cost_matrix(HashedCosts())
    with pytest.raises(ModelError, match="every choice of every position"):
        Forgetful(4, 3).usage([[1, 1, 1, 1]])
    # A choice that was seen and becomes no block does cost nothing.
    matrix, _ = load_space("proxyless", **SMALL["proxyless"]).cost_matrix(HashedCosts())
    assert matrix[1, 6] == 0


def test_a_key_of_a_space_expands_in_a_process_that_never_made_the_space() -> None:
    key = next(op.key for op in load_space("nasbench201").ops() if op.kind == "relu_conv_bn")
    code = "import sys; from latbench.op import Op; print(Op.parse(sys.argv[1]).macs)"
    done = subprocess.run([sys.executable, "-c", code, key], capture_output=True, text=True, check=True)
    assert int(done.stdout) == Op.parse(key).macs


def test_a_space_whose_library_is_missing_takes_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = plugins.load

    def load(group: str, name: str) -> Any:
        if name == "broken":
            raise NotInstalledError("somelib", "pip install somelib")
        return real(group, name)

    monkeypatch.setattr(plugins, "names", lambda group: ["broken", "nasbench201"])
    monkeypatch.setattr(plugins, "load", load)
    blocks._load_spaces.__wrapped__()
    with pytest.raises(ModelError, match=r"unknown block 'made_up'; known: .*relu_conv_bn"):
        Op.parse("op1:block:made_up:f32[1,3,8,8]:{}").expand()
