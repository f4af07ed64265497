"""Predictors on disk: a folder with a card and data files, each covered by a checksum; nothing is unpickled.

:func:`load_predictor` takes a folder, or the name of a table that this package brings along, and refuses what is
truncated, tampered with or newer than it understands, saying which.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from latbench import plugins
from latbench.card import Card
from latbench.errors import ConfigError, FileFormatError, SettingMismatchError
from latbench.predictor import Predictor
from latbench.setting import Setting

T = TypeVar("T")

CARD = "card.json"
#: Ends the name of the folder in which an earlier predictor waits until its successor is in place.
_OLD = ".old"


def load_predictor(path: str | Path, *, setting: Setting | None = None) -> Predictor:
    """Load a saved predictor from its folder, or a bundled one by name.

    With ``setting``, a predictor of another Setting raises :class:`SettingMismatchError` naming the fields that differ.
    Raises :class:`FileFormatError` for a folder that cannot be trusted, :class:`ConfigError` where there is none.
    """
    folder, card = _settled(path, lambda folder: (folder, _card(folder)))
    if setting is not None:
        require_setting(card, setting, str(folder))
    predictor: Predictor = kind_of(card).load(path)
    return predictor


def kind_of(card: Card) -> type[Predictor]:
    """The class of a card's predictor: an entry point's, or a model around another one, which no name can fit."""
    from latbench.recalibration import Recalibrated

    found: type[Predictor] = (
        plugins.load("predictors", card.predictor) if card.predictor != "recalibrated" else Recalibrated
    )
    return found


def require_setting(card: Card, setting: Setting, where: str = "") -> None:
    """Raise :class:`SettingMismatchError` if the card is for another Setting."""
    if differences := card.setting.differences(setting):
        what = f"{where}: " if where else ""
        raise SettingMismatchError(
            f"{what}this {card.predictor} is for another Setting (its own ≠ the one asked for):\n  "
            + "\n  ".join(differences)
        )


def find_folder(path: str | Path) -> Path:
    """The folder of a predictor: a path, or a bundled name. Raises :class:`ConfigError` that lists the bundled ones."""
    folder = Path(path)
    # The earlier one: what replaced it was killed half-way, or is at it and has by now put the new one in its place.
    for there in (folder, _earlier(_resolved(folder)), folder):
        if (there / CARD).is_file():
            return there
    brought = bundled()
    if str(path) in brought:
        return brought[str(path)]
    if folder.is_dir():
        raise FileFormatError(f"{folder}: no {CARD}: not a saved predictor, or a truncated one")
    known = ", ".join(brought) or "none"
    raise ConfigError(f"{path}: no such predictor folder, and no bundled table of that name; bundled: {known}")


def saved_folders(root: Path, pattern: str) -> list[Path]:
    """Folders of saved predictors under ``root`` whose paths match a glob pattern, for :func:`find_folder`: no drafts,
    and the earlier one of a predictor only where its successor never came, by the predictor's own name."""
    found: dict[Path, None] = {}
    for card in root.glob(f"{pattern}/{CARD}"):
        folder = card.parent
        if folder.name.startswith("."):
            if not folder.name.endswith(_OLD):
                continue
            folder = folder.with_name(folder.name[1 : -len(_OLD)])
        found[folder] = None
    return list(found)


def bundled() -> dict[str, Path]:
    """Name → folder of the tables that installed packages bring along (entry-point group ``latbench.tables``)."""
    found: dict[str, Path] = {}
    for group in plugins.names("tables"):
        for card in sorted(Path(plugins.load("tables", group).__file__).parent.glob(f"*/{CARD}")):
            found[card.parent.name] = card.parent
    return found


