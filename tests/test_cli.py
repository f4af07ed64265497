"""The command line, run for real on this machine's CPU with protocols that take seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import QUICK
from numpy_device import NumpyDevice
from search_support import table

from latbench import load_predictor, load_space
from latbench.cli import lookup, main, options
from latbench.cli.console import bar, print_json
from latbench.cli.options import parse_pairs, parse_value
from latbench.cli.report import device_of
from latbench.device import Check
from latbench.errors import ConfigError, DeviceBusyError
from latbench.predictors.table import Table
from latbench.result import SearchResult
from latbench.setting import Setting
from latbench.store import Store

#: A space of few Ops.
SMALL = ["--space", "nasbench201", "--resolution", "8", "--set", "num_cells=1", "--set", "channels=4"]


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_locks: Path) -> Run:
    """Runs a command in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("LATBENCH_STORE", "LATBENCH_MODELS"):
        monkeypatch.delenv(name, raising=False)

    def call(*args: str) -> Done:
        capsys.readouterr()
        try:
            main(list(args))
            code: Any = 0
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


def ok(done: Done) -> Done:
    assert done.code == 0, done.err + done.out
    return done


# -- what needs no device ---------------------------------------------------------------------------------------------


def test_help_names_every_command_of_the_front_door(run: Run) -> None:
    out = ok(run("--help")).out
    for command in (
        "devices", "check", "measure", "profile", "table", "fit", "predict", "search", "validate", "report", "demo",
        "evaluate",
    ):  # fmt: skip
        assert re.search(rf"^  {command}\b", out, re.M), command


