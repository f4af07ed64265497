"""Peak memory of networks: which tensors are held when, and what measured networks add to that."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

import latbench as lb
from latbench.errors import FileFormatError, MissingMetricError, NotAdditiveError, NotEnoughDataError
from latbench.liveness import block_peak, liveness, peak
from latbench.network import NetworkBuilder
from latbench.predictor import FitData
from latbench.predictors import files, memory
from latbench.predictors.memory import AMOUNTS, Memory, amounts
from latbench.testing.predictors import AdditiveWorld, PredictorConformance

MB = 1e6


# -- what is held when ------------------------------------------------------------------------------------------------


def test_a_tensor_is_held_from_the_node_that_makes_it_to_the_last_that_reads_it():
    b = NetworkBuilder("branches")
    x = b.input((1, 4, 8, 8))  # 1024 bytes
    left = b.conv(x, 8, name="left")  # 2048
    right = b.conv(x, 4, name="right")  # 1024; x is read for the last time
    both = b.op("concat", left, right, name="both", axis=1)  # 3072
    net = b.build(b.conv(both, 4, name="end"))  # 1024
    assert liveness(net) == [1024 + 2048, 1024 + 2048 + 1024, 2048 + 1024 + 3072, 3072 + 1024]
    at = peak(net)
    assert (at.bytes, at.node) == (6144, "both")
    assert at.tensors == (("both", 3072), ("left", 2048), ("right", 1024))


def test_an_activation_writes_over_its_input_unless_somebody_else_still_needs_it():
    b = NetworkBuilder("in place")
    x = b.conv(b.input((1, 4, 8, 8)), 4, name="first")
    net = b.build(b.conv(b.act(x, "relu", "act"), 4, name="second"))
    assert liveness(net) == [2048, 1024, 2048]
    b = NetworkBuilder("kept")
    x = b.conv(b.input((1, 4, 8, 8)), 4, name="first")
    y = b.conv(b.act(x, "relu", "act"), 4, name="second")
    net = b.build(b.op("concat", x, y, name="join", axis=1))  # reads what the activation read
    assert liveness(net) == [2048, 2048, 3072, 4096]


def test_an_addition_takes_the_place_of_what_nobody_needs_afterwards():
    b = NetworkBuilder("residual")
    x = b.conv(b.input((1, 4, 8, 8)), 4, name="first")
    y = b.conv(x, 4, name="second")
    net = b.build(b.op("add", x, y, name="sum"))
    assert liveness(net) == [2048, 2048, 2048]


def test_the_networks_outputs_are_held_to_the_end():
    b = NetworkBuilder("two outputs")
    x = b.conv(b.input((1, 4, 8, 8)), 4, name="first")
    y = b.conv(x, 4, name="second")
    z = b.conv(y, 4, name="third")
    assert liveness(b.build(x, z))[-1] == 3 * 1024
    assert liveness(b.build(z))[-1] == 2 * 1024


def test_a_network_without_nodes_holds_nothing():
    b = NetworkBuilder("empty")
    assert peak(b.build(b.input((1, 4)))).bytes == 0


@pytest.mark.parametrize("name", ["mobilenetv3", "proxyless"])
def test_the_peak_of_a_chain_of_blocks_is_the_largest_of_theirs(name):
    space = lb.load_space(name, resolution=64)
    for arch in space.sample_archs(5, seed=1).tolist():
        net = space.network(arch)
        assert peak(net).bytes == max(block_peak(b.op) for b in net.blocks)


# -- the predictor ----------------------------------------------------------------------------------------------------


@dataclass
class MemoryWorld(AdditiveWorld):
    """A runtime that holds weights 1.1 times and tensors 1.3 times, and 3 kB a node."""

    metric: str = "peak_memory_bytes"

    def network_ms(self, net):
        """Bytes: the suite's name for the true value of a network."""
        weights, tensors, nodes, _ = amounts(net)
        return 0.4 * MB + 1.1 * weights + 1.3 * tensors + 3000 * nodes


WORLD = MemoryWorld(lb.load_space("mobilenetv3", resolution=64, width_mult=0.35, num_classes=10))
DATA = WORLD.data(30)


class TestMemory(PredictorConformance):
    @pytest.fixture
    def cls(self):
        return Memory

    @pytest.fixture
    def world(self):
        return WORLD

    @pytest.fixture
    def data(self):
        return DATA

    def test_a_network_of_unknown_ops_is_an_error_that_names_one(self, model):
        """It needs no measured Op, so it knows them all."""
        net = lb.load_space("nasbench201", num_cells=1).network([2, 4, 0, 3, 1, 2])
        assert model.predict(net).value > 0

    def test_no_ops_are_an_error_that_names_the_command(self, cls, data):
        """Ops are not asked for: peaks do not add up."""
        assert cls.fit(replace(data, ops={})).coefficients.shape == (5,)


def test_the_command_that_measures_more_asks_for_the_metric():
    with pytest.raises(NotEnoughDataError, match="--metric peak_memory_bytes"):
        Memory.fit(replace(DATA, calibration=DATA.calibration[:4]))


def test_it_is_no_sum_and_says_so():
    model = Memory.fit(DATA)
    with pytest.raises(NotAdditiveError):
        model.op_costs([WORLD.space.ops()[0].key])
    net = DATA.calibration[0].net
    with pytest.raises(MissingMetricError, match="peak_memory_bytes, not latency_ms"):
        _ = model.predict(net).latency_ms
    assert model.predict(net).metrics["peak_memory_bytes"].value == model.predict(net).value


