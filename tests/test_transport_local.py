"""The local transport: work folder, files, commands, streams, and that nothing is left running."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from latbench.devices.local import LocalStream, LocalTransport

from latbench.errors import ConfigError, DeviceTimeoutError, TransportError


@pytest.fixture
def local() -> Iterator[LocalTransport]:
    t = LocalTransport({"kind": "local"}, "test.toml")
    t.open()
    yield t
    t.close()


def alive(pid: int) -> bool:
    """True if a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def test_the_work_folder_is_private_and_gone_after_close(local: LocalTransport) -> None:
    folder = Path(local.workdir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    local.close()
    assert not folder.exists()


def test_files_come_back_as_they_went(local: LocalTransport, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(bytes(range(256)))
    local.put(source, "folder/b")
    local.get("folder/b", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == source.read_bytes()


def test_a_missing_file_is_a_transport_error(local: LocalTransport, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="nothing-here"):
        local.get("nothing-here", tmp_path / "c")


def test_a_command_gives_code_and_output_and_no_shell_reads_its_arguments(local: LocalTransport) -> None:
    done = local.run([sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit(7)", "$(id); echo `id`"])
    assert (done.code, done.stdout) == (7, "$(id); echo `id`\n")


def test_a_command_that_does_not_exist_is_a_transport_error(local: LocalTransport) -> None:
    with pytest.raises(TransportError, match="no-such-command"):
        local.run(["no-such-command"])


def test_a_command_that_takes_too_long_is_killed_with_its_children(local: LocalTransport, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(DeviceTimeoutError, match="killed"):
        local.run(["sh", "-c", f"sleep 600 & echo $! > {pid}; wait"], timeout_s=0.5)
    assert gone(int(pid.read_text()))


def test_lines_are_streamed_both_ways(local: LocalTransport) -> None:
    program = "import sys\nfor l in sys.stdin: print(l.strip()[::-1], flush=True)"
    with local.stream([sys.executable, "-u", "-c", program]) as s:
        lines = s.lines(10)
        for text in ("abc", "é" * 100_000):
            s.send(text)
            assert next(lines) == text[::-1]
        s.end_input()
        assert list(lines) == []
        assert s.close().code == 0


def test_silence_is_a_timeout(local: LocalTransport) -> None:
    with local.stream(["sleep", "600"]) as s, pytest.raises(DeviceTimeoutError, match=r"0\.2 s"):
        next(s.lines(0.2))


def test_bytes_without_an_end_of_line_are_no_answer(local: LocalTransport) -> None:
    with local.stream(["cat", "/dev/zero"]) as s, pytest.raises((DeviceTimeoutError, TransportError)):
        next(s.lines(5))


def test_leaving_a_stream_kills_the_command_and_its_children(local: LocalTransport) -> None:
    with local.stream(["sh", "-c", "sleep 600 & echo $!; wait"]) as s:
        assert isinstance(s, LocalStream)
        child = int(next(s.lines(10)))
    assert gone(s.pid)
    assert gone(child)


def test_a_stream_tells_how_it_ended_and_its_last_words(local: LocalTransport) -> None:
    with local.stream(["sh", "-c", "echo help >&2; exit 5"]) as s:
        assert list(s.lines(10)) == []
        end = s.close()
    assert (end.code, end.stderr) == (5, "help\n")


def test_sending_to_a_command_that_has_ended_is_a_transport_error(local: LocalTransport) -> None:
    with local.stream(["true"]) as s:
        assert list(s.lines(10)) == []
        with pytest.raises(TransportError):
            s.send("x" * 1_000_000)


def test_environment_variables_come_from_the_profile() -> None:
    t = LocalTransport({"kind": "local", "env": {"GREETING": "hello"}}, "test.toml")
    t.open()
    try:
        assert t.run(["sh", "-c", "echo $GREETING"]).stdout == "hello\n"
    finally:
        t.close()


def test_a_wrong_key_is_named_with_file_and_path() -> None:
    with pytest.raises(ConfigError, match=r"test\.toml.*\n.*transport\.enviroment"):
        LocalTransport({"kind": "local", "enviroment": {}}, "test.toml")


def test_a_closed_transport_starts_nothing() -> None:
    with pytest.raises(TransportError, match="not open"):
        LocalTransport({"kind": "local"}, "test.toml").run(["true"])


def test_nothing_but_standard_files_is_inherited(local: LocalTransport) -> None:
    read, write = os.pipe()
    try:
        listing = local.run(["ls", "/proc/self/fd"]).stdout.split()
        assert len(listing) <= 4
    finally:
        os.close(read)
        os.close(write)
