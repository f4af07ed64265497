"""``latbench devices`` and ``latbench check``: what can be measured here, and is it fit for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from latbench.cli.console import note, say, table, warn
from latbench.cli.options import Json

if TYPE_CHECKING:
    from latbench.device import Check

STATE_STYLE = {"ok": "green", "warning": "yellow", "problem": "red", "unknown": "dim"}


def devices(as_json: Json = False) -> None:
    """List the device profiles that are installed."""
    import json

    from latbench.errors import ConfigError
    from latbench.profile import profile_paths, read_profile

    rows, broken = [], []
    for name, path in sorted(profile_paths().items()):
        try:
            p = read_profile(path)
        except ConfigError as e:
            broken.append(str(e))
            continue
        rows.append((name, p.transport.get("kind", "–"), p.runtime.get("kind", "?"), p.verified, p.description))
    columns = ("name", "transport", "runtime", "verified", "description")
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        table(columns, rows)
        note("Measure one: latbench measure MODEL --device NAME. Your own: give a path to a TOML file instead.")
    for text in broken:
        warn(f"a profile was skipped: {text}")


def check(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Profile name or path to a TOML file.")],
    as_json: Json = False,
) -> None:
    """Say whether a device is fit to measure, and what to do where it is not. Exit code 1 for a problem."""
    import json

    from latbench import load_device

    with load_device(device) as d:
        who, checks = d.describe(), d.checks()
    worst = any(c.state == "problem" for c in checks)
    if as_json:
        lines = [{"what": c.what, "state": c.state, "found": c.found, "advice": c.advice} for c in checks]
        print(json.dumps({"identity": who.identity, "facts": who.facts, "checks": lines}, indent=2, default=str))
    else:
        say(f"{device}: {who.identity}")
        print_checks(checks)
    raise typer.Exit(1 if worst else 0)


def print_checks(checks: Sequence[Check]) -> None:
    """What a device says of itself, and what follows from it."""
    from rich.text import Text

    rows = [(Text(c.state, STATE_STYLE.get(c.state, "")), c.what, c.found, c.advice) for c in checks]
    if rows:
        table(("state", "what", "found", "what to do"), rows)
    warnings = sum(c.state == "warning" for c in checks)
    if any(c.state == "problem" for c in checks):
        say("Not fit to measure: numbers taken now will not repeat.", "red")
    elif warnings:
        say(f"Usable, with {warnings} warning{'s' * (warnings > 1)}: expect wider intervals.", "yellow")
    else:
        say("Fit to measure." if checks else "This device says nothing about its state.", "green")
