"""NAS-Bench-201: the standard string, dead edges, and the published sizes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latbench.errors import ArchitectureError, NotAdditiveError
from latbench.space import SearchSpace
from latbench.spaces.nasbench201 import EDGES, NONE, OPS, NasBench201
from latbench.testing.spaces import HashedCosts, SpaceConformance

SMALL = {"num_cells": 1, "channels": 8, "resolution": 16}
ARCHS = st.tuples(*[st.integers(0, 4)] * 6)
ALL: npt.NDArray[np.int64] = np.array(list(product(range(5), repeat=6)))


class TestNasBench201(SpaceConformance):
    @pytest.fixture
    def space(self) -> SearchSpace:
        return NasBench201(num_cells=1, channels=8, resolution=16)


class TestNasBench201WithDeadEdges(SpaceConformance):
    @pytest.fixture
    def space(self) -> SearchSpace:
        return NasBench201(num_cells=2, channels=8, resolution=16, dead_edges=True)


class TestNasBench201OfAnotherWidthAndActivation(SpaceConformance):
    @pytest.fixture
    def space(self) -> SearchSpace:
        return NasBench201(num_cells=1, channels=16, width_mult=0.5, act="hardswish", resolution=16)


# -- the string -----------------------------------------------------------------------------------------------------


@given(ARCHS)
def test_strings_round_trip(arch: tuple[int, ...]) -> None:
    space = NasBench201()
    assert space.from_string(space.to_string(arch)) == arch


def test_the_string_of_the_documentation_is_read_edge_by_edge() -> None:
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    arch = NasBench201().from_string(text)
    assert [OPS[c] for c in arch] == [
        "nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not an architecture string"),
        ("|none~0|+|none~0|none~1|", "not an architecture string"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2", "not an architecture string"),
        ("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "inputs 0 … k-1"),
        ("|none~0|+|none~1|none~0|+|none~0|none~1|none~2|", "inputs 0 … k-1"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|conv_5x5~2|", "unknown operation 'conv_5x5'; known: none"),
    ],
)
def test_a_wrong_string_is_refused(text: str, said: str) -> None:
    with pytest.raises(ArchitectureError, match=said):
        NasBench201().from_string(text)


@pytest.mark.data
def test_the_measured_architectures_are_exactly_the_space(data_dir: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    strings = parquet.read_table(data_dir / "nasbench201_accuracy.parquet")["arch_str"].to_pylist()
    space = NasBench201()
    archs = [space.from_string(s) for s in strings]
    assert len(set(archs)) == len(strings) == space.size == 15_625
    assert [space.to_string(a) for a in archs] == strings


# -- published sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "classes", "resolution", "params", "mflops"),
    [
        # Smallest and largest of the benchmark's tables for CIFAR-10, CIFAR-100 and ImageNet16-120.
        ((NONE,) * 6, 10, 32, 73_306, 7.78305),
        ((3,) * 6, 10, 32, 1_531_546, 220.11969),
        ((NONE,) * 6, 100, 32, 79_156, 7.78890),
        ((3,) * 6, 100, 32, 1_537_396, 220.12554),
        ((NONE,) * 6, 120, 16, 80_456, 1.95340),
        ((3,) * 6, 120, 16, 1_538_696, 55.03756),
    ],
)
@pytest.mark.parametrize("dead_edges", [False, True])
def test_parameters_and_macs_are_the_published_ones(
    arch: tuple[int, ...], classes: int, resolution: int, params: int, mflops: float, dead_edges: bool
) -> None:
    net = NasBench201(num_classes=classes, resolution=resolution, dead_edges=dead_edges).network(arch)
    assert net.params == params
    # The benchmark also counts the classifier's biases.
    assert (net.macs + classes) / 1e6 == pytest.approx(mflops, abs=5e-6)


def _work(arch: tuple[int, ...], channels: int) -> int:
    """Parameters of a cell's convolutions, from the operations alone."""
    return sum({2: 1, 3: 9}.get(c, 0) * channels**2 + 2 * channels * (c in (2, 3)) for c in arch)


@given(ARCHS)
@settings(max_examples=25, deadline=None)
def test_with_dead_edges_parameters_follow_from_the_operations(arch: tuple[int, ...]) -> None:
    empty = NasBench201(num_cells=2, dead_edges=True).network((NONE,) * 6).params
    net = NasBench201(num_cells=2, dead_edges=True).network(arch)
    assert net.params == empty + 2 * sum(_work(arch, c) for c in (16, 32, 64))


def test_the_width_scales_every_channel_and_one_is_as_published() -> None:
    half = NasBench201(**SMALL | {"channels": 32, "width_mult": 0.25})
    arch = (3, 2, 3, 4, 1, 3)
    assert half.network(arch).params == NasBench201(**SMALL).network(arch).params
    # A quarter of 16 would be 4; channels are multiples of eight.
    assert NasBench201(width_mult=0.25).network(arch).params == NasBench201(channels=8).network(arch).params
    assert NasBench201(channels=6).network(arch).params == NasBench201(channels=6, width_mult=1).network(arch).params