@pytest.mark.parametrize("command", ["measure", "profile", "fit", "predict", "search", "validate", "report", "demo"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    assert "Usage: latbench" in ok(run(command, "--help")).out


def test_the_version_is_that_of_the_package(run: Run) -> None:
    import latbench

    assert ok(run("--version")).out.strip() == f"latbench {latbench.__version__}"


def test_devices_lists_the_bundled_profile(run: Run) -> None:
    rows = json.loads(ok(run("devices", "--json")).out)
    assert {"name": "local-cpu", "transport": "local", "runtime": "onnxruntime"}.items() <= next(
        r for r in rows if r["name"] == "local-cpu"
    ).items()


def error(done: Done) -> str:
    """The text of an error that was printed as errors are: exit code 2, ``error:``, and no traceback."""
    assert done.code == 2
    assert done.err.startswith("error: "), done.err
    assert "Traceback" not in done.err
    return done.err


def test_an_unknown_device_is_an_error_that_lists_the_known_ones(run: Run) -> None:
    assert "local-cpu" in error(run("check", "no-such-device"))


def test_what_the_system_refuses_is_an_error_that_names_the_file(run: Run, shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("table", "export", str(shelf.put(1, 1.0)), str(tmp_path / "file" / "table.csv"))
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "file/table.csv" in done.err
    assert "Traceback" not in done.err


def test_verbose_shows_where_an_error_came_from_wherever_it_stands(run: Run) -> None:
    for args in (["--verbose", "check", "no-such-device"], ["check", "no-such-device", "--verbose"]):
        done = run(*args)
        assert done.code == 2
        assert "Traceback" in done.err
        assert "error: " in done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--set", "resolutoin=64"], "resolutoin"),
        (["--set", "resolution=small"], "resolution must be"),
        (["--set", "resolution"], "KEY=VALUE"),
        (["--set", "resolution=64", "--set", "resolution=32"], "given twice"),
        (["--resolution", "64", "--set", "resolution=32"], "both given"),
        (["--width-mult", "0"], "width_mult must be"),
    ],
)
def test_a_wrong_parameter_of_a_space_is_named(run: Run, args: list[str], said: str) -> None:
    assert said in error(run("profile", "--space", "mobilenetv3", *args))


def test_an_unknown_space_lists_the_known_ones(run: Run) -> None:
    assert "nasbench201" in error(run("profile", "--space", "mobilenetv4"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("model.tflite", "neither a .onnx file"),
        ("missing.onnx", "missing.onnx"),
        ("missing.json", "missing.json"),
        ("nasbench201:1,2", "6 positions"),
        ("nasbench201:0,0,0,0,0,9", "position 5 has choices 0–4"),
        ("mobilenetv3:deep", "14 choice indices"),
        ("zoo:moga_d", "no network named 'moga_d'"),
    ],
)
def test_a_model_that_is_none_is_an_error_that_says_what_would_be_right(run: Run, model: str, said: str) -> None:
    assert said in error(run("predict", model))


def test_a_published_network_is_named_and_has_nothing_to_set(run: Run) -> None:
    done = ok(run("predict", "zoo:mobilenet_v2", "--device", "tda2x", "--json"))
    assert json.loads(done.out)["metrics"]["latency_ms"]["value"] > 0
    assert "zoo:moga_a is one network" in error(run("predict", "zoo:moga_a", "--resolution", "96"))


def test_a_block_list_with_a_wrong_key_is_named(run: Run, tmp_path: Path) -> None:
    spec = {"name": "net", "input": [3, 8, 8], "layers": [{"type": "conv", "out": 4, "kernal": 3}]}
    (tmp_path / "net.json").write_text(json.dumps(spec))
    assert "kernal" in error(run("predict", "net.json"))
    (tmp_path / "net.json").write_text("{")
    assert "net.json: not a JSON block list" in error(run("predict", "net.json"))


def test_a_wrong_protocol_option_names_the_known_ones(run: Run) -> None:
    text = error(run("measure", "nasbench201:0,0,0,0,0,0", "--protocol", "repeats=10"))
    assert "repeats" in text
    assert "min_runs" in text


def test_a_predictor_that_does_not_exist_yet_prints_the_commands_that_make_it(run: Run) -> None:
    text = error(run("predict", "nasbench201:3,3,3,3,3,3", "--resolution", "8"))
    assert "latbench fit table --device local-cpu --space nasbench201 --set resolution=8" in text
    assert "latbench profile --device local-cpu --space nasbench201 --set resolution=8" in text


def test_a_store_without_measurements_prints_the_command_that_takes_them(run: Run) -> None:
    assert "latbench profile" in error(run("fit", "table", *SMALL))


def test_a_result_that_does_not_exist_is_an_error(run: Run) -> None:
    assert "no such search result" in error(run("validate", "nowhere"))
    assert "name a search's RUN" in error(run("report"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ("False", False), ("relu6", "relu6"), ("[1, 2]", [1, 2]), ("null", None)],
)
def test_values_are_read_as_what_they_look_like(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_a_key_may_be_written_with_dashes() -> None:
    assert parse_pairs(["width-mult=0.5"], "--set") == {"width_mult": 0.5}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_pairs(["=3"], "--set")


# -- this machine's CPU -----------------------------------------------------------------------------------------------


def test_check_says_whether_the_machine_is_fit_and_what_to_do(run: Run) -> None:
    done = run("check", "local-cpu", "--json")
    answer = json.loads(done.out)
    assert {c["what"] for c in answer["checks"]} >= {"load", "governor", "turbo", "other processes", "free memory"}
    assert done.code == int(any(c["state"] == "problem" for c in answer["checks"]))


STUCK = """
base = "local-cpu"
[[control.commands]]
name = "clocks"
set = ["true"]
undo = ["false"]
"""


@pytest.mark.filterwarnings("always")
def test_a_warning_is_a_line_without_a_place_in_pythons_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(STUCK)
    err = run("check", "t.toml").err
    assert err.startswith("warning: t.toml: not given back as it was found:\n  clocks: `false` ended with 1")
    assert ".py:" not in err
    assert "DeviceStateWarning" not in err


def test_measure_prints_a_latency_inside_its_interval(run: Run) -> None:
    done = ok(run("measure", "nasbench201:3,3,1,2,0,4", "--resolution", "8", *QUICK, "--json"))
    answer = json.loads(done.out)
    latency = answer["metrics"]["latency_ms"]
    assert latency["value"] > 0
    assert 0 <= latency["low"] <= latency["value"] <= latency["high"]
    assert answer["visits"] == 2
    assert [len(s) for s in answer["samples_ns"]] == [3, 3]


def test_measure_prints_memory_with_its_unit_and_what_comes_with_it(run: Run) -> None:
    command = ["measure", "nasbench201:3,3,1,2,0,4", "--resolution", "8", *QUICK, "--metric", "peak_memory_bytes"]
    shown = ok(run(*command)).out
    assert re.search(r"peak_memory_bytes \d+\.\d\d MiB \(95% interval", shown)
    assert "baseline_memory_bytes" in shown
    assert "latency_ms" not in shown
    told = json.loads(ok(run(*command, "--json")).out)
    assert told["metric"] == "peak_memory_bytes"
    assert told["metrics"]["baseline_memory_bytes"]["value"] > 1e6
    assert told["samples_ns"] == []


def test_a_metric_that_is_none_or_that_the_device_does_not_have_is_refused_with_the_reason(run: Run) -> None:
    measure = ["measure", "nasbench201:3,3,1,2,0,4", "--resolution", "8", *QUICK, "--metric"]
    assert "there is no such metric; known: latency_ms, peak_memory_bytes" in error(run(*measure, "joules"))
    profile = ["profile", "--space", "nasbench201", "--resolution", "8", "--metric", "joules"]
    assert "there is no such metric" in error(run(*profile))
    assert not Path("latbench.db").exists()


def test_profile_measures_memory_of_networks_beside_latency_and_a_fit_learns_from_latency(run: Run) -> None:
    both = ["--metric", "latency_ms", "--metric", "peak_memory_bytes"]
    small = ["--space", "nasbench201", "--resolution", "8", "--networks", "2", "--validation", "1", *QUICK]
    ok(run("profile", *small, *both))
    with Store.open("latbench.db") as store:
        (setting,) = store.settings()
        memory = store.visits(setting, metric="peak_memory_bytes")
        latency = store.visits(setting, metric="latency_ms", roles=["network"])
    assert {v.role for v in memory} == {"network"}
    assert {v.subject for v in memory} == {v.subject for v in latency}
    assert all(v.metrics["peak_memory_bytes"] >= 0 for v in memory if v.ok)


def test_measure_shows_wall_times_beside_what_was_taken_off(run: Run) -> None:
    command = ["measure", "nasbench201:0,0,0,0,0,0", "--resolution", "8", *QUICK]
    answer = json.loads(ok(run(*command, "--json")).out)
    runs = np.concatenate(answer["samples_ns"]) * 1e-6
    assert answer["wall_ms"] == pytest.approx({"p50": np.percentile(runs, 50), "p99": np.percentile(runs, 99)})
    done = ok(run(*command))
    assert "wall ms" in done.out
    assert "is taken off" in done.err
    assert "drift" in done.err


#: The space of SMALL, and the options that name it for a MODEL.
ARCH, OF_SMALL = "nasbench201:3,3,1,2,0,4", SMALL[2:]


@dataclass
class Shelf:
    """Saved predictors that were made up, for this machine's own Setting."""

    root: Path
    setting: Setting
    space: Any

    def put(self, day: int, slow: float, *, ops: int | None = None, **card: Any) -> Path:
        """Save a table made on that day of a month; with ``ops`` one for any network that knows that many Ops."""
        made = table(self.space, setting=card.pop("setting", self.setting), slow=slow)
        facts = {"created": f"2026-01-{day:02d}T00:00:00+00:00", "device": {"profile": "mine"}, **card}
        if ops is not None:
            facts["space"] = None
        entries = dict(list(made.entries.items())[:ops])
        return lookup.save(Table(made.card.replace(**facts), entries), self.root, "local-cpu")


@pytest.fixture
def shelf(run: Run, tmp_path: Path, local_device: Any) -> Shelf:
    space = load_space("nasbench201", resolution=8, num_cells=1, channels=4)
    return Shelf(tmp_path / "latbench-models", local_device.setting, space)


def predicted(run: Run, *options: str) -> float:
    answer = json.loads(ok(run("predict", ARCH, *OF_SMALL, *options, "--json")).out)
    return float(answer["metrics"]["latency_ms"]["value"])


def test_a_device_s_name_means_the_newest_predictor_of_its_setting(run: Run, shelf: Shelf) -> None:
    shelf.put(2, 3.0)
    expected = predicted(run)
    shelf.put(1, 1.0)
    shelf.put(3, 7.0, setting=replace(shelf.setting, threads=99))
    assert predicted(run) == pytest.approx(expected)
    shelf.put(4, 6.0)
    assert predicted(run) == pytest.approx(2 * expected)


def test_a_path_to_a_profile_means_the_device_in_that_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    text = 'name = "mine"\ntransport = {kind = "local"}\nruntime = {kind = "onnxruntime"}\n'
    (tmp_path / "some" / "where.toml").write_text(text)
    device = ["--device", "some/where.toml"]
    ok(run("profile", *SMALL, *device, "--networks", "6", "--validation", "2", *QUICK))
    ok(run("fit", "table", *SMALL, *device))
    assert [p.name for p in (tmp_path / "latbench-models").iterdir()] == ["mine"]
    assert predicted(run, *device) > 0
    ok(run("report", *SMALL, *device, "--no-check"))
    assert "latbench · mine" in (tmp_path / "latbench-report.html").read_text("utf-8")


def searched(run: Run, folder: str, *options: str) -> SearchResult:
    wanted = ["--accuracy", "none", "--objective", "latency_ms", "--objective=-params", "--budget", "12"]
    ok(run("search", "random", *SMALL, *wanted, "--run", folder, *options))
    return SearchResult.load(folder)


def test_a_search_passes_over_a_newer_predictor_that_does_not_know_the_space(run: Run, shelf: Shelf) -> None:
    good = load_predictor(shelf.put(1, 1.0))
    shelf.put(2, 1.0, ops=3)
    result = searched(run, "found")
    assert result.provenance["latency"][""]["card"] == good.card.to_json()["checksum"]
    assert device_of(result) == "mine"


def test_a_search_keeps_its_limits_and_its_seed(run: Run, shelf: Shelf) -> None:
    shelf.put(1, 1.0)
    free = searched(run, "free")
    limit = sorted(c.values["latency_high_ms"] for c in free.candidates)[6]
    kept = searched(run, "kept", "--limit", f"latency_ms={limit}")
    assert kept.problem.limits == {"latency_ms": limit}
    assert all(c.values["latency_high_ms"] <= limit for c in kept.front)
    assert any(c.values["latency_high_ms"] > limit for c in free.front)
    assert [c.arch for c in searched(run, "again").candidates] == [c.arch for c in free.candidates]
    other = searched(run, "other", "--seed", "1")
    assert other.provenance["seed"] == 1
    assert [c.arch for c in other.candidates] != [c.arch for c in free.candidates]


def test_a_model_of_another_setting_is_refused_for_a_device_that_is_named_or_measured(run: Run, shelf: Shelf) -> None:
    path = str(shelf.put(1, 1.0, setting=replace(shelf.setting, threads=99, power_mode="fast")))
    for more in (["--device", "local-cpu"], ["--measure", *QUICK], ["--runtime", "threads=1"]):
        done = run("predict", ARCH, *OF_SMALL, "--model", path, *more)
        assert done.code != 0
        assert "ms" not in done.out
        assert f"threads: 99 ≠ {shelf.setting.threads}" in done.err
        assert f"power_mode: 'fast' ≠ {shelf.setting.power_mode!r}" in done.err
        assert "runtime_version" not in done.err
        assert "mine: leave --device and --measure away" in done.err
    own = str(shelf.put(2, 1.0))
    done = ok(run("predict", ARCH, *OF_SMALL, "--model", own, "--device", "local-cpu"))
    assert " on local-cpu: " in done.out
    assert "not compared" not in done.err


def test_a_model_without_a_device_answers_for_its_own_and_says_which_that_is(run: Run, shelf: Shelf) -> None:
    other = replace(shelf.setting, device="somewhere-else")
    done = ok(run("predict", ARCH, *OF_SMALL, "--model", str(shelf.put(1, 1.0, setting=other))))
    assert " on mine: " in done.out
    assert "numbers of mine (somewhere-else)" in done.err
    assert "on local-cpu" not in done.out + done.err


def test_a_model_for_a_device_out_of_reach_is_not_compared_and_names_its_own(run: Run, shelf: Shelf) -> None:
    Path("far.toml").write_text(
        'name = "far"\ntransport = {kind = "ssh", host = "127.0.0.1", port = 9}\nruntime = {kind = "onnxruntime"}\n'
    )
    done = ok(run("predict", ARCH, *OF_SMALL, "--model", str(shelf.put(1, 1.0)), "--device", "far.toml"))
    assert " on mine: " in done.out
    assert "out of reach" in done.err
    assert "was not compared" in done.err


def test_numbers_of_a_bundled_predictor_are_told_as_such_by_whichever_way_it_is_found(
    run: Run, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from latbench import tables

    shutil.copytree(shelf.put(1, 1.0), tmp_path / "house" / "brought")
    monkeypatch.setattr(tables, "__file__", str(tmp_path / "house" / "__init__.py"))
    for more in ([], ["--model", "brought", "--device", "local-cpu"]):
        done = ok(run("predict", ARCH, *OF_SMALL, *more, "--models", "none"))
        assert "(bundled with latbench: brought)" in done.out
        assert "latbench brings along" in done.err
        assert f"a machine of the project's own, mine ({shelf.setting.device})" in done.err
        assert ("no predictor under none serves" in done.err) == (not more)


def test_a_prediction_is_compared_with_the_same_statistic(run: Run, shelf: Shelf) -> None:
    shelf.put(1, 1.0, statistic="min")
    command = ["predict", ARCH, *OF_SMALL, "--measure", *QUICK]
    answer = json.loads(ok(run(*command, "--json")).out)
    measured = answer["measured"]
    assert answer["statistic"] == measured["statistic"] == "min"
    assert measured["metrics"]["latency_ms"]["value"] == pytest.approx(measured["statistics_ms"]["min"])
    assert measured["statistics_ms"]["min"] < measured["statistics_ms"]["mean"]
    assert "statistic min of both" in ok(run(*command)).out
    assert "predicts min" in error(run(*command, "--protocol", "statistic=p50"))


def test_a_number_that_is_not_finite_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"interval": [0.0, float("inf")], "deep": {"x": float("nan")}})
    assert json.loads(capsys.readouterr().out) == {"interval": [0.0, None], "deep": {"x": None}}


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_check_ends_with_1_where_a_device_is_not_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch, state: Any, code: int
) -> None:
    class Told(NumpyDevice):
        def checks(self) -> list[Check]:
            return [Check("load", state, "9.0 on 2 cores", "stop other programs")]

    monkeypatch.setattr("latbench.load_device", lambda name: Told())
    done = run("check", "anything")
    assert done.code == code
    assert "stop other programs" in done.out


