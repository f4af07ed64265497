"""The store, on SQLite and on PostgreSQL: what is written comes back, exactly once, and errors say what is wrong."""

from __future__ import annotations

import math
import multiprocessing
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy_device import matmul

from latbench.device import Description
from latbench.errors import ConfigError, NotEnoughDataError, SearchError, StoreError
from latbench.network import NetworkBuilder
from latbench.problem import Candidate
from latbench.protocol import Protocol
from latbench.setting import Setting
from latbench.store import Slot, Store, engine
from latbench.store.leases import Holder
from latbench.store.schema import Samples
from latbench.store.visits import visit_row
from latbench.visit import Failure, Visit

SETTING = Setting("board-1", "numpy", "2.0", options={"level": "all"}, affinity=(1, 2))


@pytest.fixture
def store(store_address: str) -> Iterator[Store]:
    with Store.open(store_address) as s:
        yield s


def network(name: str = "net", width: int = 4):
    b = NetworkBuilder(name)
    x = b.input((1, 3, 8, 8))
    return b.build(b.conv(x, width, 3, bn=True, act="relu"), origin={"file": "x.onnx"})


def visit(uid: str, started: float = 0.0, subject: str = matmul(8).key, **fields) -> Visit:
    samples = fields.pop("samples_ns", np.array([100, 110, 105], np.int64))
    return Visit(subject, fields.pop("role", "op"), uid, started, started + 1, samples, **fields)


def campaign(store: Store, slots=2, subjects=None) -> str:
    subjects = subjects or [matmul(8)]
    return store.create_campaign(
        plan="p" * 16, name="first", description=Description("board-1", {"cpu": "x"}), setting=SETTING, profile="board",
        protocol=Protocol(), space={"name": "toy"}, seed=3, subjects=subjects,
        slots=[Slot(f"0.{i}", 0, subjects[0].key, "op", 0, i) for i in range(slots)],
    )  # fmt: skip


def same(a: Visit, b: Visit) -> bool:
    plain = {k: v for k, v in vars(a).items() if not isinstance(v, np.ndarray)}
    arrays = {k: v for k, v in vars(a).items() if isinstance(v, np.ndarray)}
    return all(getattr(b, k) == v for k, v in plain.items()) and all(
        np.array_equal(getattr(b, k), v) and getattr(b, k).dtype == v.dtype for k, v in arrays.items()
    )


def test_a_visit_comes_back_as_it_went_in(store):
    taken = visit(
        "r1-1", 12.5, wait_ns=np.array([0, 3, 0], np.int64), warmup_ns=np.array([999], np.int64), load_ns=5_000_000_000,
        boundary="in-context", metrics={"energy_mj": 1.5}, environment={"load": [0.1, 0.2], "governor": "µ"}, run="r1",
        purpose="op", replica=1,
    )  # fmt: skip
    assert store.add_visits(SETTING, [taken], profile="board") == 1
    (back,) = store.visits(SETTING)
    assert same(taken, back)
    assert store.settings() == [SETTING]


def test_failures_and_unsupported_are_data(store):
    none = np.empty(0, np.int64)
    failed = visit("a", samples_ns=none, failure=Failure("DeviceDiedError", "signal 9"))
    refused = visit("b", 1.0, samples_ns=none, unsupported=Failure("UnsupportedOpError", "rule 7"))
    store.add_visits(SETTING, [failed, refused, visit("c", 2.0)])
    assert [v.failure for v in store.visits(SETTING)] == [failed.failure, None, None]
    assert [v.uid for v in store.visits(SETTING, failed=True)] == ["a", "b"]
    assert [v.uid for v in store.visits(SETTING, failed=False)] == ["c"]


def test_visits_of_another_setting_never_mix_in(store):
    other = Setting("board-1", "numpy", "2.1")
    store.add_visits(SETTING, [visit("a")])
    store.add_visits(other, [visit("b")])
    assert [v.uid for v in store.visits(SETTING)] == ["a"]
    assert [v.uid for v in store.visits(other.hash)] == ["b"]


def test_adding_a_visit_twice_adds_it_once(store):
    assert store.add_visits(SETTING, [visit("a")]) == 1
    assert store.add_visits(SETTING, [visit("a"), visit("b")]) == 1
    assert len(store.visits(SETTING)) == 2


