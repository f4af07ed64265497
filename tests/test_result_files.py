"""Search results as files: what is written is read back, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_support import SETTING, table, toy_error

import latbench as lb
from latbench.errors import ConfigError, FileFormatError
from latbench.evaluators import FunctionEvaluator
from latbench.result import SCHEMA, SearchResult
from latbench.testing.searchers import ToySpace
from latbench.validate import Validated
from latbench.visit import Interval, Measurement


@pytest.fixture(scope="module")
def result() -> SearchResult:
    space = lb.load_space("mobilenetv3", resolution=32, width_mult=0.25, num_classes=10)
    evaluator = FunctionEvaluator(lambda s, a: float("nan") if a[0] == 3 else toy_error(s, a))
    r = lb.search(
        "moga", space=space, latency=table(space), accuracy=evaluator, objectives=["error", "latency_ms", "-params"],
        limits={"macs": 5e6}, soft_limits={"latency_ms": 0.5}, budget=60, population=12,
    )  # fmt: skip
    measured = Measurement(
        "net1:0", SETTING, {"latency_ms": Interval(1 / 3, 0.3, 0.4)}, {"p50": 1 / 3}, 4, warnings=("w",)
    )
    r.validated = [
        Validated(
            r.front[0].arch, "latency_ms", Interval(0.31, 0.3, 0.32), measured, {"macs": True, "latency_ms": False}
        ),
        Validated(r.front[1].arch, "latency_ms", Interval(0.31, 0.3, 0.32), None, {"macs": True}, "DeviceDiedError: x"),
    ]
    r.warnings = ["something"]
    return r


@pytest.mark.parametrize("name", ["run", "result.json", "deep/er/mine.json"])
def test_a_result_survives_its_files(result: SearchResult, tmp_path: Path, name: str) -> None:
    file = result.save(tmp_path / name)
    back = SearchResult.load(tmp_path / name)
    assert file.is_file()
    assert back.candidates == result.candidates
    assert back.front == result.front
    assert back.problem.objectives == result.problem.objectives
    assert (back.problem.limits, back.problem.soft_limits) == (result.problem.limits, result.problem.soft_limits)
    assert back.problem.space.spec == result.problem.space.spec
    assert back.provenance == result.provenance
    assert back.warnings == ["something"]
    assert [v.to_json() for v in back.validated] == [v.to_json() for v in result.validated]
    assert back.validated[0].measured is not None
    assert back.validated[0].ratio == pytest.approx(0.93)
    assert not back.validated[0].covered
    assert any(c.violation == inf for c in back.candidates)


def test_candidates_are_written_as_parquet_too(result: SearchResult, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    result.save(tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "candidates.parquet").to_pylist()
    assert [tuple(r["arch"]) for r in rows] == [c.arch for c in result.candidates]
    for row, c in zip(rows, result.candidates, strict=True):
        assert row["latency_ms"] == c.values["latency_ms"]
        assert row["error"] == c.values.get("error")
        assert row["violation"] == c.violation
    assert sum(r["front"] for r in rows) == len(result.front)
    assert any(r["failed"] for r in rows)


def test_the_file_is_plain_json_without_infinities(result: SearchResult, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    d = json.loads(result.save(tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert d["schema"] == SCHEMA
    assert d["provenance"]["latency"][""]["setting_hash"] == SETTING.hash


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        d = json.loads(data)
        change(d)
        return json.dumps(d).encode()

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[: len(b) // 2], "truncated"),
        (lambda b: b"", "truncated"),
        (lambda b: b"\xff\xfe" + b, "truncated or not JSON"),
        (lambda b: b"[1, 2]", "not a search result"),
        (edit(lambda d: d.update(schema=SCHEMA + 1)), "newer version.*pip install -U latbench"),
        (edit(lambda d: d["candidates"][3]["values"].update(error=0.0)), "changed after it was written"),
        (edit(lambda d: d.pop("candidates")), "changed after it was written"),
        (edit(lambda d: d.update(format="something else")), "not a search result"),
    ],
)
def test_a_damaged_file_is_refused(
    result: SearchResult, tmp_path: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    file = result.save(tmp_path / "r.json")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FileFormatError, match=says):
        SearchResult.load(file)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"nowhere\.json: no such search result"):
        SearchResult.load(tmp_path / "nowhere.json")


def test_a_result_of_a_space_that_is_no_plugin_needs_the_space(tmp_path: Path) -> None:
    space = ToySpace(3, 3)
    r = lb.search("random", space=space, accuracy=FunctionEvaluator(toy_error), objectives=["error"], budget=5)
    r.save(tmp_path / "r")
    with pytest.raises(ConfigError, match="toy"):
        SearchResult.load(tmp_path / "r")
    with pytest.raises(ConfigError, match="not of"):
        SearchResult.load(tmp_path / "r", space=ToySpace(3, 4))
    assert SearchResult.load(tmp_path / "r", space=space).candidates == r.candidates


def test_hypervolume_over_evaluations_is_that_of_each_prefix(result: SearchResult) -> None:
    from latbench import pareto

    reference = [1.0, 2.0, 0.0]
    course = result.hypervolume(reference)
    for n in (1, 17, 60):
        front = result.problem.front(result.candidates[:n])
        assert course[n - 1] == pytest.approx(pareto.hypervolume(result.problem.matrix(front), reference))


def test_a_pick_along_the_front_holds_its_ends(result: SearchResult) -> None:
    picked = result.pick(4)
    assert len({c.arch for c in picked}) == 4
    assert all(c in result.front for c in picked)
    errors = [c.values["error"] for c in result.front]
    assert np.argmin(errors) == 0
    assert picked[0] == result.front[0]


def test_what_a_searcher_singled_out_is_picked_also_where_others_dominate_it(result: SearchResult) -> None:
    behind = next(c for c in result.candidates if c.feasible and c not in result.front)
    provenance = {**result.provenance, "picks": {"derived": behind.number}}
    picked = replace(result, provenance=provenance).pick(3)
    assert behind in picked
    assert len(picked) == 3
    assert [c.values["error"] for c in picked] == sorted(c.values["error"] for c in picked)
