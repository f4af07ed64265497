"""The adaptive campaign: what it measures, what it learns, and that nothing is lost when it is stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy_device import QUICK, NumpyDevice

from latbench.adaptive import FEWEST_JUDGES, Learning, Learnt, Round, learn
from latbench.adaptive_choice import FIRST, UNKNOWN_ERROR, KindState, choose
from latbench.adaptive_clock import used_s
from latbench.adaptive_pool import FAMILIES, random_network
from latbench.adaptive_source import Source
from latbench.card import Card
from latbench.device import Job, Unit
from latbench.ledger import Ledger
from latbench.network import Network
from latbench.op import Op, TensorSpec
from latbench.predictors import plans
from latbench.predictors.features import kernel_kind
from latbench.predictors.kernels import Kernels
from latbench.protocol import Protocol
from latbench.rounds import Progress
from latbench.setting import Setting
from latbench.store import Store
from latbench.validation import Validation
from latbench.visit import Visit


def law_ms(op: Op) -> float:
    """A device on which convolutions with many channels are the better for it."""
    channels = op.inputs[0].shape[1] if len(op.inputs[0].shape) > 1 else 1
    efficiency = channels / (channels + 40.0)
    return 0.003 + op.macs / (2e7 * efficiency) + (op.activation_bytes + op.weight_bytes) / 2e7


class LawDevice(NumpyDevice):
    """Answers at once, with times by a law and one per cent of noise; networks take their sum and a constant."""

    def visits(self, jobs: Sequence[Job], protocol: Protocol) -> Iterator[Visit]:
        rng = np.random.default_rng(len(self.taken))
        for job in jobs:
            s = job.subject
            ms = 0.05 + sum(law_ms(n.op) for n in s.nodes) if isinstance(s, Network) else law_ms(s)
            uid, now = f"{id(self)}-{len(self.taken)}", time.time()
            self.taken.append(s.key)
            ns = np.maximum(ms * 1e6 * np.exp(0.01 * rng.standard_normal(5)), 1).astype(np.int64)
            role = "network" if isinstance(s, Network) else "op"
            yield Visit(s.key, role, uid, now, now, ns, run=str(id(jobs)), slot=job.slot)


class StopError(Exception):
    """Ends a campaign from outside, as Ctrl-C does."""


@pytest.fixture
def one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime without fusion: every primitive is a unit."""

    def units(_: Setting, net: Network) -> list[Unit]:
        return [Unit(n.op, (n.name,), n.outputs, n.name) for n in net.nodes]

    monkeypatch.setattr(plans, "units", units)


def stop_after(rounds: int, seen: list[Round]):
    def on_round(r: Round) -> None:
        seen.append(r)
        if len(seen) == rounds:
            raise StopError

    return on_round


@pytest.mark.usefixtures("one_each")
def test_rounds_make_a_predictor_that_is_right_on_networks_that_no_fit_has_seen(tmp_path):
    device, seen, kept = LawDevice("law"), [], []
    with pytest.raises(StopError):
        learn(
            device, minutes=60, store=tmp_path / "s.db", out=kept.append, on_round=stop_after(3, seen), protocol=QUICK
        )
    assert [r.number for r in seen] == [1, 2, 3]
    assert seen[-1].ops > seen[0].ops
    assert seen[-1].networks >= 5
    assert seen[-1].held_out_networks >= 2
    assert seen[-1].rmspe < 0.08
    assert set(seen[-1].kinds)
    model = kept[-1]
    assert isinstance(model, Kernels)
    assert model.card.data["learning"][-1]["ops"] == seen[-2].ops
    net = random_network(5, 1)
    again = Kernels.load(model.save(tmp_path / "model"))
    assert again.predict(net, unknown="estimate").metrics == model.predict(net, unknown="estimate").metrics