@pytest.mark.parametrize(
    "args",
    [
        ["report", "--space", "nasbench201"], ["store", "campaigns"], ["store", "export", "folder"],
        ["fit", "table"], ["evaluate", "table"],
    ],
)  # fmt: skip
def test_a_store_that_is_only_read_is_not_made(run: Run, tmp_path: Path, args: list[str]) -> None:
    assert "none.db: there is no store" in error(run(*args, "--store", "none.db"))
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("option", ["level=0.8", "store=x.db", "name=x", "data=1"])
def test_an_option_of_a_predictor_that_is_an_argument_of_the_fit_is_refused(run: Run, option: str) -> None:
    name = option.partition("=")[0]
    assert f"--option {name}=…" in error(run("fit", "table", *SMALL, "--option", option))


@pytest.mark.parametrize("option", ["seed=3", "run=x", "problem=1"])
def test_an_option_of_a_searcher_that_is_an_argument_of_the_search_is_refused(run: Run, option: str) -> None:
    name = option.partition("=")[0]
    assert f"--option {name}=…" in error(run("search", "random", *SMALL, "--option", option))


def test_an_option_that_a_table_of_accuracies_does_not_have_is_refused(run: Run) -> None:
    wrong = ["--accuracy", "known.parquet:top1", "--accuracy-set", "epochs=3"]
    text = error(run("search", "random", *SMALL, *wrong))
    assert "--accuracy-set epochs" in text
    assert "percent" in text