def test_visits_are_narrowed_by_subject_role_and_campaign(store):
    net = network()
    id = campaign(store)
    store.add_visits(
        SETTING,
        [visit("a", 3.0), visit("b", 1.0, net.key, role="network"), visit("c", 2.0, "control:compute", role="control")],
        subjects=[net],
    )
    store.commit_visit(visit_row(visit("d", 9.0), store.subject_ids([matmul(8).key])[matmul(8).key], SETTING.hash,
                                 campaign=id))  # fmt: skip
    assert [v.uid for v in store.visits(SETTING)] == ["b", "c", "a", "d"]
    assert [v.uid for v in store.visits(SETTING, subjects=[net.key])] == ["b"]
    assert [v.uid for v in store.visits(SETTING, roles=["op", "control"])] == ["c", "a", "d"]
    assert [v.uid for v in store.visits(SETTING, campaign=id)] == ["d"]
    many = [f"op1:none:{i}" for i in range(1500)]
    assert [v.uid for v in store.visits(SETTING, subjects=[*many, net.key])] == ["b"]


def test_subjects_come_back_as_ops_and_networks(store):
    net, op = network(), matmul(8)
    ids = store.add_subjects([net, op, op])
    assert store.add_subjects([op, net]) == ids
    back = store.subjects()
    assert back == {net.key: net, op.key: op}
    assert dict(back[net.key].origin) == {"file": "x.onnx"}
    assert list(store.subjects([op.key, "unknown"])) == [op.key]


def test_subjects_with_keys_longer_than_an_index_entry_are_stored(store):
    from latbench.op import Op, Step, TensorSpec

    spec = TensorSpec((1, 4, 8, 8))
    steps = [Step(Op.make("relu", [spec]), (i - 1,)) for i in range(400)]
    unit = Op.unit("chain", [spec], steps)
    assert len(unit.key) > 8000
    store.add_visits(SETTING, [visit("a", subject=unit.key)], subjects=[unit])
    assert store.visits(SETTING, subjects=[unit.key])[0].subject == unit.key
    assert store.subjects() == {unit.key: unit}


def test_networks_of_visits_must_be_given_for_a_key_is_only_a_hash(store):
    with pytest.raises(StoreError, match="give the Network net1:0"):
        store.add_visits(SETTING, [visit("a", subject="net1:0", role="network")])
    assert store.visits(SETTING) == []


def test_a_profile_name_finds_the_setting_that_was_used_last(store):
    one, two = (Setting("board-1", "numpy", v) for v in ("1", "2"))
    store.add_setting(one, profile="board", description=Description("board-1", {"cpu": "x"}))
    store.add_setting(two, profile="board")
    assert store.settings("board") == [two, one]
    store.add_setting(one, profile="board")
    assert store.latest_setting("board") == one
    assert store.latest_setting("board-1") == one
    assert store.profiles() == {"board": [one.hash, two.hash]}
    assert store.devices() == {"board-1": {"cpu": "x"}}


def test_the_file_of_a_profile_stands_for_its_name(store, tmp_path):
    store.add_setting(SETTING, profile="my-board")
    file = tmp_path / "elsewhere.toml"
    file.write_text('name = "my-board"\n[transport]\nkind = "local"\n[runtime]\nkind = "onnxruntime"\n')
    assert store.latest_setting(str(file)) == SETTING


def test_a_profile_of_several_devices_is_not_guessed_at(store):
    one, two = (Setting(f"board-{i}", "numpy", "1") for i in (1, 2))
    store.add_setting(one, profile="board")
    store.add_setting(two, profile="board")
    with pytest.raises(ConfigError, match=r"measured as 'board': board-2, board-1; say which"):
        store.latest_setting("board")
    assert store.latest_setting("board-1") == one


def test_a_profile_of_the_host_means_this_host_where_several_used_it(store, local_device):
    mine = local_device.setting
    store.add_setting(mine, profile="local-cpu")
    store.add_setting(Setting("another-laptop", "onnxruntime", "1"), profile="local-cpu")
    assert store.latest_setting("local-cpu") == mine


