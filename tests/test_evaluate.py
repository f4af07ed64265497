"""``latbench evaluate DATA.parquet``: predictors on measurements from elsewhere."""

from __future__ import annotations

import json
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import latbench as lb
from latbench.arch_times import ArchTimes
from latbench.cli.app import app
from latbench.errors import ConfigError, FileFormatError
from latbench.evaluation import ADDITIVE, MACS, Answers, Run, additive_baseline, evaluate, macs_baseline, means
from latbench.times_file import read_times
from latbench.validation import Score, Validation

CELLS = lb.load_space("nasbench201")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    import pyarrow as pa
    import pyarrow.parquet as pq

    archs = CELLS.sample_archs(120, 0)
    work = 2.0 + np.array([0.1, 0.05, 0.4, 1.2, 0.3])[archs].sum(axis=1)
    noise = np.random.default_rng(0)
    table = {
        "arch_str": [CELLS.to_string(a) for a in archs.tolist()],
        **{f"choice_{i}": archs[:, i] for i in range(6)},
        "phone": work * np.exp(noise.normal(0, 0.02, 120)),
        "gpu": 0.2 * work * np.exp(noise.normal(0, 0.02, 120)),
        "holes": np.where(np.arange(120) % 10, work, np.nan),
        "broken": np.where(np.arange(120) == 7, -1.0, work),
        "when": np.arange(120) * 3.0,
    }
    path = tmp_path_factory.mktemp("data") / "times.parquet"
    pq.write_table(pa.table(table), path)
    return path


def run(*args):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["evaluate", *map(str, args)])


def test_every_predictor_and_both_baselines_stand_in_one_table(file):
    r = run(file, "network", "--space", "nasbench201", "--target", "phone", "--pool", "0:60", "--n", 15, "--seeds", 2)
    assert r.exit_code == 0, r.output
    for said in ("network", "baseline: MACs", "baseline: additive", "±1 %", "Kendall", "60 asked, 2 splits"):
        assert said in r.output


@pytest.fixture
def quick(monkeypatch):
    """A predictor that fits at once: the mean of what it was given, and a fifth more or less."""

    def fit(name, *, latency_ms, **_):
        def predict_archs(space, archs, **_):
            value = np.full(len(archs), np.mean(latency_ms))
            return SimpleNamespace(value=value, low=0.8 * value, high=1.2 * value)

        return SimpleNamespace(card=SimpleNamespace(model={}), predict_archs=predict_archs)

    monkeypatch.setattr(lb, "fit", fit)


@pytest.mark.usefixtures("quick")
def test_it_tells_each_split_as_it_ends_and_the_table_shows_the_spread_over_splits(file):
    args = (file, "network", "--space", "nasbench201", "--target", "phone", "--pool", "0:60", "--n", 15, "--seeds", 2)
    r = run(*args)
    told = [line for line in r.stderr.splitlines() if line.startswith("phone, 15 networks, split ")]
    assert [x.partition(": RMSPE")[0] for x in told] == [f"phone, 15 networks, split {k} of 2: network" for k in (1, 2)]
    found = json.loads(run(*args, "--json").stdout)
    scores = [x["score"]["rmspe"] for x in found["runs"] if x["name"] == "network"]
    assert found["means"]["network"]["rmspe_spread"] == pytest.approx(np.std(scores))
    (line,) = (x for x in r.stdout.splitlines() if x.split()[:1] == ["network"])
    assert f"{100 * np.mean(scores):.1f}% ±{100 * np.std(scores):.1f}" in line
    assert "standard deviation" in r.stderr
    assert "suspicious" not in r.stderr
    assert "suspicious" not in found


