"""Counting conventions, against the figures that the papers' authors publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latbench.counting import CONVENTIONS, Counts, count
from latbench.errors import ModelError
from latbench.network import Network, NetworkBuilder
from latbench.zoo import NETWORKS, condensenet, condensenet_86


@pytest.mark.data
def test_condensenet_86_is_exact(data_dir: Path) -> None:
    want = json.loads((data_dir / "architectures.json").read_text())["condensenet_86"]
    net = NETWORKS["condensenet_86"]()
    assert (net.params, net.macs) == (want["params"], want["macs"]) == (520202, 62381888)
    assert net.count("condensenet") == Counts(520202, want["ops_condensenet"])
    given = {k: v for k, v in want.items() if k not in ("published", "provenance", "params", "macs", "ops_condensenet")}
    assert condensenet(**given).key == net.key


@pytest.mark.data
def test_rcnet_counts_convolutions_only(data_dir: Path) -> None:
    lists = json.loads((data_dir / "architectures.json").read_text())["block_lists"]
    net = Network.from_blocks(next(s for s in lists if s["name"] == "rcnet_cifar100"))
    # 87.25 M and 1,918,436 as published; the classifier's 1280 × 100 are the difference to m1.
    assert net.count("rcnet") == Counts(1918436, net.macs - 128000) == Counts(1918436, 87253504)


def test_conventions_differ_as_defined() -> None:
    b = NetworkBuilder("n")
    x = b.conv(b.input((2, 4, 8, 8)), 6, 3, bias=True, act="relu")
    x = b.op("avg_pool", x, kernel=(2, 2), stride=(2, 2))
    x = b.op("global_avg_pool", x)
    net = b.build(b.linear(b.op("flatten", x), 10))
    conv, linear = 2 * 6 * 64 * 4 * 9, 2 * 60
    assert net.count("m1") == Counts(net.params, conv + linear) == Counts(net.params, net.macs)
    assert net.count("rcnet").macs == conv
    assert net.count("condensenet").macs == conv + 2 * 6 * 64 + 2 * 6 * 16 * 4 + 2 * 6 * 16 + linear + 2 * 10
    assert net.params == 6 * 4 * 9 + 6 + 60 + 10


def test_an_unknown_convention_is_refused_with_the_known_ones() -> None:
    b = NetworkBuilder("n")
    net = b.build(b.input((1, 2)))
    with pytest.raises(ModelError, match=", ".join(CONVENTIONS)):
        count(net, "flops")


def test_condensenet_runs_and_its_index_layers_differ_by_seed() -> None:
    net = condensenet(stages=(2, 2), growth=(4, 8), input=8, classifier=3)
    assert net.tensors[net.outputs[0]].shape == (1, 3)
    assert condensenet(stages=(2, 2), growth=(4, 8), input=8, classifier=3, seed=1).key != net.key
    assert condensenet_86(classifier=100).params == 520202 + 90 * (condensenet_86().nodes[-1].op.inputs[0].shape[1] + 1)
    with pytest.raises(ModelError, match="pair"):
        condensenet(stages=(2,), growth=(4, 8))
