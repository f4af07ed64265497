"""Fixtures of the lab: real servers on loopback, and stores on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import postgres as pg


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[pg.PostgresServer]:
    """One PostgreSQL server for the whole session; skips where none is installed."""
    if why := pg.why_not():
        pytest.skip(why)
    with pg.PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.lab)])
def store_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that does not exist yet: once in SQLite, once in PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'lab.db'}"
    server: pg.PostgresServer = request.getfixturevalue("postgres_server")
    return server.database()


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Host-wide locks of this test alone, so that it may use a device that is being measured by others."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setenv("LATBENCH_LOCK_FOLDER", str(folder))
    return folder
