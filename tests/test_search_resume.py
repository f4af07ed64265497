"""Searches from the front door: what they pay for, how they stop, and that they survive `kill -9`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_support import table, toy_error, toy_evaluator

import latbench as lb
from latbench.errors import ConfigError, InfeasibleError, ModelError, SearchError
from latbench.evaluators import FunctionEvaluator, TabularEvaluator
from latbench.problem import Candidate
from latbench.result import SearchResult
from latbench.search_driver import replay
from latbench.searcher import Searcher
from latbench.searching import make_searcher
from latbench.space import Arch
from latbench.store import Store
from latbench.testing.searchers import ToySpace

SPACE = ToySpace(8, 4)


def run(name: str | type[Searcher] = "moga", **changes: Any) -> SearchResult:
    options: dict[str, Any] = {
        "space": SPACE, "latency": table(SPACE), "accuracy": toy_evaluator(), "budget": 40, "seed": 3, **changes,
    }  # fmt: skip
    return lb.search(name, **options)


class Counting(FunctionEvaluator):
    """Counts what it is asked for."""

    def __init__(self, recipe: str | None = "counting") -> None:
        super().__init__(self.count, recipe=recipe)
        self.calls: list[Arch] = []

    def count(self, space: lb.SearchSpace, arch: Arch) -> float:
        self.calls.append(arch)
        return toy_error(space, arch)


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "moga"])
def test_a_search_spends_its_budget_and_gives_a_front(name: str) -> None:
    r = run(name, objectives=["error", "latency_ms", "-params"], limits={"latency_ms": 0.045})
    assert [c.number for c in r.candidates] == list(range(40))
    assert r.front
    assert all(c.values["latency_high_ms"] <= 0.045 for c in r.front)
    volumes = r.hypervolume([1, 1, 0])
    assert volumes == sorted(volumes)
    assert volumes[-1] > volumes[0] > 0


def test_the_same_seed_gives_the_same_candidates() -> None:
    assert run().candidates == run().candidates
    assert run().candidates != run(seed=4).candidates


def test_provenance_names_searcher_model_setting_and_recipe() -> None:
    p = run(accuracy=Counting(), population=8).provenance
    model = table(SPACE)
    assert (p["searcher"], p["seed"], p["budget"], p["options"]) == ("moga", 3, 40, {"population": 8})
    assert p["recipe"] == "counting"
    assert p["latency"][""]["setting_hash"] == model.setting.hash
    assert p["latency"][""]["card"] == model.card.to_json()["checksum"]
    assert p["evaluations"] == {"paid": 40, "from_store": 0, "resumed": 0}


def test_a_space_smaller_than_the_budget_is_searched_through() -> None:
    small = ToySpace(3, 3)
    r = run(space=small, latency=table(small), budget=100)
    assert len({c.arch for c in r.candidates}) == len(r.candidates) == 27


def test_without_an_evaluator_a_search_is_over_what_is_known_for_free() -> None:
    r = run(accuracy=None, objectives=["latency_ms", "-macs"])
    assert len(r.candidates) == 40
    assert r.provenance["evaluations"]["paid"] == 0


def test_progress_is_told_after_every_evaluation() -> None:
    seen: list[tuple[int, int]] = []
    run(progress=lambda p: seen.append((p.done, p.budget)))
    assert seen == [(i, 40) for i in range(1, 41)]


def test_infeasible_limits_are_an_error_before_anything_is_evaluated() -> None:
    evaluator = Counting()
    with pytest.raises(InfeasibleError, match="cheapest"):
        run(accuracy=evaluator, limits={"latency_ms": 1e-6})
    assert not evaluator.calls


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "red"}, "has no option colour; its options: population"),
        ({"budget": 0}, "budget"),
        ({"budget": 2.5}, "budget"),
        ({"workers": 0}, "workers"),
        ({"limit_on": "middle"}, "limit_on is one of high, value, low"),
        ({"latency": {}}, "empty mapping"),
        ({"weights": ["much", 1]}, "moga: weights"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=says):
        run(**changes)


def test_an_unknown_searcher_is_named_beside_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no searcher named 'annealing'; known: .*moga, .*random"):
        run("annealing")


class Plugin(Searcher):
    """Proposes whatever it is made to."""

    name = "plugin"
    proposals: Sequence[Any] = ()

    def ask(self, n: int) -> list[Arch]:
        return list(self.proposals)

    def tell(self, candidates: Sequence[Candidate]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize(
    ("proposals", "says"),
    [
        ([(0,) * 7], "'plugin' proposed an architecture that does not exist: toy has 8 positions"),
        ([(0,) * 7 + (9,)], "position 7 has choices 0–3; got 9"),
        (["x"], "does not exist"),
        ([(0,) * 8, (1,) * 8], "was asked for 1 architectures and proposed 2"),
    ],
)
def test_a_plugin_that_proposes_nonsense_is_named(proposals: Sequence[Any], says: str) -> None:
    cls = type("Nonsense", (Plugin,), {"proposals": proposals})
    with pytest.raises(SearchError, match=says):
        run(cls)


def test_a_plugin_that_repeats_itself_for_ever_is_stopped() -> None:
    cls = type("Stuck", (Plugin,), {"proposals": [(0,) * 8]})
    r = run(cls)
    assert len(r.candidates) == 1
    assert "proposed nothing that could be evaluated" in r.warnings[0]


def test_a_plugin_that_only_breaks_limits_is_stopped_and_costs_nothing() -> None:
    class Breaker(Plugin):
        count = 0

        def ask(self, n: int) -> list[Arch]:
            self.count += 1
            return [(3, 3, 3, *(int(c) for c in f"{self.count % 4}{self.count // 4 % 4}{self.count // 16 % 4}"), 3, 3)]

    evaluator = Counting()
    r = run(Breaker, accuracy=evaluator, limits={"latency_ms": 0.021})
    assert not evaluator.calls
    assert r.warnings
    assert r.front == []
    assert all(not c.evaluated and not c.feasible for c in r.candidates)


# -- evaluations that fail --------------------------------------------------------------------------------------------


def test_an_evaluation_that_gives_nan_is_a_failed_candidate_and_the_search_goes_on() -> None:
    r = run(accuracy=FunctionEvaluator(lambda s, a: nan if a[0] == 0 else toy_error(s, a)))
    failed = [c for c in r.candidates if c.arch[0] == 0]
    assert failed
    assert len(r.candidates) == 40
    assert all(c.info["failed"] == "error is nan" and not c.feasible for c in failed)
    assert not any(c.arch[0] == 0 for c in r.front)


def test_a_network_that_cannot_be_built_is_a_failed_candidate() -> None:
    def broken(space: lb.SearchSpace, arch: Arch) -> float:
        if arch[1] == 2:
            raise ModelError("layer 3: no such thing")
        return toy_error(space, arch)

    r = run(accuracy=FunctionEvaluator(broken))
    failed = [c for c in r.candidates if c.arch[1] == 2]
    assert failed
    assert all(c.info["failed"] == "ModelError: layer 3: no such thing" for c in failed)


def test_too_many_failures_in_a_row_end_the_search() -> None:
    evaluator = FunctionEvaluator(lambda s, a: nan)
    with pytest.raises(SearchError, match="5 evaluations failed in a row, the last one: error is nan"):
        run(accuracy=evaluator, max_failures=5)


@pytest.mark.parametrize(
    ("answer", "says"),
    [(7.3, "errors are fractions"), ({"loss": 0.1}, "gave no error"), (-0.1, "errors are fractions")],
)
def test_an_evaluator_that_answers_nonsense_is_named(answer: Any, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        run(accuracy=FunctionEvaluator(lambda s, a: answer, recipe="mine"))


# -- stores -----------------------------------------------------------------------------------------------------------


def test_evaluations_are_paid_for_once_in_a_store(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    one = run(accuracy=first, store=tmp_path / "s.db")
    two = run("random", accuracy=second, store=tmp_path / "s.db", budget=60)
    assert len(first.calls) == 40
    assert not set(first.calls) & set(second.calls)
    again = run(accuracy=second, store=tmp_path / "s.db", resume=False)
    assert again.candidates == one.candidates
    assert len(second.calls) == two.provenance["evaluations"]["paid"]


def test_the_same_call_gives_the_same_result_without_paying_again(tmp_path: Path) -> None:
    one = run(accuracy=Counting(), run=tmp_path / "r")
    evaluator = Counting()
    two = run(accuracy=evaluator, run=tmp_path / "r")
    assert not evaluator.calls
    assert two.candidates == one.candidates
    assert two.provenance["evaluations"]["resumed"] == 40
    assert SearchResult.load(tmp_path / "r", space=SPACE).candidates == one.candidates


def test_a_larger_budget_goes_on_and_a_smaller_one_looks_back(tmp_path: Path) -> None:
    one = run(accuracy=Counting(), run=tmp_path / "r", population=10)
    more = Counting()
    two = run(accuracy=more, run=tmp_path / "r", population=10, budget=60)
    assert len(more.calls) == 20
    assert two.candidates[:40] == one.candidates
    assert two.candidates == run(accuracy=Counting(), population=10, budget=60).candidates
    assert run(accuracy=Counting(), run=tmp_path / "r", population=10, budget=25).candidates == one.candidates[:25]
    assert run(accuracy=Counting(), run=tmp_path / "r", population=10, budget=60).candidates == two.candidates


def test_a_recipe_of_another_name_is_paid_for(tmp_path: Path) -> None:
    run(accuracy=Counting("a"), store=tmp_path / "s.db")
    other = Counting("b")
    run(accuracy=other, store=tmp_path / "s.db")
    assert len(other.calls) == 40


def test_a_function_without_a_recipe_is_never_taken_for_another_one(tmp_path: Path) -> None:
    run(accuracy=FunctionEvaluator(lambda s, a: 0.1), run=tmp_path / "r", budget=5)
    again = run(accuracy=FunctionEvaluator(lambda s, a: 0.9), run=tmp_path / "r", budget=5)
    assert {c.values["error"] for c in again.candidates} == {0.9}
    assert again.provenance["evaluations"]["resumed"] == 0


def test_a_table_of_other_errors_is_another_recipe(tmp_path: Path) -> None:
    small = ToySpace(3, 3)
    archs = [tuple(int(i) for i in a) for a in np.ndindex(3, 3, 3)]
    low, high = (TabularEvaluator(dict.fromkeys(archs, e)) for e in (0.1, 0.9))
    run(space=small, latency=table(small), accuracy=low, run=tmp_path / "r", budget=5)
    again = run(space=small, latency=table(small), accuracy=high, run=tmp_path / "r", budget=5)
    assert {c.values["error"] for c in again.candidates} == {0.9}
    assert TabularEvaluator(dict.fromkeys(reversed(archs), 0.1)).recipe == low.recipe


def test_failures_are_not_paid_for_twice(tmp_path: Path) -> None:
    calls: list[Arch] = []

    def diverge(space: lb.SearchSpace, arch: Arch) -> float:
        calls.append(arch)
        return nan if arch[0] < 2 else toy_error(space, arch)

    for _ in range(2):
        r = run(accuracy=FunctionEvaluator(diverge, recipe="diverging"), store=tmp_path / "s.db", resume=False)
    assert max(Counter(calls).values()) == 1
    assert [c for c in r.candidates if c.info.get("failed") == "error is nan"]


def test_two_processes_cannot_run_one_search(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(space: lb.SearchSpace, arch: Arch) -> float:
        inside.set()
        leave.wait(30)
        return toy_error(space, arch)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, accuracy=FunctionEvaluator(slow, recipe="slow"), run=tmp_path / "r", budget=2)
        inside.wait(30)
        try:
            with pytest.raises(SearchError, match="is being run by"):
                run(accuracy=FunctionEvaluator(slow, recipe="slow"), run=tmp_path / "r", budget=2)
        finally:
            leave.set()
        assert len(first.result().candidates) == 2


def test_a_resumed_searcher_is_restored_and_not_asked_again(tmp_path: Path) -> None:
    class Counter(Plugin):
        """Proposes architectures by number, and never looks at what it is told."""

        name = "counter"
        number = 0

        def ask(self, n: int) -> list[Arch]:
            self.number += 1
            return [tuple(self.number // 4**i % 4 for i in range(8))]

        def state(self) -> dict[str, Any]:
            return {"number": self.number}

        def restore(self, state: dict[str, Any]) -> None:
            restored.append(state["number"])
            self.number = state["number"]

    restored: list[int] = []
    run(Counter, run=tmp_path / "r", budget=10)
    r = run(Counter, run=tmp_path / "r", budget=15)
    assert restored == [10]
    assert len({c.arch for c in r.candidates}) == 15


def test_a_searcher_keeps_its_files_in_a_folder_of_its_own_that_may_move(tmp_path: Path) -> None:
    class Diary(Plugin):
        """Counts in a file, and only names it in its state."""

        name = "diary"
        number = 0

        def ask(self, n: int) -> list[Arch]:
            self.number += 1
            return [tuple(self.number // 4**i % 4 for i in range(8))]

        def state(self) -> dict[str, Any]:
            assert self.folder is not None
            (self.folder / f"{self.number}.txt").write_text(str(self.number))
            return {"file": f"{self.number}.txt"}

        def restore(self, state: dict[str, Any]) -> None:
            assert self.folder is not None
            self.number = int((self.folder / state["file"]).read_text())

    alone = run(Diary, store=tmp_path / "s.db", budget=15)
    run(Diary, run=tmp_path / "before", budget=10)
    (tmp_path / "before").rename(tmp_path / "after")
    assert run(Diary, run=tmp_path / "after", budget=15).candidates == alone.candidates
    run(Diary, run=tmp_path / "after", budget=12, seed=9)
    folders = {p.parent for p in tmp_path.rglob("*.txt")}
    assert len(folders) == 3
    assert len({f.name for f in folders}) == 2


# -- many workers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "moga"])
def test_many_workers_evaluate_each_architecture_once(name: str) -> None:
    evaluator = Counting()
    r = run(name, accuracy=evaluator, workers=4)
    assert len(evaluator.calls) == len(set(evaluator.calls)) == len(r.candidates) == 40


@pytest.mark.parametrize(
    ("name", "options"), [("random", {}), ("moga", {"population": 9, "limits": {"latency_ms": 0.045}})]
)
def test_the_candidates_do_not_depend_on_how_many_workers_there_are_or_who_is_fast(
    name: str, options: dict[str, Any]
) -> None:
    pause = random.Random(0)

    def dawdle(space: lb.SearchSpace, arch: Arch) -> float:
        time.sleep(pause.random() * 4e-3)
        # Failures take their turn, too.
        return nan if arch[:2] == (0, 0) else toy_error(space, arch)

    alone, *others = (run(name, accuracy=FunctionEvaluator(dawdle), workers=n, **options) for n in (1, 2, 3, 3))
    assert len(alone.candidates) >= 40
    assert all(other.candidates == alone.candidates for other in others)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_state_is_not_written_after_every_answer_that_cost_nothing(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = Store.save_search

    def slow(self: Store, *args: Any, **values: Any) -> None:
        saved.append(len(values["candidates"]))
        time.sleep(0.05)
        save(self, *args, **values)

    monkeypatch.setattr(Store, "save_search", slow)
    run("moga", population=4, budget=40, workers=workers, store=tmp_path / "s.db")
    # Of ten generations in the time of one write, the first and the last.
    assert saved[-1] == 40
    assert len(saved) < 5


def test_workers_are_busy_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)

    def meet(space: lb.SearchSpace, arch: Arch) -> float:
        together.wait()
        return toy_error(space, arch)

    with ThreadPoolExecutor(3) as pool:
        assert len(run(accuracy=FunctionEvaluator(meet), executor=pool, workers=3, budget=9).candidates) == 9


def test_a_stopped_search_with_many_workers_goes_on_with_what_was_out(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    calls: list[Arch] = []

    def stop_later(space: lb.SearchSpace, arch: Arch) -> float:
        calls.append(arch)
        if len(calls) == 17:
            raise StopError
        return toy_error(space, arch)

    with pytest.raises(StopError):
        run(accuracy=FunctionEvaluator(stop_later, recipe="x"), run=tmp_path / "r", workers=3)
    before = len(calls)
    r = run(accuracy=FunctionEvaluator(stop_later, recipe="x"), run=tmp_path / "r", workers=3)
    assert len(r.candidates) == len({c.arch for c in r.candidates}) == 40
    # Only what was in flight when it stopped is asked for again.
    assert len(calls) - len(set(calls)) <= 3
    assert before < len(calls)


@pytest.mark.parametrize("name", ["evolution", "local", "surrogate"])
def test_an_asynchronous_search_is_replayed_by_the_order_of_its_answers(name: str, tmp_path: Path) -> None:
    pause = random.Random(0)
    evaluator = Counting()
    count = evaluator.function

    def dawdle(space: lb.SearchSpace, arch: Arch) -> Any:
        time.sleep(pause.random() * 4e-3)
        return count(space, arch)

    evaluator.function = dawdle
    r = run(name, accuracy=evaluator, workers=3, budget=30, store=tmp_path / "s.db")
    assert len(evaluator.calls) == len(set(evaluator.calls)) == len(r.candidates) == 30
    with Store.open(tmp_path / "s.db") as store:
        record = store.load_search(store.searches()[0])
    again = make_searcher(name, r.problem, 3, {})
    replay(again, record.state["trace"], record.candidates)
    assert again.state() == record.state["searcher"]


def test_an_asynchronous_searcher_does_not_wait_for_the_slowest() -> None:
    # The first evaluation ends only when six others have: a batch of any two would wait for ever.
    others, first = threading.Semaphore(0), threading.Lock()

    def stuck(space: lb.SearchSpace, arch: Arch) -> float:
        if first.acquire(blocking=False):
            assert all(others.acquire(timeout=30) for _ in range(6))
        else:
            others.release()
        return toy_error(space, arch)

    assert len(run("evolution", accuracy=FunctionEvaluator(stuck), workers=2, budget=10).candidates) == 10


# -- kill -9 ----------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys, time
import latbench as lb
from latbench.evaluators import FunctionEvaluator, TabularEvaluator
sys.path.insert(0, {tests!r})
from search_support import table, toy_error
from latbench.testing.searchers import ToySpace

def paid(space, arch):
    fd = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (",".join(map(str, arch)) + "\\n").encode())
    os.close(fd)
    time.sleep(0.01)
    return toy_error(space, arch)

space = ToySpace(8, 4)
lb.search({name!r}, space=space, latency=table(space), accuracy=FunctionEvaluator(paid, recipe="paid"),
          budget=60, seed=3, run={run!r}, **{options!r})
"""


