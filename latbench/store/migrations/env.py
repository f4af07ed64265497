"""Run by Alembic: applies migrations on the connection that :func:`latbench.store.migrations.config` was given."""

from alembic import context

from latbench.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
