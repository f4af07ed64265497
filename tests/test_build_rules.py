"""On a build machine nothing that must run may skip: the rule of conftest.py, tried on small suites of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

SUITE = """
import pytest

@pytest.mark.lab
def test_lab():
    pytest.skip("no server here")

@pytest.mark.data
def test_data():
    pytest.skip("no data here")

@pytest.mark.gpu
def test_gpu():
    pytest.skip("no GPU here")

@pytest.mark.lab
@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise AssertionError
"""


def outcomes(folder: Path, suite: str, **env: str) -> tuple[int, str]:
    (folder / "test_suite.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", str(TESTS.parent / "pyproject.toml")]
    command += ["--rootdir", str(folder), "-rsf", "-q", "-p", "no:cacheprovider", str(folder / "test_suite.py")]
    clean = {k: v for k, v in os.environ.items() if k not in ("CI", "LATBENCH_DATA")}
    path = os.pathsep.join([str(TESTS), *filter(None, [clean.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=folder, env={**clean, "PYTHONPATH": path, **env}, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def test_elsewhere_skips_are_skips(tmp_path: Path) -> None:
    code, out = outcomes(tmp_path, SUITE)
    assert code == 0, out
    assert "3 skipped" in out
    assert "1 xfailed" in out


@pytest.mark.parametrize(("data", "failed"), [(True, 2), (False, 1)])
def test_a_skipped_lab_test_fails_a_build_and_a_data_test_where_the_data_are(
    tmp_path: Path, data: bool, failed: int
) -> None:
    folder = tmp_path / "data"
    if data:
        folder.mkdir()
    code, out = outcomes(tmp_path, SUITE, CI="true", LATBENCH_DATA=str(folder))
    assert code == 1, out
    assert f"{failed} failed" in out
    assert f"{3 - failed} skipped" in out
    assert "1 xfailed" in out
    assert "tests/lab/install.sh" in out


def test_a_module_that_skips_itself_fails_a_build(tmp_path: Path) -> None:
    suite = "import pytest\npytest.skip('not today', allow_module_level=True)\n"
    assert outcomes(tmp_path, suite)[0] == 5
    code, out = outcomes(tmp_path, suite, CI="true")
    assert code not in (0, 5), out
    assert "skip its tests one by one" in out
