"""The first schema.

Column types are spelt out here rather than taken from the current schema: a migration never changes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _text(name: str, **options: bool) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **{"nullable": False, **options})  # type: ignore[arg-type]


def _time(name: str, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=nullable)


def _blob(name: str, nullable: bool = False) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=nullable)


def _int(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def upgrade() -> None:
    op.create_table("settings", _text("hash", primary_key=True), _text("device"), _text("json"), _time("used"))
    op.create_index("settings_device", "settings", ["device"])
    op.create_table("devices", _text("identity", primary_key=True), _text("facts"), _time("seen"))
    op.create_table(
        "profiles",
        _text("name", primary_key=True),
        sa.Column("setting", sa.Text, sa.ForeignKey("settings.hash"), primary_key=True),
        _time("used"),
    )
    op.create_table(
        "subjects",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        _text("key"),
        _text("role"),
        _text("label"),
        _blob("spec", nullable=True),
    )
    op.create_table(
        "campaigns",
        _text("id", primary_key=True),
        _text("plan"),
        _text("name"),
        _text("device"),
        sa.Column("setting", sa.Text, sa.ForeignKey("settings.hash"), nullable=False),
        _text("protocol"),
        _text("space", nullable=True),
        sa.Column("seed", sa.BigInteger, nullable=False),
        _text("state"),
        _time("created"),
        _time("ended", nullable=True),
    )
    op.create_index("campaigns_plan", "campaigns", ["plan"])
    op.create_table(
        "slots",
        sa.Column("campaign", sa.Text, sa.ForeignKey("campaigns.id"), primary_key=True),
        _text("name", primary_key=True),
        _int("item"),
        sa.Column("subject", sa.Integer, sa.ForeignKey("subjects.id"), nullable=False),
        _text("purpose"),
        _int("replica"),
        _int("visit"),
        _text("state"),
        sa.UniqueConstraint("campaign", "item", "visit", name="slots_item_visit"),
    )
    op.create_table(
        "visits",
        _text("uid", primary_key=True),
        sa.Column("campaign", sa.Text, sa.ForeignKey("campaigns.id")),
        _text("slot", nullable=True),
        _text("taken_for"),
        sa.Column("setting", sa.Text, sa.ForeignKey("settings.hash"), nullable=False),
        sa.Column("subject", sa.Integer, sa.ForeignKey("subjects.id"), nullable=False),
        _text("role"),
        _text("purpose"),
        _int("replica"),
        _time("started"),
        _time("ended"),
        sa.Column("load_ns", sa.BigInteger, nullable=False),
        _blob("samples_ns"),
        _blob("wait_ns", nullable=True),
        _blob("warmup_ns"),
        _text("statistics"),
        _text("boundary"),
        _text("metrics"),
        _text("environment"),
        _text("run"),
        _text("failure", nullable=True),
        _text("unsupported", nullable=True),
        sa.Column("contended", sa.Boolean, nullable=False),
        sa.Column("discarded", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["campaign", "slot"], ["slots.campaign", "slots.name"], name="visits_slot"),
        sa.UniqueConstraint("campaign", "slot", name="visits_campaign_slot"),
    )
    op.create_index("visits_setting_started", "visits", ["setting", "started"])
    op.create_table(
        "leases",
        _text("device", primary_key=True),
        _text("token"),
        _text("holder"),
        _text("host"),
        _int("pid"),
        _time("heartbeat"),
        _time("expires"),
    )
    op.create_table(
        "evaluations",
        _text("recipe", primary_key=True),
        _text("space", primary_key=True),
        _text("arch", primary_key=True),
        _text("values"),
        _time("created"),
    )
    op.create_table(
        "searches",
        _text("id", primary_key=True),
        _text("problem"),
        _text("state"),
        _text("candidates"),
        _time("created"),
        _time("updated"),
    )


def downgrade() -> None:
    for table in ("searches", "evaluations", "leases", "visits", "slots", "campaigns", "subjects"):
        op.drop_table(table)
    for table in ("profiles", "devices", "settings"):
        op.drop_table(table)
