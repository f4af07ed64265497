"""Ctrl-C while a long piece of work is done that is kept as a whole: the first ends it after the piece."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Interruptions:
    """Inside it the first Ctrl-C is told to ``report`` and waits for :meth:`stop`; the second one counts at once.

    Without ``report`` (nothing is kept that would be worth waiting for), outside the main thread, and where somebody
    else handles Ctrl-C, nothing is changed.
    """

    def __init__(self, report: Callable[[str], None] | None) -> None:
        self._report, self._installed, self._asked = report, False, False

    def stop(self) -> None:
        """Between two pieces: raise :class:`KeyboardInterrupt` if it was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def __enter__(self) -> Interruptions:
        ours = threading.current_thread() is threading.main_thread()
        if self._report is not None and ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, where: TracebackType | None) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            # Asked for during a piece that turned out to be the last one.
            self.stop()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked or self._report is None:
            raise KeyboardInterrupt
        self._asked = True
        self._report("stopping as soon as this piece of work is done and kept; Ctrl-C again stops at once")