def test_asking_for_a_device_that_was_never_measured_names_the_command(store):
    store.add_setting(SETTING, profile="board")
    with pytest.raises(NotEnoughDataError, match=r"known: board, board-1.*latbench profile --device pixel"):
        store.latest_setting("pixel")


def test_a_slot_is_committed_exactly_once(store):
    id = campaign(store)
    subject = store.subject_ids([matmul(8).key])[matmul(8).key]

    def row(uid: str):
        return visit_row(visit(uid, slot=f"{id}.0.0"), subject, SETTING.hash, campaign=id, slot=f"{id}.0.0")

    store.commit_visit(row("a"), "done")
    with pytest.raises(StoreError, match="committed before"):
        store.commit_visit(row("b"), "done")
    assert [v.uid for v in store.visits(SETTING, campaign=id)] == ["a"]
    assert [s.state for s in store.slots(id)] == ["done", "planned"]


def test_a_visit_and_its_slot_are_committed_together_or_not_at_all(store):
    id = campaign(store)
    subject = store.subject_ids([matmul(8).key])[matmul(8).key]
    first = visit_row(visit("a", slot=f"{id}.0.0"), subject, SETTING.hash, campaign=id, slot=f"{id}.0.0")
    store.commit_visit(first, "done")
    again = visit_row(visit("a", slot=f"{id}.0.1"), subject, SETTING.hash, campaign=id, slot=f"{id}.0.1")
    with pytest.raises(StoreError, match="contradict"):  # the uid is taken
        store.commit_visit(again, "done")
    assert [s.state for s in store.slots(id)] == ["done", "planned"]


def test_a_slot_that_was_never_planned_is_refused(store):
    id = campaign(store)
    subject = store.subject_ids([matmul(8).key])[matmul(8).key]
    with pytest.raises(StoreError, match="never planned"):
        store.commit_visit(visit_row(visit("a"), subject, SETTING.hash, campaign=id, slot="nowhere"), "done")


def test_campaigns_come_back_newest_first_with_their_slots_counted(store):
    a = campaign(store)
    b = campaign(store, slots=3)
    found = store.campaigns("board")
    assert [r.id for r in found] == [b, a]
    assert found[0].slots == {"planned": 3}
    assert found[0].protocol == Protocol()
    assert (found[0].space, found[0].seed, found[0].state, found[0].ended) == ({"name": "toy"}, 3, "running", None)
    store.set_campaign_state(b, "finished")
    assert [r.id for r in store.campaigns(state="finished")] == [b]
    assert [r.id for r in store.campaigns(plan="another")] == []
    assert [r.id for r in store.campaigns(setting=SETTING)] == [b, a]


def test_a_device_is_held_while_its_holder_lives(store, monkeypatch):
    assert store.held_devices() == set()
    with store.lease("board-1", "first"):
        assert store.held_devices() == {"board-1"}
        monkeypatch.setattr(Holder, "provably_dead", True)
        assert store.held_devices() == set()
    assert store.held_devices() == set()


def test_evaluations_are_remembered_by_recipe_and_space(store):
    space = {"name": "toy", "width": 2}
    store.add_evaluation("digits-1", space, (0, 2), {"error": 0.25})
    store.add_evaluation("digits-1", {"width": 2, "name": "toy"}, (0, 2), {"error": 0.9})
    store.add_evaluation("digits-2", space, (0, 2), {"error": 0.5})
    assert store.evaluations("digits-1", space) == {(0, 2): {"error": 0.25}}
    assert store.evaluations("digits-1", {"name": "toy", "width": 3}) == {}


def test_a_search_is_resumed_from_what_was_saved_last(store):
    candidates = [Candidate((0, 1), {"error": 0.5, "latency_ms": 2.0}, math.inf, 0, {"why": "x"})]
    store.save_search("s1", problem={"limits": {"latency_ms": 8.0}}, state={"rng": [1, 2**70]}, candidates=[])
    store.save_search("s1", problem={"limits": {"latency_ms": 8.0}}, state={"rng": [3]}, candidates=candidates)
    record = store.load_search("s1")
    assert record.candidates == candidates
    assert record.state == {"rng": [3]}
    assert store.searches() == ["s1"]
    with pytest.raises(SearchError, match="known: s1"):
        store.load_search("s2")


