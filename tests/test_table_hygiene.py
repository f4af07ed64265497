"""``latbench table check`` and ``diff``: tests that hold their level with the few Visits that entries rest on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from latbench.card import Card
from latbench.cli import main
from latbench.errors import ConfigError
from latbench.load import load_space
from latbench.op import Op, TensorSpec
from latbench.predictors.entries import Entry
from latbench.predictors.hygiene import OLD_DAYS, check
from latbench.predictors.table import Table
from latbench.predictors.table_diff import diff
from latbench.predictors.table_tests import excess_error, holm, monotonicity, spread, welch
from latbench.setting import Setting
from latbench.statistics import visit_interval
from latbench.visit import Interval

KERNELS = str(Path(__file__).parent / "golden" / "kernels-2")
SETTING = Setting("board", "onnxruntime", "0", threads=1)


def conv(out: int, kernel: int = 3, channels: int = 16, size: int = 14, **more) -> Op:
    pads = (kernel // 2,) * 4
    return Op.make("conv", [TensorSpec((1, channels, size, size))], out_channels=out, kernel=(kernel, kernel),
                   pads=pads, **more)  # fmt: skip


def entry(op: Op, ms: float, error: float = 0.01, visits: int = 4) -> Entry:
    """An entry whose relative standard error is ``error``."""
    half = ms * error * stats.t.ppf(0.975, visits - 1) if visits > 1 else inf
    return Entry(op, {"latency_ms": Interval(ms, max(ms - half, 0.0), ms + half)}, visits)


def table(*entries: Entry, setting: Setting = SETTING, **card) -> Table:
    return Table(Card("table", setting, **card), {e.op.key: e for e in entries})


def texts(t: Table, severity: str = "warning", **more) -> str:
    return "\n".join(f.text for f in check(t, **more) if f.severity == severity)


# -- two entries ------------------------------------------------------------------------------------------------------


def test_the_standard_error_comes_back_from_the_interval():
    values = np.random.default_rng(0).normal(10, 0.3, 8)
    i = visit_interval(values)
    found = spread(Entry(conv(8), {"latency_ms": i}, 8))
    assert found is not None
    assert found.error == pytest.approx((i.high - i.value) / i.value / stats.t.ppf(0.975, 7))
    assert found.freedom == 7


def test_welchs_p_value_is_that_of_the_closed_form():
    a, b = entry(conv(8), 1.0, 0.02, 4), entry(conv(8), 1.1, 0.03, 6)
    error = np.hypot(0.02, 0.03)
    freedom = error**4 / (0.02**4 / 3 + 0.03**4 / 5)
    t = np.log(1.1) / error
    assert welch(a, b) == pytest.approx(2 * stats.t.sf(t, freedom))
    assert welch(b, a, one_sided=True) == pytest.approx(stats.t.sf(t, freedom))
    assert welch(a, b, one_sided=True) == pytest.approx(1 - stats.t.sf(t, freedom))


def test_one_visit_tells_nothing_of_its_error():
    alone = entry(conv(8), 2.0, visits=1)
    assert isnan(welch(alone, entry(conv(8), 1.0)))
    assert isnan(welch(Entry(conv(8), {"latency_ms": Interval(1, 1, 1)}), entry(conv(8), 9.0)))


def test_four_visits_alike_are_called_different_as_seldom_as_said():
    """A normal quantile in the place of Student's would do so two to three times as often."""
    rng = np.random.default_rng(1)
    p = []
    for _ in range(400):
        x, y = (rng.normal(1, 0.05, 4) for _ in range(2))
        a, b = (Entry(conv(8), {"latency_ms": visit_interval(v, seed=3)}, 4) for v in (x, y))
        p.append(welch(a, b))
    rate = np.mean(np.array(p) < 0.05)
    assert 0.01 < rate < 0.09


def test_holm_steps_down_leaves_what_was_not_tested_and_does_not_count_it():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    found = holm([0.01, nan, 0.04])
    assert found[0] == pytest.approx(0.02)
    assert isnan(found[1])
    assert holm([]) == []


# -- monotonicity -----------------------------------------------------------------------------------------------------


def test_a_larger_op_that_takes_clearly_less_time_is_suspicious():
    small, large = entry(conv(32), 1.0), entry(conv(64), 0.8)
    breaks, pairs = monotonicity([small, large])
    assert pairs == 1
    (found,) = breaks
    assert (found.smaller.op, found.larger.op) == (small.op, large.op)
    assert found.ratio == pytest.approx(0.8)
    assert found.p_value < 0.05


@pytest.mark.parametrize(
    "larger",
    [entry(conv(64), 0.97), entry(conv(64), 0.9, error=0.1), entry(conv(64), 1.2), entry(conv(64), 0.5, visits=1)],
    ids=["a few percent", "within noise", "as it should be", "one Visit"],
)
def test_what_is_small_or_noise_is_not(larger):
    assert monotonicity([entry(conv(32), 1.0), larger])[0] == []