@pytest.mark.parametrize("act", ["relu6", "silu"])
def test_the_activation_is_the_same_everywhere_and_is_part_of_the_ops(act: str) -> None:
    space = NasBench201(**SMALL, act=act)
    net, relu = space.network((3, 2, 3, 4, 1, 3)), NasBench201(**SMALL).network((3, 2, 3, 4, 1, 3))
    kinds, usual = ([op.kind for op in n.primitives] for n in (net, relu))
    assert [act if k == "relu" else k for k in usual] == kinds
    assert "relu" in usual
    changed = {"relu_conv_bn", "bn_relu", "residual_reduction"}
    assert {op.kind for op in space.ops() if "act" in op.key} >= changed
    # Measurements of the space without the parameter stay good.
    assert not any("act" in op.key for op in NasBench201(**SMALL).ops())


# -- dead edges -----------------------------------------------------------------------------------------------------


def _paths(arch: tuple[int, ...]) -> set[int]:
    """Edges on a path from the input to the output, by enumerating the paths."""
    paths = [[3], [0, 4], [1, 5], [0, 2, 5]]
    assert all([EDGES[e][0] for e in p[1:]] == [EDGES[e][1] for e in p[:-1]] for p in paths)
    return {e for p in paths if all(arch[e] != NONE for e in p) for e in p}


def test_live_edges_are_those_on_a_path_from_input_to_output() -> None:
    live = NasBench201().live_edges(ALL)
    for arch, row in zip(ALL.tolist(), live.tolist(), strict=True):
        assert {e for e, alive in enumerate(row) if alive} == _paths(arch)


@pytest.mark.data
def test_cells_without_a_path_are_those_that_learned_nothing(data_dir: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    accuracy = parquet.read_table(data_dir / "nasbench201_accuracy.parquet")
    latency = parquet.read_table(data_dir / "nasbench201_latency_ms.parquet", columns=["arch_str", "pixel3"])
    space = NasBench201()

    def dead(strings: list[str]) -> npt.NDArray[np.bool_]:
        return ~space.live_edges(np.array([space.from_string(s) for s in strings])).any(axis=1)

    learned = accuracy["cifar10_test_acc"].to_numpy() > 10.0
    assert np.array_equal(dead(accuracy["arch_str"].to_pylist()), ~learned)
    # Those that the phone's runtime folded to nothing are among them.
    folded = latency["pixel3"].to_numpy() < 0.1
    assert folded.sum() == 202
    assert dead(latency["arch_str"].to_pylist())[folded].all()


def test_a_cell_without_a_path_gives_zeros_and_drops_all_its_edges() -> None:
    net = NasBench201(**SMALL).network((3, 3, 3, NONE, NONE, NONE))
    assert not [b for b in net.blocks if b.name.startswith("positions.")]
    assert [b.name for b in net.blocks if b.op.kind == "zero"] == [f"cells.{i}.node3" for i in range(3)]


def test_dead_edges_can_be_kept_as_an_eager_framework_runs_them() -> None:
    arch = (3, 3, 3, NONE, NONE, NONE)
    ops = NasBench201(**SMALL, dead_edges=True).network(arch).ops()
    kinds = {k.split(":")[2] for k in ops}
    assert {"relu_conv_bn", "zero", "sum"} <= kinds
    assert sum(n for k, n in ops.items() if ":zero:" in k) == 3 * 3


def test_costs_add_up_only_where_dead_edges_run() -> None:
    with pytest.raises(NotAdditiveError, match="predict_archs"):
        NasBench201(**SMALL).cost_matrix(HashedCosts())
    space = NasBench201(**SMALL, dead_edges=True)
    matrix, constant = space.cost_matrix(HashedCosts())
    assert np.allclose(HashedCosts().predict_archs(space, ALL).value, matrix[np.arange(6), ALL].sum(axis=1) + constant)


def test_counting_edges_agrees_with_building_networks() -> None:
    space = NasBench201(**SMALL)
    keys, fast = space.usage(ALL[::37])
    _, built = SearchSpace.usage(space, ALL[::37])
    assert keys == [op.key for op in space.ops()]
    assert np.array_equal(fast, built)
    assert SearchSpace.usage(space, ALL[:0])[1].shape == space.usage(ALL[:0])[1].shape == (0, len(keys))


def test_pruning_dead_edges_does_not_change_the_outputs() -> None:
    torch = pytest.importorskip("torch")
    pruned, eager = NasBench201(**SMALL), NasBench201(**SMALL, dead_edges=True)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for arch in [
        (3, 3, 3, 0, 0, 0),
        (0, 2, 3, 1, 3, 2),
        (2, 0, 0, 4, 1, 3),
        *(pruned.sample(seed) for seed in range(6)),
    ]:
        full = eager.network(arch).to_torch()
        for m in full.modules():
            # What a batch norm adds to zeros is the one thing that pruning drops.
            if isinstance(m, torch.nn.BatchNorm2d):
                torch.nn.init.zeros_(m.bias)
                m.running_mean.zero_()
        small = pruned.network(arch).to_torch()
        small.load_state_dict({k: v for k, v in full.state_dict().items() if k in small.state_dict()})
        with torch.no_grad():
            torch.testing.assert_close(small(x), full(x), rtol=1e-5, atol=1e-6)
