"""What searchers and evaluators do by themselves in a search: it is kept piece by piece, and never done twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from search_support import table, toy_error

import latbench as lb
from latbench.errors import FileFormatError, InfeasibleError
from latbench.evaluators import FunctionEvaluator
from latbench.problem import Candidate
from latbench.result import SearchResult
from latbench.search_driver import replay
from latbench.searcher import Searcher
from latbench.searching import make_searcher
from latbench.space import Arch, SearchSpace
from latbench.store import Store
from latbench.testing.searchers import ToySpace

SPACE = ToySpace(6, 3)
PIECES: list[int] = []


class Trainer(Searcher):
    """Works in five pieces before it is asked, and proposes what its pieces make of it."""

    name = "trainer"
    done = asked = 0
    stop_after = 99

    def advance(self) -> bool:
        if self.done == 5:
            return False
        if self.done == self.stop_after:
            raise KeyboardInterrupt
        self.done += 1
        PIECES.append(self.done)
        self.course.append({"epoch": self.done, "entropy": 1 / self.done})
        return True

    def ask(self, n: int) -> list[Arch]:
        self.asked += 1
        return [tuple((self.done + self.asked) // 3**i % 3 for i in range(6))]

    def tell(self, candidates: Sequence[Candidate]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"done": self.done, "asked": self.asked}

    def restore(self, state: dict[str, Any]) -> None:
        self.done, self.asked = state["done"], state["asked"]


class Shared(FunctionEvaluator):
    """Prepares a file that its answers come from."""

    def __init__(self) -> None:
        super().__init__(toy_error, recipe="shared")
        self.prepared = 0

    def prepare(self, space: SearchSpace, report: Callable[[str], None]) -> None:
        assert self.folder is not None
        if not (self.folder / "weights").exists():
            self.folder.mkdir(parents=True)
            (self.folder / "weights").write_text("trained")
            self.prepared += 1
            report("trained what all evaluations share")


def search(name: str | type[Searcher] = Trainer, **changes: Any) -> SearchResult:
    options = {"space": SPACE, "latency": table(SPACE), "accuracy": Shared(), "budget": 4, "seed": 1, **changes}
    return lb.search(name, **options)


@pytest.fixture(autouse=True)
def _no_pieces() -> None:
    PIECES.clear()


def test_a_searcher_does_its_own_work_before_it_is_asked_and_its_course_is_in_the_result(tmp_path: Path) -> None:
    told: list[str] = []
    r = search(run=tmp_path / "r", report=told.append)
    assert PIECES == [1, 2, 3, 4, 5]
    assert [c.arch[:2] for c in r.candidates[:1]] == [(0, 2)]
    assert r.course == [{"epoch": e, "entropy": 1 / e} for e in range(1, 6)]
    assert SearchResult.load(tmp_path / "r", space=SPACE).course == r.course
    assert told[-1] == "trainer: epoch 5, entropy 0.2"


def test_work_that_was_interrupted_goes_on_after_the_last_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = search(run=tmp_path / "alone")
    PIECES.clear()
    monkeypatch.setattr(Trainer, "stop_after", 3)
    with pytest.raises(KeyboardInterrupt):
        search(run=tmp_path / "r")
    monkeypatch.setattr(Trainer, "stop_after", 99)
    r = search(run=tmp_path / "r")
    assert PIECES == [1, 2, 3, 4, 5]
    assert (r.candidates, r.course) == (alone.candidates, alone.course)


def test_a_replay_does_the_work_too(tmp_path: Path) -> None:
    r = search(store=tmp_path / "s.db")
    with Store.open(tmp_path / "s.db") as store:
        (identity,) = store.searches()
        record = store.load_search(identity)
    again = make_searcher(Trainer, r.problem, 1, {})
    replay(again, record.state["trace"], r.candidates)
    assert again.state() == record.state["searcher"]


def test_an_evaluator_prepares_once_for_all_searches_of_one_store(tmp_path: Path) -> None:
    first, second, elsewhere = Shared(), Shared(), Shared()
    told: list[str] = []
    search("random", store=tmp_path / "s.db", accuracy=first, report=told.append)
    search("moga", store=tmp_path / "s.db", accuracy=second)
    search("random", run=tmp_path / "r", accuracy=elsewhere)
    assert [e.prepared for e in (first, second, elsewhere)] == [1, 0, 1]
    assert told == [
        f"random: up to 4 architectures, judged by {first.recipe}", "trained what all evaluations share"
    ]  # fmt: skip
    assert first.folder == second.folder != elsewhere.folder


def test_a_search_that_goes_on_says_what_is_kept_and_adds_up_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100_000, 100))
    monkeypatch.setattr("latbench.search_driver.time.time", lambda: float(next(clock)))
    first = search("random", run=tmp_path / "r", accuracy=Shared(), budget=4)
    told: list[str] = []
    second = search("random", run=tmp_path / "r", accuracy=Shared(), budget=6, report=told.append)
    assert told[0] == "going on: 4 evaluations are kept"
    assert second.provenance["wall_s"] > first.provenance["wall_s"] >= 100


def test_the_folder_of_a_search_that_has_not_ended_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "stop_after", 2)
    with pytest.raises(KeyboardInterrupt):
        search(run=tmp_path / "r")
    with pytest.raises(FileFormatError, match="the search there has not ended: run its command again, it goes on"):
        SearchResult.load(tmp_path / "r")


def test_epochs_that_are_kept_are_told_when_a_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "stop_after", 3)
    with pytest.raises(KeyboardInterrupt):
        search(run=tmp_path / "r")
    monkeypatch.setattr(Trainer, "stop_after", 99)
    told: list[str] = []
    search(run=tmp_path / "r", report=told.append)
    assert told[0] == "going on: 3 epochs of trainer's own training and 0 evaluations are kept"


def test_a_search_that_finds_nothing_within_its_limits_tells_what_it_looks_at_and_its_folder_says_that_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where no sum over positions proves beforehand that nothing keeps the limits.
    monkeypatch.setattr("latbench.searching.check_feasible", lambda problem: None)
    monkeypatch.setattr("latbench.telling.EVERY_S", 0.0)
    told: list[str] = []
    with pytest.raises(InfeasibleError):
        search("random", run=tmp_path / "r", limits={"latency_ms": 1e-9}, report=told.append)
    assert any(t == "random: looked at 729 architectures for what to evaluate next (there are 729)" for t in told)
    with pytest.raises(FileFormatError, match="ended without a network: no architecture of toy keeps the limits"):
        SearchResult.load(tmp_path / "r")
    search("random", run=tmp_path / "r", limits={"latency_ms": 1e9})
    assert SearchResult.load(tmp_path / "r", space=SPACE).front
