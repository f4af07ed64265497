"""Conformance of devices: subclass :class:`DeviceConformance`, give it the fixture ``device``, inherit its tests.

::

    class TestMine(DeviceConformance):
        @pytest.fixture
        def device(self):
            return latbench.load_device("my-board.toml")

The device is given closed. Every test opens it, measures small Ops for real, and closes it; a suite takes seconds.
Override :attr:`protocol` where a device is slow, :attr:`op` where it does not have these operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from latbench.device import Device, Job
from latbench.errors import DeviceError
from latbench.network import Network, NetworkBuilder
from latbench.op import Op, TensorSpec
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.visit import Visit

#: Operators that no device has: an opaque Op of a domain that does not exist.
UNKNOWN_DOMAIN = "no.such.domain"


def small_conv(channels: int = 8, size: int = 8) -> Op:
    """A 3×3 convolution block with batch norm and ReLU on a small map."""
    from latbench.blocks import block_op

    return block_op("conv", [TensorSpec((1, channels, size, size))], out=channels, kernel=3, act="relu")


def small_network() -> Network:
    """Two convolutions, pooling, and a classifier for ten classes."""
    b = NetworkBuilder("small")
    x = b.input((1, 3, 16, 16))
    x = b.block("conv", x, scope="stem", out=16, kernel=3, stride=2, act="relu")
    x = b.block("mbconv", x, scope="body", out=16, kernel=3, mid=32, act="relu", residual=True)
    return b.build(b.block("linear", b.block("global_avg_pool", x, scope="pool"), scope="classifier", out=10))


class DeviceConformance:
    """What every device must do."""

    protocol = Protocol.model_validate({
        "warmup_runs": 1, "warmup_max_ms": 5, "min_runs": 3, "max_runs": 10, "min_ms": 0, "max_ms": 20,
        "min_visits": 2, "max_visits": 3, "target_ci": 10.0, "visit_timeout_s": 60,
    })  # fmt: skip
    op = staticmethod(small_conv)
    network = staticmethod(small_network)

    @pytest.fixture
    def device(self) -> Device:
        """The device to test, closed."""
        raise AssertionError("a conformance suite needs its own fixture `device`")

    def jobs(self) -> list[Job]:
        """Three Ops and a network."""
        subjects: Sequence[Op | Network] = [self.op(8), self.op(16), self.network(), self.op(8)]
        return [Job(f"slot-{i}", s) for i, s in enumerate(subjects)]

    def take(self, device: Device, jobs: Sequence[Job]) -> list[Visit]:
        """All Visits of a stream that answer jobs."""
        return [v for v in device.visits(jobs, self.protocol) if v.role != "control"]

    def test_opening_and_closing_twice_is_allowed(self, device: Device) -> None:
        device.open()
        device.open()
        device.close()
        device.close()

    def test_a_closed_device_refuses_to_measure(self, device: Device) -> None:
        with pytest.raises(DeviceError, match="open"):
            list(device.visits(self.jobs(), self.protocol))

    def test_the_identity_is_stable_and_belongs_to_the_setting(self, device: Device) -> None:
        with device:
            first, setting = device.describe().identity, device.setting
        with device:
            assert device.describe().identity == first == setting.device
            assert device.setting == setting
        assert Setting.from_json(setting.to_json()) == setting

    def test_each_job_gets_one_visit_in_order(self, device: Device) -> None:
        jobs = self.jobs()
        with device:
            visits = self.take(device, jobs)
        assert [v.slot for v in visits] == [j.slot for j in jobs]
        assert [v.subject for v in visits] == [j.subject.key for j in jobs]
        assert [v.role for v in visits] == ["network" if isinstance(j.subject, Network) else "op" for j in jobs]

    def test_samples_are_positive_whole_nanoseconds_within_the_protocols_counts(self, device: Device) -> None:
        with device:
            visits = self.take(device, self.jobs())
        for v in visits:
            assert v.ok, v.failure or v.unsupported
            assert v.samples_ns.dtype == np.int64
            assert (v.samples_ns > 0).all()
            assert len(v.samples_ns) <= self.protocol.max_runs
            if v.wait_ns is not None:
                assert v.wait_ns.shape == v.samples_ns.shape
                assert ((v.wait_ns >= 0) & (v.wait_ns <= v.samples_ns)).all()
            assert v.started <= v.ended

    def test_uids_differ_and_one_stream_is_one_run(self, device: Device) -> None:
        with device:
            first = list(device.visits(self.jobs(), self.protocol))
            second = list(device.visits(self.jobs(), self.protocol))
        uids = [v.uid for v in (*first, *second)]
        assert len(set(uids)) == len(uids)
        assert len({v.run for v in first}) == len({v.run for v in second}) == 1
        assert first[0].run != second[0].run

    def test_visits_may_be_prepared_ahead(self, device: Device) -> None:
        with device:
            device.prepare([j.subject for j in self.jobs()])
            assert all(v.ok for v in self.take(device, self.jobs()))

    def test_a_stream_that_is_left_early_ends_and_the_next_one_works(self, device: Device) -> None:
        with device:
            stream = device.visits(self.jobs(), self.protocol)
            next(iter(stream))
            stream.close()  # type: ignore[attr-defined]
            assert len(self.take(device, self.jobs()[:1])) == 1

    def test_what_cannot_run_is_a_visit_that_says_so_and_the_stream_goes_on(self, device: Device) -> None:
        jobs = [self.jobs()[0], Job("broken", broken_op()), self.jobs()[1]]
        with device:
            visits = self.take(device, jobs)
        assert [v.ok for v in visits] == [True, False, True]
        assert visits[1].failure is None, "an operator that nobody has is unsupported, not a failure"
        assert visits[1].unsupported is not None
        assert visits[1].unsupported.message
        assert visits[1].samples_ns.size == 0

    def test_two_jobs_of_one_slot_are_refused(self, device: Device) -> None:
        with device, pytest.raises(DeviceError, match="slot"):
            list(device.visits([Job("same", self.op(8)), Job("same", self.op(8))], self.protocol))

    def test_no_jobs_are_no_visits(self, device: Device) -> None:
        with device:
            assert list(device.visits([], self.protocol)) == []

    def test_units_cover_every_multiply_accumulate_once(self, device: Device) -> None:
        net = self.network()
        with device:
            units = device.units(net)
        covered = [n for u in units for n in u.nodes]
        assert sorted(n for n in covered if n in {m.name for m in net.nodes if m.op.macs}) == sorted(
            m.name for m in net.nodes if m.op.macs
        )
        assert sum(u.op.macs for u in units) == net.macs

    def test_units_are_ops_that_can_be_measured(self, device: Device) -> None:
        with device:
            ops = {u.op.key: u.op for u in device.units(self.network())}
            visits = self.take(device, [Job(k, op) for k, op in ops.items()])
        assert all(Op.parse(k) == op for k, op in ops.items())
        assert [v.failure or v.unsupported for v in visits if not v.ok] == []


def broken_op() -> Op:
    """An Op that no runtime has, as it would come out of somebody's ONNX file."""
    from onnx import helper

    from latbench.network import Network

    x = helper.make_tensor_value_info("x", 1, [1, 4])
    y = helper.make_tensor_value_info("y", 1, [1, 4])
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="frob", domain=UNKNOWN_DOMAIN)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(UNKNOWN_DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "broken", [x], [y]), opset_imports=imports, ir_version=8)
    return Network.from_onnx(model.SerializeToString()).nodes[0].op