@dataclass(frozen=True)
class Folder:
    """A saved predictor's card and the verified bytes of its data files."""

    path: Path
    card: Card
    files: Mapping[str, bytes]

    def bytes(self, name: str) -> bytes:
        """A data file. Raises :class:`FileFormatError` if the card does not list it."""
        if name not in self.files:
            raise FileFormatError(f"{self.path}: truncated: {name} is missing")
        return self.files[name]

    def json(self, name: str) -> Any:
        """A JSON data file."""
        try:
            return json.loads(self.bytes(name))
        except (ValueError, RecursionError) as e:
            raise FileFormatError(f"{self.path / name}: not JSON: {e}") from e

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """An npz data file."""
        try:
            with np.load(io.BytesIO(self.bytes(name)), allow_pickle=False) as data:
                return {k: data[k] for k in data.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as e:
            raise FileFormatError(f"{self.path / name}: not an npz file of plain arrays: {e}") from e


def read_folder(path: str | Path, predictor: str) -> Folder:
    """Read a folder and check card, kind and checksums. Raises :class:`FileFormatError`."""
    return _settled(path, lambda folder: _checked(folder, predictor))


def _settled(path: str | Path, read: Callable[[Path], T]) -> T:
    """What is read from a predictor's folder; read again where another one took its place meanwhile."""
    folder = find_folder(path)
    before = _identity(folder)
    try:
        return read(folder)
    except FileFormatError:
        again = find_folder(path)
        if before is not None and _identity(again) == before:
            raise
    return read(again)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from one of its name that replaces it; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _card(folder: Path) -> Card:
    return Card.loads(_read(folder / CARD), str(folder / CARD))


def _checked(folder: Path, predictor: str) -> Folder:
    card = _card(folder)
    if card.predictor != predictor:
        raise FileFormatError(f"{folder}: holds a {card.predictor!r} predictor, not a {predictor!r}")
    files = {}
    for name, digest in card.files.items():
        if Path(name).name != name:
            raise FileFormatError(f"{folder / CARD}: tampered with: file name {name!r} leaves the folder")
        data = _read(folder / name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise FileFormatError(f"{folder / name}: truncated or tampered with: its SHA-256 is not the card's")
        files[name] = data
    return Folder(folder, card, files)


def write_folder(path: str | Path, card: Card, files: Mapping[str, bytes]) -> tuple[Path, Card]:
    """Write a predictor's folder whole or not at all; gives it and the card with checksums.

    An earlier predictor at ``path`` is replaced, and found at every moment until then, also after a kill; a
    link stays one. Raises :class:`ConfigError` if something else is there, or nothing can be written.
    """
    card = card.replace(files={name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
    try:
        _write(_resolved(Path(path)), {**files, CARD: card.dumps().encode()})
    except OSError as e:
        raise ConfigError(f"{path}: a predictor cannot be saved there: {e}") from e
    return Path(path), card


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    if folder.exists() and not (folder / CARD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is no saved predictor; choose another path")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, earlier = folder.parent / f".{folder.name}-{secrets.token_hex(4)}", _earlier(folder)
    draft.mkdir()
    try:
        for name, data in contents.items():
            (draft / name).write_bytes(data)
        if (folder / CARD).is_file():
            if earlier.exists():
                shutil.rmtree(earlier)
            folder.rename(earlier)
        elif folder.is_dir():
            folder.rmdir()
        draft.rename(folder)
    finally:
        if not folder.exists() and earlier.exists():
            earlier.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(earlier, ignore_errors=True)


def _resolved(folder: Path) -> Path:
    """The folder that a path leads to. Raises :class:`ConfigError` for links that lead in a circle."""
    try:
        return folder.resolve()
    except RuntimeError as e:
        raise ConfigError(f"{folder}: {e}") from e


def _earlier(folder: Path) -> Path:
    return folder.parent / f".{folder.name}{_OLD}"


def npz(**arrays: npt.NDArray[Any]) -> bytes:
    """Arrays as the bytes of an npz file, the same for the same arrays. Numpy refuses those that it would pickle."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(sorted(arrays.items())))
    return buffer.getvalue()


def as_json(value: Any) -> bytes:
    """A JSON data file's bytes."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileFormatError(f"{path}: truncated: the file is missing") from None
    except OSError as e:
        raise FileFormatError(f"{path}: cannot be read: {e}") from e
