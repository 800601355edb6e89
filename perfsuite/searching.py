"""Drives the searches of a workload's kernels in turn, within a deadline, over the builder and the bench."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perfsuite import search
from perfsuite.budget import Costs
from perfsuite.builds import Builds
from perfsuite.events import Tried
from perfsuite.kernel import Config, Kernel
from perfsuite.knowledge import Knowledge
from perfsuite.op import Workload
from perfsuite.plan import Plan
from perfsuite.registry import Job
from perfsuite.timeline import MEASURE, Recorder
from perfsuite.trial import Trial
from perfsuite.worker import Attempt, Candidate, Worker, alone

# After n trials a kernel is given up whose best is beyond the best of all kernels by more than this over n: 2.8 times
# after 4 trials, 1.3 times after 24. In 270 replayed searches of 27 recorded spaces, from random starts, the best of 4,
# 8, 16 and 24 trials was in all but 1 % within 2.3, 2.0, 1.24 and 1.21 times the optimum.
_BEHIND = 7.2
# Trials of a kernel that have all failed before it is given up.
_FAIR = 24


@dataclass
class Search:
    """One kernel's search on one workload: the config it asks about, unknown so far; it may make `most` trials.

    `best` is the lowest cost so far, `building` how many seconds its builds have taken.
    """

    kernel: Kernel
    steps: search.Search
    known: Mapping[Config, float]
    most: int
    made: int = 0
    config: Config | None = None
    best: float = math.inf
    building: float = 0.0

    def __post_init__(self) -> None:
        self.best = min(self.known.values(), default=math.inf)

    @property
    def tried(self) -> bool:
        return bool(self.known or self.made)

    def hopeless(self, least: float) -> bool:
        """Whether its best is further behind the least cost of all kernels than it will hardly make up."""
        trials = len(self.known) + self.made
        if math.isinf(self.best):
            return trials >= _FAIR
        return self.best > (1.0 + _BEHIND / trials) * least

    def advance(self, cost: float | None = None) -> bool:
        """Tell the cost of the last config and take the next unknown one; whether there is one and a trial for it."""
        if cost is not None:
            self.made += 1
            self.best = min(self.best, cost)
        self.config = None
        if self.made < self.most:
            with contextlib.suppress(StopIteration):
                config = next(self.steps) if cost is None else self.steps.send(cost)
                while config in self.known:
                    config = self.steps.send(self.known[config])
                self.config = config
        return self.config is not None


@dataclass
class _Shown:
    """What the events of one workload say: how many trials of how many, and the best so far.

    `best` is what a user is shown, `least` the lowest cost, which searches go by.
    """

    ideal: float | None
    of: int
    at: int = 0
    best: float = math.inf
    least: float = math.inf
    default: float = math.inf

    def add(self, trial: Trial, kernel: Kernel, known: bool) -> Tried:
        self.at += 1
        self.best = min(self.best, trial.seconds)
        self.least = min(self.least, trial.cost)
        self.default = min(self.default, trial.seconds) if kernel.default else self.default
        at, of, best, default = self.at, max(self.at, self.of), self.best, self.default
        return Tried(trial.workload, kernel, trial.config, trial.outcome, known, at, of, best, default, self.ideal)

    def near(self, enough: float) -> bool:
        """Whether the best has reached that share of its ceiling."""
        return self.ideal is not None and enough * self.best <= self.ideal


@dataclass
class Searches:
    """What the searches of every workload share."""

    plan: Plan
    knowledge: Knowledge
    bench: Worker
    builds: Builds
    recorder: Recorder
    costs: Costs

    def tried(self, stage: str, job: Job, most: int, deadline: float, latest: float) -> Generator[Tried, None, bool]:
        """What was known of the job, then new trials of its kernels in turn, up to `most` of each, known ones included.

        Returns whether all were made: none begins that would end after the deadline (seconds since the start), or,
        for a kernel that was never tried, after `latest`. A kernel that was tried once is not tried again when the best
        of all is near its ceiling, nor one that is far behind for the trials it had.
        """
        workload, known = job.workload, self.knowledge.of(job.workload, *job.kernels)
        queue = [one for kernel in job.kernels if (one := self._search(workload, kernel, most)).most > 0]
        shown = _Shown(self.knowledge.ideal(workload), len(known) + sum(s.most for s in queue))
        for trial in known:
            event = shown.add(trial, self.plan.registry.kernels[trial.kernel], known=True)
            self.builds.timed(workload, trial.seconds)
            if not self.knowledge.is_new(trial):
                yield event
        # To begin a search means to repeat it up to where it was: only what goes on does.
        queue = [s for s in queue if not self._over(s, shown) and s.advance()]
        while queue := [s for s in queue if not self._over(s, shown)]:
            now = self._next(workload, queue, deadline)
            if now is None and (untried := [s for s in queue if not s.tried]):
                queue = untried
                now = self._next(workload, queue, latest)
            if now is None:
                return False
            assert now.config is not None
            trial = self._trial(stage, Candidate(workload, now.kernel, now.config))
            yield shown.add(trial, now.kernel, known=False)
            now.building += trial.build_seconds
            if now.advance(trial.cost):
                queue.append(now)
        return True

    def ahead(self, jobs: Sequence[Job]) -> None:
        """Have the builder make the first config of every kernel of these jobs that nothing is known of.

        No more: with winners elsewhere built ahead, too, a quick tuning waited 52 s for builds, without 51 s.
        """
        self.builds.ahead(
            Candidate(job.workload, kernel, self.knowledge.space(job.workload, kernel).configs[0])
            for job in jobs
            for kernel in job.kernels
            if not self.knowledge.of(job.workload, kernel)
        )

    @contextlib.contextmanager
    def measuring(self, stage: str, workload: Workload, kernel: str = "") -> Iterator[None]:
        """Hold this machine's lock on measuring; what it is held for is recorded, and the wait for it."""
        with contextlib.ExitStack() as held:
            with self.recorder.span(MEASURE, "turn", workload):
                held.enter_context(alone())
            with self.recorder.span(MEASURE, stage, workload, kernel):
                yield

    def store(self, candidate: Candidate, attempt: Attempt, stage: str, race: str = "") -> Trial:
        trial = Trial(
            self.plan.machine,
            candidate.workload,
            str(candidate.kernel),
            candidate.config,
            self.plan.policy,
            candidate.kernel.digest,
            attempt.outcome,
            created=time.time(),
            stage=stage,
            race=race,
            build_seconds=attempt.build_seconds,
            commit=git_commit(),
        )
        self.knowledge.learn(trial)
        return trial

    def _search(self, workload: Workload, kernel: Kernel, most: int) -> Search:
        """The kernel's search before its first question; its `most` is 0 where it has had its trials."""
        trials = self.knowledge.of(workload, kernel)
        known = {t.config: t.cost for t in trials}
        space = self.knowledge.space(workload, kernel)
        most = min(most, len(space)) - len(known)
        # The same seed in every run: a resumed search asks the same questions and finds the answers known.
        seed = int(digest([str(workload), str(kernel)])[:8], 16)
        elsewhere = self.knowledge.seeds.elsewhere(workload, str(kernel), space)
        steps = search.STRATEGIES[self.plan.strategy](space, seed, elsewhere)
        return Search(kernel, steps, known, most, building=sum(t.build_seconds for t in trials))

    def _over(self, search: Search, shown: _Shown) -> bool:
        """Whether a search that has begun would cost more than it may bring."""
        effort = self.plan.effort
        spent = search.building > effort.build_seconds
        return search.tried and (shown.near(effort.enough) or spent or search.hopeless(shown.least))

    def _next(self, workload: Workload, queue: list[Search], deadline: float) -> Search | None:
        """The first search whose config is built, taken out of the queue; None when its trial would end too late."""
        asked = {Candidate(workload, s.kernel, s.config): s for s in queue if s.config is not None}
        latest = deadline - self.costs.trial(workload)
        if self.recorder.now > latest:
            return None
        self.builds.want(asked)
        if not self.builds.wait(asked, 0.0):
            with self.recorder.span(MEASURE, "wait", workload):
                self.builds.wait(asked, None if math.isinf(latest) else latest - self.recorder.now)
        ready = next((s for candidate, s in asked.items() if self.builds.ready(candidate)), None)
        if ready is None or self.recorder.now > latest:
            return None
        queue.remove(ready)
        return ready

    def _trial(self, stage: str, candidate: Candidate) -> Trial:
        """Measure the candidate, if it could be built, and store what came of it."""
        attempt = self.builds.failure(candidate)
        if attempt is None:
            least = self.knowledge.least(candidate.workload)
            with self.measuring(stage, candidate.workload, str(candidate.kernel)):
                start = self.recorder.now
                attempt = self.bench.measure(candidate, self.plan.policy, self.plan.effort.seconds, least)
                self.costs.tried(candidate.workload, self.recorder.now - start)
        trial = self.store(candidate, attempt, "search")
        self.builds.timed(candidate.workload, trial.seconds)
        return trial


def digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


@functools.cache
def git_commit() -> str:
    """The commit of the checkout that perfsuite runs from, with + when it has changes; empty outside one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return ""
