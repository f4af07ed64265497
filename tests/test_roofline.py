"""The roofline: a first guess from a profile's peaks, and what measured networks make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import latbench as lb
from latbench.card import Card
from latbench.errors import ConfigError, FileFormatError, UncertainError, UnsupportedOpError
from latbench.host_peaks import host_peaks
from latbench.network import NetworkBuilder
from latbench.op import Op
from latbench.predictor import FitData
from latbench.predictors import files
from latbench.predictors.roofline import EFFICIENCY, PRIOR_SPREAD, Roofline
from latbench.profile import Hardware, Profile, find_profile
from latbench.setting import Setting
from latbench.testing.predictors import PredictorConformance, _small_world

PEAKS = {"peak_gflops": 10.0, "bandwidth_gbs": 20.0}


def bare_data(**hardware) -> FitData:
    setting = Setting("board", "onnxruntime", "0")
    return FitData(Card("roofline", setting, device={"profile": "board", "hardware": hardware}), {})


def conv_network(dtype: str = "f32"):
    b = NetworkBuilder("conv", dtype)
    x = b.conv(b.input((1, 64, 28, 28)), 64, kernel=3, name="conv")
    return b.build(b.act(x, "relu", "act"))


class TestRoofline(PredictorConformance):
    @pytest.fixture
    def cls(self):
        return Roofline

    @pytest.fixture
    def data(self):
        return _DATA

    def test_it_predicts_networks_that_it_has_not_seen(self, model, world, archs):
        """It is a bound that was scaled: near, not exact."""
        for arch in archs.tolist():
            net = world.space.network(arch)
            assert model.predict(net).latency_ms == pytest.approx(world.network_ms(net), rel=0.25)

    def test_a_network_of_unknown_ops_is_an_error_that_names_one(self, model):
        """It needs no measured Op, so it knows them all."""
        net = lb.load_space("nasbench201", num_cells=1).network([2, 4, 0, 3, 1, 2])
        assert model.predict(net).latency_ms > 0

    def test_too_few_networks_are_an_error_that_names_the_command(self, cls, data):
        """They leave the prior, and the card says which command measures more."""
        model = cls.fit(replace(data, calibration=data.calibration[:2]))
        assert "latbench profile --device local-cpu --space mobilenetv3" in " ".join(model.card.notes)

    def test_no_ops_are_an_error_that_names_the_command(self, cls, data):
        """Ops are not asked for."""
        assert cls.fit(replace(data, ops={})).card.intervals["method"] == "jackknife+"


def _data() -> FitData:
    _, data = _small_world()
    return replace(data, card=data.card.replace(device={"profile": "local-cpu", "hardware": PEAKS}))


_DATA = _data()


def test_a_kernel_takes_the_longer_of_its_arithmetic_and_its_traffic():
    net = conv_network()
    op = next(n.op for n in net.nodes if n.op.kind == "conv")
    moved = op.activation_bytes + op.weight_bytes
    bound = Roofline.fit(bare_data(peak_gflops=1.0, bandwidth_gbs=1000.0)).predict(net)
    assert bound.latency_ms == pytest.approx(2 * op.macs / 1e6 / EFFICIENCY)
    starved = Roofline.fit(bare_data(peak_gflops=1e6, bandwidth_gbs=1.0)).predict(net)
    assert starved.latency_ms == pytest.approx(moved / 1e6 / EFFICIENCY)


def test_an_activation_is_done_by_the_kernel_before_it_and_a_launch_is_paid_by_kernels_alone():
    net = conv_network()
    free, paid = (Roofline.fit(bare_data(**PEAKS, launch_us=us)).predict(net).latency_ms for us in (0.0, 40.0))
    assert paid - free == pytest.approx(0.040 / EFFICIENCY)


def test_what_takes_no_time_of_its_own_says_why():
    parts = Roofline.fit(bare_data(**PEAKS)).predict(conv_network()).breakdown
    assert {p.label.split()[0]: (p.origin, p.value > 0) for p in parts} == {
        "conv": ("roofline", True), "relu": ("in the kernel before", False),
    }  # fmt: skip


def test_a_simulators_own_error_widens_every_interval():
    plain = bare_data(**PEAKS)
    simulated = replace(plain, card=plain.card.replace(setting=replace(plain.setting, model_error=0.5)))
    narrow, wide = (Roofline.fit(d).predict(conv_network()) for d in (plain, simulated))
    sd = np.log(wide.high_ms / wide.latency_ms) / 1.6449
    assert np.log(narrow.high_ms / narrow.latency_ms) / 1.6449 == pytest.approx(PRIOR_SPREAD, rel=1e-4)
    assert sd == pytest.approx(np.hypot(PRIOR_SPREAD, 0.5), rel=1e-4)


def test_what_a_profile_says_goes_before_what_the_machine_says_of_itself():
    data = bare_data(bandwidth_gbs=3.0)
    here = replace(data, card=data.card.replace(device={"profile": "local-cpu", "hardware": {"bandwidth_gbs": 3.0}}))
    peaks = Roofline.fit(here).peaks
    assert peaks["bandwidth_gbs"] == 3.0
    assert peaks["peak_gflops"] > 0


def test_a_data_type_has_the_peak_that_the_profile_gives_it():
    slow = Roofline.fit(bare_data(peak_gflops=1.0, bandwidth_gbs=1e4)).predict(conv_network("f16"))
    fast = Roofline.fit(bare_data(peak_gflops=1.0, bandwidth_gbs=1e4, peak_gflops_of={"f16": 4.0}))
    assert slow.latency_ms / fast.predict(conv_network("f16")).latency_ms == pytest.approx(4.0)
    assert fast.predict(conv_network()).latency_ms == pytest.approx(slow.latency_ms)


def test_without_measured_networks_the_interval_is_the_priors():
    e = Roofline.fit(bare_data(**PEAKS)).predict(conv_network(), level=0.9)
    assert np.log(e.high_ms / e.latency_ms) == pytest.approx(1.6449 * PRIOR_SPREAD, rel=1e-4)
    assert np.log(e.latency_ms / e.low_ms) == pytest.approx(1.6449 * PRIOR_SPREAD, rel=1e-4)
    assert "first guess" in e.warnings[0]
    with pytest.raises(UncertainError, match="no measured networks"):
        Roofline.fit(bare_data(**PEAKS)).predict(conv_network(), max_uncertainty=0.5)


@pytest.mark.parametrize("missing", ["peak_gflops", "bandwidth_gbs"])
def test_a_profile_without_a_peak_is_an_error_that_names_the_key(missing):
    known = {k: v for k, v in PEAKS.items() if k != missing}
    with pytest.raises(ConfigError, match=rf"hardware\.{missing}: missing"):
        Roofline.fit(bare_data(**known))
    assert Roofline.fit(bare_data(**known), **{missing: PEAKS[missing]}).peaks == PEAKS


def test_all_that_a_profile_lacks_is_named_at_once():
    with pytest.raises(ConfigError, match=r"hardware\.peak_gflops and hardware\.bandwidth_gbs: missing"):
        Roofline.fit(bare_data())


def test_launches_that_a_profile_does_not_know_are_a_warning_where_they_may_be_all():
    """A GPU at batch 1 waits for them: a roofline without them is far below what its interval says."""
    slow, fast = (bare_data(peak_gflops=p, bandwidth_gbs=p) for p in (1.0, 1e6))
    assert not any("launch_us" in w for w in Roofline.fit(slow).predict(conv_network()).warnings)
    (said,) = (w for w in Roofline.fit(fast).predict(conv_network()).warnings if "launch_us" in w)
    assert "the starts of 1 kernels would take 0.008 ms" in said
    known = Roofline.fit(fast, launch_us=5.0).predict(conv_network())
    assert not any("launch_us" in w for w in known.warnings)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        (("calibration", "scale"), "fast"), (("calibration", "overhead_ms"), None), (("calibration", "factors"), "x"),
        (("calibration", "ms_per_op"), [1]), (("calibration", "form"), 3), (("calibration", "sums_ms"), [1, "a"]),
        (("calibration", "later"), 1.0), (("peaks", "launch_us"), "soon"), (("peaks", "peak_gflops"), 0),
        (("peaks", "bandwidth_gbs"), None), (("unsupported",), 3),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_when_it_is_read(tmp_path, key, wrong):
    """Even with checksums that fit: it must not be found out by an estimate."""
    Roofline.fit(_DATA).save(tmp_path / "m")
    folder = files.read_folder(tmp_path / "m", "roofline")
    content = folder.json("roofline.json")
    inner = content
    for k in key[:-1]:
        inner = inner[k]
    inner[key[-1]] = wrong
    files.write_folder(tmp_path / "m", folder.card, {**folder.files, "roofline.json": files.as_json(content)})
    with pytest.raises(FileFormatError, match=rf"{tmp_path / 'm'}: not a roofline"):
        Roofline.load(tmp_path / "m")


@pytest.mark.parametrize("wrong", [0, -1.0, "fast", True])
def test_a_peak_that_is_no_positive_number_is_refused(wrong):
    with pytest.raises(ConfigError, match="peak_gflops"):
        Roofline.fit(bare_data(**PEAKS), peak_gflops=wrong)


def test_what_the_device_refused_when_it_was_measured_stays_refused():
    net = conv_network()
    op = next(n.op for n in net.nodes if n.op.kind == "conv")
    model = Roofline.fit(replace(bare_data(**PEAKS), unsupported={op.key: "no 3x3"}))
    with pytest.raises(UnsupportedOpError, match="no 3x3"):
        model.predict(net)
    assert np.isnan(model.op_costs([op.key])[0])


def test_measured_networks_bring_their_own_efficiency_and_interval():
    first, fitted = Roofline.fit(replace(_DATA, calibration=())), Roofline.fit(_DATA)
    net = _DATA.calibration[0].net
    assert fitted.card.intervals["method"] == "jackknife+"
    width = [m.predict(net).high_ms / m.predict(net).low_ms for m in (first, fitted)]
    assert width[1] < width[0] / 3
    assert abs(fitted.predict(net).latency_ms / _DATA.calibration[0].latency_ms - 1) < 0.25


def test_the_door_needs_no_store_and_this_machine_describes_itself():
    model = lb.fit("roofline", device="local-cpu")
    space = lb.load_space("mobilenetv3", resolution=32)
    assert model.setting.runtime == "onnxruntime"
    assert model.predict_archs(space, space.sample_archs(3, seed=0)).supported.all()


def test_a_profile_of_a_device_out_of_reach_is_enough():
    model = lb.fit("roofline", device="pixel-1")
    assert model.peaks == {"peak_gflops": 17.2, "bandwidth_gbs": 29.8}
    assert any("what the profile says" in n for n in model.card.notes)


def test_on_a_pixel_1_the_guess_for_all_of_proxylessnas_k3e3_is_near_the_published_76_ms():
    """76.05 ms is the sum of the published table of measured blocks; nothing here was fitted to it."""
    space = lb.load_space("proxyless", resolution=224)
    guess = lb.fit("roofline", device="pixel-1").predict_archs(space, [[0] * space.positions])
    assert 76.05 / 1.5 < guess.value[0] < 76.05 * 1.5
    assert guess.low[0] < 76.05 < guess.high[0]


def test_without_a_store_a_device_and_a_space_itself_are_needed():
    with pytest.raises(ConfigError, match="needs the device"):
        lb.fit("roofline")
    with pytest.raises(ConfigError, match="load_space"):
        lb.fit("roofline", device="local-cpu", space="mobilenetv3")


# -- what a machine says of itself ----------------------------------------------------------------------------------


def described(tmp_path, text: str, threads: int = 2, **runtime) -> dict:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    profile = Profile(name="here", transport={"kind": "local"}, runtime={"kind": "onnxruntime", **runtime})
    return host_peaks(profile, threads, file)


@pytest.mark.parametrize(
    ("vendor", "flags", "cycle"),
    [
        ("GenuineIntel", "sse2 avx fma avx2 avx512f", 64), ("AuthenticAMD", "sse2 avx fma avx2 avx512f", 32),
        ("GenuineIntel", "sse2 avx fma avx2", 32), ("GenuineIntel", "sse2 avx", 16), ("GenuineIntel", "sse2", 8),
    ],
)  # fmt: skip
def test_operations_a_cycle_follow_from_the_instruction_sets(tmp_path, vendor, flags, cycle):
    text = f"processor : 0\nvendor_id\t: {vendor}\ncpu MHz\t\t: 2000.0\nflags\t\t: {flags}\n"
    assert described(tmp_path, text)["peak_gflops"] == pytest.approx(2 * 2.0 * cycle)


def test_a_machine_that_says_nothing_has_no_peaks(tmp_path):
    assert described(tmp_path, "processor : 0\nBogoMIPS : 50\n") == {}
    assert host_peaks(find_profile("pixel-1"), 1) == {}
    text = "vendor_id : GenuineIntel\ncpu MHz : 2000.0\nflags : sse2\n"
    assert described(tmp_path, text, provider="CUDAExecutionProvider") == {}


def test_a_profile_takes_peaks_of_data_types_and_the_cost_of_a_launch():
    h = Hardware(peak_gflops=1, peak_gflops_of={"f16": 2}, launch_us=5)
    assert (h.peak_gflops_of["f16"], h.launch_us) == (2, 5)
    with pytest.raises(ValueError, match="greater than 0"):
        Hardware(peak_gflops_of={"f16": 0})


def test_an_op_key_of_a_block_costs_what_its_primitives_cost():
    space = lb.load_space("mobilenetv3", resolution=32)
    model = Roofline.fit(bare_data(**PEAKS))
    key = space.ops()[0].key
    each = sum(model.op_costs([p.key])[0] for p in Op.parse(key).primitives)
    assert model.op_costs([key])[0] == pytest.approx(each)