@pytest.mark.usefixtures("one_each")
def test_a_campaign_that_is_stopped_goes_on_where_it_was_and_fits_nothing_that_is_held_out(tmp_path):
    first, again, seen, more = LawDevice("law"), LawDevice("law"), [], []
    with pytest.raises(StopError):
        learn(first, minutes=60, store=tmp_path / "s.db", on_round=stop_after(2, seen), protocol=QUICK)
    with pytest.raises(StopError):
        learn(again, minutes=60, store=tmp_path / "s.db", on_round=stop_after(2, more), protocol=QUICK)
    assert more[0].ops == seen[1].ops  # all that the first had measured, and nothing measured again for it
    assert more[1].ops > more[0].ops
    with Store.open(tmp_path / "s.db") as store:
        (record,) = store.campaigns()
        slots = store.slots(record.id)
        visits = store.visits(record.setting)
    taken = Counter(first.taken) + Counter(again.taken)
    assert max(taken.values()) <= 2 * QUICK.max_visits  # two replicas of what validates
    assert {s.subject for s in slots if s.state == "done"} == set(taken)
    ops = {
        p: {s.subject for s in slots if s.purpose == p and s.subject.startswith("op1:")} for p in ("op", "validation")
    }
    assert ops["validation"]
    assert not ops["op"] & ops["validation"]
    networks = {
        p: {v.subject for v in visits if v.role == "network" and v.purpose == p} for p in ("calibration", "validation")
    }
    assert not networks["calibration"] & networks["validation"]


@pytest.mark.usefixtures("one_each")
def test_time_that_is_up_ends_it_with_what_it_has_and_more_time_goes_on(tmp_path):
    device = LawDevice("law")
    none = learn(device, minutes=1e-6, store=tmp_path / "s.db", protocol=QUICK)
    assert none == Learnt(None, (), none.minutes, none.campaign)
    seen: list[Round] = []
    with pytest.raises(StopError):
        learn(device, minutes=60, store=tmp_path / "s.db", on_round=stop_after(1, seen), protocol=QUICK)
    done = learn(device, minutes=1e-6, store=tmp_path / "s.db", protocol=QUICK)
    assert done.campaign == none.campaign
    assert done.predictor is not None
    assert done.rounds[-1].ops >= seen[0].ops


@pytest.mark.usefixtures("one_each")
def test_the_networks_that_it_is_for_come_first_and_calibrate(tmp_path):
    own, seen = random_network(99, 4), []
    device = LawDevice("law")
    with pytest.raises(StopError):
        learn(device, [own], minutes=60, store=tmp_path / "s.db", on_round=stop_after(1, seen), protocol=QUICK)
    assert own.key in device.taken
    measured = set(device.taken) & {n.op.key for n in own.nodes}
    assert measured


class Judges:
    """Held-out networks; a model's card says how far it is off, and of how many of them it knows all Ops."""

    def validate(self, model: Kernels, statistic: str, level: float) -> tuple[Validation, list[str]]:
        said, known = 1 + model.card.data["off"], model.card.data["known"]
        x = np.full(known, said)
        return Validation.of(x, 0.9 * x, 1.1 * x, np.ones(known), level=level, statistic=statistic), []


def model_off(off: float, known: int) -> Kernels:
    made = Kernels.__new__(Kernels)
    made.card = Card("kernels", Setting("law", "numpy", ""), "p50", {}, data={"off": off, "known": known})
    return made


def kept_of(models: Sequence[Kernels]) -> tuple[Learning, list[Kernels]]:
    """What is kept after each round, one a model."""
    learning, kept = Learning.__new__(Learning), []
    learning.best, learning.kept, learning.rounds, learning.statistic, learning.out = None, 0, [], "p50", kept.append
    for number, m in enumerate(models, 1):
        learning.rounds.append(Round(number, 1.0, 1, 1, 1, 0.1, m.card.data["known"], 0.1, 1.0, 1.0))
        learning._keep(m, Judges().validate(m, "p50", 0.9)[0], Judges())
    return learning, kept


def test_the_predictor_that_is_kept_is_the_one_that_the_networks_held_out_by_now_find_best():
    n = 2 * FEWEST_JUDGES
    # The second knows too few of the networks to be the best, the fourth is worse than the third, the last is better.
    offs = ((0.3, n), (0.01, n - 1), (0.05, n), (0.2, n), (0.04, n))
    learning, kept = kept_of([model_off(off, known) for off, known in offs])
    assert [m.card.data["learning_round"] for m in kept] == [1, 2, 3, 3, 5]
    assert [len(m.card.data["learning"]) for m in kept] == [1, 2, 3, 4, 5]
    assert kept[3].card.validation["score"]["rmspe"] == pytest.approx(0.05)
    assert learning.kept == 5
    assert learning.best is kept[-1]


