"""Predictors as folders: what is written, what is refused, and the bundled ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latbench import tables
from latbench.card import Card
from latbench.cli import lookup
from latbench.errors import ConfigError, FileFormatError, SettingMismatchError
from latbench.load import load_predictor, load_space
from latbench.predictors import files
from latbench.predictors.table import Table
from latbench.setting import Setting
from latbench.testing.predictors import AdditiveWorld


@pytest.fixture(scope="module")
def world():
    return AdditiveWorld(load_space("nasbench201", num_cells=1))


@pytest.fixture(scope="module")
def table(world):
    return Table.fit(world.data())


def rewrite(folder, **changes):
    """Change a saved card and give it a fitting checksum: what only someone who knows the format can do."""
    card = Card.loads((folder / files.CARD).read_text())
    (folder / files.CARD).write_text(card.replace(**changes).dumps())


def test_a_card_comes_back_as_it_was(world):
    card = Card("table", world.setting, "p25", {"min_runs": 3}, notes=("a", "b"), validation={"x": None})
    assert Card.loads(card.dumps()) == card


def test_saving_again_replaces_and_leaves_nothing_else_behind(table, tmp_path):
    table.save(tmp_path / "m")
    (tmp_path / "m" / "stray").write_text("x")
    table.save(tmp_path / "m")
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "calibration.json", "card.json", "entries.json", "entries.npz",
    ]  # fmt: skip
    assert [f.name for f in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_predictor_outlives_a_process_killed_while_it_is_replaced(table, tmp_path, renames):
    folder = table.save(tmp_path / "law" / "m")
    child = os.fork()
    if child == 0:  # killed before the n-th rename, or after the first removal: nothing is cleaned up
        done, rename, remove = [], Path.rename, shutil.rmtree

        def die(self, target):
            if len(done) == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
            return rename(self, target)

        def die_after(path, **how):
            remove(path, **how)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.rename, shutil.rmtree = die, die_after
        table.with_card(table.card.replace(notes=("new",))).save(folder)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    notes = [s.card.notes for s in lookup.saved(tmp_path)]
    assert [s.path for s in lookup.saved(tmp_path)] == [folder]
    assert load_predictor(folder).card.notes == notes[0] == (("new",) if renames == 2 else table.card.notes)
    table.with_card(table.card.replace(notes=("newer",))).save(folder)
    assert load_predictor(folder).card.notes == ("newer",)
    assert not (folder.parent / ".m.old").exists()


def test_a_predictor_is_back_in_its_place_after_an_error_while_it_is_replaced(table, tmp_path, monkeypatch):
    folder, rename = table.save(tmp_path / "m"), Path.rename

    def fail(self, target):
        if target == folder and "old" not in self.name:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ConfigError, match=f"{folder}: a predictor cannot be saved there: no"):
        table.save(folder)
    assert [f.name for f in tmp_path.iterdir()] == ["m"]
    assert load_predictor(folder).card.created == table.card.created


def test_a_link_stays_one_however_often_the_predictor_behind_it_is_replaced(table, tmp_path):
    real, link = tmp_path / "disk" / "m", tmp_path / "m"
    link.symlink_to(real)  # it leads nowhere yet
    for note in ("first", "second", "third"):
        assert table.with_card(table.card.replace(notes=(note,))).save(link) == link
        assert link.is_symlink()
        assert load_predictor(link).card.notes == load_predictor(real).card.notes == (note,)
    real.rename(real.parent / ".m.old")  # as a process killed half-way leaves it
    assert load_predictor(link).card.notes == ("third",)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(ConfigError, match="m: "):
        table.save(link)


def test_a_place_where_nothing_can_be_written_is_named(table, tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "m", tmp_path / "file" / "deep" / "m"):
        with pytest.raises(ConfigError, match=f"{path}: a predictor cannot be saved there"):
            table.save(path)


@pytest.mark.parametrize("at", [files.CARD, "entries.json", "entries.npz"])
def test_a_predictor_that_is_replaced_while_it_is_read_is_read_again(table, tmp_path, monkeypatch, at):
    folder, read, newer = table.save(tmp_path / "m"), files._read, table.card.replace(notes=("new",))
    replaced = []

    def slow(path):
        if path.name == at and not replaced:
            replaced.append(path)
            entries = dict(list(table.entries.items())[1:])
            Table(newer, entries).save(folder)
            if at == files.CARD:  # between the two renames there was none
                raise FileFormatError("truncated: the file is missing")
        return read(path)

    monkeypatch.setattr(files, "_read", slow)
    model = load_predictor(folder)
    assert replaced
    assert model.card.notes == ("new",)
    assert len(model.entries) == len(table.entries) - 1


def test_a_folder_that_nobody_replaces_is_read_once_and_refused(table, tmp_path, monkeypatch):
    folder, read, seen = table.save(tmp_path / "m"), files._read, []
    (folder / "entries.npz").write_bytes(b"")
    monkeypatch.setattr(files, "_read", lambda path: [seen.append(path.name), read(path)][1])
    with pytest.raises(FileFormatError, match="tampered"):
        load_predictor(folder)
    assert seen.count("entries.npz") == 1


def test_a_folder_that_is_no_predictor_is_not_overwritten(table, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no saved predictor"):
        table.save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_no_saved_file_holds_a_pickle(table, tmp_path):
    folder = table.save(tmp_path / "m")
    with np.load(folder / "entries.npz", allow_pickle=False) as data:
        assert all(data[k].dtype != object for k in data.files)


def test_arrays_that_numpy_would_pickle_are_refused(table, tmp_path):
    import hashlib
    import io

    folder = table.save(tmp_path / "m")
    buffer = io.BytesIO()
    np.savez(buffer, value=np.array([{"a": 1}], dtype=object))
    (folder / "entries.npz").write_bytes(buffer.getvalue())
    card = Card.loads((folder / files.CARD).read_text())
    rewrite(folder, files={**card.files, "entries.npz": hashlib.sha256(buffer.getvalue()).hexdigest()})
    with pytest.raises(FileFormatError, match="plain arrays"):
        load_predictor(folder)


def test_a_card_that_names_files_outside_its_folder_is_refused(table, tmp_path):
    folder = table.save(tmp_path / "m")
    rewrite(folder, files={"../secret": "0"})
    with pytest.raises(FileFormatError, match="leaves the folder"):
        load_predictor(folder)


def test_a_card_that_forgets_a_file_is_refused(table, tmp_path):
    folder = table.save(tmp_path / "m")
    card = Card.loads((folder / files.CARD).read_text())
    rewrite(folder, files={k: v for k, v in card.files.items() if k != "entries.json"})
    with pytest.raises(FileFormatError, match=r"entries\.json is missing"):
        load_predictor(folder)


def test_entries_that_do_not_fit_together_are_refused(table, tmp_path):
    import hashlib

    folder = table.save(tmp_path / "m")
    names = json.loads((folder / "entries.json").read_text())
    for wrong in ({**names, "keys": names["keys"][1:]}, {**names, "keys": ["nonsense", *names["keys"][1:]]}, [1, 2]):
        data = json.dumps(wrong).encode()
        (folder / "entries.json").write_bytes(data)
        card = Card.loads((folder / files.CARD).read_text())
        rewrite(folder, files={**card.files, "entries.json": hashlib.sha256(data).hexdigest()})
        with pytest.raises(FileFormatError):
            load_predictor(folder)


def test_a_folder_of_another_kind_is_refused_by_its_class(table, tmp_path):
    from latbench.predictors.kernels import Kernels

    with pytest.raises(FileFormatError, match="'table' predictor, not a 'kernels'"):
        Kernels.load(table.save(tmp_path / "m"))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"schema": "one"}', '{"schema": 1}', "\x00\xff"])
def test_a_card_that_is_none_is_refused(text, tmp_path):
    (tmp_path / files.CARD).write_bytes(text.encode("latin-1"))
    with pytest.raises(FileFormatError):
        load_predictor(tmp_path)


def test_a_name_that_is_nothing_lists_the_bundled_ones(tmp_path):
    with pytest.raises(ConfigError, match="bundled"):
        load_predictor("no-such-table")
    with pytest.raises(FileFormatError, match="no card"):
        load_predictor(tmp_path)


def test_a_bundled_table_is_found_by_name(table, tmp_path, monkeypatch):
    table.save(tmp_path / "house-table")
    monkeypatch.setattr(tables, "__file__", str(tmp_path / "__init__.py"))
    assert list(files.bundled()) == ["house-table"]
    assert load_predictor("house-table").entries == table.entries
    with pytest.raises(ConfigError, match="bundled: house-table"):
        load_predictor("other")


def test_every_bundled_predictor_loads_and_says_how_right_it_is():
    for name in files.bundled():
        model = load_predictor(name)
        assert model.card.validation is not None, name


def test_another_setting_is_refused_naming_every_field(world):
    card = Card("table", world.setting)
    files.require_setting(card, world.setting)
    other: Setting = replace(world.setting, device="other", threads=8)
    with pytest.raises(SettingMismatchError, match=r"(?s)device: 'test-device' ≠ 'other'.*threads: 1 ≠ 8"):
        files.require_setting(card, other)


def test_whoever_gets_numbers_of_a_bundled_predictor_is_told_whose_they_are(tmp_path, capsys):
    model = load_predictor("mobilenetv3-224-amd-epyc-table")
    lookup.note_bundled(str(tmp_path), model, tmp_path, "local-cpu")
    assert capsys.readouterr().err == ""
    lookup.note_bundled("bundled with latbench: mobilenetv3-224-amd-epyc-table", model, tmp_path, "local-cpu")
    told = capsys.readouterr().err
    for words in ("mobilenetv3-224-amd-epyc-table", model.setting.device, "AMD EPYC", model.card.data["first"][:10]):
        assert words in told
    assert "latbench learn --device local-cpu" in told
