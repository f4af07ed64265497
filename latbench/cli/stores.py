"""``latbench store``: what was measured, and taking it elsewhere."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from latbench.cli.console import say, table
from latbench.cli.options import DEFAULT_STORE, StoreUrl, existing_store

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List campaigns; export and import measurements.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="One Parquet file a table.")]


@app.command("campaigns")
def campaigns(store: StoreUrl = DEFAULT_STORE) -> None:
    """List the campaigns of a store, newest first."""
    with existing_store(store) as s:
        rows, held = [], s.held_devices()
        for r in s.campaigns():
            slots = ", ".join(f"{n} {state}" for state, n in r.slots.items())
            began = datetime.fromtimestamp(r.created).isoformat(" ", "minutes")
            # One that was killed had no time to say so.
            state = "interrupted" if r.state == "running" and r.device not in held else r.state
            rows.append((r.id, r.name, (r.space or {}).get("name", "–"), state, slots, began, r.device))
    table(("id", "name", "space", "state", "slots", "began", "device"), rows)


@app.command("export")
def export(folder: Folder, store: StoreUrl = DEFAULT_STORE) -> None:
    """Write everything in a store as Parquet."""
    with existing_store(store) as s:
        _tell(s.export_parquet(folder), "wrote")


@app.command("import")
def import_(folder: Folder, store: StoreUrl = DEFAULT_STORE) -> None:
    """Add what `latbench store export` wrote and is not in the store yet."""
    from latbench import Store

    with Store.open(store) as s:
        _tell(dict(s.import_parquet(folder)), "added")


def _tell(rows: dict[str, int], verb: str) -> None:
    say(f"{verb} " + (", ".join(f"{n} {name}" for name, n in rows.items() if n) or "nothing new"))
