"""THE MAIN PATH: discover, search, build, check, measure, race, store. `tune` yields what happens as it happens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from perfsuite import detect, race, search
from perfsuite.events import Event, Finished, Raced, Started, Tried
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Workload
from perfsuite.plan import PROBES, Plan
from perfsuite.race import BLOCK
from perfsuite.registry import Job
from perfsuite.results import Results
from perfsuite.roofline import Ceilings
from perfsuite.trial import Measurement, Trial
from perfsuite.worker import Attempt, Candidate, Worker, WorkerDied, alone

# A candidate within this factor of the fastest of the search may win the race.
_FINALIST = 1.15
_MOST_FINALISTS = 6
# The share of a workload's budget that is kept for its race.
_RACE_SHARE = 0.25


def tune(plan: Plan, results: Results) -> Generator[Event, None, None]:
    """Carry out the plan. Closing the generator (Ctrl-C) stops the workers; every trial made is stored already."""
    known = results.trials(plan.machine, policy=plan.policy)
    plan = plan.with_ceilings(known)
    jobs, refusals = plan.sifted()
    run = _Run(plan, results, known)
    yield Started(len(jobs), sum(_trials(plan, job) for job in jobs), refusals)
    try:
        for left, job in zip(range(len(jobs), 0, -1), jobs):
            if run.out_of_budget():
                break
            yield from run.job(job, left)
    finally:
        run.close()
    yield run.finished(len(refusals))


def _trials(plan: Plan, job: Job) -> int:
    return sum(min(plan.effort.trials, len(kernel.space(job.workload, plan.machine))) for kernel in job.kernels)


@dataclass
class _Search:
    """One kernel's search on one workload: the config it asks about, and the best it has seen."""

    kernel: Kernel
    steps: search.Search
    left: int
    config: Config | None = None
    built: Future[Attempt | None] | None = None

    def advance(self, cost: float | None = None) -> None:
        """Tell the cost of the last config and take the next; None when the search or its trials are used up."""
        self.left -= cost is not None
        try:
            self.config = next(self.steps) if cost is None else self.steps.send(cost)
        except StopIteration:
            self.config = None
        if self.left <= 0:
            self.config = None


