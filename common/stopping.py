"""A polite end: SIGTERM, as schedulers and preemptible machines send it, stops a run where nothing is lost."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn


class Stopped(Exception):
    """What ran was asked to stop and did; one sentence says where it stands. The command line exits with 0."""


def leave(sentence: str) -> NoReturn:
    """End this process with a sentence and exit status 0 at once, whatever waits for its end."""
    print(f"glasszoo: {sentence}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(0)


class StopRequest:
    """While entered, takes SIGTERM.

    It is noted, for whoever works to look at `is_asked` where stopping costs nothing; or, with `at_once`, it ends the
    process with that sentence and 0: an exception could be raised anywhere, and be taken for another, as in an import.
    Outside the main thread, where Python takes no signals, it does nothing.
    """

    def __init__(self, at_once: str | None = None) -> None:
        self.is_asked = False
        self._at_once = at_once
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        if self._at_once is not None:
            leave(self._at_once)
