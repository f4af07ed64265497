"""Plans: drawn from the seed before anything is measured, and the same for the same question."""

from __future__ import annotations

from dataclasses import replace

import pytest
from numpy_device import matmul

from latbench.device import Unit
from latbench.errors import ConfigError
from latbench.load import load_space
from latbench.network import Network, NetworkBuilder
from latbench.plan import Plan, PlanItem
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.store import Slot

SETTING = Setting("board-1", "numpy", "2.0")


def space():
    return load_space("mobilenetv3", resolution=32, num_classes=10)


def test_a_space_is_planned_with_all_ops_and_two_disjoint_sets_of_networks():
    s = space()
    plan = Plan.for_space(s, calibration=5, validation=4, seed=1)
    by = {p: [i for i in plan.items if i.purpose == p] for p in ("op", "calibration", "validation")}
    assert [i.subject for i in by["op"]] == s.ops()
    calibration = {i.subject.key for i in by["calibration"]}
    validation = {i.subject.key for i in by["validation"]}
    assert (len(calibration), len(validation)) == (5, 4)
    assert not calibration & validation
    assert plan.space == s.spec


def test_validation_networks_are_planned_as_two_replicas():
    plan = Plan.for_space(space(), ops=False, calibration=0, validation=3)
    replicas = [(i.subject.key, i.replica) for i in plan.items]
    assert len(replicas) == 6
    assert {r for _, r in replicas} == {0, 1}
    assert len({k for k, _ in replicas}) == 3


def test_units_are_planned_where_something_says_what_they_are():
    def units(net):
        return [Unit(n.op, (n.name,), n.outputs, n.name) for n in net.nodes]

    s = space()
    plan = Plan.for_space(s, ops=False, units=units, calibration=1, validation=0)
    assert [i.subject for i in plan.items[:-1]] == s.ops("unit", units)


def test_the_same_seed_gives_the_same_plan_and_another_one_another():
    def made(seed: int) -> Plan:
        return Plan.for_space(space(), calibration=3, validation=3, seed=seed)

    assert made(3) == made(3)
    assert {i.subject.key for i in made(3).items} != {i.subject.key for i in made(4).items}


def keys(plan: Plan, purpose: str) -> set[str]:
    return {i.subject.key for i in plan.items if i.purpose == purpose}


@pytest.mark.parametrize("name", ["mobilenetv3", "nasbench201"])
def test_more_calibration_networks_hold_out_the_same_ones(name):
    s = load_space(name, resolution=32)
    few, more = (Plan.for_space(s, ops=False, calibration=n, validation=8, seed=7) for n in (12, 20))
    assert keys(few, "validation") == keys(more, "validation")
    assert keys(few, "calibration") < keys(more, "calibration")
    assert not keys(more, "calibration") & keys(few, "validation")


def test_a_negative_seed_is_refused_before_anything_is_drawn():
    with pytest.raises(ConfigError, match="seed"):
        Plan.for_space(space(), seed=-1)


def test_excluded_architectures_are_not_drawn():
    s = space()
    first = Plan.for_space(s, ops=False, calibration=6, validation=0, seed=0)
    archs = [tuple(i.subject.origin["arch"]) for i in first.items]
    second = Plan.for_space(s, ops=False, calibration=6, validation=0, seed=0, exclude=archs[:3])
    drawn = {i.subject.key for i in second.items}
    assert not drawn & {s.network(a).key for a in archs[:3]}
    assert {s.network(a).key for a in archs[3:]} < drawn


def test_more_networks_than_the_space_has_are_refused():
    s = load_space("nasbench201", resolution=32)
    small = type("Tiny", (type(s),), {"sample": lambda self, seed=None: (0, 0, 0, 0, 0, 3)})(**s.params)
    with pytest.raises(ConfigError, match="only about 1 distinct networks"):
        Plan.for_space(small, calibration=2, validation=1)


