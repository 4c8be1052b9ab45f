"""A few threads that run the same function with ``ith = 0 .. n - 1``, for pkv_attend."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def default_threads() -> int:
    """Threads to use: the CPUs this process may run on, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0))))


class Workers:
    """n - 1 waiting threads plus the caller. Locks serve as the start and end signals: a round
    trip costs a few microseconds, and the threads sleep in between."""

    def __init__(self, n: int) -> None:
        self.n = max(1, n)
        self._work: Callable[[int], None] | None = None
        self._errors: list[BaseException] = []
        self._start = [threading.Lock() for _ in range(self.n - 1)]
        self._done = [threading.Lock() for _ in range(self.n - 1)]
        for lock in (*self._start, *self._done):
            lock.acquire()
        self._threads = [
            threading.Thread(target=self._loop, args=(i,), daemon=True, name=f"attend-{i + 1}")
            for i in range(self.n - 1)
        ]
        for thread in self._threads:
            thread.start()

    def _loop(self, index: int) -> None:
        start, done = self._start[index], self._done[index]
        while True:
            start.acquire()
            work = self._work
            if work is None:
                return
            try:
                work(index + 1)
            except BaseException as error:  # handed to the caller of run
                self._errors.append(error)
            done.release()

    def run(self, work: Callable[[int], None]) -> None:
        """Runs work(0) here and work(1) .. work(n - 1) on the threads; returns when all did."""
        self._work = work
        for lock in self._start:
            lock.release()
        try:
            work(0)
        finally:
            for lock in self._done:
                lock.acquire()
        if self._errors:
            error = self._errors[0]
            self._errors.clear()
            raise error

    def close(self) -> None:
        """Ends the threads."""
        self._work = None
        for lock in self._start:
            lock.release()
        for thread in self._threads:
            thread.join()
        self._start, self._done, self._threads, self.n = [], [], [], 1
