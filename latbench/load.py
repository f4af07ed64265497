"""Loading by name: search spaces, devices and predictors."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latbench import plugins
from latbench.errors import ConfigError

if TYPE_CHECKING:
    from latbench.device import Device
    from latbench.predictor import Predictor
    from latbench.profile import Profile
    from latbench.setting import Setting
    from latbench.space import SearchSpace


def load_space(name: str, **params: Any) -> SearchSpace:
    """The search space of a name (an entry point of ``latbench.spaces``) with its parameters.

    Raises :class:`ConfigError` for an unknown space, and for an unknown, missing or unusable parameter.
    """
    cls = plugins.load("spaces", name)
    known = [p for n, p in inspect.signature(cls).parameters.items() if n != "self"]
    if not any(p.kind is p.VAR_KEYWORD for p in known):
        if unknown := sorted(set(params) - {p.name for p in known}):
            names = ", ".join(p.name for p in known) or "none"
            raise ConfigError(f"{name}: unknown parameter {', '.join(unknown)}; its parameters: {names}")
        if missing := [p.name for p in known if p.default is p.empty and p.name not in params]:
            raise ConfigError(f"{name}: needs the parameter {', '.join(missing)}")
    space: SearchSpace = cls(**params)
    return space


def load_device(profile: str | Path | Profile) -> Device:
    """A device by the name of a bundled profile, the path of a TOML file, or a :class:`Profile`. It is not open yet.

    Raises :class:`ConfigError` naming the file and the dotted key; see :mod:`latbench.profiled_device`.
    """
    from latbench import profiled_device

    return profiled_device.load_device(profile)


def load_predictor(path: str | Path, *, setting: Setting | None = None) -> Predictor:
    """A saved predictor from its folder, or a bundled one by name.

    With ``setting``, a predictor of another Setting raises :class:`SettingMismatchError`. A folder that cannot be
    trusted raises :class:`FileFormatError`; see :mod:`latbench.predictors.files`.
    """
    from latbench.predictors import files

    return files.load_predictor(path, setting=setting)
