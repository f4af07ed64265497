"""Fixtures of devices: local CPU devices with a cache of their own, and one that stays open for a whole module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latbench.device import Device
from latbench.profile import Profile
from latbench.profiled_device import ProfiledDevice, load_device


@pytest.fixture(scope="session")
def artefact_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for artefacts that is not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def make_device(artefact_cache: Path) -> Callable[..., ProfiledDevice]:
    """Makes a local device; keywords go into ``[runtime]``, ``env`` into ``[transport]``."""

    def make(env: dict[str, str] | None = None, **runtime: Any) -> ProfiledDevice:
        device = load_device(
            Profile(
                name="test",
                transport={"kind": "local", "env": env or {}},
                runtime={"kind": "onnxruntime", **runtime},
            )
        )
        assert isinstance(device, ProfiledDevice)
        return device

    return make


@pytest.fixture(scope="module")
def local_device(artefact_cache: Path) -> Iterator[Device]:
    """The bundled profile ``local-cpu``, open."""
    assert os.environ["XDG_CACHE_HOME"] == str(artefact_cache)
    with load_device("local-cpu") as device:
        yield device