def test_only_ops_of_one_make_are_compared_and_only_where_all_amounts_agree():
    base = entry(conv(32), 1.0)
    others = [
        entry(conv(64, kernel=1), 0.5),  # another kind of kernel
        entry(conv(64, size=7), 0.5),  # more channels, fewer positions
        entry(conv(64, groups=16), 0.5),  # another kind of kernel, too
        entry(conv(256, quant="w8a8"), 0.5),  # in whole numbers
        entry(conv(64, density=0.5), 0.5),  # half of its weights are zero
    ]
    for other in others:
        assert monotonicity([base, other]) == ([], 0)


def test_a_pair_with_an_op_in_between_is_not_compared_twice():
    row = [entry(conv(16 * (i + 1)), 1.0 + i) for i in range(5)]
    assert monotonicity(row)[1] == 4


def test_an_op_that_cannot_be_tested_does_not_stand_between_two_that_can():
    rows = [entry(conv(16), 1.0), entry(conv(32), 0.9, visits=1), entry(conv(48), 0.5)]
    (found,), pairs = monotonicity(rows)
    assert (found.smaller.op, found.larger.op, pairs) == (rows[0].op, rows[2].op, 1)


def test_the_correction_grows_with_the_number_of_pairs():
    rising = [entry(conv(8 * (i + 1)), 1.1**i, visits=8) for i in range(30)]
    slow = entry(conv(8), 1.1 * 1.15, visits=8)
    (alone,), _ = monotonicity([slow, rising[1]])
    (among,), pairs = monotonicity([slow, *rising[1:]])
    assert pairs == 29
    assert among.p_value == pytest.approx(29 * alone.p_value)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_noise_explains_what_it_explains():
    assert excess_error(0.01, 0.02, 50)[0] == pytest.approx(0.5, abs=0.01)
    p, excess = excess_error(0.05, 0.02, 50)
    assert p == pytest.approx(float(stats.f.sf(25.0, 50, 50)))
    assert excess == pytest.approx(np.sqrt(0.05**2 - 0.01**2))
    assert excess_error(0.05, 0.0, 50) == (0.0, 0.05)


def test_sums_that_noise_may_explain_are_no_warning_however_far_they_are_off():
    """Five networks that noise alone moves by 6 % tell nothing of 9 %; five hundred do."""
    few, many = (
        table(entry(conv(8), 1.0), validation={"score": {"rmspe": 0.09, "n": n}, "noise_floor": 0.12}) for n in (5, 500)
    )
    assert "sums over Ops miss" not in texts(few)
    assert "additivity: sums over Ops miss 5 held-out networks" in texts(few, "note")
    assert "sums over Ops miss 500 held-out networks by 9.0% RMSPE" in texts(many)


def test_check_names_breaks_and_says_how_many_pairs_it_compared():
    t = table(entry(conv(32), 1.0), entry(conv(64), 0.8))
    assert "20% below a smaller Op: 0.8 ms, and 1 ms" in texts(t)
    assert "monotonicity: 1 pairs of a smaller and a larger Op of one make, 1 of them the wrong way round" in texts(
        t, "note"
    )


def test_of_many_uncertain_entries_the_worst_are_named_behind_what_matters_more():
    """A noisy campaign must not bury the rest: 60 uncertain entries are 21 lines, and the last ones."""
    wide = [entry(conv(8 * (i + 1)), 1.0 + i, error=0.05 + 0.001 * i) for i in range(60)]
    t = table(*wide, data={"last": "2020-01-31T00:00:00+00:00"})
    said = [f for f in check(t) if f.severity == "warning"]
    (old,) = (i for i, f in enumerate(said) if f.what == "age")
    uncertain = [i for i, f in enumerate(said) if f.text.startswith("uncertain")]
    assert old < min(uncertain)
    assert len(uncertain) == 21
    assert said[uncertain[0]].key == wide[-1].op.key
    assert said[-1].text == "uncertain: 40 further entries of 60, beyond ± 5% all of them"


def test_problems_come_first_and_notes_last():
    t = table(entry(conv(8), 1.0, error=0.1), data={"last": "2020-01-31T00:00:00+00:00"})
    t.entries["late"] = Entry(conv(16), {"latency_ms": Interval(-1.0, -2.0, 0.0)}, 4)
    space = load_space("nasbench201", num_cells=1)
    blocks = Table(Card("table", SETTING), {op.key: entry(op, 1.0) for op in space.ops()[1:]})
    for found in (check(t), check(blocks, space)):
        severities = [f.severity for f in found]
        assert set(severities) == {"problem", "warning", "note"}
        assert severities == sorted(severities, key=("problem", "warning", "note").index)


