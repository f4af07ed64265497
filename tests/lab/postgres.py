"""A private PostgreSQL server for the tests: Debian's programs, a fresh cluster in a temporary folder, loopback only.

The server refuses to run as root: it then runs as the user ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest


def programs() -> Path | None:
    """The folder of the newest installed server's programs."""
    found = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb).resolve().parent]
    return max(found, key=lambda p: [int(x) for x in p.parent.name.split(".") if x.isdigit()], default=None)


def why_not() -> str:
    """Why there can be no server here, or ''."""
    if programs() is None:
        return "PostgreSQL's server is not installed (tests/lab/install.sh installs it)"
    if os.geteuid() == 0 and (_user() is None or shutil.which("setpriv") is None):
        return "PostgreSQL refuses to run as root, and there is no user postgres or nobody, or no setpriv"
    return ""


def _user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


class PostgresServer:
    """A running server. Use it as a context manager; :meth:`database` makes a fresh database and gives its URL."""

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="latbench-pg-", dir="/tmp"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = _user()
            assert user is not None
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        data, self._log = self._folder / "data", self._folder / "log"
        self.password = secrets.token_hex(8)
        secret = self._folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._run("initdb", "-D", str(data), "-U", "latbench", "-A", "scram-sha-256", "--pwfile", str(secret), "-N")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        # fsync is off for speed: these tests kill clients, not the machine.
        options = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self._folder, "fsync": "off",
            "max_connections": 60, "shared_buffers": "16MB",
        }  # fmt: skip
        argv = [*self._as, str(_program("postgres")), "-D", str(data)]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._folder)
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _run(self, program: str, *arguments: str) -> None:
        argv = [*self._as, str(_program(program)), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=self._folder, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")

    def url(self, database: str) -> str:
        """Address of a database."""
        return f"postgresql://latbench:{self.password}@127.0.0.1:{self.port}/{database}"

    def _wait(self) -> None:
        import psycopg

        give_up = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"the server did not start:\n{self._log.read_text()}") from None
                time.sleep(0.05)

    def database(self) -> str:
        """The URL of a fresh, empty database."""
        import psycopg

        name = f"t{secrets.token_hex(6)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(2)  # fast shutdown
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _program(name: str) -> Path:
    folder = programs()
    if folder is None:
        pytest.skip(why_not())
    return folder / name
