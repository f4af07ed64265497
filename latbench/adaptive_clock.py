"""How long an adaptive campaign has measured, over all of its runs and without the pauses between them.

The store knows when each Visit was taken, but a gap between two may be a fit or a night. Each Visit is therefore
committed with the campaign's own time in its environment (:data:`KEY`): a run goes on from the last one's.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from latbench.ledger import Ledger
from latbench.visit import Visit

#: Seconds of the campaign when a Visit came in, in :attr:`Visit.environment`.
KEY = "campaign_s"
#: Gaps between Visits without :data:`KEY` (of earlier versions) that are longer than this, seconds, were pauses.
_PAUSE_S = 180.0


class TimedLedger(Ledger):
    """A ledger whose Visits say at which second of their campaign they came in.

    ``began`` is when the campaign would have begun (``time.monotonic``) had it never paused.
    """

    began = 0.0

    def accept(self, visit: Visit) -> None:
        """See :meth:`latbench.ledger.Ledger.accept`."""
        now = round(time.monotonic() - self.began, 3)
        super().accept(replace(visit, environment={**visit.environment, KEY: now}))


def used_s(ledger: Ledger) -> float:
    """Seconds that a campaign has taken so far, until its last Visit that counts; pauses between runs left out."""
    told = [float(v.environment[KEY]) for v in ledger.kept if KEY in v.environment]
    if told:
        return max(told)
    times = sorted((v.started, v.ended) for v in ledger.kept)
    if not times:
        return 0.0
    ends = np.maximum.accumulate([e for _, e in times])
    gaps = np.array([b for b, _ in times[1:]]) - ends[:-1]
    return float(ends[-1] - times[0][0] - gaps[gaps > _PAUSE_S].sum())
