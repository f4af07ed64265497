"""Settings: what is comparable has one hash, for as long as stored numbers live."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from latbench.setting import Setting

SETTING = Setting("cpu-x", "onnxruntime", "1.20.0", {"provider": "CPUExecutionProvider"}, affinity=(1,))


def test_the_hash_of_a_stored_setting_never_changes():
    # Stored numbers are found by this hash: a change here orphans every store and table that exists.
    assert SETTING.hash == "ee35ff030f420de4"


def test_fields_at_their_default_do_not_count_so_that_later_versions_may_add_some():
    content = {k: v for k, v in SETTING.to_json().items() if k in ("device", "runtime", "runtime_version", "options")}
    old = Setting.from_json({**content, "affinity": [1]})
    assert old.hash == SETTING.hash


@given(st.sampled_from([f.name for f in fields(Setting)]))
def test_every_field_counts_where_it_differs(name):
    other = {"options": {"provider": "other"}, "threads": 2, "affinity": (0,)}.get(name, "other")
    changed = replace(SETTING, **{name: other})
    assert changed.hash != SETTING.hash
    assert [line.split(":")[0] for line in SETTING.differences(changed)] == [name]


def test_it_survives_json():
    assert Setting.from_json(json.loads(json.dumps(SETTING.to_json()))) == SETTING
