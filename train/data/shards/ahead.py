"""Shards made ready in the background, before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from pipeline.foundation.errors import InputError

FETCHERS = 4  # threads a process


class FetchAhead:
    """Threads that make the wanted shards ready. What goes wrong there is kept quiet: whoever reads meets it again."""

    def __init__(self, make_ready: Callable[[int], object]) -> None:
        self._make_ready = make_ready
        self._wanted: list[int] = []
        self._threads: list[threading.Thread] = []
        self._wake = threading.Condition()

    def want(self, shards: Sequence[int]) -> None:
        """These shards, in this order, instead of any named before."""
        with self._wake:
            self._wanted = list(shards)
            self._wake.notify_all()
        if shards and not self._threads:
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(FETCHERS)]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._wanted:
                    self._wake.wait()
                shard = self._wanted.pop(0)
            with suppress(InputError, OSError):
                self._make_ready(shard)
