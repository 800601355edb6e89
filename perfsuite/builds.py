"""Builds ahead of the timing, on cores that it leaves free."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.timeline import BUILD, Recorder
from perfsuite.worker import Attempt, Candidate, Worker

# A call that takes this many times the best known, and more than these seconds, is not timed: an integer product
# without the instructions for it took 10 s a call where the default took 4 ms.
_HOPELESS, _PATIENCE, _FOREVER = 50.0, 1.0, 1e9


class Builds:
    """One builder and what it is to make: first what the current workload waits for, then what the next ones will ask.

    Without a worker nothing is built ahead: every build takes its turn with the timing. A default kernel needs none.
    """

    def __init__(self, worker: Worker | None, policy: Policy, recorder: Recorder) -> None:
        self._worker, self._policy, self._recorder = worker, policy, recorder
        self._pool = ThreadPoolExecutor(1)
        self._changed = threading.Condition()
        self._wanted: deque[Candidate] = deque()
        self._ahead: deque[Candidate] = deque()
        self._begun: set[Candidate] = set()
        self._ended: dict[Candidate, Attempt | None] = {}
        self._best: dict[Workload, float] = {}

    @classmethod
    def beside(cls, free: Sequence[int], policy: Policy, recorder: Recorder) -> Builds:
        """On the cores that the timed kernel leaves free; with none left, or on a GPU, builds take turns with it."""
        return cls(Worker(free, 1) if free and policy.device == "cpu" else None, policy, recorder)

    def timed(self, workload: Workload, seconds: float) -> None:
        """A kernel takes that long on the workload: others that take far longer fail when they are built."""
        self._best[workload] = min(seconds, self._best.get(workload, math.inf))

    def want(self, candidates: Iterable[Candidate]) -> None:
        """Make these before anything else, in place of what was wanted before."""
        with self._changed:
            self._wanted = deque(c for c in candidates if self._needed(c))
            self._begin()

    def ahead(self, candidates: Iterable[Candidate]) -> None:
        """Make these when nothing is wanted, in place of what was to be made ahead."""
        with self._changed:
            self._ahead = deque(c for c in candidates if self._needed(c))
            self._begin()

    def ready(self, candidate: Candidate) -> bool:
        """Whether timing it now would wait for no build that is wanted or under way."""
        return candidate in self._ended or (candidate not in self._begun and candidate not in self._wanted)

    def wait(self, candidates: Collection[Candidate], seconds: float | None) -> bool:
        """Whether one of the candidates is ready within so many seconds (None: however long it takes)."""
        with self._changed:
            return self._changed.wait_for(lambda: any(self.ready(c) for c in candidates), seconds)

    def failure(self, candidate: Candidate) -> Attempt | None:
        """Why the build of a candidate that is ready failed; None when it is to be timed."""
        return self._ended.get(candidate)

    def close(self) -> None:
        """Forget what was asked for and kill the worker."""
        with self._changed:
            self._wanted.clear()
            self._ahead.clear()
        if self._worker is not None:
            self._worker.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _needed(self, candidate: Candidate) -> bool:
        return self._worker is not None and not candidate.kernel.default and candidate not in self._begun

    def _begin(self) -> None:
        """Start the builder's next one unless it is at work; the lock is held."""
        while len(self._begun) == len(self._ended) and (queue := self._wanted or self._ahead):
            candidate = queue.popleft()
            if candidate not in self._begun:
                self._begun.add(candidate)
                self._pool.submit(self._build, candidate)

    def _build(self, candidate: Candidate) -> None:
        assert self._worker is not None
        attempt = None
        try:
            with self._recorder.span(BUILD, "build", candidate.workload, candidate.kernel):
                best = self._best.get(candidate.workload, math.inf)
                attempt = self._worker.build(candidate, self._policy, max(_PATIENCE, min(_HOPELESS * best, _FOREVER)))
        finally:
            with self._changed:
                self._ended[candidate] = attempt
                self._begin()
                self._changed.notify_all()