@pytest.mark.usefixtures("quick")
def test_rows_that_hardly_took_any_time_are_named_and_errors_told_without_them_too(file, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, page = pq.read_table(file), tmp_path / "page.html"
    phone = table["phone"].to_numpy().copy()
    phone[[70, 90]] = 0.004
    odd = tmp_path / "odd.parquet"
    pq.write_table(table.set_column(table.column_names.index("phone"), "phone", pa.array(phone)), odd)
    args = ("network", "--space", "nasbench201", "--target", "phone", "--pool", "0:60", "--n", 15, "--seeds", 1)
    r = run(odd, *args, "--report", page)
    warning = "2 of 120 measured rows of phone (rows 70, 90) are below"
    assert warning in r.stderr
    assert "phone without these rows: 15 measured networks, 58 asked" in r.stdout
    assert warning in page.read_text()
    found = json.loads(run(odd, *args, "--json").stdout)
    assert found["suspicious"]["rows"] == [70, 90]
    with_them, without = (found[k]["network"]["rmspe"] for k in ("means", "means_without_suspicious"))
    assert with_them > 50 * without
    times = read_times(odd, CELLS, ["phone"])
    (network, *_) = evaluate(times, "phone", [], ["network"], n=15, seeds=1, pool=(0, 60))
    kept = network.answers.measured > 0.01
    again = Score.of(network.answers.value[kept], network.answers.measured[kept])
    assert without == pytest.approx(again.rmspe)


def test_json_holds_every_run(file):
    r = run(
        file, "network", "--space", "nasbench201", "--target", "phone", "--pool", "0:60", "--n", 15, "--seeds", 2,
        "--order", "when", "--json",
    )  # fmt: skip
    d = json.loads(r.stdout)
    assert {"network", "network (in order)", MACS, ADDITIVE} <= set(d["means"])
    assert d["asked"] == 60
    assert len(d["runs"]) == 2 * 4
    assert d["means"]["network"]["rmspe"] < d["means"][MACS]["rmspe"]


def test_the_same_seed_gives_the_same_scores_and_sources_are_used_by_who_can(file):
    times = read_times(file, CELLS, ["phone", "gpu"])
    a, b = (
        means(evaluate(times, "phone", ["gpu"], ["transfer"], n=8, seeds=1, pool=(0, 60), seed=4)) for _ in range(2)
    )
    assert a["transfer"]["rmspe"] == b["transfer"]["rmspe"]
    runs = evaluate(times, "phone", ["gpu"], ["transfer"], n=8, seeds=1, pool=(0, 60), seed=4)
    assert {r.name: r.picked for r in runs} == {"transfer": "chosen", ADDITIVE: "random", MACS: "random"}


@pytest.mark.usefixtures("quick")
def test_baselines_learn_from_networks_drawn_at_random_whoever_else_chooses_its_own(file):
    times = read_times(file, CELLS, ["phone", "gpu"])
    with_sources, alone = (
        evaluate(times, "phone", s, ["transfer"], n=12, seeds=2, pool=(0, 60)) for s in (["gpu"], [])
    )
    assert [r.picked for r in with_sources if r.name == "transfer"] == ["chosen", "chosen"]
    for name in (ADDITIVE, MACS):
        said, usual = ([r.answers.value.tolist() for r in runs if r.name == name] for runs in (with_sources, alone))
        assert said == usual


def test_answers_without_suspicious_networks_keep_the_intervals_of_the_others():
    measured = np.array([0.001, 1.0, 2.0, 3.0])
    value = np.array([1.0, 1.0, 2.0, 4.0])
    run_ = Run.of("x", 0, 5, Answers(measured, value, 0.9 * value, 1.1 * value), 0.0, 0.0)
    left = run_.without(0.01)
    assert run_.coverage == pytest.approx(2 / 4)
    assert left.coverage == pytest.approx(2 / 3)
    assert left.width == pytest.approx(0.2)
    assert left.score.n == 3


def test_learning_rows_are_drawn_from_the_pool_and_all_rows_outside_it_are_asked(file, monkeypatch):
    times = read_times(file, CELLS, ["phone"])
    learnt, fit = [], lb.fit

    def recorded(name, **given):
        learnt.append(given)
        return fit(name, **given)

    monkeypatch.setattr(lb, "fit", recorded)
    runs = evaluate(times, "phone", [], ["network"], n=20, seeds=2, pool=(70, 95))
    row_of = {y: i for i, y in enumerate(times.values["phone"].tolist())}
    rows = [[row_of[y] for y in g["latency_ms"].tolist()] for g in learnt]
    for r, g in zip(rows, learnt, strict=True):
        np.testing.assert_array_equal(g["archs"], times.archs[r])
    assert [len(set(r)) for r in rows] == [20, 20]
    assert all(70 <= i < 95 for r in rows for i in r)
    assert rows[0] != rows[1]
    outside = np.r_[0:70, 95:120]
    for r in runs:
        np.testing.assert_array_equal(r.answers.measured, times.values["phone"][outside])


def test_a_predictor_with_sources_measures_the_rows_that_it_chose_of_the_pool(file, monkeypatch):
    times = read_times(file, CELLS, ["phone", "gpu"])
    learnt, fit = [], lb.fit

    def recorded(name, **given):
        learnt.append(given)
        return fit(name, **given)

    monkeypatch.setattr(lb, "fit", recorded)
    evaluate(times, "phone", ["gpu"], ["transfer"], n=8, seeds=1, pool=(70, 95), seed=4)
    gpu = ArchTimes.of(CELLS, times.archs, times.values["gpu"])
    rows = 70 + np.asarray(lb.choose_networks(CELLS, times.archs[70:95], {"gpu": gpu}, 8, 4))
    np.testing.assert_array_equal(learnt[0]["archs"], times.archs[rows])
    np.testing.assert_array_equal(learnt[0]["latency_ms"], times.values["phone"][rows])


def test_an_order_is_given_to_predictors_that_know_one_and_to_no_other(file):
    times = read_times(file, CELLS, ["phone"], "when")
    runs = evaluate(times, "phone", [], ["network", "transfer"], n=15, seeds=1, pool=(0, 60))
    assert {r.name for r in runs} == {"network", "network (in order)", "transfer", ADDITIVE, MACS}


def test_choices_and_strings_say_the_same_and_missing_values_are_left_out(file, tmp_path):
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["arch_str"]), tmp_path / "choices.parquet")
    pq.write_table(table.drop_columns([f"choice_{i}" for i in range(6)]), tmp_path / "strings.parquet")
    a, b = (read_times(tmp_path / f"{n}.parquet", CELLS, ["holes"]) for n in ("choices", "strings"))
    np.testing.assert_array_equal(a.archs, b.archs)
    runs = evaluate(a, "holes", [], [], n=20, seeds=1, pool=(0, 60))
    assert {r.score.n for r in runs} == {54}


