"""Where fitted predictors lie, and which of them a command means.

``latbench fit`` writes ``latbench-models/<profile>/<space>-<predictor>-<hash>/`` (another root with ``--models`` or the
environment variable ``LATBENCH_MODELS``). ``--device NAME`` of predict and search then means: the newest valid
predictor of that device's Setting and that space.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latbench.cli.console import note, warn
from latbench.cli.options import named_device, profile_name
from latbench.errors import (
    ArchitectureError,
    FileFormatError,
    NotAdditiveError,
    NotEnoughDataError,
    SettingMismatchError,
    TransportError,
    UnknownOpError,
    UnsupportedOpError,
)
from latbench.metric import LATENCY, METRICS

if TYPE_CHECKING:
    from latbench.card import Card
    from latbench.predictor import Predictor
    from latbench.setting import Setting
    from latbench.space import SearchSpace


#: How the words for where a predictor comes from begin, of one that this package brings along.
BUNDLED = "bundled with latbench: "
#: Random architectures that a predictor must know to be taken for a space.
PROBES = 64


@dataclass(frozen=True)
class Saved:
    """A saved predictor: its folder and its card."""

    path: Path
    card: Card


def save(model: Predictor, root: Path, device: str) -> Path:
    """Save under the root by device, space, predictor and the card's checksum; gives the folder."""
    space = (model.card.space or {}).get("name", "any")
    digest = model.card.to_json()["checksum"][:8]
    return model.save(root / _safe(profile_name(device)) / f"{_safe(space)}-{model.name}-{digest}")


def saved(root: Path, device: str | None = None) -> Iterator[Saved]:
    """Every saved predictor under the root (of one device), newest first; what cannot be read is warned of."""
    from latbench.card import Card
    from latbench.predictors import files

    found = []
    for folder in files.saved_folders(root, f"{_safe(profile_name(device)) if device else '*'}/*"):
        card = files.find_folder(folder) / files.CARD
        try:
            found.append(Saved(folder, Card.loads(card.read_bytes(), str(card))))
        except (FileFormatError, OSError) as e:
            warn(f"skipped: {e}")
    yield from sorted(found, key=lambda s: (s.card.created, s.path.name), reverse=True)


def bundled() -> Iterator[Saved]:
    """The tables that installed packages bring along."""
    from latbench.card import Card
    from latbench.predictors.files import bundled

    for name, folder in bundled().items():
        yield Saved(Path(name), Card.loads((folder / "card.json").read_bytes(), str(folder)))


def candidates(
    root: Path,
    device: str,
    setting: Setting | None,
    space: SearchSpace | None,
    predictor: str | None = None,
    metric: str = LATENCY,
) -> Iterator[tuple[str, Predictor]]:
    """Valid predictors of a device's Setting and a space, newest first, each with the words for where it comes from.

    ``setting`` None: the device is out of reach. A predictor made for any network serves every space; without a space,
    every predictor of the Setting is given. Bundled ones come after those, and first guesses that nothing was measured
    for come last.
    """
    from latbench import load_predictor

    own = ((f"{s.path}", s) for s in saved(root, device))
    brought = ((f"{BUNDLED}{s.path}", s) for s in (bundled() if setting is not None else ()))
    found = sorted(itertools.chain(own, brought), key=lambda x: x[1].card.intervals.get("method") == "prior")
    for source, s in found:
        if setting is not None and s.card.setting.hash != setting.hash:
            continue
        if space is not None and s.card.space is not None and dict(s.card.space) != space.spec:
            continue
        if s.card.metric != metric or predictor not in (None, s.card.predictor):
            continue
        try:
            yield source, load_predictor(s.path)
        except FileFormatError as e:
            warn(f"skipped: {e}")


def find(
    root: Path, device: str, space: SearchSpace | None, predictor: str | None = None, metric: str = LATENCY
) -> Predictor:
    """The newest valid predictor of the device's Setting that knows every Op of the space; a simulator is its own.

    One made for any network (fitted to files, say) need not know them: then the next one is asked. Raises
    :class:`NotEnoughDataError` that prints the command which makes one, or what the newest one did not know.
    """
    setting, own = asked(device)
    if own is not None and predictor in (None, own.name) and metric in own.known_metrics:
        return own
    first: Exception | None = None
    for source, model in candidates(root, device, setting, space, predictor, metric):
        if space is None:
            note_bundled(source, model, root, device)
            return model
        try:
            model.archs_metric(metric, space, space.sample_archs(PROBES, seed=0))
        except (UnknownOpError, UnsupportedOpError, NotAdditiveError, ArchitectureError) as e:
            passed_over(source, e)
            first = first or e
            continue
        note_bundled(source, model, root, device)
        return model
    raise first or none_found(root, device, setting, space, predictor, metric=metric)