def test_an_entry_of_one_visit_has_no_interval_to_speak_of():
    said = texts(table(entry(conv(8), 1.0, visits=1)))
    assert "uncertain: one Visit tells no interval" in said
    assert "inf" not in said


def test_a_value_outside_its_interval_is_a_problem():
    e = Entry(conv(8), {"latency_ms": Interval(3.0, 1.0, 2.0)}, 4)
    assert "the value 3 ms is outside its interval" in texts(table(e), "problem")


def test_what_could_not_be_looked_for_is_said():
    units = table(entry(conv(8), 1.0), setting=replace(SETTING, runtime="their-own"), device={"profile": "local-cpu"})
    said = texts(units, "note")
    assert "missing Ops: not known: no space says which Ops it should hold" in said
    assert "staleness: not known: their-own is not installed here; --device local-cpu asks the device" in said
    with_space = texts(units, "note", space=load_space("nasbench201", num_cells=1))
    assert "missing Ops: not known: it holds units alone, and a space lists blocks" in with_space


def test_a_negative_entry_is_a_problem_of_any_metric():
    e = Entry(conv(8), {"energy_mj": Interval(-1.0, -2.0, 0.0)}, 4, "", "energy_mj")
    found = check(Table(Card("table", SETTING, metric="energy_mj"), {e.op.key: e}))
    assert [(f.severity, f.key) for f in found if f.severity == "problem"] == [("problem", e.op.key)]
    assert "energy_mj is a positive number, not -1 mJ" in found[0].text


def test_a_device_that_is_asked_tells_whether_the_table_is_stale():
    t = table(entry(conv(8), 1.0))
    assert "the device's Setting is still the table's" in texts(t, "note", setting=SETTING)
    newer = replace(SETTING, runtime_version="1")
    assert "stale (the table's ≠ the device's): runtime_version: '0' ≠ '1'" in texts(t, setting=newer)
    assert "another Setting" in texts(t, setting=replace(SETTING, threads=4))


def test_what_is_installed_here_says_nothing_of_a_device_elsewhere():
    here = table(entry(conv(8), 1.0), device={"profile": "local-cpu"})
    there = table(entry(conv(8), 1.0), device={"profile": "pixel-1"})
    assert "stale: measured with onnxruntime 0, installed here is" in texts(here)
    assert "stale:" not in texts(there)
    assert "--device pixel-1 asks it" in texts(there, "note")


@pytest.mark.parametrize("runtime", ["tvm", "tvm-rpc"])
def test_a_table_of_another_tvm_is_stale_though_its_package_has_another_name(runtime, monkeypatch):
    monkeypatch.setattr("latbench.predictors.hygiene.version", {"apache-tvm": "0.25.0"}.__getitem__)
    t = table(entry(conv(8), 1.0), setting=replace(SETTING, runtime=runtime), device={"profile": "local-cpu"})
    assert f"stale: measured with {runtime} 0, installed here is 0.25.0" in texts(t)


def test_age_and_drift_are_told():
    old = {"last": "2020-01-31T00:00:00+00:00", "drift": {"span_percent": 35.0, "model": "controls", "warnings": ["w"]}}
    said = texts(table(entry(conv(8), 1.0), data=old))
    assert "on 2020-01-31" in said
    assert "moved by 35 %" in said
    assert "drift: w" in said
    for days, is_old in ((OLD_DAYS + 2, True), (OLD_DAYS - 2, False)):
        last = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        assert ("old: measured" in texts(table(entry(conv(8), 1.0), data={"last": last}))) == is_old
    fresh = {"drift": {"span_percent": 3.0, "model": "controls", "warnings": []}}
    assert "drift" not in texts(table(entry(conv(8), 1.0), data=fresh))


def test_a_simulators_table_has_one_warning_of_its_own_error_and_exact_differences():
    simulated = replace(SETTING, clock="simulated", model_error=0.2)
    ops = [conv(8), conv(16), conv(24)]
    a, b = (
        table(*(entry(op, 1.0 + i + d * (i == 1), 0.2) for i, op in enumerate(ops)), setting=simulated)
        for d in (0.0, 1e-6)
    )
    assert texts(a).count("its own error is 20%") == 1
    assert "uncertain" not in texts(a)
    c = diff(a, b)
    assert [d.significant for d in c.differences] == [True, False, False]


def test_a_simulators_table_beside_a_measured_one_leaves_the_measured_ones_noise():
    simulated = replace(SETTING, clock="simulated", model_error=0.2)
    a, b = table(entry(conv(8), 1.0, 0.05), setting=simulated), table(entry(conv(8), 1.02, 0.05))
    assert not diff(a, b).differences[0].significant
    assert not diff(b, a).differences[0].significant


