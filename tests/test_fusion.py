"""Fusion: what a black box fuses is found from times alone, kept as data, and planned with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latbench.devices.fusion import units_by_rule
from numpy_device import NumpyDevice, failing, unsupported

from latbench.cli import main
from latbench.device import Device, Job
from latbench.errors import ConfigError, FileFormatError, SettingMismatchError
from latbench.fusion_detection import Trimmed, contrasts, detect, judge, looks_at, share_interval
from latbench.fusion_probes import PATTERNS, probes
from latbench.fusion_rules import FusionRule, FusionRules
from latbench.network import Network, NetworkBuilder
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.visit import Visit

SETTING = Setting("board-1", "command", "1.0")


class Board(NumpyDevice):
    """A device whose times follow from what it fuses: an overhead a run, and for each unit its work and its bytes.

    ``noise`` is the standard deviation of the logarithm of a Visit's time.
    """

    def __init__(self, fused: Sequence[str], noise: float = 0.002, seed: int = 0) -> None:
        super().__init__("board-1")
        self.fused, self.noise, self._rng = list(fused), noise, np.random.default_rng(seed)
        self.visits_of: dict[str, int] = {}

    def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
        for job in jobs:
            net = job.subject
            assert isinstance(net, Network)
            self.visits_of[net.name] = self.visits_of.get(net.name, 0) + 1
            us = 5.0 + sum(u.op.macs / 40_000 + u.op.activation_bytes / 20_000 for u in units_by_rule(net, self.fused))
            ns = int(1e3 * us * math.exp(self.noise * self._rng.standard_normal()))
            v = Visit(net.key, "network", f"{job.slot}", 0.0, 1.0, np.full(4, ns, np.int64), slot=job.slot)
            actions = self.script.get(net.key, [])
            yield actions[0](v) if actions else v


@pytest.fixture(autouse=True)
def _locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATBENCH_LOCK_FOLDER", str(tmp_path / "locks"))


def verdicts(rules: FusionRules) -> dict[str, str]:
    return {r.pattern: r.verdict for r in rules.rules}


# -- detection --------------------------------------------------------------------------------------------------------


def test_what_is_fused_is_found_and_what_is_not_is_not() -> None:
    truth = ["conv+relu", "conv+batch_norm", "conv+batch_norm+relu", "dwconv+conv", "add+relu", "matmul+softmax"]
    with Board(truth) as board:
        rules = detect(board, rounds=40)
    found = verdicts(rules)
    assert rules.fused == tuple(sorted(truth))
    assert all(v == "apart" for p, v in found.items() if p not in truth)
    # A chain whose beginning is apart is not measured.
    assert "conv+add+relu" not in found
    assert set(found) < set(PATTERNS)


def test_nothing_is_found_where_nothing_is_fused() -> None:
    with Board([]) as board:
        assert set(verdicts(detect(board)).values()) == {"apart"}


def test_noise_leaves_a_pattern_undecided_and_says_how_many_visits_would_decide() -> None:
    with Board(["conv+relu"], noise=0.5) as board:
        (rule,) = detect(board, ["conv+relu"], rounds=6).rules
    assert rule.verdict == "undecided"
    assert rule.visits == 6
    assert rule.more > 6
    with Board(["conv+relu"], noise=0.1) as board:
        (later,) = detect(board, ["conv+relu"], rounds=400).rules
    assert later.verdict == "fused"


@pytest.mark.parametrize("truth", [[], ["conv+relu", "conv+sigmoid", "add+relu"]], ids=["apart", "fused"])
def test_verdicts_are_hardly_ever_wrong_however_noisy_the_device_is(truth: list[str]) -> None:
    asked = ["conv+relu", "conv+sigmoid", "add+relu", "linear+relu"]
    wrong = 0
    for seed in range(40):
        with Board(truth, noise=0.03, seed=seed) as board:
            found = verdicts(detect(board, asked, rounds=20, seed=seed))
        wrong += any(v in ("fused", "apart") and (v == "fused") != (p in truth) for p, v in found.items())
    # At most one detection in twenty may hold any wrong verdict; seven of forty would be a chance of 0.3 %.
    assert wrong < 7


def judged(monkeypatch: pytest.MonkeyPatch, asked: Sequence[str], p: float, **more: float) -> dict[str, FusionRule]:
    """What becomes of patterns whose test says ``p``, uncorrected, at every look."""
    seen = {"saved": 1.0, "low": 0.9, "high": 1.1, **more}
    monkeypatch.setattr(
        "latbench.fusion_detection.judge",
        lambda pattern, rounds: FusionRule(pattern, "undecided", p=p, visits=len(rounds), **seen),
    )
    with Board([]) as board:
        return {r.pattern: r for r in detect(board, asked, rounds=20, alpha=0.05).rules}


def test_the_level_is_divided_among_looks_and_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at each pattern is another chance to be wrong."""
    each = 0.05 / len(looks_at(20))
    assert len(looks_at(20)) > 3
    assert judged(monkeypatch, ["conv+relu"], 0.9 * each)["conv+relu"].verdict == "fused"
    assert judged(monkeypatch, ["conv+relu"], 1.1 * each)["conv+relu"].verdict == "undecided"
    pair = ["conv+relu", "add+relu"]
    assert {r.verdict for r in judged(monkeypatch, pair, 0.6 * each).values()} == {"undecided"}
    decided = judged(monkeypatch, pair, 0.4 * each)
    assert [r.p for r in decided.values()] == pytest.approx([0.8 * each, 0.4 * each])  # Holm steps down


