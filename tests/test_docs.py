"""README and documentation say what is true: their commands parse, their Python runs, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from latbench.profile import Profile, parse_section

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: A device like local-cpu, with a protocol that is over in milliseconds.
QUICK = """
name = "quick.toml"
transport = {kind = "local"}
runtime = {kind = "onnxruntime"}
protocol = {warmup_runs = 1, warmup_max_ms = 1, min_runs = 3, max_runs = 3, min_ms = 0, min_visits = 2, max_visits = 2}
"""
SMALL = '"nasbench201", resolution=8, num_cells=1, channels=4'


def blocks(language: str) -> list[tuple[str, str]]:
    """Page and text of every fenced block of a language."""
    found = []
    for page in PAGES:
        for text in re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            found.append((page.name, text))
    return found


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for _, text in blocks("sh") for line in text.splitlines()]
    return sorted({line for line in lines if line.startswith("latbench ")})


def test_the_documentation_shows_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_documentation_parses(line: str) -> None:
    import typer

    from latbench.cli.app import app

    command = typer.main.get_command(app)
    args = shlex.split(line)[1:]
    context = command.make_context("latbench", list(args), resilient_parsing=False)
    while hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        assert command is not None, line
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(("page", "text"), blocks("python"), ids=lambda v: str(v)[:14])
def test_the_python_of_the_documentation_runs(page: str, text: str, tmp_path: Path, own_locks: Path) -> None:
    (tmp_path / "quick.toml").write_text(QUICK)
    # The same calls on a smaller space and a quicker protocol.
    small = re.sub(r'"mobilenetv3", [^)]*', SMALL, text).replace('"local-cpu"', '"quick.toml"')
    env = {**os.environ, "LATBENCH_LOCK_FOLDER": str(own_locks), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", small]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{page}:\n{done.stderr}"
    assert done.stdout.strip()


@pytest.mark.parametrize(("page", "text"), blocks("toml"), ids=lambda v: str(v)[:14])
def test_the_profiles_of_the_documentation_are_valid(page: str, text: str) -> None:
    data = tomllib.loads(text)
    if "transport" in data:
        parse_section(Profile, data, page, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_readme_shows_what_it_does_a_picture_and_the_two_commands_first() -> None:
    first = "\n".join((ROOT / "README.md").read_text("utf-8").splitlines()[:16])
    assert "docs/images/report.png" in first
    assert re.search(r"^make demo\b", first, re.M)
    assert re.search(r"^make test\b", first, re.M)
    assert (ROOT / "docs" / "images" / "report.png").stat().st_size <= 400_000


def test_the_benchmarks_that_readme_names_start() -> None:
    named = re.findall(r"python -m benchmarks\.(\w+)", (ROOT / "README.md").read_text("utf-8"))
    assert named
    assert named
    for name in named:
        argv = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_every_target_that_is_documented_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.M))
    shown = {
        t for page in PAGES for t in re.findall(r"\bmake (demo|test|lint|bench|docs|wheel)\b", page.read_text("utf-8"))
    }
    assert shown | {"demo", "test", "lint", "bench", "docs"} <= targets
