"""Reading what a step needs of data that are not in memory, while the one before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


class ReadAhead:
    """Gives what `fetch` reads for a step, and has a thread of its own read for the next one.

    What it gives depends on the step alone. A step that is not the next one is read at once.
    """

    def __init__(self, fetch: Callable[[Tensor], Sequence[Any]]) -> None:
        self._fetch = fetch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sdeflow-data")
        self._next: tuple[int, Future[Sequence[Any]]] | None = None

    def __call__(self, n: int, index: Callable[[int], Tensor]) -> Sequence[Any]:
        """For step n, of the data index(n); raises what `fetch` raises for it."""
        if self._next is not None and self._next[0] == n:
            found = self._next[1].result()
        else:
            found = self._fetch(index(n))
        self._next = n + 1, self._thread.submit(self._fetch, index(n + 1))
        return found