@pytest.mark.parametrize(("networks", "round_"), [(FEWEST_JUDGES - 1, 2), (FEWEST_JUDGES, 1)])
def test_few_held_out_networks_do_not_say_that_an_earlier_round_was_better(networks, round_):
    learning, _ = kept_of([model_off(0.1, networks), model_off(0.2, networks)])
    assert learning.kept == round_


class Clock:
    """The time, and as many seconds more as one likes."""

    def __init__(self) -> None:
        self.later = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.later


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("latbench.adaptive.time", made)
    monkeypatch.setattr("latbench.adaptive_clock.time", made)
    return made


@pytest.mark.usefixtures("one_each")
def test_what_was_measured_until_the_time_is_up_is_fitted_too(tmp_path, clock):
    device, seen = LawDevice("law"), []

    def over(p: Progress) -> None:
        if seen and p.stage == "measure" and len(device.taken) - at[0] > 30:
            clock.later = 1e5

    def on_round(r: Round) -> None:
        seen.append(r)
        at.append(len(device.taken))
        del at[:-1]

    at = [0]
    done = learn(device, minutes=60, store=tmp_path / "s.db", on_round=on_round, on_progress=over, protocol=QUICK)
    assert len(done.rounds) == len(seen) >= 2
    assert seen[-1].minutes > 60
    assert seen[-1].ops > seen[-2].ops
    assert done.predictor is not None
    assert len(done.predictor.card.data["learning"]) == len(seen)


@pytest.mark.usefixtures("one_each")
def test_time_that_an_earlier_run_used_counts(tmp_path, clock):
    device, seen = LawDevice("law"), []

    def longer(p: Progress) -> None:
        clock.later = 3000.0  # 50 minutes
        if len(device.taken) > 100:
            raise StopError

    with pytest.raises(StopError):
        learn(device, minutes=60, store=tmp_path / "s.db", on_progress=longer, protocol=QUICK)
    before = len(device.taken)
    done = learn(device, minutes=40, store=tmp_path / "s.db", on_round=stop_after(2, seen), protocol=QUICK)
    assert done.minutes > 50
    assert len(device.taken) <= before + QUICK.max_visits


@pytest.mark.usefixtures("one_each")
def test_a_pause_between_two_runs_is_no_time_of_the_campaign_however_short_it_is(tmp_path):
    def stop(p: Progress) -> None:
        if p.stage == "measure" and len(device.taken) - before >= 20:
            raise StopError

    seconds, device = [], LawDevice("law")
    for start in (0.0, 60.0):  # a minute later
        before = len(device.taken)
        with pytest.MonkeyPatch.context() as later:
            later.setattr("time.time", lambda now=time.time, start=start: now() + start)
            with pytest.raises(StopError):
                learn(device, minutes=60, store=tmp_path / "s.db", on_progress=stop, protocol=QUICK)
        with Store.open(tmp_path / "s.db") as store:
            (record,) = store.campaigns()
            visits = [v for v in store.visits(record.setting) if v.ok]
        ledger = Ledger.__new__(Ledger)
        ledger.kept = visits
        seconds.append(used_s(ledger))
    assert max(v.ended for v in visits) - min(v.started for v in visits) > 60
    assert 0 < seconds[0] < seconds[1] < 60


def test_pauses_do_not_count_as_time_used():
    def visit(start: float, end: float) -> Visit:
        return Visit("op", "op", "u", start, end, np.array([1]))

    ledger = Ledger.__new__(Ledger)
    ledger.kept = [visit(100, 110), visit(112, 120), visit(5000, 5010)]
    assert used_s(ledger) == pytest.approx(30.0)
    ledger.kept = []
    assert used_s(ledger) == 0.0


def test_a_pool_is_drawn_from_its_seed_and_has_every_family():
    nets = [random_network(0, i) for i in range(3 * len(FAMILIES))]
    assert {n.origin["family"] for n in nets} == set(FAMILIES)
    assert len({n.key for n in nets}) == len(nets)
    for i, net in enumerate(nets[: len(FAMILIES)]):
        net.check()
        assert random_network(0, i).key == net.key
        assert random_network(1, i).key != net.key


