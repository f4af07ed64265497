"""Opening the database behind a store: addresses, connections, transactions and the schema's version.

SQLite runs in WAL mode with ``synchronous=FULL``, so that a power cut loses nothing that was committed. Transactions
that write take the write lock at once (``BEGIN IMMEDIATE``): one that began by reading could otherwise be refused it
half-way. A file that may not be written, or whose folder may not, is opened for reading.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from latbench.errors import NotInstalledError, StoreError
from latbench.store.schema import REVISIONS, VERSION_TABLE, metadata

#: How long a transaction waits for the write lock of another process, seconds.
BUSY_TIMEOUT_S = 60.0


def parse_address(address: str | Path) -> URL:
    """The URL of a store: ``sqlite:///path``, ``postgresql://…`` (through psycopg 3), or a plain path for SQLite."""
    if isinstance(address, Path) or "://" not in address:
        if not str(address) or str(address) == ":memory:":
            raise StoreError("a store needs a file, e.g. latbench.db: campaigns share it between processes")
        return URL.create("sqlite", database=str(address))
    try:
        url = make_url(address)
    except ArgumentError as e:
        raise StoreError(f"not the address of a store: {address!r}: {e}") from e
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise StoreError(
        f"a store is sqlite:///path, postgresql://user@host/database or a plain path, not {url.render_as_string()!r}"
    )


def connect(url: URL) -> Engine:
    """An engine for a store's URL. Raises :class:`NotInstalledError`, :class:`StoreError`."""
    if url.get_backend_name() == "sqlite":
        folder = Path(url.database or "").absolute().parent
        if not folder.is_dir():
            raise StoreError(f"{url.database}: there is no folder {folder}")
        file = Path(url.database or "").absolute()
        if file.is_file() and not _writable(file):
            # In WAL mode even reading writes beside the file, unless SQLite is told that nobody changes it.
            wal = file.with_name(f"{file.name}-wal")
            if wal.is_file() and wal.stat().st_size:
                raise StoreError(f"{file}: may not be written, and {wal.name} holds what was not merged into it yet")
            query = {"mode": "ro", "immutable": "1", "uri": "true"}
            engine = create_engine(URL.create("sqlite", database=f"file:{quote(str(file))}", query=query))
            event.listen(engine, "connect", _sqlite_connect_read_only)
        else:
            engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
            event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
        return engine
    try:
        return create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as e:
        raise NotInstalledError(e.name or "psycopg", "pip install 'latbench[postgres]'", "PostgreSQL stores") from e


def _sqlite_connect(connection: sqlite3.Connection, record: Any) -> None:
    # The driver's own transaction handling would commit behind our back; BEGIN is ours (_sqlite_begin).
    connection.isolation_level = None
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as e:
            # Entering WAL mode needs the file alone and does not wait for it, whatever the busy timeout.
            if "locked" not in str(e) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _sqlite_connect_read_only(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None


def _writable(file: Path) -> bool:
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)


def _sqlite_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class Database:
    """An open database: read and write transactions whose errors are :class:`StoreError` s."""

    def __init__(self, address: str | Path) -> None:
        url = parse_address(address)
        #: The store's address without its password.
        self.address = (url.database or "") if url.get_backend_name() == "sqlite" else url.render_as_string()
        self._reader = connect(url)
        self._writer = self._reader.execution_options(write=True)
        self._open = True
        try:
            _bring_up_to_date(self)
        except BaseException:
            self.close()
            raise

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._reader.dialect.name

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that reads one consistent state."""
        with self._transaction(self._reader) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: all of it is on disk when the block ends, or none of it."""
        with self._transaction(self._writer) as connection:
            yield connection

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        if not self._open:
            raise StoreError(f"{self.address}: the store is closed")
        try:
            with engine.begin() as connection:
                yield connection
        except IntegrityError as e:
            raise StoreError(f"{self.address}: refused, it would contradict what is stored: {e.orig}") from e
        except SQLAlchemyError as e:
            raise StoreError(f"{self.address}: {getattr(e, 'orig', None) or e}") from e

    def now(self, connection: Connection) -> float:
        """Unix time on the database's clock, which all hosts that share it agree on."""
        if self.dialect == "sqlite":
            return time.time()
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def close(self) -> None:
        """Close all connections. May be called twice."""
        self._open = False
        self._reader.dispose()


def revision(db: Database, connection: Connection) -> str | None:
    """The schema's revision, None for an empty database.

    Raises :class:`StoreError` for a newer one and for a database that belongs to something else.
    """
    tables = set(inspect(connection).get_table_names())
    if VERSION_TABLE in tables:
        found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        if found is None or found in REVISIONS:
            return found
        raise StoreError(
            f"{db.address}: written by a newer latbench (schema {found}; this version knows up to {REVISIONS[-1]}); "
            "update latbench"
        )
    if foreign := sorted(tables & set(metadata.tables)) or (sorted(tables) if db.dialect == "sqlite" else []):
        raise StoreError(f"{db.address}: a database of something else (it has tables {', '.join(foreign[:5])})")
    return None


def _bring_up_to_date(db: Database) -> None:
    with db.read() as connection:
        if revision(db, connection) == REVISIONS[-1]:
            return
    from latbench.store.migrations import upgrade

    with db.write() as connection:
        if db.dialect == "postgresql":
            # Two hosts that open a new store at once: the second waits, and finds it made.
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('latbench migration'))"))
        if revision(db, connection) != REVISIONS[-1]:
            upgrade(connection)