def test_what_saves_more_than_a_fusion_could_is_no_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = judged(monkeypatch, ["conv+relu"], 0.0, saved=9.0, low=8.0, high=10.0)["conv+relu"]
    assert rule.verdict == "undecided"
    assert "more than a fusion could" in rule.why


def test_a_pattern_is_measured_until_it_is_decided_and_no_longer() -> None:
    with Board(["conv+relu"]) as board:
        rules = detect(board, ["conv+relu"], rounds=40)
    assert rules.rules[0].visits == looks_at(40)[0]
    assert board.visits_of["conv+relu"] == rules.rules[0].visits


def test_a_chain_that_is_due_late_has_as_many_rounds_as_the_others() -> None:
    rng = np.random.default_rng(0)

    def noisy(v: Visit) -> Visit:
        return replace(v, samples_ns=(v.samples_ns * math.exp(rng.standard_normal())).astype(np.int64))

    seen: list[tuple[int, int]] = []
    with Board(["conv+batch_norm"]) as board:
        board.script[probes("conv+batch_norm+relu")["together"].key] = [noisy]
        asked = ["conv+batch_norm", "conv+batch_norm+relu"]
        pair, chain = detect(board, asked, rounds=12, progress=lambda p: seen.append((p.round, p.rounds))).rules
    assert (pair.verdict, chain.verdict) == ("fused", "undecided")
    assert chain.visits == 12
    assert seen[-1] == (pair.visits + 12, pair.visits + 12)


def test_a_network_that_fails_again_and_again_does_not_hold_the_others_up() -> None:
    calls: list[int] = []

    def from_the_second_on(v: Visit) -> Visit:
        calls.append(1)
        return failing()(v) if len(calls) > 1 else v

    with Board([]) as board:
        board.script[probes("conv+relu")["together"].key] = [from_the_second_on]
        found = verdicts(detect(board, ["conv+relu", "add+relu"], rounds=6))
    assert found == {"conv+relu": "undecided", "add+relu": "apart"}
    assert len(calls) == 6


def test_a_disturbed_round_changes_nothing() -> None:
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.0])
    clean, disturbed = Trimmed.of(values), Trimmed.of(np.append(values, 80.0))
    assert disturbed.mean == pytest.approx(clean.mean, abs=0.1)
    assert disturbed.above < 1e-4
    assert Trimmed.of(-values).above > 0.99


def test_the_interval_of_a_share_is_unbounded_where_a_pass_may_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    saved, cost = 0.01 * rng.standard_normal(12), 0.01 * rng.standard_normal(12)
    assert share_interval(saved, cost) == (-math.inf, math.inf)
    low, high = share_interval(1.0 + saved, 1.0 + cost)
    assert low < 1.0 < high < 1.1


def test_where_a_pass_may_cost_nothing_no_saving_tells_a_fusion() -> None:
    rng = np.random.default_rng(1)

    def rounds(worth: float) -> list[dict[str, float]]:
        ms = {"first": 3.0, "second": 2.0, "together": 4.0, "base": 1.0, "worth": worth, "empty": 1.0}
        saved = {"first": 3.0 + 0.6, "second": 2.0}
        return [{k: v * (1 + 0.01 * rng.standard_normal()) for k, v in {**ms, **saved}.items()} for _ in range(12)]

    nothing, something = judge("conv+relu", rounds(1.0)), judge("conv+relu", rounds(1.7))
    assert nothing.p > 0.05
    assert "too little time to tell" in nothing.why
    assert something.p < 0.01
    assert something.saved == pytest.approx(0.6 / 0.7, abs=0.15)