def named(path: str, device: str | None, runtime: Mapping[str, Any] | None = None) -> tuple[str, Predictor, str]:
    """The saved predictor of a folder, or a bundled one's name, with the words for where it comes from and the name of
    the device that its numbers are of.

    ``device`` None: no device was named, and it answers for its own. Raises :class:`SettingMismatchError` naming the
    fields that differ, where the device can be reached and has another Setting than the predictor.
    """
    from latbench.predictors import files

    model = files.load_predictor(path)
    card = model.card
    own = str(card.device.get("profile") or card.setting.device)
    source = f"{BUNDLED}{path}" if files.find_folder(path) == files.bundled().get(path) else path
    setting = None if device is None else asked(device, runtime, f"whether {path} is for it is not known")[0]
    if device is None or setting is None:
        note(f"these are numbers of {_machine(card)}: --model {path} was not compared with another device's Setting")
        return source, model, own
    try:
        files.require_setting(card, setting, path)
    except SettingMismatchError as e:
        e.add_note(f"for its own device, {own}: leave --device and --measure away; for {device}: leave --model away")
        raise
    note_bundled(source, model, None, device)
    return source, model, device


def note_bundled(source: str, model: Predictor, root: Path | None, device: str) -> None:
    """Say whose numbers a predictor's are that this package brought along: its Setting is the device's, but the machine
    that was measured is the project's own. ``root``: the folder in which no other one was found."""
    if not source.startswith(BUNDLED):
        return
    data = model.card.data
    when = f" on {data['first'][:10]}" if data.get("first") else ""
    warn(
        f"{f'no predictor under {root} serves: ' if root is not None else ''}"
        f"these numbers are of {source.removeprefix(BUNDLED)}, which latbench brings "
        f"along. They were measured{when} on a machine of the project's own, {_machine(model.card)} in the "
        f"same Setting, and need not be right for this one. For its own numbers: latbench learn --device {device}"
    )


def _machine(card: Card) -> str:
    """The device whose numbers a predictor's are, for people."""
    machine = " ".join(str(card.device[k]) for k in ("cpu", "machine") if card.device.get(k))
    machine = machine or str(card.device.get("profile") or "")
    return f"{machine} ({card.setting.device})" if machine else card.setting.device


def add_asked(error: Exception, asked: Sequence[tuple[str, Exception]], model: str, device: str) -> None:
    """Add to the error of a network that no predictor serves which one was asked, and what would make one that does."""
    sources = [source for source, why in asked if why is error]
    error.add_note(f"{sources[0]} was asked" + (f", and {len(asked) - 1} more" if len(asked) > 1 else ""))
    own = "" if any(not source.startswith(BUNDLED) for source, _ in asked) else f"nothing was fitted for {device} yet; "
    error.add_note(
        f"{own}a predictor that knows it: latbench learn {shlex.quote(model)} --device {shlex.quote(device)}"
    )


def passed_over(source: str, why: Exception) -> None:
    """Say that a predictor does not serve, and why another one is asked."""
    note(f"passed over {source}: {why}".splitlines()[0])


def none_found(
    root: Path,
    device: str,
    setting: Setting | None,
    space: SearchSpace | None,
    predictor: str | None = None,
    file: str = "",
    metric: str = LATENCY,
) -> NotEnoughDataError:
    """The error that says what is missing, what is there instead, and how to make it; ``file``: for that network."""
    from latbench.cli.options import quoted_space

    of_metric = "" if metric == LATENCY else f" --metric {metric}"
    usual = "memory" if METRICS[metric].composition == "peak" else "table"
    what = f"{predictor or 'predictor'}{f' of {metric}' if of_metric else ''} of device {device}" + (
        f" (Setting {setting.hash})" if setting else ""
    )
    lines = [f"no {what}" + (f" for {space.name}" if space else "") + f" under {root}"]
    if file and space is None:
        other = "memory" if usual == "memory" else "kernels"
        lines.append(f"  measure its units by:  latbench profile {shlex.quote(file)} --device {device}{of_metric}")
        lines.append(f"  and then make one:     latbench fit {other} --device {device}{of_metric}")
    else:
        options = f"--device {device}" + (f" {quoted_space(space)}" if space else " --space …")
        lines.append(f"  make one:              latbench fit {predictor or usual} {options}{of_metric}")
        lines.append(f"  after measuring it by: latbench profile {options}{of_metric}")
    for s in list(saved(root, device))[:3]:
        lines.append(f"  there is {s.path}: {_why_not(s.card, setting, space)}")
    return NotEnoughDataError("\n".join(lines))


def asked(
    device: str,
    runtime: Mapping[str, Any] | None = None,
    otherwise: str = "taking the newest predictor that was saved for it",
) -> tuple[Setting | None, Predictor | None]:
    """The Setting that a device has now, and what it predicts by itself, if anything.

    Both are None, with a note, where the device cannot be reached: ``otherwise`` says what that means. ``runtime``
    overrides keys of its profile.
    """
    d = named_device(device, runtime)
    try:
        with d:
            return d.setting, d.predictor()
    except TransportError as e:
        note(f"{device} is out of reach ({e}): {otherwise}")
        return None, None


def _why_not(card: Card, setting: Setting | None, space: SearchSpace | None) -> str:
    if setting is not None and card.setting.hash != setting.hash:
        return "another Setting, " + "; ".join(card.setting.differences(setting))
    if space is not None and card.space is not None and dict(card.space) != space.spec:
        return f"another space, {_differences(card.space, space.spec)}"
    return f"a predictor named {card.predictor}"


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return "; ".join(f"{k}: {a.get(k)!r} ≠ {b.get(k)!r}" for k in {**a, **b} if a.get(k) != b.get(k))


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)
