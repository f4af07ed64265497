"""A process of its own that holds a device's lease and host-wide lock, for tests: says "held", then waits to be ended.

Arguments: store address, device identity, life of the lease in seconds, "lease" or "lock" or "both".
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from latbench.host_lock import HostLock
from latbench.store import Store


def main(address: str, device: str, ttl_s: str, what: str) -> None:
    with ExitStack() as stack:
        if what in ("lock", "both"):
            stack.enter_context(HostLock(device, "theirs"))
        if what in ("lease", "both"):
            store = stack.enter_context(Store.open(address))
            stack.enter_context(store.lease(device, "theirs", ttl_s=float(ttl_s)))
        print("held", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
