"""Ctrl-C and SIGTERM end a run at a step, with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from detcli.errors import DetcliError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0
"""A terminal and a launcher may both pass on one Ctrl-C; what comes this soon after the first is the same one."""


class Interrupted(DetcliError):
    """The run was asked to stop by a signal; the exit status is 128 plus its number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {message}")
        self.exit_code = 128 + number


class Interrupts:
    """Remembers the first SIGINT or SIGTERM while the context lasts; a second Ctrl-C interrupts at once.

    `received` is the signal's number, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
            if number == signal.SIGINT and sys.stderr.isatty():
                print("finishing this step; Ctrl-C again stops at once, without saving it", file=sys.stderr)
        elif number == signal.SIGINT and time.monotonic() - self._at > ECHO_SECONDS:
            raise KeyboardInterrupt
