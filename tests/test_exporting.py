"""Found networks as files that other programs read."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest
import torch
from search_support import table, toy_evaluator
from typer.testing import CliRunner

import latbench as lb
from latbench.cli.app import app
from latbench.errors import ConfigError
from latbench.exporting import export
from latbench.result import SearchResult

SPACE = lb.load_space("nasbench201", resolution=8, num_cells=1, channels=4, num_classes=10)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("found")
    lb.search("random", space=SPACE, latency=table(SPACE), accuracy=toy_evaluator(), budget=8, run=run)
    return run


def test_all_forms_of_a_network_compute_the_same_and_trained_weights_are_in_them(found: Path, tmp_path: Path) -> None:
    result = SearchResult.load(found)
    arch = result.front[0].arch
    net = SPACE.network(arch)
    module = net.to_torch(seed=7)
    trained = net.replace(weights=module.get_weights())
    export(result, tmp_path, archs=[arch], trained={arch: trained}, formats=["onnx", "torch"])
    name = "-".join(map(str, arch))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32))
    with torch.no_grad():
        wanted = module(x).numpy()
        alone = torch.export.load(tmp_path / f"{name}.pt2").module()(x).numpy()
    session = ort.InferenceSession((tmp_path / f"{name}.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    (first,) = session.run(None, {session.get_inputs()[0].name: x.numpy()[:1]})
    np.testing.assert_allclose(alone, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first, wanted[:1], rtol=1e-4, atol=1e-5)
    (row,) = json.loads((tmp_path / "front.json").read_text())["networks"]
    assert (row["weights"], row["files"]) == ("trained", [f"{name}.onnx", f"{name}.pt2"])


def test_the_command_writes_the_front_as_tables_and_each_network_as_a_diagram(found: Path) -> None:
    r = CliRunner().invoke(app, ["export", str(found), "--format", "svg"], catch_exceptions=False)
    assert r.exit_code == 0
    result = SearchResult.load(found)
    rows = json.loads((found / "networks" / "front.json").read_text())["networks"]
    assert [tuple(row["arch"]) for row in rows] == [c.arch for c in result.front]
    assert {row["weights"] for row in rows} == {"random, seed 0"}
    parquet = pq.read_table(found / "networks" / "front.parquet").to_pydict()
    assert parquet["latency_ms"] == [c.values["latency_ms"] for c in result.front]
    for row in rows:
        drawing = ET.parse(found / "networks" / row["files"][0]).getroot()
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(drawing.findall(".//{http://www.w3.org/2000/svg}rect")) > 3


def test_files_of_networks_of_many_choices_have_short_names_and_the_row_the_whole_one(tmp_path: Path) -> None:
    space = lb.load_space("proxyless-cifar", resolution=8)
    result = lb.search("random", space=space, objectives=["params"], budget=2)
    (row,) = json.loads((export(result, tmp_path, formats=["svg"]) / "front.json").read_text())["networks"]
    assert row["name"].count("-") == space.positions - 1 > 100
    (file,) = row["files"]
    assert len(file) == 36
    assert (tmp_path / file).exists()


def test_fewer_networks_lie_at_equal_distance_along_the_front(found: Path, tmp_path: Path) -> None:
    CliRunner().invoke(
        app, ["export", str(found), "--format", "svg", "--top", "2", "--out", str(tmp_path)], catch_exceptions=False
    )
    rows = json.loads((tmp_path / "front.json").read_text())["networks"]
    assert [tuple(row["arch"]) for row in rows] == [c.arch for c in SearchResult.load(found).pick(2)]


def test_a_format_or_architecture_that_there_is_not_is_named(found: Path, tmp_path: Path) -> None:
    result = SearchResult.load(found)
    with pytest.raises(ConfigError, match="no format 'caffe'; there are onnx, torch, svg"):
        export(result, tmp_path, formats=["caffe"])
    stranger = next(
        a for a in map(tuple, SPACE.sample_archs(99, seed=1)) if a not in {c.arch for c in result.candidates}
    )
    with pytest.raises(ConfigError, match="is no candidate of this search"):
        export(result, tmp_path, archs=[stranger])


def test_a_network_that_broke_its_limit_gives_way_to_the_one_that_keeps_it(found: Path, tmp_path: Path) -> None:
    result = SearchResult.load(found)
    first = result.front[0].arch
    winner = next(c.arch for c in result.candidates if c.arch not in {x.arch for x in result.front})
    result.provenance["kept_limits"] = {"latency_ms": {"winner": list(winner), "replaced": [list(first)]}}
    export(result, tmp_path, formats=["svg"])
    rows = [tuple(row["arch"]) for row in json.loads((tmp_path / "front.json").read_text())["networks"]]
    assert rows == [winner, *(c.arch for c in result.front[1:])]