@dataclass
class _Run:
    """The state of one tuning: the workers, what is known, and the sums."""

    plan: Plan
    results: Results
    known: list[Trial]
    start: float = field(default_factory=time.monotonic)
    new: int = 0
    repeated: int = 0
    failed: int = 0
    races: int = 0

    def __post_init__(self) -> None:
        plan = self.plan
        cores = detect.allowed_cores()
        threads = plan.policy.threads
        timed, free = cores[len(cores) - threads :], cores[: len(cores) - threads]
        self.bench = Worker(timed, threads)
        # Builds run on cores that the timed kernel leaves free; with none left, or on a GPU, they take turns with it.
        self.builder = Worker(free, 1) if free and plan.policy.device == "cpu" else None
        self.pool = ThreadPoolExecutor(1)
        self.costs = {_key(t): t for t in self.known if t.stage == "search"}
        self.ceilings = self._ceilings()

    def _ceilings(self) -> Ceilings:
        ceilings = Ceilings.of(self.known, self.plan.registry.ops, self.plan.policy)
        capacities = [level.capacity for level in ceilings.levels if level.capacity is not None]
        self.bench.cache_bytes = max(capacities, default=self.bench.cache_bytes)
        return ceilings

    def close(self) -> None:
        for worker in (self.bench, self.builder):
            if worker is not None:
                worker.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def out_of_budget(self) -> bool:
        return self.plan.budget is not None and time.monotonic() - self.start > self.plan.budget

    def finished(self, refused: int) -> Finished:
        seconds = time.monotonic() - self.start
        return Finished(
            self.new, self.repeated, self.failed, refused, self.races, seconds, complete=not self.out_of_budget()
        )

    def job(self, job: Job, left: int) -> Iterator[Event]:
        """Search every kernel of one workload in turn, then race the finalists."""
        remaining = math.inf if self.plan.budget is None else self.plan.budget - (time.monotonic() - self.start)
        deadline = time.monotonic() + (1.0 - _RACE_SHARE) * remaining / left
        trials: list[Trial] = []
        for event, trial in self._searches(job, deadline):
            trials.append(trial)
            yield event
        good = [t for t in trials if t.measurement is not None]
        if good:
            yield self._race(job, good)
        if self.plan.registry.ops[job.workload.op].family == PROBES:
            self.ceilings = self._ceilings()

    def _searches(self, job: Job, deadline: float) -> Iterator[tuple[Tried, Trial]]:
        plan = self.plan
        strategy = search.STRATEGIES[plan.strategy]
        queue: deque[_Search] = deque()
        for kernel in job.kernels:
            steps = strategy(kernel.space(job.workload, plan.machine), _seed(job.workload, kernel))
            queue.append(_Search(kernel, steps, plan.effort.trials))
            queue[-1].advance()
        op = plan.registry.ops[job.workload.op]
        # While the ceilings themselves are measured, a share of them means nothing.
        ideal = None if op.family == PROBES else self.ceilings.ideal_seconds(op, job.workload)
        best, default, of = math.inf, math.inf, _trials(plan, job)
        made = 0
        while queue:
            for waiting in queue:
                self._build_ahead(job.workload, waiting)
            now = _ready(queue)
            if now.config is None:
                continue
            trial, known = self._trial(job.workload, now)
            made += 1
            best = min(best, trial.seconds)
            default = min(default, trial.seconds) if now.kernel.default else default
            at = min(made, of)
            yield (
                Tried(trial.workload, now.kernel, trial.config, trial.outcome, known, at, of, best, default, ideal),
                trial,
            )
            now.advance(trial.seconds)
            if now.config is not None and time.monotonic() < deadline:
                queue.append(now)

    def _build_ahead(self, workload: Workload, waiting: _Search) -> None:
        """Have the builder make the config that a search waits for, unless it is known or needs no compiler."""
        if self.builder is None or waiting.config is None or waiting.built is not None or waiting.kernel.default:
            return
        candidate = Candidate(workload, waiting.kernel, waiting.config)
        if (str(workload), str(waiting.kernel), waiting.kernel.digest, waiting.config) not in self.costs:
            waiting.built = self.pool.submit(self.builder.build, candidate, self.plan.policy)

    def _trial(self, workload: Workload, now: _Search) -> tuple[Trial, bool]:
        """The trial of the config that the search asks about: a known one, or one made and stored now."""
        assert now.config is not None
        candidate = Candidate(workload, now.kernel, now.config)
        known = self.costs.get((str(workload), str(now.kernel), now.kernel.digest, now.config))
        if known is not None:
            self.repeated += 1
            return known, True
        attempt = now.built.result() if now.built is not None else None
        now.built = None
        if attempt is None:
            op = self.plan.registry.ops[workload.op]
            least = self.ceilings.least_seconds(op, workload) if op.family != PROBES else None
            with alone():
                attempt = self.bench.measure(candidate, self.plan.policy, self.plan.effort.seconds, least or 0.0)
        trial = self._stored(candidate, attempt, "search", "")
        self.costs[_key(trial)] = trial
        self.failed += trial.failure is not None
        return trial, False

    def _stored(self, candidate: Candidate, attempt: Attempt, stage: str, race_id: str) -> Trial:
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
            race=race_id,
            build_seconds=attempt.build_seconds,
            commit=git_commit(),
        )
        self.results.add(trial)
        self.known.append(trial)
        self.new += 1
        return trial

    def _race(self, job: Job, trials: Sequence[Trial]) -> Raced:
        """Race the finalists unless the very same race is known; its trials are stored together."""
        entrants = finalists(trials, self.plan.registry.defaults)
        race_id = _digest([f"{t.kernel} {t.digest} {t.config}" for t in entrants] + [str(self.plan.effort.rounds)])
        if any(t.race == race_id and t.workload == job.workload for t in self.known):
            self.repeated += len(entrants)
            return Raced(job.workload, len(entrants), known=True)
        candidates = [Candidate(t.workload, self.plan.registry.kernels[t.kernel], t.config) for t in entrants]
        try:
            with alone():
                samples = run_race(self.bench, candidates, self.plan)
        except WorkerDied:
            # It worked a moment ago; the next run races again.
            return Raced(job.workload, 0, known=False)
        for candidate, times in zip(candidates, samples):
            self._stored(candidate, Attempt(Measurement(tuple(times))), "race", race_id)
        self.races += 1
        return Raced(job.workload, len(entrants), known=False)


def _ready(queue: deque[_Search]) -> _Search:
    """The first search whose config is built, else the first; taken out of the queue."""
    at = next((i for i, s in enumerate(queue) if s.built is None or s.built.done()), 0)
    now = queue[at]
    del queue[at]
    return now


def run_race(bench: Worker, candidates: Sequence[Candidate], plan: Plan) -> race.Samples:
    """Drive a race on a worker, for the effort's rounds or seconds, whichever is used up first."""
    deadline = time.monotonic() + plan.effort.race_seconds
    steps = race.race(len(candidates), plan.effort.rounds)
    active = next(steps)
    seed = 0
    while True:
        seed += 1
        block = bench.race([candidates[at] for at in active], plan.policy, BLOCK, seed)
        try:
            active = steps.send((block, time.monotonic() > deadline))
        except StopIteration as end:
            samples: race.Samples = end.value
            return samples


def finalists(trials: Sequence[Trial], defaults: frozenset[str]) -> list[Trial]:
    """Who races: the best config of every kernel within reach of the best, the near-best configs, and the baselines.

    Baselines are the default kernels and inductor: every report quotes the speed-up over both from the same race.
    """
    ordered = sorted(trials, key=lambda t: (t.seconds, t.kernel, str(t.config)))
    reach = _FINALIST * ordered[0].seconds
    chosen = [t for t in ordered if t.seconds <= reach][:_MOST_FINALISTS]
    for trial in ordered:
        first = all(trial.kernel != t.kernel for t in chosen)
        if first and (trial.kernel in defaults or trial.kernel.endswith("/inductor")):
            chosen.append(trial)
    return chosen


def _key(trial: Trial) -> tuple[str, str, str, Config]:
    return str(trial.workload), trial.kernel, trial.digest, trial.config


def _seed(workload: Workload, kernel: Kernel) -> int:
    """The same seed in every run, so that a resumed search asks the same questions and finds the answers known."""
    return int(_digest([str(workload), str(kernel)])[:8], 16)


def _digest(words: Sequence[str]) -> str:
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