def test_the_hash_depends_on_everything_that_makes_a_campaign():
    plan, protocol = Plan.of([matmul(8), matmul(16)], seed=1), Protocol()
    same = plan.hash(SETTING, protocol)
    assert Plan.of([matmul(8), matmul(16)], seed=1).hash(Setting("board-1", "numpy", "2.0"), Protocol()) == same
    others = [
        Plan.of([matmul(8), matmul(16)], seed=2).hash(SETTING, protocol),
        Plan.of([matmul(8)], seed=1).hash(SETTING, protocol),
        plan.hash(replace(SETTING, threads=2), protocol),
        plan.hash(replace(SETTING, device="board-2"), protocol),
        plan.hash(SETTING, Protocol(max_visits=9)),
    ]
    assert len({same, *others}) == 6


def test_the_hash_tells_purposes_and_replicas_apart():
    items = [
        (PlanItem(matmul(8), "op"),),
        (PlanItem(matmul(8), "calibration"),),
        (PlanItem(matmul(8), "calibration", 1),),
    ]
    assert len({Plan(i).hash(SETTING, Protocol()) for i in items}) == 3


def test_a_new_field_of_the_protocol_leaves_the_hash_as_it_is():
    class Later(Protocol):
        cool_down_ms: float = 0.0

    plan = Plan.of([matmul(8)])
    assert plan.hash(SETTING, Later()) == plan.hash(SETTING, Protocol())
    assert plan.hash(SETTING, Later(cool_down_ms=1.0)) != plan.hash(SETTING, Protocol())


def test_files_of_equal_structure_are_different_plans():
    def plan(seed):
        b = NetworkBuilder("net")
        net = b.build(b.linear(b.input((1, 4)), 4))
        return Plan.of([Network.from_onnx(net.to_onnx(seed=seed).SerializeToString())])

    first, again, other = plan(1), plan(1), plan(2)
    assert first.subjects[0].key == other.subjects[0].key
    assert first.hash(SETTING, Protocol()) == again.hash(SETTING, Protocol())
    assert first.hash(SETTING, Protocol()) != other.hash(SETTING, Protocol())


def test_equal_subjects_are_planned_once():
    assert len(Plan.of([matmul(8), matmul(8), matmul(16)]).items) == 2


@pytest.mark.parametrize(
    ("items", "seed", "says"),
    [
        ((), 0, "at least one subject"),
        ((PlanItem(matmul(8), "op"),), -1, "seed"),
        ((PlanItem(matmul(8), "testing"),), 0, "known: op, calibration, validation"),
        ((PlanItem(matmul(8), "op"), PlanItem(matmul(8), "op")), 0, "planned twice"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(items, seed, says):
    with pytest.raises(ConfigError, match=says):
        Plan(items, seed)


def slots(n: int, replicas: int) -> list[Slot]:
    return [Slot(f"{i}.{r}", i * replicas + r, f"s{i}", "op", r, 0) for i in range(n) for r in range(replicas)]


def test_replicas_of_one_subject_are_never_measured_by_one_process():
    plan = Plan.of([matmul(8)])
    mixed = [*slots(20, 2), *[Slot(f"x{i}", 100 + i, f"x{i}", "op", 0, 0) for i in range(40)]]
    for number in range(8):
        runs = plan.runs(mixed, number)
        assert sorted(s.name for r in runs for s in r) == sorted(s.name for s in mixed)
        for run in runs:
            subjects = [s.subject for s in run]
            assert len(subjects) == len(set(subjects))
        assert min(map(len, runs)) > 20  # the rest is dealt out


def test_without_replicas_a_round_is_one_process_in_an_order_of_its_own():
    plan = Plan.of([matmul(8)], seed=5)
    rounds = [plan.runs(slots(30, 1), n) for n in range(3)]
    assert all(len(r) == 1 for r in rounds)
    orders = [[s.name for s in r[0]] for r in rounds]
    assert orders[0] != orders[1] != orders[2] != sorted(orders[2])
    assert [s.name for s in Plan.of([matmul(8)], seed=5).runs(slots(30, 1), 0)[0]] == orders[0]
    assert plan.runs([], 0) == []