def test_the_whole_way_from_profile_to_report(run: Run, tmp_path: Path) -> None:
    # One test, because every command needs what the one before it left.
    plan = ["--networks", "6", "--validation", "3", "--level", "block", *QUICK]
    assert "finished" in ok(run("profile", *SMALL, *plan)).out
    assert "nasbench201" in ok(run("store", "campaigns")).out

    fitted = ok(run("fit", "table", *SMALL))
    assert "3 held-out networks" in fitted.out
    assert "noise floor" in fitted.out
    (saved,) = (tmp_path / "latbench-models" / "local-cpu").iterdir()
    assert saved.name.startswith("nasbench201-table-")
    compared = ok(run("evaluate", "table", "network", *SMALL)).out
    assert "table" in compared
    assert "network" in compared

    arch = (
        "nasbench201:"
        + "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|"
    )
    space = SMALL[2:]
    estimate = json.loads(ok(run("predict", arch, *space, "--json")).out)
    parts = sum(p["latency_ms"] for p in estimate["breakdown"])
    assert parts == pytest.approx(estimate["metrics"]["latency_ms"]["value"])
    beside = ok(run("predict", arch, *space, "--measure", *QUICK)).out
    assert "measured" in beside
    assert "prediction off by" in beside
    assert saved.name in beside.replace("\n", ""), "it says which predictor answered"

    other = run("predict", arch, "--resolution", "16")
    assert "resolution: 8 ≠ 16" in error(other)

    shown = ok(run("table", "show", str(saved))).out
    assert "held-out networks" in shown
    assert "0 problems" in run("table", "check", str(saved)).out
    assert "+0.00%" in ok(run("table", "diff", str(saved), str(saved))).out
    ok(run("table", "export", str(saved), "table.csv"))
    assert len((tmp_path / "table.csv").read_text().splitlines()) > 10
    assert saved.name in ok(run("table", "list")).out

    search = ["search", "random", *SMALL, "--accuracy", "none", "--objective", "latency_ms", "--objective=-params"]
    found = ok(run(*search, "--budget", "12", "--limit", "latency_ms=1000", "--run", "found"))
    assert "none of 12 beats" in found.out
    assert "off by" in ok(run("validate", "found", "--top", "2", *QUICK)).out

    ok(run("report", "found", "--no-check"))
    page = (tmp_path / "found" / "report.html").read_text("utf-8")
    assert "nasbench201" in page
    assert str(saved.relative_to(tmp_path)) in page
    assert page.count('class="diagram"') == 2

    ok(run("store", "export", "parquet"))
    ok(run("store", "import", "parquet", "--store", "copy.db"))
    assert "1 campaigns" not in ok(run("store", "import", "parquet", "--store", "copy.db")).out


