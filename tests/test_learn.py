"""``latbench learn`` on this machine's onnxruntime, end to end."""

from __future__ import annotations

from dataclasses import asdict
from math import nan
from pathlib import Path

import pytest

from latbench.adaptive import Round
from latbench.cli import main
from latbench.cli.learn import _left_out, _own, print_curve
from latbench.gathering import LEFT_OUT
from latbench.load import load_predictor
from latbench.network import Network, NetworkBuilder
from latbench.store import Store

QUICK = [
    f"--protocol={k}={v}"
    for k, v in {
        "warmup_runs": 1, "warmup_max_ms": 1, "min_runs": 3, "max_runs": 5, "min_ms": 0, "min_visits": 2,
        "max_visits": 2, "contention_ratio": 1e6,
    }.items()
]  # fmt: skip


@pytest.fixture
def small() -> Network:
    b = NetworkBuilder("small")
    x = b.conv(b.input((1, 3, 32, 32)), 16, 3, 2, bn=True, act="relu")
    x = b.conv(x, 24, 1, bn=True, act="relu")
    return b.build(b.linear(b.op("flatten", b.op("global_avg_pool", x), axis=1), 10))


def test_learning_is_stopped_by_ctrl_c_and_gone_on_with_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: Network
) -> None:
    import latbench.cli.learn as command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATBENCH_LOCK_FOLDER", str(tmp_path / "locks"))
    (tmp_path / "small.onnx").write_bytes(small.to_onnx().SerializeToString())
    args = ["learn", "small.onnx", "--device", "local-cpu", "--minutes", "20", "--out", "model", *QUICK]
    told: list[int] = []
    row = command._row

    def stop(r: Round) -> None:
        row(r)
        told.append(r.ops)
        if len(told) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "_row", stop)
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "stop it with Ctrl-C at any time; the same command goes on" in said
    assert "run the same command again" in said
    with Store.open(tmp_path / "latbench.db") as store:
        (record,) = store.campaigns()
        assert record.state == "interrupted"
    args[5] = "0.1"
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 0
    assert told[1] >= told[0] > 20  # the second run found all that the first had measured
    said = capsys.readouterr().out
    assert "held-out networks" in said
    assert "saved model" in said
    assert "\nsmall: " in said
    with Store.open(tmp_path / "latbench.db") as store:
        assert [c.id for c in store.campaigns()] == [record.id]
    estimate = load_predictor(tmp_path / "model").predict(Network.from_onnx(tmp_path / "small.onnx"))
    assert 0 < estimate.low_ms < estimate.latency_ms < estimate.high_ms


def test_held_out_networks_that_cannot_be_predicted_are_counted_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lrn = [f"held-out network {n}{LEFT_OUT}unknown Op lrn @8" for n in ("a", "b")]
    _left_out([*lrn, f"held-out network c{LEFT_OUT}unknown Op elu @8", "another note"])
    said = " ".join(capsys.readouterr().err.split())
    assert "3 held-out networks could not be predicted and are in no error above" in said
    assert "unknown Op lrn @8 (2 networks); unknown Op elu @8" in said
    _left_out(["another note"])
    assert not capsys.readouterr().err


def test_named_networks_are_told_with_measured_predicted_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    _own([("a", 2.0, 2.5), ("b", nan, 1.0), ("c", 1.0, nan)])
    said = capsys.readouterr()
    assert "a: measured 2.000 ms, predicted 2.500 ms, off by +25.0%" in said.out
    assert "b: predicted 1.000 ms; not measured as a whole yet" in said.out
    assert "c: cannot be predicted" in said.err


def test_a_statistic_that_there_is_not_and_too_little_time_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["learn", "--statistic", "fastest"])
    assert "p50" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["learn", "--resolution", "64"])
    assert "--space" in capsys.readouterr().err


def test_a_saved_learning_curve_is_printed_in_a_few_lines_with_the_round_that_was_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [asdict(Round(i, float(i), 10 * i, i, 5, 0.5, 3, 0.1, 0.9, 0.9)) for i in range(1, 21)]
    rows[0]["rmspe"] = rows[0]["within_10"] = None  # NaN, as a card has it
    print_curve(rows, 18)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "5", "9", "13", "17", "18", "20"]
    assert lines[0] == "learning curve, 7 of 20 rounds"
    assert "round 18" in told.err
