"""A prediction unit by unit: estimates, the profiler's times and providers meet in one table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import latbench as lb
from latbench.cli import main
from latbench.cli.estimates import estimate_json
from latbench.cli.unit_rows import Units, left_words, rows, units_json
from latbench.device import Device, Unit
from latbench.network import Network, NetworkBuilder
from latbench.op import Op, Step, TensorSpec
from latbench.plan import Plan
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.visit import Estimate, Interval, Part

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
SETTING = Setting("gpu", "onnxruntime", "1.0", options={"provider": CUDA})
X = TensorSpec((1, 8, 4, 4))


def unit(kind: str, *nodes: str, provider: str = CUDA) -> Unit:
    op = Op.unit(kind, [X], [Step(Op.make(kind, [X]), (-1,))])
    return Unit(op, nodes, tuple(nodes), f"{kind} of {'+'.join(nodes)}", provider)


RELUS, TANH, COPY = [unit("relu", "a"), unit("relu", "b")], unit("tanh", "c", provider=CPU), unit("identity")


def estimate() -> Estimate:
    parts = (
        Part(RELUS[0].op.key, "relu", 2, 2.0, "measured", ("a", "b")),
        Part("op1:block:some:f32[1]:{}", "a block", 1, 3.0, "measured", ("c",)),
        Part("overhead", "overhead", 1, 0.5, "overhead"),
    )
    return Estimate(SETTING, {"latency_ms": Interval(5.5, 5.0, 6.0)}, parts)


def units(**profiled: float) -> Units:
    times = {u.name: ms for u, ms in zip((*RELUS, TANH, COPY), profiled.values(), strict=False)}
    return Units(SETTING, [*RELUS, TANH, COPY], times)


def test_units_join_the_line_of_their_key_or_of_their_nodes_and_the_rest_is_told() -> None:
    found, rest = rows(estimate(), units(a=1.0, b=1.5, c=2.0, d=0.1))
    assert [(r.part.label, len(r.units), r.measured_ms) for r in found] == [
        ("a block", 1, 2.0), ("relu", 2, 2.5), ("overhead", 0, None)
    ]  # fmt: skip
    assert rest == [COPY]
    assert found[0].error == pytest.approx(0.5)
    assert found[1].error == pytest.approx(-0.2)
    assert found[2].error is None


def test_a_line_of_which_a_unit_was_not_profiled_has_no_time() -> None:
    found, _ = rows(estimate(), units(a=1.0))
    assert {r.part.label: r.measured_ms for r in found}["relu"] is None


def test_units_that_another_provider_runs_are_named() -> None:
    assert units().left == [TANH]
    assert left_words(units()) == f"1 of 4 units do not run on {CUDA}: c ({CPU})"
    assert left_words(Units(Setting("x", "torch", "1"), [TANH])) == ""


def test_json_has_every_unit_in_order_with_its_share_of_the_line() -> None:
    told = units_json(estimate(), units(a=1.0, b=1.5, c=2.0))
    assert [u["name"] for u in told] == [u.name for u in (*RELUS, TANH, COPY)]
    assert [u["predicted_ms"] for u in told] == [1.0, 1.0, 3.0, None]
    assert [u["error"] for u in told[:3]] == pytest.approx([0.0, 1 / 1.5 - 1, 0.5])
    out = estimate_json(estimate(), "p50", None, units())
    assert out["left"] == [TANH.name]
    assert "units" not in estimate_json(estimate(), "p50", None)


def net(channels: int) -> Network:
    b = NetworkBuilder(f"net{channels}")
    x = b.conv(b.input((1, 3, 16, 16)), channels, 3, bn=True, act="relu")
    return b.build(b.op("softmax", b.op("global_avg_pool", b.conv(x, 2 * channels)), axis=1))


def test_the_command_line_puts_the_profile_beside_the_prediction_and_refuses_what_is_too_uncertain(
    local_device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setenv("LATBENCH_LOCK_FOLDER", str(tmp_path / "locks"))
    quick = Protocol(
        warmup_runs=1, warmup_max_ms=2, min_runs=4, max_runs=8, min_ms=0.2, max_ms=4, min_visits=2, max_visits=2,
        target_ci=10.0, contention_ratio=1e6,
    )  # fmt: skip
    plan = Plan.for_networks([net(8), net(16), net(24)], units=local_device.units)
    lb.Campaign(local_device, plan, store=tmp_path / "lab.db", protocol=quick).run()
    lb.fit("kernels", store=tmp_path / "lab.db", device=local_device).save(tmp_path / "model")
    onnx.save(net(20).to_onnx(), tmp_path / "net20.onnx")
    argv = ["predict", str(tmp_path / "net20.onnx"), "--model", str(tmp_path / "model"), "--measure"]
    argv += ["--protocol", "min_visits=2", "--protocol", "max_visits=2", "--protocol", "min_ms=0.2"]
    argv += ["--unknown", "estimate"]

    def run(*more: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as e:
            main([*argv, *more])
        told = capsys.readouterr()
        return e.value.code or 0, told.out, told.err

    code, out, err = run()
    assert code == 0
    assert "profiler ms" in out
    (measured,) = re.findall(r"measured +([\d.]+) ms", out)
    assert f" ms in all beside {measured} ms measured without it" in " ".join(err.split())
    assert "error" in out
    code, out, _ = run("--json")
    told = json.loads(out)
    assert code == 0
    assert all(u["measured_ms"] > 0 and u["provider"] == CPU for u in told["units"])
    assert any(u["error"] is not None for u in told["units"])
    assert told["left"] == []
    code, out, err = run("--max-uncertainty", "0.0001")
    assert code != 0
    assert "too uncertain" in out + err
