"""``kill -9`` of a real campaign on this machine at random moments: nothing committed is lost, nothing is done twice.

The judge is the append-only log that the runner on the device writes, not the store. The full ten kills are
``benchmarks/kill_resume.py``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from latbench.store import Store


@pytest.fixture
def kill_resume(monkeypatch: pytest.MonkeyPatch, own_locks: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent))
    return importlib.import_module("benchmarks.kill_resume")


def test_a_campaign_that_is_killed_at_random_moments_loses_nothing_and_does_nothing_twice(
    kill_resume, store_address, tmp_path
):
    log = tmp_path / "runner.log"
    audit = kill_resume.kill_and_resume(store_address, log, kills=3, items=10, seed=1, device="local-cpu")
    assert audit.kills == 3
    assert (audit.lost, audit.changed, audit.unlogged, audit.twice) == (set(), set(), set(), {})
    assert audit.unfilled == 0
    assert audit.campaigns == 1
    assert audit.in_flight <= 2 * audit.kills  # what was in the air, and at most one that the runner then still ended
    with Store.open(store_address) as store:
        assert store.campaigns()[0].slots == {"done": 30}
        assert store.campaigns()[0].state == "finished"


def test_the_audit_notices_what_it_is_there_for(kill_resume, store_address, tmp_path, monkeypatch):
    """Without kills, but with a log and a store that were tampered with."""
    log = tmp_path / "runner.log"
    real = kill_resume.read_log

    def tampered(path: Path):
        entries = real(path)
        jobs = [e for e in entries if e["slot"]]
        # The log says that two Visits were of one slot, and does not know a third.
        return [{**jobs[0], "slot": jobs[1]["slot"]}, *jobs[1:-1], {**jobs[-1], "uid": "never-stored"}]

    monkeypatch.setattr(kill_resume, "read_log", tampered)
    audit = kill_resume.kill_and_resume(store_address, log, kills=0, items=2, seed=0, device="local-cpu")
    assert list(audit.twice.values()) == [2]
    assert audit.in_flight == 1
    assert audit.unlogged
    assert not audit.clean
    assert all(json.loads(line)["uid"] for line in log.read_text().splitlines())
