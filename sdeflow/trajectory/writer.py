"""A thread for what may wait for a disk, beside the one that takes steps."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Does one thing after the other in a thread of its own: a second waits until the first is done.

    So what waits to be written takes the memory of one thing, and all is done in the order in which it was
    given. After one that failed nothing more is done: each further call raises its error.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "sdeflow-writer", _leave_signals)
        self._last: Future[None] | None = None

    def __call__(self, task: Callable[[], None]) -> None:
        """Begins a task, once the one before is done; raises what that raised."""
        self.wait()
        self._last = self._thread.submit(task)

    @property
    def busy(self) -> bool:
        """Whether a task is being done."""
        return self._last is not None and not self._last.done()

    def wait(self) -> None:
        """Until nothing is being done; raises what the last task raised."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Waits, and takes no more."""
        self._thread.shutdown()


def _leave_signals() -> None:
    """Lets requests to stop reach the thread that takes steps, which may sleep in one."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