def test_a_file_that_may_not_be_written_can_be_read_and_says_why_not_more(tmp_path, monkeypatch):
    path = tmp_path / "a b.db"
    with Store.open(path) as s:
        s.add_visits(SETTING, [visit("a")])
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(engine, "_writable", lambda file: False)
    with Store.open(path) as s:
        assert [v.uid for v in s.visits(SETTING)] == ["a"]
        with pytest.raises(StoreError, match="readonly"):
            s.add_visits(SETTING, [visit("b")])
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_what_is_committed_is_there_for_another_connection(store, store_address):
    store.add_visits(SETTING, [visit("a")])
    with Store.open(store_address) as other:
        assert len(other.visits(SETTING)) == 1


def test_many_threads_may_write_through_one_store(store):
    id = campaign(store, slots=60)
    subject = store.subject_ids([matmul(8).key])[matmul(8).key]
    refused = []

    def commit(worker: int) -> None:
        for i in range(60):
            slot = f"{id}.0.{i}"
            row = visit_row(visit(f"{worker}-{i}", slot=slot), subject, SETTING.hash, campaign=id, slot=slot)
            try:
                store.commit_visit(row, "done")
            except StoreError:
                refused.append(i)

    threads = [threading.Thread(target=commit, args=(w,)) for w in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(store.visits(SETTING)) == 60
    assert len(refused) == 180
    assert store.campaigns()[0].slots == {"done": 60}


def _open_and_add(address: str, uid: str) -> None:
    with Store.open(address) as s:
        s.add_visits(SETTING, [visit(uid)])


def test_processes_that_make_the_same_store_at_once_all_succeed(store_address):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_open_and_add, args=(store_address, f"p{i}")) for i in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    with Store.open(store_address) as s:
        assert sorted(v.uid for v in s.visits(SETTING)) == ["p0", "p1", "p2"]


def test_a_closed_store_says_so(store_address):
    s = Store.open(store_address)
    s.close()
    s.close()
    with pytest.raises(StoreError, match="closed"):
        s.settings()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "notes.db"
    path.write_text("these are notes, and long enough to be looked at as the header of a database file\n" * 20)
    with pytest.raises(StoreError, match=r"notes\.db: file is not a database"):
        Store.open(path)
    assert path.read_text().startswith("these are notes")


def test_a_database_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "music.db"
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE songs (id INTEGER)")
    c.close()
    with pytest.raises(StoreError, match=r"music\.db: a database of something else .*songs"):
        Store.open(path)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mysql://host/x", "sqlite:///path, postgresql://"),
        (":memory:", "needs a file"),
        ("sqlite://", "sqlite:///path"),
        ("://", "not the address"),
        ("no/such/folder/lab.db", "there is no folder"),
    ],
)
def test_addresses_that_cannot_be_a_store_are_refused(address, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=says):
        Store.open(address)


def test_a_server_that_is_not_there_is_an_error_without_the_password():
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1") as caught:
        Store.open("postgresql://me:secret@127.0.0.1:9/nothing")
    assert "secret" not in str(caught.value)


def test_sqlite_keeps_what_was_committed_through_a_power_cut(tmp_path: Path):
    from sqlalchemy import text

    with Store.open(tmp_path / "lab.db") as s, s._db.write() as c:
        assert c.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert c.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert c.execute(text("PRAGMA foreign_keys")).scalar() == 1


@given(hnp.arrays(np.int64, st.integers(0, 300), elements=st.integers(-(2**63), 2**63 - 1)))
def test_samples_survive_compression(samples):
    kind = Samples()
    back = kind.process_result_value(kind.process_bind_param(samples, None), None)
    assert back.dtype == np.int64
    assert np.array_equal(back, samples)


_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.dictionaries(_texts, _json, max_size=4), st.floats(0, 4e9), _texts)
def test_any_environment_survives_the_store(store, environment, started, run):
    uid = uuid.uuid4().hex
    taken = visit(uid, started, environment=environment, run=run, slot="")
    store.add_visits(SETTING, [taken])
    (back,) = [v for v in store.visits(SETTING) if v.uid == uid]
    assert same(taken, back)