@pytest.mark.usefixtures("one_each")
def test_parts_depend_on_a_networks_number_alone_and_units_of_validation_are_not_measured():
    with LawDevice("law") as device:
        sources = [Source(device, [], None, 0) for _ in range(2)]
        for s, n in zip(sources, (16, 24), strict=True):
            for _ in range(n):
                assert s.more()
    first, longer = sources
    assert longer.items[: len(first.items)] == first.items
    parts = Counter(p.part for p in longer.planned)
    assert parts == {"units": 15, "calibration": 6, "validation": 3}
    ops = {i.subject.key for i in first.items if isinstance(i.subject, Op)}
    others = {u.op.key for p in first.planned if p.part != "validation" for u in p.units}
    assert ops == others
    held = [i for i in longer.items if isinstance(i.subject, Op) and i.purpose == "validation"]
    assert 0.05 < len(held) / sum(isinstance(i.subject, Op) for i in longer.items) < 0.2


def conv(channels: int, size: int = 28, kernel: int = 3) -> Op:
    return Op.make(
        "conv", [TensorSpec((1, channels, size, size))], out_channels=channels, kernel=(kernel, kernel), stride=(1, 1),
        pads=(kernel // 2,) * 4, dilation=(1, 1), groups=1, bias=False,
    )  # fmt: skip


DENSE, POINTWISE = (kernel_kind(conv(8, kernel=k)) for k in (3, 1))


def test_a_kind_that_is_estimated_wrongly_is_measured_rather_than_one_that_is_right():
    known = {
        DENSE: KindState([conv(c) for c in (8, 16, 32, 64, 96, 128, 160, 192)], 0.02, [0.02] * 20),
        POINTWISE: KindState([conv(c, kernel=1) for c in (8, 16, 32, 64, 96, 128, 160, 192)], 0.02, [0.3, -0.3] * 10),
    }
    candidates = [conv(c, kernel=k) for c in (12, 24, 40, 48, 56) for k in (1, 3)]
    chosen = choose(candidates, [0.1] * 10, known, 4)
    assert {kernel_kind(op) for op in chosen} == {POINTWISE}


def test_the_error_of_a_kind_is_believed_from_a_few_measured_ops_on():
    few, enough = ([conv(c) for c in range(8, 8 + n)] for n in (FIRST - 1, FIRST))
    assert KindState(few, 0.02, [0.02] * 20).error == UNKNOWN_ERROR
    assert KindState(enough, 0.02, [0.02] * 20).error == pytest.approx(0.02)
    assert KindState(enough, None, [0.02] * 20).error == UNKNOWN_ERROR


def test_a_new_kind_is_tried_before_one_that_is_known():
    known = {DENSE: KindState([conv(c) for c in (8, 16, 32, 64, 96, 128, 160, 192)], 0.1, [0.1] * 5)}
    sizes = range(12, 12 + 4 * FIRST, 4)
    candidates = [*(conv(c) for c in sizes), *(conv(c, kernel=1) for c in sizes)]
    chosen = choose(candidates, [0.1] * len(candidates), known, FIRST)
    assert [kernel_kind(op) for op in chosen] == [POINTWISE] * FIRST


def test_a_batch_spreads_over_shapes():
    known = {DENSE: KindState([conv(c) for c in range(14, 22)], 0.3, [0.3] * 5)}
    candidates = [conv(22), conv(23), conv(24), conv(256), conv(250), conv(8, 112), conv(9, 112)]
    chosen = choose(candidates, [0.1] * 7, known, 2)
    assert {op.inputs[0].shape[1] > 100 for op in chosen} == {True, False}
    assert all(op.inputs[0].shape[1] not in (22, 23, 24) for op in chosen)


def test_ops_in_which_networks_spend_their_time_come_first():
    known = {DENSE: KindState([conv(c) for c in (16, 24, 32, 64, 96, 128, 160, 192)], 0.3, [0.3] * 5)}
    assert choose([conv(40), conv(48)], [0.01, 0.5], known, 1) == [conv(48)]


def test_no_op_is_chosen_twice_and_a_batch_can_be_ended():
    candidates = [conv(c) for c in range(8, 40, 4)]
    assert len(set(choose(candidates, [0.1] * 8, {}, 20))) == 8
    assert len(choose(candidates, [0.1] * 8, {}, 20, keep_on=lambda _: False)) == 1
