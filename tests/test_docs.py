"""README and documentation say what is true: their commands parse, their Python runs, their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from latbench.devices.tda2x.chip import load_chip

from benchmarks import figures
from latbench.block_list import LAYERS
from latbench.blocks import block_attributes
from latbench.cli.app import app
from latbench.cli.options import make_space
from latbench.cli.searching import evaluator
from latbench.device import Device
from latbench.fleet_file import FleetFile
from latbench.network import Network
from latbench.profile import parse_section
from latbench.profiled_device import load_device
from latbench.protocol import Protocol

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
    command = typer.main.get_command(app)
    args = shlex.split(line)[1:]
    context = command.make_context("latbench", list(args), resilient_parsing=False)
    while hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        assert command is not None, line
        context = command.make_context(name, rest, parent=context)


def test_the_command_line_of_readme_works_from_the_first_command_to_the_last(tmp_path: Path, own_locks: Path) -> None:
    """The very commands, in their order, on a smaller space, a quicker protocol and a smaller budget."""
    import latbench as lb

    (listing,) = [t for page, t in blocks("sh") if page == "README.md" and "latbench devices" in t]
    lines = [line.split(" #")[0].strip() for line in listing.splitlines()]
    assert {line.split()[1] for line in lines} >= {
        "check", "measure", "profile", "fit", "predict", "search", "validate", "report",
    }  # fmt: skip
    (tmp_path / "quick.toml").write_text(QUICK)
    space = lb.load_space("nasbench201", resolution=8, num_cells=1, channels=4, num_classes=10)
    model = space.network(space.sample(seed=3)).to_onnx()
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    env = {**os.environ, "LATBENCH_LOCK_FOLDER": str(own_locks), "PYTHONWARNINGS": "error", "COLUMNS": "200"}
    for name in ("LATBENCH_STORE", "LATBENCH_MODELS"):
        env.pop(name, None)
    small = "--space nasbench201 --resolution 8 --set num_cells=1 --set channels=4"
    less = {"profile": "--networks 6 --validation 3", "search": "--accuracy-set epochs=1 --option population=4"}
    for line in lines:
        args = re.sub(r"--space mobilenetv3 --resolution \d+ --width-mult [\d.]+", small, line)
        args = args.replace("local-cpu", "quick.toml").replace("--budget 40", "--budget 6")
        argv = [*shlex.split(args)[1:], *shlex.split(less.get(line.split()[1], ""))]
        command = [sys.executable, "-c", "from latbench.cli import main; main()", *argv]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        # `check` answers 1 where the machine is not fit to measure, as ones that run tests often are.
        assert done.returncode in ((0, 1) if argv[0] == "check" else (0,)), f"{line}\n{done.stdout}{done.stderr}"
    page = (tmp_path / "found" / "report.html").read_text("utf-8")
    assert "nasbench201" in page
    assert "quick.toml" in page
    assert "measured on the device" in page


def test_the_numbers_of_the_protocol_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "measuring.md").read_text("utf-8")
    protocol, seen = Protocol().model_dump(), set()
    for names, values in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", text, re.M):
        keys, shown = re.findall(r"`(\w+)`", names), [v.strip() for v in values.split(",")]
        assert len(keys) == len(shown), names
        for key, value in zip(keys, shown, strict=True):
            assert str(value) == (f"{protocol[key]:g}" if isinstance(protocol[key], float) else str(protocol[key])), key
            seen.add(key)
    assert seen == set(protocol) - {"visit_timeout_s"}


@pytest.mark.parametrize("has", [["python3.11"], ["python3"], []])
def test_make_takes_a_python_that_is_new_enough_or_says_that_there_is_none(has: list[str], tmp_path: Path) -> None:
    for name in ("python3.11", "python3"):
        # An old Python answers the question for its version with 1.
        old = "exit 1\n" if name not in has else f'test "$1" = -c || echo "{name} makes $3"\n'
        (tmp_path / name).write_text(f"#!/bin/sh\n{old}")
        (tmp_path / name).chmod(0o755)
    for tool in ("sh", "mkdir"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    make = [
        str(shutil.which("make")),
        "-f",
        str(ROOT / "Makefile"),
        f"VENV={tmp_path}/venv",
        f"{tmp_path}/venv/bin/python",
    ]
    env = {"PATH": str(tmp_path)}
    done = subprocess.run(make, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    if has:
        assert f"{has[0]} makes {tmp_path}/venv" in done.stdout
    else:
        assert done.returncode != 0
        assert "needs Python 3.11 or newer" in done.stderr


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
def test_the_profiles_of_the_documentation_are_valid(page: str, text: str, tmp_path: Path) -> None:
    data = tomllib.loads(text)
    if "transport" in data or "base" in data:
        (tmp_path / "mine.toml").write_text(text, "utf-8")
        assert isinstance(load_device(tmp_path / "mine.toml"), Device)
    if "devices" in data:
        parse_section(FleetFile, data, page, "")
    if "emif" in data:
        (tmp_path / "chip.toml").write_text(text, "utf-8")
        assert load_chip(tmp_path / "chip.toml").all_cores


@pytest.mark.parametrize(("page", "text"), blocks("json"), ids=lambda v: str(v)[:14])
def test_the_block_lists_of_the_documentation_are_networks(page: str, text: str) -> None:
    spec = json.loads(text)
    if "layers" in spec:
        assert Network.from_blocks(spec).macs > 0


def test_the_table_of_block_lists_has_every_key_and_its_default() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    told = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*\|$", text, re.M)}
    assert told.pop("op")
    assert tuple(told) == LAYERS
    for kind, row in told.items():
        needed, further = row.split("|")[3:5]
        for key, must in block_attributes(kind).items():
            assert f"`{key}`" in (needed if must else further), f"{kind}: {key}"


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("latbench search ") and "--accuracy " not in c])
def test_the_networks_that_documented_searches_train_can_be_trained(line: str) -> None:
    context = typer.main.get_command(app).commands["search"].make_context("search", shlex.split(line)[2:])  # type: ignore[attr-defined]
    p = context.params
    space = make_space(p["space"], p["settings"], p["resolution"], p["width_mult"])
    judge = evaluator(p["accuracy"], space, p["accuracy_set"])
    assert judge is not None
    judge.check(space)


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
    named = re.findall(r"python -m benchmarks\.(\w+)`", (ROOT / "README.md").read_text("utf-8"))
    assert tuple(named) == figures.ORDER
    assert f"BENCHMARKS ?= {' '.join(named)}\n" in (ROOT / "Makefile").read_text("utf-8")
    for name in named:
        argv = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_the_figures_of_readme_are_those_that_the_benchmarks_wrote() -> None:
    files = sorted((ROOT / "docs" / "figures").glob("*.json"))
    assert files
    assert {f.stem for f in files} <= set(figures.ORDER)
    pages = ((ROOT / "README.md", figures.summary(files)), (ROOT / "docs" / "figures.md", figures.render(files)))
    for page, section in pages:
        assert figures.section_of(page.read_text("utf-8")) == section


def test_figures_render_every_number_with_its_unit_and_where_it_comes_from(tmp_path: Path) -> None:
    found = {
        "benchmark": "additivity",
        "figures": {
            "held_out": 40, "noise_floor": 0.0123, "met": {"table": True, "kernels": False},
            "limit": 0.025, "params_limit": 50000,
            "cifar10": {"share": {"random": {"50": 0.5}}}, "digits": {"share": {"random": {"50": 0.25}}},
            "scores": {"table": {"n": 40, "rmspe": 0.015, "spearman": 0.9987}, "a|b": {"rmspe": None, "spearman": 1.0}},
        },
        "provenance": {"machine": "Test CPU", "commit": "abc", "seed": 3, "networks": 40},
    }  # fmt: skip
    (tmp_path / "one.json").write_text(json.dumps(found))
    section = figures.render([tmp_path / "one.json"])
    lines = section.splitlines()
    assert "| table | 1.5 % | 0.9987 |" in lines
    assert "| a\\|b |  | 1.0 |" in lines
    assert "| noise floor | 1.23 % |" in lines
    assert "| limit | 2.5 % |" in lines
    assert "| params limit | 50,000 |" in lines
    assert "| held out | 40 |" in lines
    assert "| table | met |" in lines
    assert "| kernels | missed |" in lines
    assert "| cifar10, share | 50 |" in lines
    assert "| digits, share | 50 |" in lines
    assert "machine Test CPU · commit abc · seed 3 · networks 40" in section
    text = f"before {figures.BEGIN}\nold\n{figures.END} after"
    once = figures.replaced(text, section)
    assert figures.section_of(once) == section
    assert figures.replaced(once, section) == once
    assert once.startswith("before ")
    assert once.endswith(" after")
    with pytest.raises(SystemExit, match="must hold"):
        figures.replaced("no markers", section)


def test_every_target_that_is_documented_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.M))
    shown = {
        t for page in PAGES for t in re.findall(r"\bmake (demo|test|lint|bench|docs|wheel)\b", page.read_text("utf-8"))
    }
    assert shown | {"demo", "test", "lint", "bench", "docs"} <= targets
