"""The store of Visits, campaigns and searches, on SQLite or PostgreSQL."""

from latbench.store.campaigns import CampaignRecord, CampaignState, Slot, SlotState
from latbench.store.engine import Database
from latbench.store.leases import Holder, Lease
from latbench.store.searches import SearchRecord, space_hash
from latbench.store.store import Store

__all__ = [
    "CampaignRecord",
    "CampaignState",
    "Database",
    "Holder",
    "Lease",
    "SearchRecord",
    "Slot",
    "SlotState",
    "Store",
    "space_hash",
]