def test_an_interrupted_profile_says_how_to_go_on_and_goes_on(tmp_path: Path, own_locks: Path) -> None:
    command = [sys.executable, "-c", "from latbench.cli import main; main()", "profile", *SMALL, "--networks", "3"]
    slow = [*command, "--validation", "1", *QUICK[:-2], "--protocol=min_visits=30", "--protocol=max_visits=30"]
    env = {**os.environ, "LATBENCH_LOCK_FOLDER": str(own_locks)}
    # A test run in the background of a shell ignores SIGINT, and so would its children.
    process = subprocess.Popen(
        slow, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    from latbench import Store

    # Interrupted once some, but not all, of its Visits are in the store.
    deadline = time.monotonic() + 60
    done = 0
    while done < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        if (tmp_path / "latbench.db").exists():
            with Store.open(tmp_path / "latbench.db") as store:
                done = sum(r.slots.get("done", 0) for r in store.campaigns())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again" in err
    assert "Traceback" not in err
    again = subprocess.run(slow, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "resumed and finished" in again.stdout
    with Store.open(tmp_path / "latbench.db") as store:
        (record,) = store.campaigns()
    assert record.state == "finished"
    assert "planned" not in record.slots


def test_waiting_for_a_held_device_ends_when_it_is_free_or_when_the_time_is_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(options.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(options.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))

    def free_after(seconds: float) -> str:
        if clock[0] < seconds:
            raise DeviceBusyError("cpu-1", "campaign x of pid 7")
        return "measured"

    assert options.patiently(lambda: free_after(3), 10) == "measured"
    assert "being measured by campaign x of pid 7: waiting" in capsys.readouterr().err
    clock[0] = 0.0
    with pytest.raises(DeviceBusyError):
        options.patiently(lambda: free_after(3), 2)
    clock[0] = 0.0
    with pytest.raises(DeviceBusyError):
        options.patiently(lambda: free_after(3), 0)


def test_a_total_that_grows_is_told_and_reached(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("measuring") as b:
        for done in range(11):
            b.update(done, 10)
        for done in range(10, 21):
            b.update(done, 20, left_s=3.0)
    lines = capsys.readouterr().err.splitlines()
    assert "measuring: 10 of 10" in lines
    assert lines[-1] == "measuring: 20 of 20, +10 added, 3 s left"
