"""``latbench search`` and what follows it, as a user meets them: this machine's table, the digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cli_support import QUICK

from latbench.cli import main
from latbench.result import SearchResult

CELLS = ["--space", "nasbench201", "--resolution", "8", "--set", "num_cells=1", "--set", "channels=4"]
DENSE = ["--space", "densecell", "--resolution", "8", "--set", "shortest=2", "--set", "layers=3",
         "--set", "cells=[2,2]", "--set", "growth=[4,8]"]  # fmt: skip
KERNELS = ["--space", "metakernel", "--resolution", "16", "--width-mult", "0.25", "--set", "num_classes=10",
           "--set", "layers=2"]  # fmt: skip
#: Space, budget and options of each searcher. One that is added to the entry points needs a row.
SEARCHES: dict[str, tuple[list[str], int, list[str]]] = {
    "random": (CELLS, 4, []),
    "moga": (CELLS, 6, ["--option", "population=4"]),
    "evolution": (CELLS, 4, []),
    "local": (CELLS, 4, []),
    "surrogate": (CELLS, 6, []),
    "rcas": (CELLS, 6, []),
    "proxyless": (CELLS, 2, ["--option", "warmup=1", "--option", "epochs=1"]),
    "dppnet": (DENSE, 6, ["--option", "cells=2", "--option", "steps=2"]),
    "ednas": (KERNELS, 2, ["--option", "epochs=1", "--option", "tune=1", "--option", "warmup=0"]),
}
SEARCHERS = sorted(e.name for e in entry_points(group="latbench.searchers") if e.value.startswith("latbench."))


def call(*args: str) -> None:
    code: object = 0
    try:
        main(list(args))
    except SystemExit as e:
        code = e.code
    assert not code, args


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with this machine's measurements, a table for each space that was asked for, and locks of its own."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LATBENCH_LOCK_FOLDER", str(folder))
        patch.setenv("COLUMNS", "200")
        for name in ("LATBENCH_STORE", "LATBENCH_MODELS"):
            patch.delenv(name, raising=False)
        yield folder


def tabled(lab: Path, space: list[str]) -> None:
    """Measure and fit a space's table, once."""
    if not any((lab / "latbench-models").glob(f"*/{space[1]}-table-*")):
        plan = ["--networks", "5", "--validation", "1", "--level", "block", *QUICK]
        call("profile", *space, *plan)
        call("fit", "table", *space)


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_each_searcher_ends_in_a_measured_network_and_a_page(
    searcher: str, lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    assert searcher in SEARCHES, "a new searcher needs a row in SEARCHES"
    space, budget, options = SEARCHES[searcher]
    tabled(lab, space)
    asked = ["--accuracy", "digits", "--accuracy-set", "epochs=1"]
    asked += ["--objective", "val_loss", "--objective", "latency_ms"]
    capsys.readouterr()
    call("search", searcher, *space, *asked, "--budget", str(budget), *options, "--run", searcher)
    out, err = capsys.readouterr()
    found = SearchResult.load(searcher)
    assert sum(c.evaluated for c in found.candidates) == budget
    assert all(f"{text}: " in out and text.endswith(")") for text in found.pick_texts.values())
    assert f"{searcher}: up to {budget} architectures, judged by digits-1 epochs=1" in err
    call("validate", searcher, "--top", "1", *QUICK)
    out, _ = capsys.readouterr()
    assert "test error" in out
    (validated,) = SearchResult.load(searcher).validated
    assert validated.measured is not None
    assert validated.measured.latency_ms > 0
    assert validated.test_error is not None
    call("report", searcher, "--no-check")
    page = (lab / searcher / "report.html").read_text("utf-8")
    assert 'class="diagram"' in page
    assert f"{searcher} evaluated {budget} networks" in page


def test_every_row_is_a_searcher() -> None:
    assert sorted(SEARCHES) == SEARCHERS


def test_a_search_that_is_stopped_does_not_wait_for_the_trainings_of_its_threads(lab: Path) -> None:
    pytest.importorskip("torch")
    tabled(lab, CELLS)
    hours = ["--accuracy", "digits", "--accuracy-set", "epochs=1000000", "--workers", "2", "--run", "stopped"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from latbench.cli import main; main()", "search", "random", *CELLS, *hours],
        cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (lab / "stopped" / "search.db").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)  # the trainings have begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "every evaluation and every finished epoch so far is kept" in err
    assert "Traceback" not in err


def test_a_limit_may_be_on_one_device_whose_name_has_a_hyphen(lab: Path) -> None:
    tabled(lab, CELLS)
    limits = {"latency_ms@local-cpu": 1000.0, "latency_ms@tda2x-decompose": 100.0}
    devices = ["--device", "local-cpu", "--device", "tda2x-decompose"]
    given = [x for name, most in limits.items() for x in ("--limit", f"{name}={most:g}")]
    call("search", "random", *CELLS, *devices, *given, "--accuracy", "none", "--objective", "latency_ms",
         "--budget", "2", "--run", "hyphens")  # fmt: skip
    assert SearchResult.load(lab / "hyphens").problem.limits == limits