def test_a_predictor_that_learns_from_ops_alone_is_left_out_or_an_error_if_it_was_named(file):
    where = ("--space", "nasbench201", "--target", "phone", "--n", 15, "--seeds", 1)
    r = run(file, "table", *where)
    assert r.exit_code != 0
    skipped = {}
    times = read_times(file, CELLS, ["phone"])
    runs = evaluate(times, "phone", [], ["table"], n=15, seeds=1, skip=lambda n, e: skipped.update({n: e}))
    assert list(skipped) == ["table"]
    assert {r.name for r in runs} == {ADDITIVE, MACS}


@pytest.mark.parametrize(
    ("columns", "order", "says"),
    [
        (["tablet"], None, "no column 'tablet'; it has"),
        (["broken"], None, "column 'broken', row 7: milliseconds are positive, not -1"),
        (["arch_str"], None, "not numbers"),
        (["phone"], "holes", "column 'holes', row 0: an order is a number"),
        (["phone"], "then", "no column 'then'"),
    ],
)
def test_a_wrong_column_is_named(file, columns, order, says):
    with pytest.raises(ConfigError, match=says):
        read_times(file, CELLS, columns, order)


def test_a_wrong_file_and_a_wrong_architecture_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(ConfigError, match="no such file"):
        read_times(tmp_path / "none.parquet", CELLS, ["phone"])
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(FileFormatError, match="not a Parquet file"):
        read_times(tmp_path / "text.parquet", CELLS, ["phone"])
    pq.write_table(pa.table({"phone": [1.0]}), tmp_path / "bare.parquet")
    with pytest.raises(ConfigError, match="'choice_0' is missing"):
        read_times(tmp_path / "bare.parquet", CELLS, ["phone"])
    pq.write_table(pa.table({"phone": [1.0], "arch_str": ["|x~0|"]}), tmp_path / "string.parquet")
    with pytest.raises(ConfigError, match="column 'arch_str', row 0"):
        read_times(tmp_path / "string.parquet", CELLS, ["phone"])
    pq.write_table(pa.table({"phone": [1.0], **{f"choice_{i}": [9] for i in range(6)}}), tmp_path / "choice.parquet")
    with pytest.raises(ConfigError, match="row 0: nasbench201: position 0"):
        read_times(tmp_path / "choice.parquet", CELLS, ["phone"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--target", "phone"), "give the space"),
        (("--space", "nasbench201"), "which column is the new device"),
        (("--space", "nasbench201", "--target", "phone", "--pool", "900"), "FIRST:END"),
        (("--space", "nasbench201", "--target", "phone", "--pool", "0:500"), "a file with 120 rows"),
        (("--space", "nasbench201", "--target", "phone", "--n", 121), "121 networks of 120"),
        (("--space", "nasbench201", "--target", "phone", "--sources", "gpu,phone"), "--sources: 'phone' is the target"),
    ],
)
def test_wrong_options_say_what_would_be_right(file, args, says):
    r = run(file, "network", *args)
    assert r.exit_code != 0
    assert says in str(r.exception) + r.output


