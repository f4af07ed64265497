"""What searches leave in the store: evaluations that are never paid for twice, and states that they resume from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from latbench.errors import SearchError
from latbench.problem import Candidate
from latbench.space import Arch, SearchSpace
from latbench.store import schema as s
from latbench.store.campaigns import Campaigns
from latbench.store.catalogue import insert


@dataclass(frozen=True)
class SearchRecord:
    """A search as it was last saved: its problem and the searcher's state as JSON values, and all candidates so far."""

    id: str
    problem: dict[str, Any]
    state: dict[str, Any]
    candidates: list[Candidate]
    created: float
    updated: float


def space_hash(space: SearchSpace | Mapping[str, Any]) -> str:
    """Content hash of a space, or of its ``spec``."""
    spec = space.spec if isinstance(space, SearchSpace) else dict(space)
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _arch_key(arch: Sequence[int]) -> str:
    return ",".join(str(int(a)) for a in arch)


class Searches(Campaigns):
    """The part of a store that searches use."""

    def evaluations(self, recipe: str, space: SearchSpace | Mapping[str, Any]) -> dict[Arch, dict[str, float]]:
        """Architecture → values that were evaluated by this recipe in this space (or its ``spec``)."""
        t = s.evaluations.c
        query = select(t.arch, t["values"]).where(t.recipe == recipe, t.space == space_hash(space)).order_by(t.created)
        with self._db.read() as c:
            return {tuple(map(int, filter(None, a.split(",")))): v for a, v in c.execute(query)}

    def add_evaluation(
        self, recipe: str, space: SearchSpace | Mapping[str, Any], arch: Sequence[int], values: Mapping[str, float]
    ) -> None:
        """Remember an evaluation. The first one of an architecture stays: recipes are deterministic."""
        row = {
            "recipe": recipe, "space": space_hash(space), "arch": _arch_key(arch), "values": dict(values),
            "created": time.time(),
        }  # fmt: skip
        with self._db.write() as c:
            c.execute(insert(self._db, s.evaluations).values(row).on_conflict_do_nothing())

    def save_search(
        self, id: str, *, problem: Mapping[str, Any], state: Mapping[str, Any], candidates: Sequence[Candidate]
    ) -> None:
        """Save a search under its id, replacing what was saved before; all of it or nothing."""
        now = time.time()
        values = {
            "problem": dict(problem),
            "state": dict(state),
            "candidates": [c.to_json() for c in candidates],
            "updated": now,
        }
        put = insert(self._db, s.searches).values(id=id, created=now, **values)
        with self._db.write() as c:
            c.execute(put.on_conflict_do_update(index_elements=["id"], set_=values))

    def load_search(self, id: str) -> SearchRecord:
        """What :meth:`save_search` saved. Raises :class:`SearchError` for an unknown id, naming those that exist."""
        t = s.searches
        with self._db.read() as c:
            row = c.execute(select(t).where(t.c.id == id)).one_or_none()
            if row is None:
                known = [i for (i,) in c.execute(select(t.c.id).order_by(t.c.updated.desc()).limit(10))]
                raise SearchError(f"{self._db.address}: no search {id!r}; known: {', '.join(known) or 'none'}")
        candidates = [Candidate.from_json(d) for d in row.candidates]
        return SearchRecord(id, row.problem, row.state, candidates, row.created, row.updated)

    def searches(self) -> list[str]:
        """Ids of saved searches, most recently saved first."""
        with self._db.read() as c:
            return [i for (i,) in c.execute(select(s.searches.c.id).order_by(s.searches.c.updated.desc()))]
