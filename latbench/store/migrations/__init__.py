"""Migrations of the store's schema, run by Alembic inside one transaction."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for these migrations; ``connection`` must be in a transaction."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.set_main_option("version_path_separator", "os")  # its name before Alembic 1.16
    if connection is not None:
        made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection, to: str = "head") -> None:
    """Bring a database to a revision, inside the caller's transaction."""
    command.upgrade(config(connection), to)


def downgrade(connection: Connection, to: str) -> None:
    """Take a database back to an older revision (``"base"``: drop everything), inside the caller's transaction."""
    command.downgrade(config(connection), to)