def test_a_network_that_the_device_does_not_have_is_unsupported_and_not_apart() -> None:
    with Board(["conv+relu"]) as board:
        board.script[probes("conv+hardswish")["together"].key] = [unsupported()]
        found = verdicts(detect(board, ["conv+relu", "conv+hardswish"]))
    assert found == {"conv+relu": "fused", "conv+hardswish": "unsupported"}


@pytest.mark.parametrize("pattern", ["conv", "relu+nothing", "softmax+conv", "conv+", ""])
def test_a_pattern_that_cannot_be_built_names_what_would_be_right(pattern: str) -> None:
    with pytest.raises(ConfigError, match="conv"):
        probes(pattern)


def test_every_pattern_has_networks_that_differ_in_what_is_asked_for_alone() -> None:
    for pattern in PATTERNS:
        nets = probes(pattern)
        t = {role: len(n.nodes) for role, n in nets.items()}
        if "pair" in nets:
            assert t["first"] + t["second"] + t["pair"] == t["one"] + t["other"] + t["together"]
        else:
            assert t["first"] + t["second"] == t["together"]
        assert nets["worth"].tensors[nets["worth"].outputs[0]].numel > 1e5


def test_a_real_device_is_measured_and_the_times_are_kept(local_device: Device) -> None:
    rules = detect(local_device, ["conv+relu"], rounds=4)
    (rule,) = rules.rules
    assert rules.setting == local_device.setting
    assert {len(v) for v in rule.times_ms.values()} == {4}
    saved, cost = contrasts([{k: v[i] for k, v in rule.times_ms.items()} for i in range(4)])
    assert np.isfinite(saved).all()
    assert (cost > 0).all()


# -- files ------------------------------------------------------------------------------------------------------------


def some_rules() -> FusionRules:
    times = {"first": (1.0, 2.0), "worth": (0.5, 0.25)}
    return FusionRules(
        SETTING,
        (FusionRule("conv+relu", "fused", 0.9, 0.8, 1.0, 1e-4, 2, times), FusionRule("conv+add", "undecided")),
        "2026-01-02T03:04:05+00:00",
    )


def test_rules_survive_their_file(tmp_path: Path) -> None:
    path = some_rules().save(tmp_path / "rules.json")
    again = FusionRules.load(path)
    assert again.rules[0] == some_rules().rules[0]
    assert (again.setting, again.made, again.fused) == (SETTING, some_rules().made, ("conv+relu",))
    assert math.isinf(again.rules[1].high)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "schema 2"),
        ({"rules": [{"pattern": "conv+relu"}]}, "not fusion rules"),
        ({"rules": 3}, "not fusion rules"),
        ({"setting": {}}, "not fusion rules"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = some_rules().save(tmp_path / "rules.json")
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(FileFormatError, match=says):
        FusionRules.load(path)


def test_a_missing_or_truncated_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="latbench fusion"):
        FusionRules.load(tmp_path / "none.json")
    path = some_rules().save(tmp_path / "rules.json")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match=r"rules\.json"):
        FusionRules.load(path)


@pytest.mark.parametrize("change", [{"device": "board-2"}, {"runtime": "torch"}, {"runtime_version": "2.0"}])
def test_rules_of_another_device_runtime_or_version_are_refused(change: dict[str, str]) -> None:
    rules = replace(some_rules(), setting=replace(SETTING, **change))
    with pytest.raises(SettingMismatchError, match="latbench fusion"):
        rules.require("board-1", "command", "1.0", "box.toml")


# -- planning ---------------------------------------------------------------------------------------------------------


def residual() -> Network:
    b = NetworkBuilder("residual")
    x = b.input((1, 8, 8, 8))
    y = b.conv(x, 8, bn=True, act="relu", name="first")
    y = b.conv(y, 8, bn=True, name="second")
    skip = b.conv(x, 8, name="skip")
    return b.build(b.act(b.op("add", y, skip, name="sum"), "relu", name="end"))


def names(net: Network, rule: Any) -> list[tuple[str, ...]]:
    return [u.nodes for u in units_by_rule(net, rule)]


def test_a_chain_grows_as_long_as_all_of_it_is_a_pattern() -> None:
    net = residual()
    conv_bn = ["conv+batch_norm"]
    assert ("first", "first_bn") in names(net, conv_bn)
    assert ("first", "first_bn", "first_act") in names(net, [*conv_bn, "conv+batch_norm+relu"])
    # A longer pattern does not stand for its beginning.
    assert ("first",) in names(net, ["conv+batch_norm+relu"])