def test_a_difference_is_judged_by_the_visits_behind_it():
    ops = [conv(8 * (i + 1)) for i in range(8)]
    a = table(*(entry(op, 1.0, 0.01) for op in ops))
    b = table(entry(ops[0], 1.2, 0.01), entry(ops[1], 1.2, visits=1), *(entry(op, 1.001, 0.01) for op in ops[2:]))
    c = diff(a, b)
    by_key = {d.key: d for d in c.differences}
    assert by_key[ops[0].key].significant
    assert not by_key[ops[1].key].tested
    assert not by_key[ops[1].key].significant
    assert not any(by_key[op.key].significant for op in ops[2:])


def test_a_small_shift_of_all_ops_shows_in_the_tables_as_wholes_alone():
    ops = [conv(8 * (i + 1)) for i in range(12)]
    rng = np.random.default_rng(2)
    a = table(*(entry(op, 1.0, 0.02) for op in ops))
    b = table(*(entry(op, 1.01 * np.exp(rng.normal(0, 0.002)), 0.02) for op in ops))
    c = diff(a, b)
    assert not any(d.significant for d in c.differences)
    assert c.p_value < 0.01
    assert diff(a, a).p_value == 1.0
    assert isnan(diff(table(entry(ops[0], 1.0)), table(entry(ops[0], 2.0))).p_value)


def test_an_op_that_one_of_the_devices_refuses_is_told_apart():
    ops = [conv(8 * (i + 1)) for i in range(4)]
    refused = Entry(ops[0], {}, 0, "no such kernel")
    broken = Entry(ops[1], {"latency_ms": Interval(-1.0, -2.0, -0.5)}, 4)
    a = table(*(entry(op, 1.0) for op in ops[:3]), Entry(ops[3], {}, 0, "no"))
    b = table(refused, broken, entry(ops[2], 1.0), Entry(ops[3], {}, 0, "no"))
    for c in (diff(a, b), diff(b, a)):
        assert c.incomparable == (ops[0].key, ops[1].key)
        assert [d.key for d in c.differences] == [ops[2].key]
        assert (c.only_a, c.only_b) == ((), ())


def test_tables_of_two_metrics_cannot_be_compared():
    e = Entry(conv(8), {"energy_mj": Interval(1.0, 0.9, 1.1)}, 4, "", "energy_mj")
    other = Table(Card("table", SETTING, metric="energy_mj"), {e.op.key: e})
    with pytest.raises(ConfigError, match="latency_ms, the second of energy_mj"):
        diff(table(entry(conv(8), 1.0)), other)


@pytest.mark.parametrize("clock", ["instruction-count", "simulated"])
def test_times_of_clocks_that_tell_no_time_are_ranked_and_not_tested(clock):
    few, many = [conv(c) for c in (8, 16, 24)], [conv(c) for c in (8, 16, 24, 32)]
    wall = table(*(entry(op, 1.0 + i) for i, op in enumerate(many)))
    counted = table(*(entry(op, 30.0 + 20 * i) for i, op in enumerate(few)), setting=replace(SETTING, clock=clock))
    c = diff(wall, counted)
    assert c.clocks == ("wall", clock)
    assert isnan(c.ratio)
    assert isnan(c.p_value)
    assert not any(d.significant or d.tested for d in c.differences)
    assert c.spearman == pytest.approx(1.0)
    assert not diff(wall, table(*wall.entries.values(), setting=replace(SETTING, clock="device-event"))).clocks
    assert not diff(counted, counted).clocks


def test_the_command_calls_no_difference_of_such_clocks_significant(capsys, tmp_path):
    ops = [conv(c) for c in (8, 16, 24)]
    table(*(entry(op, 1.0 + i) for i, op in enumerate(ops))).save(tmp_path / "wall")
    emulated = replace(SETTING, clock="instruction-count")
    table(*(entry(op, 9.0 + i) for i, op in enumerate(ops[:2])), setting=emulated).save(tmp_path / "counted")
    with pytest.raises(SystemExit) as ended:
        main(["table", "diff", str(tmp_path / "wall"), str(tmp_path / "counted")])
    done = capsys.readouterr()
    assert ended.value.code == 0, done.err
    assert "2 common Ops of 3 in the first and 2 in the second; they cannot be compared as times" in done.out
    assert "significant" not in done.out
    assert "on average" not in done.out
    assert "clock: instruction-count" in done.err


@pytest.mark.parametrize("command", [("check", KERNELS), ("diff", KERNELS, KERNELS)])
def test_a_predictor_that_is_no_table_is_refused_with_what_to_use_instead(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["table", *command])
    done = capsys.readouterr()
    assert ended.value.code == 2
    assert f"latbench table show {KERNELS}" in done.err
    assert "latbench fit table --device" in done.err