@pytest.mark.parametrize("option", ["--store=s.db", "--statistic=min", "--campaign=abc", "--device=local-cpu"])
def test_an_option_of_a_store_is_refused_beside_a_file(file, option):
    r = run(file, "network", "--space", "nasbench201", "--target", "phone", option)
    assert r.exit_code != 0
    assert f"{option.partition('=')[0]} belongs to a store" in str(r.exception)


@pytest.mark.parametrize(
    "option",
    ["--n=20", "--seeds=10", "--level=0.9", "--json", "--target=a", "--sources=a", "--pool=0:9", "--order=row"],
)
def test_an_option_of_a_file_is_refused_for_a_store_also_with_its_default(option):
    r = run("table", option)
    assert r.exit_code != 0
    assert f"{option.partition('=')[0]} belongs to a file of measured times" in str(r.exception)


@pytest.mark.usefixtures("quick")
def test_a_store_that_the_environment_names_is_no_option_beside_a_file(file, monkeypatch):
    monkeypatch.setenv("LATBENCH_STORE", "s.db")
    args = ("--space", "nasbench201", "--target", "phone", "--pool", "0:60", "--n", 15, "--seeds", 1)
    assert run(file, "network", *args).exit_code == 0


def test_baselines_know_what_they_should():
    archs, asked = CELLS.sample_archs(80, 1), CELLS.sample_archs(40, 2)
    macs = {tuple(a): CELLS.network(a).macs for a in [*archs.tolist(), *asked.tolist()]}

    def by_macs(a):
        return np.array([1 + macs[tuple(x)] / 1e7 for x in a.tolist()])

    np.testing.assert_allclose(macs_baseline(CELLS, archs, by_macs(archs), asked), by_macs(asked), rtol=1e-6)

    def by_choice(a):
        return 3 + np.array([0.1, 0.05, 0.4, 1.2, 0.3])[a].sum(axis=1)

    np.testing.assert_allclose(additive_baseline(CELLS, archs, by_choice(archs), asked), by_choice(asked), rtol=0.02)


def test_a_card_written_before_is_still_read():
    v = Validation.of([1.0, 2.0, 3.1], [0.9, 1.9, 3.0], [1.1, 2.1, 3.2], [1.0, 2.1, 3.0])
    d = v.to_json()
    for name in ("within_1", "kendall"):
        del d["score"][name]
    old = Validation.from_json(d)
    assert np.isnan(old.score.kendall)
    assert old.score.rmspe == v.score.rmspe
    assert v.score.kendall == 1.0
    assert v.score.within_1 == pytest.approx(1 / 3)
    assert {f.name for f in fields(Score)} > {"within_1", "kendall"}
