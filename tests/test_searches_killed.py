"""Searches that train or grow by themselves, killed again and again by `kill -9`, end bit-equal to those left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from search_support import table, toy_error

import latbench as lb
from latbench.evaluators import FunctionEvaluator
from latbench.result import SearchResult
from latbench.space import Arch, SearchSpace
from latbench.testing.searchers import ToyOptionalSpace, ToySpace

pytest.importorskip("torch")
pytest.importorskip("sklearn")
# Processes are forked from one that has imported all that takes long.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch", "sklearn.datasets", "latbench.searching", "latbench.training", "latbench.store"])

SEARCHES: dict[str, tuple[Any, dict[str, Any]]] = {
    "proxyless": (lambda: ToySpace(3, 2), {"warmup": 2, "epochs": 6, "batch_size": 100, "budget": 6}),
    "ednas": (
        lambda: lb.load_space("metakernel", resolution=8, width_mult=0.05, num_classes=10, layers=1),
        {"epochs": 5, "tune": 2, "batch_size": 100, "warmup": 1, "budget": 3},
    ),
    "dppnet": (
        lambda: lb.load_space("densecell", cells=[1], growth=[4], resolution=8, num_classes=10, shortest=2),
        {"cells": 6, "steps": 20, "budget": 24},
    ),
    "rcas": (lambda: ToyOptionalSpace(5, 3), {"budget": 60}),
}
#: How many lines each writes at least, so that kills are spread over all of it.
LINES = {"proxyless": 14, "ednas": 10, "dppnet": 26, "rcas": 30}
KILLS = 3


def run(name: str, folder: Path, log: Path) -> None:
    """A search that writes a line of each piece of its own work, and of each architecture that it pays for."""

    def write(line: str) -> None:
        with log.open("a") as f:
            f.write(line + "\n")

    def paid(space: SearchSpace, arch: Arch) -> float:
        write("paid " + ",".join(map(str, arch)))
        time.sleep(0.01)
        return toy_error(space, arch)

    make, options = SEARCHES[name]
    space = make()
    accuracy = FunctionEvaluator(paid, recipe="paid")
    lb.search(name, space=space, latency=table(space), accuracy=accuracy, seed=3, run=folder, report=write, **options)


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_is_killed_again_and_again_ends_bit_equal(name: str, tmp_path: Path) -> None:
    log, rng, kills, each = tmp_path / "log", random.Random(0), 0, LINES[name] // 4
    for attempt in range(KILLS + 1):
        child = FORK.Process(target=run, args=(name, tmp_path / "killed", log))
        child.start()
        goal = len(lines(log)) + (each + rng.randint(-1, 1) if attempt < KILLS else 10_000)
        while child.is_alive() and len(lines(log)) < goal:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    assert child.exitcode == 0
    assert kills == KILLS
    run(name, tmp_path / "alone", tmp_path / "alone.log")
    space = SEARCHES[name][0]()
    killed, alone = (SearchResult.load(tmp_path / where, space=space) for where in ("killed", "alone"))
    assert killed.candidates == alone.candidates
    assert killed.course == alone.course
    assert killed.provenance["picks"] == alone.provenance["picks"]
    paid = Counter(line for line in lines(log) if line.startswith("paid "))
    assert {tuple(map(int, p.split()[1].split(","))) for p in paid} == {c.arch for c in killed.candidates}
    # Twice only what was in flight at a kill.
    assert sum(paid.values()) - len(paid) <= kills
