"""``kill -9`` of a campaign at random moments, resumed each time until it is finished: is anything lost, or done twice?

The judge is not the store but two other witnesses: the append-only log that the runner on the device writes (one line
for each Visit that it finished, on disk before the host hears of it), and what the campaign's process said on its
standard output after each commit returned. *Lost* are Visits that were said to be committed, or were in the store right
after a kill, and are not in it, unchanged, at the end. *Twice* are slots, as the log names them, for which the store
holds more than one Visit. *In flight* are Visits that the log has and the store never got: they were repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import latbench as lb
from benchmarks.common import ROOT, finish, parser, table, verdict
from latbench.campaign import Campaign
from latbench.op import Op, TensorSpec
from latbench.plan import Plan
from latbench.protocol import Protocol
from latbench.store import Store

#: Visits of about 30 ms. Nothing is taken again for contention, so that each slot has one Visit.
PROTOCOL = Protocol(
    warmup_runs=2, warmup_max_ms=20, min_runs=5, max_runs=10000, min_ms=25, max_ms=40, min_visits=3, max_visits=3,
    contention_ratio=1e9, max_requeues=0,
)  # fmt: skip


def plan(items: int) -> Plan:
    """Different convolutions, ``items`` of them."""
    ops = [
        Op.make(
            "conv", [TensorSpec((1, 8 + 4 * i, 14, 14))], out_channels=16, kernel=(3, 3), stride=(1, 1),
            pads=(1, 1, 1, 1), dilation=(1, 1), groups=1, bias=False,
        )
        for i in range(items)
    ]  # fmt: skip
    return Plan.of(ops)


class Witness(Store):
    """A store that says on standard output which Visits were committed, once they are."""

    def commit_visit(self, row: Mapping[str, Any], *more: Any, **named: Any) -> None:
        """See the base class."""
        super().commit_visit(row, *more, **named)
        os.write(1, f"{row['uid']}\n".encode())


def work(address: str, device: str, items: int) -> None:
    """The campaign's process."""
    with lb.load_device(device) as d, Witness.open(address) as store:
        Campaign(d, plan(items), store=store, protocol=PROTOCOL).run()


@dataclass
class Life:
    """One life of the campaign's process; ``killed`` is False for the last one, which finished."""

    seconds: float
    said: int
    stored: int
    logged: int
    killed: bool


@dataclass
class Audit:
    """What the witnesses say in the end."""

    lives: list[Life] = field(default_factory=list)
    stored: int = 0
    logged: int = 0
    lost: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    unlogged: set[str] = field(default_factory=set)
    twice: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    unfilled: int = 0
    campaigns: int = 0

    @property
    def kills(self) -> int:
        """How often it was killed."""
        return sum(k.killed for k in self.lives)

    @property
    def clean(self) -> bool:
        """True if nothing was lost, changed, made up or done twice, and everything planned was done."""
        bad = (self.lost, self.changed, self.unlogged, self.twice)
        return not any(bad) and self.unfilled == 0 and self.campaigns == 1


def stored_visits(address: str) -> tuple[dict[str, str], int, int]:
    """``(uid → digest of the samples, slots not filled yet, campaigns)``."""
    with Store.open(address) as store:
        records = store.campaigns()
        visits = [v for s in store.settings() for v in store.visits(s, discarded=True)]
        open_ = sum(n for r in records for state, n in r.slots.items() if state != "done")
        return {v.uid: hashlib.sha256(v.samples_ns.tobytes()).hexdigest() for v in visits}, open_, len(records)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The on-device log."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kill_and_resume(address: str, log: Path, *, kills: int, items: int, seed: int, device: str) -> Audit:
    """Start the campaign, kill it after a random number of commits and a random while, again and again; audit it."""
    rng = np.random.default_rng(seed)
    audit, said, seen = Audit(), set[str](), dict[str, str]()
    # Less than an even share: there must be work left for every life.
    longest = max(1, int(0.8 * items * PROTOCOL.min_visits / (kills + 1)))
    argv = [sys.executable, "-m", "benchmarks.kill_resume", "--work", "--store", address]
    argv += ["--device", device, "--items", str(items)]
    env = {**os.environ, "LATBENCH_RUNNER_LOG": str(log), "PYTHONPATH": str(ROOT)}
    while not audit.lives or audit.lives[-1].killed:
        began, heard = time.monotonic(), list[str]()
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        if audit.kills < kills:
            commits = int(rng.integers(0, longest))
            heard += [process.stdout.readline().strip() for _ in range(commits)]
            time.sleep(rng.uniform(0, 0.08) if commits else rng.uniform(0.1, 3.0))
            process.send_signal(signal.SIGKILL)
        heard += process.stdout.read().split()
        process.stdout.close()
        code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"the campaign's process ended with exit code {code}")
        said |= set(filter(None, heard))
        now, audit.unfilled, audit.campaigns = stored_visits(address)
        audit.lost |= (said | set(seen)) - set(now)
        audit.changed |= {u for u, digest in seen.items() if now.get(u, digest) != digest}
        seen = now
        audit.lives.append(Life(time.monotonic() - began, len(heard), len(now), len(read_log(log)), code != 0))
    entries = read_log(log)
    slot_of = {e["uid"]: e["slot"] for e in entries}
    audit.stored, audit.logged = len(seen), len(slot_of)
    audit.unlogged = set(seen) - set(slot_of)
    audit.in_flight = len(set(slot_of) - set(seen))
    filled = Counter(slot_of[u] for u in seen if slot_of.get(u))
    audit.twice = {s: n for s, n in filled.items() if n > 1}
    return audit


def main() -> int:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=10, help="how often it is killed (default 10)")
    options.add_argument("--items", type=int, default=60, help="Ops to measure, three Visits each (default 60)")
    options.add_argument("--store", help="address of a store that does not exist yet (default: a temporary file)")
    options.add_argument("--device", default="local-cpu", help="device profile (default local-cpu)")
    options.add_argument("--work", action="store_true", help="be the process that is killed")
    args = options.parse_args()
    if args.work:
        work(args.store, args.device, args.items)
        return 0
    with tempfile.TemporaryDirectory(prefix="latbench-kill-") as folder:
        address, log = args.store or str(Path(folder, "kill_resume.db")), Path(folder, "runner.log")
        audit = kill_and_resume(
            address, log, kills=args.kills, items=args.items, seed=args.seed, device=args.device
        )  # fmt: skip
    table(
        "A campaign that is killed at random moments and resumed",
        ["life", "ended by", "seconds", "commits said", "Visits in the store", "Visits in the on-device log"],
        [
            [n, "kill -9" if k.killed else "itself", f"{k.seconds:.1f}", k.said, k.stored, k.logged]
            for n, k in enumerate(audit.lives, 1)
        ],
    )
    kind = "PostgreSQL" if address.startswith("postgres") else "SQLite"  # the address may hold a password
    counts = {
        "committed Visits lost": len(audit.lost),
        "committed Visits changed": len(audit.changed),
        "plan slots committed twice": len(audit.twice),
        "plan slots left open": audit.unfilled,
        "Visits in the store but not in the log": len(audit.unlogged),
    }
    rows = [[what, n, 0, verdict(n == 0)] for what, n in counts.items()]
    rows.append(["Visits in flight at a kill, repeated", audit.in_flight, "", ""])
    table(f"What the on-device log says of {audit.kills} kills", ["", "count", "target", ""], rows)
    finish(
        args,
        "kill_resume",
        {**counts, "in flight": audit.in_flight, "kills": audit.kills},
        store=kind,
    )
    return 0 if audit.clean else 1


if __name__ == "__main__":
    sys.exit(main())