def test_it_extrapolates_to_another_resolution_better_than_a_sum_over_ops_could():
    """Weights stay as they are while tensors grow nine times: only what tells the two apart can say that."""
    model = Memory.fit(DATA)
    space = lb.load_space("mobilenetv3", resolution=192, width_mult=0.35, num_classes=10)
    for arch in space.sample_archs(5, seed=3).tolist():
        net = space.network(arch)
        e = model.predict(net)
        assert e.value == pytest.approx(WORLD.network_ms(net), rel=0.1)
        assert any("activations" in w and "extrapolated" in w for w in e.warnings)


def test_architectures_of_a_space_that_is_no_chain_are_built_whole():
    model = Memory.fit(DATA)
    space = lb.load_space("nasbench201")
    archs = space.sample_archs(4, seed=0)
    np.testing.assert_allclose(
        model.predict_archs(space, archs).value, [model.predict(space.network(a)).value for a in archs.tolist()]
    )


def test_coefficients_are_never_below_0_and_few_networks_keep_to_the_prior():
    """Five networks alike tell nothing of nodes: a byte still costs about a byte."""
    few = replace(DATA, calibration=DATA.calibration[:5])
    c = Memory.fit(few).coefficients
    assert (c >= 0).all()
    assert 0.5 < c[1] < 2.0
    assert len(AMOUNTS) == len(c) - 1


@dataclass
class OneCoefficient(MemoryWorld):
    """A runtime that holds whatever it is 1.2 times."""

    def network_ms(self, net):
        weights, tensors, _, _ = amounts(net)
        return 0.4 * MB + 1.2 * (weights + tensors)


def test_a_richer_form_that_is_hardly_better_is_not_taken():
    """Noise makes one of them the best most of the time."""
    forms = [
        Memory.fit(OneCoefficient(WORLD.space, noise=0.02, seed=s).data(30)).card.model["peak_memory_bytes"]
        for s in range(4)
    ]
    assert {m["form"] for m in forms} == {"weights and activations together"}
    assert any(min(m["tried"], key=m["tried"].get) != m["form"] for m in forms)


def test_a_network_a_little_larger_than_the_calibrations_is_no_extrapolation():
    *smaller, largest = sorted(DATA.calibration, key=lambda m: amounts(m.net)[0])
    assert not Memory.fit(replace(DATA, calibration=tuple(smaller))).predict(largest.net).warnings


def test_many_tensors_at_once_are_all_counted_and_the_largest_named():
    b = NetworkBuilder("wide")
    x = b.input((1, 8, 16, 16))
    branches = [b.conv(x, 8, kernel=1, name=f"c{i}") for i in range(12)]
    net = b.build(b.op("concat", *branches, axis=1, name="all"))
    model = Memory.fit(DATA)
    e = model.predict(net)
    (rest,) = (p for p in e.breakdown if p.label == "further tensors")
    assert rest.count == len(peak(net).tensors) - sum(p.label.endswith("while all runs") for p in e.breakdown) > 0
    assert e.value == pytest.approx(model.coefficients[0] + np.dot(model.coefficients[1:], amounts(net)))


def test_a_space_is_looked_up_as_a_chain_only_where_whole_networks_say_the_same(monkeypatch):
    """A plugin's space may add up over Ops and still hold more at once than any of its blocks."""
    assert memory._chain(WORLD.space) is not None
    monkeypatch.setattr(memory, "amounts", lambda net: tuple(1.1 * x for x in amounts(net)))
    assert memory._chain(WORLD.space) is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("coefficients", np.nan), ("coefficients", -1.0), ("ranges", np.inf), ("coefficients", None), ("ranges", None)],
)
def test_a_file_of_something_else_is_refused_when_it_is_read(tmp_path, name, wrong):
    """Even with checksums that fit; None stands for another shape."""
    Memory.fit(DATA).save(tmp_path / "m")
    folder = files.read_folder(tmp_path / "m", "memory")
    arrays = folder.arrays("memory.npz")
    arrays[name] = arrays[name][:1] if wrong is None else np.full_like(arrays[name], wrong)
    files.write_folder(tmp_path / "m", folder.card, {**folder.files, "memory.npz": files.npz(**arrays)})
    with pytest.raises(FileFormatError, match=rf"{tmp_path / 'm'}: not a memory predictor"):
        Memory.load(tmp_path / "m")


def test_a_store_of_memory_visits_is_fitted_and_validated(tmp_path, own_locks):
    """End to end through lb.fit on a device that tells a known function of the network."""
    from numpy_device import QUICK
    from test_metrics import MeteredDevice

    from latbench.campaign import Campaign
    from latbench.plan import Plan, PlanItem
    from latbench.store import Store

    space = WORLD.space
    nets = [space.network(a) for a in space.sample_archs(16, seed=5).tolist()]
    truth = {n.key: WORLD.network_ms(n) for n in nets}

    class Truthful(MeteredDevice):
        def visits(self, jobs, protocol):
            for v in super().visits(jobs, protocol):
                yield replace(v, metrics={"peak_memory_bytes": truth[v.subject]}) if v.metric != "latency_ms" else v

    items = [
        PlanItem(n, "calibration" if i < 10 else "validation", metric="peak_memory_bytes") for i, n in enumerate(nets)
    ]
    device = Truthful()
    with Store.open(tmp_path / "m.db") as store, device:
        Campaign(device, Plan(tuple(items)), store=store, protocol=QUICK).run()
        model = lb.fit("memory", store=store, device=device.setting.device, space=space)
    assert model.card.metric == "peak_memory_bytes"
    assert model.card.validation["score"]["n"] == 6
    assert model.card.validation["score"]["rmspe"] < 0.02
    assert isinstance(DATA, FitData)
