"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from latbench.cli.console import duration, note
from latbench.errors import ConfigError, DeviceBusyError, StoreError

if TYPE_CHECKING:
    from latbench.device import Device
    from latbench.protocol import Protocol
    from latbench.space import SearchSpace
    from latbench.store import Store

T = TypeVar("T")

DEFAULT_STORE = "latbench.db"
DEFAULT_MODELS = "latbench-models"

DeviceName = Annotated[
    str,
    typer.Option("--device", "-d", help="Name of a bundled profile (`latbench devices`), or a path to a TOML file."),
]
SpaceName = Annotated[str, typer.Option("--space", "-s", help="Search space: mobilenetv3, proxyless, nasbench201, …")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Parameter of the space, e.g. num_classes=10; may be repeated."),
]
Resolution = Annotated[int | None, typer.Option("--resolution", help="Short for --set resolution=…")]
WidthMult = Annotated[float | None, typer.Option("--width-mult", help="Short for --set width_mult=…")]
StoreUrl = Annotated[
    str, typer.Option("--store", envvar="LATBENCH_STORE", help="Where Visits are kept: a path (SQLite) or a URL.")
]
ModelsFolder = Annotated[
    Path, typer.Option("--models", envvar="LATBENCH_MODELS", help="Folder in which fitted predictors are kept.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
ProtocolSettings = Annotated[
    list[str] | None,
    typer.Option("--protocol", metavar="KEY=VALUE", help="Overrides the profile's protocol, e.g. target_ci=0.02."),
]
RuntimeSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime", metavar="KEY=VALUE", help="Overrides a key of the profile's [runtime], e.g. threads=2; repeatable."
    ),
]
Wait = Annotated[
    float,
    typer.Option("--wait", metavar="SECONDS", min=0, help="Wait this long for a device that is held."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


#: What an option of pairs looks like, for error texts.
EXAMPLES = {
    "--set": "resolution=64",
    "--protocol": "target_ci=0.02",
    "--runtime": "threads=2",
    "--limit": "latency_ms=8",
    "--soft-limit": "params=1e6",
    "--accuracy-set": "epochs=4",
    "--option": "population=24",
}


def parse_value(text: str) -> Any:
    """``3`` → 3, ``0.5`` → 0.5, ``true`` → True, ``[1, 2]`` → [1, 2]; everything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def parse_pairs(pairs: Sequence[str] | None, option: str) -> dict[str, Any]:
    """``["a=1", "b=x"]`` as a dictionary. Raises :class:`ConfigError` naming the option and the pair."""
    out: dict[str, Any] = {}
    for pair in pairs or ():
        key, eq, value = pair.partition("=")
        if not eq or not key.strip():
            raise ConfigError(f"{option} {pair}: expected KEY=VALUE, e.g. {option} {EXAMPLES.get(option, 'a=1')}")
        # Hyphens of a device's name, as in latency_ms@local-cpu, are its own.
        name, at, device = key.strip().partition("@")
        key = name.replace("-", "_") + at + device
        if key in out:
            raise ConfigError(f"{option} {pair}: {key} is given twice")
        out[key] = parse_value(value.strip())
    return out


def space_params(
    settings: Sequence[str] | None, resolution: int | None = None, width_mult: float | None = None
) -> dict[str, Any]:
    """The space's parameters from ``--set`` and its short forms. Raises :class:`ConfigError`."""
    params = parse_pairs(settings, "--set")
    for key, value in (("resolution", resolution), ("width_mult", width_mult)):
        if value is None:
            continue
        if key in params:
            raise ConfigError(f"--set {key}=… and --{key.replace('_', '-')} are both given")
        params[key] = value
    return params


def make_space(
    name: str, settings: Sequence[str] | None, resolution: int | None = None, width_mult: float | None = None
) -> SearchSpace:
    """The space that the options name. Raises :class:`ConfigError`."""
    from latbench import load_space

    return load_space(name, **space_params(settings, resolution, width_mult))


def named_device(name: str, runtime: Mapping[str, Any] | None = None) -> Device:
    """The device that an option names, not opened yet; ``runtime`` overrides keys of its ``[runtime]``.

    Raises :class:`ConfigError`.
    """
    from latbench import load_device
    from latbench.profile import find_profile, profile_paths
    from latbench.profiled_device import ProfiledDevice

    if not runtime:
        return load_device(name)
    profile = find_profile(name)
    # A profile's files lie beside it, those of the command line in the working directory.
    told = {k: str(Path(v).resolve()) if isinstance(v, str) and v.endswith(".toml") else v for k, v in runtime.items()}
    changed = profile.model_copy(update={"runtime": {**profile.runtime, **told}})
    return ProfiledDevice(changed, name if name.endswith(".toml") else str(profile_paths()[name]))


def make_device(
    name: str, protocol: Sequence[str] | None = None, runtime: Mapping[str, Any] | None = None
) -> tuple[Device, Protocol]:
    """The device that an option names, not opened yet, and its protocol, both with overrides.

    Raises :class:`ConfigError`.
    """
    from latbench.profile import parse_section
    from latbench.protocol import Protocol

    device = named_device(name, runtime)
    overrides = parse_pairs(protocol, "--protocol")
    changed = {**device.profile.protocol.model_dump(), **overrides}
    return device, parse_section(Protocol, changed, "--protocol", "")


def plugin_options(pairs: Sequence[str] | None, call: Callable[..., Any], *kept: str) -> dict[str, Any]:
    """``--option KEY=VALUE`` for a plugin. Raises :class:`ConfigError` for a name that is an argument of ``call``, or
    one of ``kept``."""
    options = parse_pairs(pairs, "--option")
    own = [*kept] + [n for n, p in inspect.signature(call).parameters.items() if p.kind is not p.VAR_KEYWORD]
    if clash := sorted(set(options) & set(own)):
        raise ConfigError(
            f"--option {clash[0]}=…: {clash[0]} is not the plugin's: it has an option of its own on the command line, "
            "or none (see --help)"
        )
    return options


def patiently(call: Callable[[], T], wait_s: float) -> T:
    """What ``call`` gives, tried again for ``wait_s`` while another campaign or measurement holds the device.

    Raises :class:`DeviceBusyError` after that.
    """
    until, told = time.monotonic() + wait_s, False
    while True:
        try:
            return call()
        except DeviceBusyError as e:
            if (left := until - time.monotonic()) <= 0:
                raise
            if not told:
                note(f"device {e.identity} is being measured by {e.holder}: waiting for it, {duration(left)} at most")
                told = True
            time.sleep(min(1.0, left))


def existing_store(address: str) -> Store:
    """Open a store in order to read it. Raises :class:`StoreError` for a file that is not there: none is made."""
    from latbench.store import Store
    from latbench.store.engine import parse_address

    url = parse_address(address)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise StoreError(f"{url.database}: there is no store; `latbench profile --store {address}` measures into one")
    return Store.open(address)


def profile_name(device: str) -> str:
    """The name under which a device is kept in stores and folders; a path stands for the profile in that file.

    Raises :class:`ConfigError` for a file that is no profile.
    """
    from latbench.profile import find_profile

    return find_profile(device).name if device.endswith(".toml") else device


def quoted_space(space: SearchSpace) -> str:
    """The options that make this space again, for the commands that are printed."""
    from latbench.card import space_options

    return space_options(space.spec).strip()