def test_an_addition_goes_to_the_operand_that_is_done_last() -> None:
    found = names(residual(), ["conv+add", "conv+add+relu", "conv+batch_norm", "conv+batch_norm+add"])
    assert ("skip", "sum", "end") in found
    assert ("second", "second_bn") in found


@pytest.mark.parametrize("rule", ["activation", "none", ["conv+add"], ["conv+batch_norm", "conv+batch_norm+add"]])
def test_units_of_any_rule_cover_every_node_once_and_run_after_what_they_read(rule: Any) -> None:
    net = residual()
    units = units_by_rule(net, rule)
    assert sorted(n for u in units for n in u.nodes) == sorted(n.name for n in net.nodes)
    there = set(net.inputs)
    for u in units:
        own = {t for n in net.nodes if n.name in u.nodes for t in n.outputs}
        reads = {t for n in net.nodes if n.name in u.nodes for t in n.inputs} - own
        assert reads <= there
        there |= own


BENCH = """
import sys
from pathlib import Path
n = len(Path(sys.argv[1]).read_bytes())
for i in range(int(sys.argv[2])): print("took", 1e-3 + 1e-9 * n)
"""


def box(tmp_path: Path, **runtime: str) -> Path:
    (tmp_path / "bench.py").write_text(BENCH, "utf-8")
    more = "".join(f'{k} = "{v}"\n' for k, v in runtime.items())
    path = tmp_path / "box.toml"
    path.write_text(
        'name = "box"\n[transport]\nkind = "local"\n[runtime]\nkind = "command"\ncontrols = false\n'
        'run = ["python3", "bench.py", "{model}", "{runs}"]\npush = ["bench.py"]\nidentity = ["echo", "box"]\n'
        f"{more}[runtime.output]\npattern = 'took (?P<latency>\\S+)'\nunit = \"s\"\n",
        "utf-8",
    )
    return path


def test_what_was_measured_is_what_a_profile_plans_with(tmp_path: Path) -> None:
    from latbench import plugins
    from latbench.load import load_device

    with load_device(box(tmp_path)) as device:
        plain = device.setting
        assert ("first", "first_bn", "first_act") in [u.nodes for u in device.units(residual())]
    replace(some_rules(), setting=plain).save(tmp_path / "box.fusion.json")
    with load_device(box(tmp_path, fusion="box.fusion.json")) as device:
        setting, units = device.setting, device.units(residual())
        (check,) = [c for c in device.checks() if c.what == "units"]
    assert check.state == "ok"
    assert setting.options["fusion"] == ["conv+relu"]
    assert setting != plain
    assert ("first",) in [u.nodes for u in units]
    planned = plugins.load("runtimes", "command").plan(Setting.from_json(setting.to_json()), residual())
    assert [u.nodes for u in planned] == [u.nodes for u in units]


def test_a_provider_that_compiles_is_planned_by_what_was_measured(local_device: Device) -> None:
    from latbench.devices.onnxruntime import OnnxRuntime

    def planned(**options: Any) -> list[tuple[str, ...]]:
        setting = replace(local_device.setting, options={"provider": "TensorrtExecutionProvider", **options})
        units = OnnxRuntime.plan(setting, residual())
        assert {u.provider for u in units} == {"TensorrtExecutionProvider"}
        return [u.nodes for u in units]

    assert len(planned()) == 1
    assert ("first", "first_bn") in planned(fusion=["conv+batch_norm"])


def test_rules_are_refused_where_the_runtime_shows_its_graph(make_device: Any) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.fusion"):
        make_device(fusion="x.json").open()


def test_a_profile_that_names_another_devices_rules_does_not_open(tmp_path: Path) -> None:
    from latbench.load import load_device

    some_rules().save(tmp_path / "box.fusion.json")
    device = load_device(box(tmp_path, fusion="box.fusion.json"))
    with pytest.raises(SettingMismatchError, match="board-1"):
        device.open()


def run(argv: list[str]) -> object:
    """A command's exit status."""
    with pytest.raises(SystemExit) as e:
        main(argv)
    return e.value.code or 0


def test_the_command_line_writes_the_file_and_says_how_to_use_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rules.json"
    argv = ["fusion", str(box(tmp_path)), "--pattern", "conv+relu", "--rounds", "4", "--out", str(out)]
    assert run(argv) == 0
    text = capsys.readouterr()
    assert "conv+relu" in text.out
    assert "[runtime] fusion" in text.out + text.err
    assert FusionRules.load(out).rules[0].visits == 4
    assert run([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rules"][0]["pattern"] == "conv+relu"
    assert run(["fusion", str(box(tmp_path)), "--pattern", "conv"]) != 0
