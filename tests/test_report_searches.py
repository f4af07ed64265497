"""How a search went, on its page, and several searches beside each other."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from search_support import SETTING, table, toy_evaluator
from typer.testing import CliRunner

import latbench as lb
from latbench.cli.app import app
from latbench.errors import FileFormatError
from latbench.problem import Candidate, Objective, Problem
from latbench.report import course, runs
from latbench.result import SearchResult
from latbench.testing.searchers import ToySpace
from latbench.validate import Validated
from latbench.visit import Interval, Measurement

SPACE = ToySpace(6, 4)


def searched(name: str = "moga", **changes: Any) -> SearchResult:
    options: dict[str, Any] = {
        "space": SPACE, "latency": table(SPACE), "accuracy": toy_evaluator("toy"), "budget": 40, "seed": 3, **changes,
    }  # fmt: skip
    return lb.search(name, **options)


class Figures(HTMLParser):
    """The figures of a page."""

    inside = False
    text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = dict(attrs).get("id") == "figures"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def figures(page: Path) -> list[dict[str, Any]]:
    parser = Figures()
    parser.feed(page.read_text("utf-8"))
    return list(json.loads(parser.text).values())


def test_the_hypervolume_never_falls_and_ends_at_the_whole_for_the_best_search() -> None:
    found = {name: searched(name).candidates for name in ("random", "moga")}
    problem = searched().problem
    chart = course.hypervolume_chart(course.hypervolumes(found, problem))
    lines = [trace["y"] for trace in chart["data"]]
    assert [line == sorted(line) for line in lines] == [True, True]
    assert max(line[-1] for line in lines) == 1
    assert min(line[-1] for line in lines) < 1
    assert [trace["x"][-1] for trace in chart["data"]] == [40, 40]


def test_the_movie_of_the_front_ends_with_the_front_and_shows_fewer_before() -> None:
    r = searched(objectives=["error", "latency_ms", "-params"])
    movie = course.front_movie(r.problem, r.candidates, "latency_ms", "error")
    last = movie["frames"][-1]
    assert last["name"] == "40"
    assert set(zip(last["data"][0]["x"], last["data"][0]["y"], strict=True)) <= {
        (c.values["latency_ms"], c.values["error"]) for c in r.front
    }
    assert len(movie["frames"][0]["data"][0]["x"]) < len(last["data"][0]["x"])
    assert [s["args"][0][0] for s in movie["layout"]["sliders"][0]["steps"]] == [f["name"] for f in movie["frames"]]


def test_an_objective_that_is_maximised_is_shown_as_it_is() -> None:
    r = searched(objectives=["error", "-params"])
    movie = course.front_movie(r.problem, r.candidates, "params", "error")
    assert min(movie["frames"][-1]["data"][0]["x"]) > 0


def test_the_course_of_a_searcher_is_drawn_number_by_number_over_its_epochs() -> None:
    rows = [{"epoch": 1, "entropy": 2.0, "loss": 3.0}, {"epoch": 2, "entropy": 1.5}]
    (line,) = course.course_chart(rows, "entropy")["data"]
    assert (line["x"], line["y"]) == ([1, 2], [2.0, 1.5])
    (line,) = course.course_chart(rows, "loss")["data"]
    assert (line["x"], line["y"]) == ([1], [3.0])


def test_searches_of_one_problem_stand_together_and_others_apart(tmp_path: Path) -> None:
    slower = table(SPACE, slow=2)
    found = {
        "a": searched("random"), "b": searched(seed=4), "limited": searched(limits={"latency_ms": 0.045}),
        "other device": searched(latency=slower), "other objectives": searched(objectives=["error", "params"]),
    }  # fmt: skip
    found["other device"].provenance["latency"][""]["setting_hash"] = "another"
    assert [list(g) for g in runs.groups(found)] == [["a", "b"], ["limited"], ["other device"], ["other objectives"]]
    page = runs.write_runs(tmp_path / "page.html", found)
    assert len(figures(page)) == 8
    text = page.read_text("utf-8")
    assert "They answer 4 problems" in text
    assert "they differ in objectives, limits, the device or its Setting, and hypervolumes of different" in text
    shares = [row[5] for row in runs.rows({"a": found["a"], "b": found["b"]})]
    assert "100.0%" in shares
    assert shares != ["100.0%", "100.0%"]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    space = lb.load_space("nasbench201", resolution=8, num_cells=1, channels=4)
    for name in ("random", "moga"):
        searched(name, space=space, latency=table(space), run=tmp_path / name, budget=10)
    return [str(tmp_path / "random"), str(tmp_path / "moga")]


def test_compare_with_runs_prints_a_table_and_writes_the_page(folders: list[str], tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    r = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compare", *folders, "--out", str(page)])
    assert r.exit_code == 0, r.output
    assert "random" in r.output
    assert "moga" in r.output
    assert len(figures(page)) == 2
    r = CliRunner().invoke(app, ["compare", *folders, "--json", "--out", str(page)])
    assert [[row["searcher"] for row in g] for g in json.loads(r.stdout)] == [["random", "moga"]]


def test_compare_says_which_run_is_named_twice_or_is_none(folders: list[str], tmp_path: Path) -> None:
    twice = CliRunner().invoke(app, ["compare", folders[0], folders[0]])
    assert "named twice" in str(twice.exception)
    missing = CliRunner().invoke(app, ["compare", folders[0], str(tmp_path / "none")])
    assert isinstance(missing.exception, FileFormatError)


def test_compare_says_on_the_terminal_which_problem_each_group_answers_and_what_parts_them(tmp_path: Path) -> None:
    space = lb.load_space("nasbench201", resolution=8, num_cells=1, channels=4)
    model = table(space)
    for name, limits in (("free", {}), ("limited", {"latency_ms": 9.0})):
        searched("random", space=space, latency=model, run=tmp_path / name, budget=5, limits=limits)
    r = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["compare", str(tmp_path / "free"), str(tmp_path / "limited"), "--out", str(tmp_path / "p.html")]
    )
    assert "They answer 2 problems, a group each: they differ in limits, and hypervolumes" in r.output
    assert "nasbench201: error, latency_ms, latency_ms ≤ 9" in r.output


@pytest.mark.parametrize(
    "other",
    [{"limit_on": "low"}, {"level": 0.5}, {"limits": {"latency_ms": 8.0}}, {"soft_limits": {"params": 1e4}}],
)
def test_searches_that_keep_limits_in_other_ways_answer_another_problem(other: dict[str, Any]) -> None:
    plain, changed = searched(limits={"latency_ms": 9.0}), searched(**{"limits": {"latency_ms": 9.0}, **other})
    assert len(runs.groups({"a": plain, "b": plain})) == 1
    assert len(runs.groups({"a": plain, "b": changed})) == 2


def test_a_row_counts_kept_limits_only_where_there_are_limits() -> None:
    free, limited = searched(), searched(limits={"latency_ms": 9.0})
    for found in (free, limited):
        arch = found.front[0].arch
        seen = Measurement("n", SETTING, {"latency_ms": Interval(1.0, 0.9, 1.1)}, {}, 2)
        found.validated = [Validated(arch, "latency_ms", Interval(1, 1, 1), seen, {"latency_ms": True})]
    where = runs.COLUMNS.index("keep limits")
    assert runs.rows({"a": free})[0][where] == "–"
    assert runs.rows({"a": limited})[0][where] == "1 of 1"


def test_differences_below_the_noise_floor_and_overlapping_measurements_are_said_in_words() -> None:
    r = searched("random", budget=60)
    values = sorted(c.values["latency_ms"] for c in r.front)
    assert len(values) > 3
    assert r.ties() == []
    r.provenance["noise_floors"] = {"": values[1] / values[0] - 1 + 1e-9}
    floor = r.provenance["noise_floors"][""]
    close = sum(b / a - 1 < floor for a, b in pairwise(values))
    (text,) = r.ties()
    assert f"to the next slower one: {close} of {len(values) - 1}; which of such two is faster cannot be told" in text
    r.provenance["noise_floors"] = {"": 1e-9}
    ends = [(1.0, 0.9, 1.1), (1.15, 1.05, 1.25), (1.5, 1.4, 1.6)]
    r.validated = [
        Validated(
            (i,) * 6, "latency_ms", Interval(1, 1, 1), Measurement("n", SETTING, {"latency_ms": Interval(*e)}, {}, 2)
        )
        for i, e in enumerate(ends)
    ]
    assert r.ties() == ["latency_ms: ties, since their intervals overlap: 0-0-0-0-0-0 and 1-1-1-1-1-1"]


def test_a_pick_says_what_it_is() -> None:
    r = searched("random", budget=5)
    r.provenance |= {"picks": {"device@a": 0, "own": 1}, "pick_words": {"device": "a compromise"}}
    assert r.pick_texts == {"device@a": "device@a (a compromise)", "own": "own"}


def test_architectures_that_are_one_network_are_named_and_not_counted_as_a_tie() -> None:
    space = lb.load_space("nasbench201", resolution=8, num_cells=1, channels=4)
    same, other = [(4, 4, 1, 2, 0, 0), (0, 4, 1, 2, 0, 0)], (3, 3, 3, 3, 3, 3)
    assert space.network(same[0]).key == space.network(same[1]).key
    macs = {a: float(space.network(a).macs) for a in (*same, other)}
    values = [
        *({"error": 0.2, "latency_ms": 1.0, "macs": macs[a]} for a in same),
        {"error": 0.1, "latency_ms": 1.01, "macs": macs[other]},
    ]
    problem = Problem(space, (Objective("error"), Objective("latency_ms")))
    candidates = [Candidate(a, v, number=i) for i, (a, v) in enumerate(zip((*same, other), values, strict=True))]
    r = SearchResult(problem, candidates, {"noise_floors": {"": 0.1}})
    assert r.twins == {same[1]: same[0]}
    alike, tie = r.ties()
    assert alike == "0-4-1-2-0-0 is the same network as 4-4-1-2-0-0"
    assert "to the next slower one: 1 of 1;" in tie
    r.validated = [
        Validated(
            c.arch,
            "latency_ms",
            Interval(1, 1, 1),
            Measurement("n", SETTING, {"latency_ms": Interval(ms, ms - 0.1, ms + 0.1)}, {}, 2),
        )
        for c, ms in zip(candidates, (1.0, 1.0, 5.0), strict=True)
    ]
    assert not any("overlap" in text for text in r.ties())


def test_limits_on_a_device_that_nothing_was_measured_on_are_said_to_be_predicted_only() -> None:
    found = searched(
        latency={"a": table(SPACE), "b": table(SPACE, slow=2)}, limits={"latency_ms@a": 9.0, "latency_ms@b": 9.0}
    )
    assert found.limits_by_prediction() == ["latency_ms@a", "latency_ms@b"]
    assert runs.unchecked({"r": found}) == []
    arch = found.front[0].arch
    seen = Measurement("n", SETTING, {"latency_ms": Interval(1.0, 0.9, 1.1)}, {}, 2)
    kept = {"latency_ms@a": True, "latency_ms@b": True}
    found.validated = [Validated(arch, "latency_ms@a", Interval(1, 1, 1), seen, kept)]
    assert runs.unchecked({"r": found}) == [
        "r: latency_ms@a ≤ 9 was checked by measurement; latency_ms@b ≤ 9 by prediction only, since nothing was "
        "measured there"
    ]
    # A network that was measured on both devices is one, and breaks its limits where either measurement does.
    found.validated.append(Validated(arch, "latency_ms@b", Interval(1, 1, 1), seen, {**kept, "latency_ms@b": False}))
    assert runs.unchecked({"r": found}) == []
    where = runs.COLUMNS.index("keep limits")
    assert runs.rows({"r": found})[0][where] == "0 of 1"
    found.validated.reverse()
    assert runs.rows({"r": found})[0][where] == "0 of 1"