KILLED: list[tuple[str, dict[str, Any]]] = [
    ("moga", {"population": 10}), ("random", {}), ("evolution", {}), ("local", {}), ("surrogate", {"batch": 15}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), KILLED)
def test_a_search_that_is_killed_again_and_again_ends_bit_equal(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    log, folder = tmp_path / "paid.log", tmp_path / "run"
    code = CHILD.format(
        tests=str(Path(__file__).parent), log=str(log), name=name, run=str(folder), options=options
    )  # fmt: skip
    rng, kills = random.Random(0), 0
    for _ in range(30):
        child = subprocess.Popen([sys.executable, "-c", code])
        # Let it pay for a few before it is killed at a random moment.
        start = log.read_bytes().count(b"\n") if log.exists() else 0
        goal = start + rng.randint(5, 25)
        while child.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < goal):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.02)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        if child.returncode == 0:
            break
    assert child.returncode == 0
    assert kills >= 2
    resumed = SearchResult.load(folder, space=SPACE)
    uninterrupted = run(name, accuracy=toy_evaluator("paid"), budget=60, **options)
    assert resumed.candidates == uninterrupted.candidates
    assert resumed.front == uninterrupted.front
    paid = Counter(log.read_text().split())
    assert {tuple(map(int, a.split(","))) for a in paid} == {c.arch for c in resumed.candidates}
    # Twice only what was in flight at a kill.
    assert sum(paid.values()) - len(paid) <= kills
