"""THE MAIN PATH: discover, search, build, check, measure, race, store. `tune` yields what happens as it happens.

Ceilings come first, then the default kernel of every workload once, then the searches, those with most to gain first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from perfsuite import budget, detect
from perfsuite.budget import Costs
from perfsuite.builds import Builds
from perfsuite.events import Entered, Event, Finished, Raced, Started
from perfsuite.knowledge import Knowledge
from perfsuite.op import Workload
from perfsuite.plan import FEWEST_PROCESSES, Effort, Plan
from perfsuite.race import FEWEST
from perfsuite.racing import Racers
from perfsuite.registry import Job
from perfsuite.results import Results
from perfsuite.searching import Searches, digest
from perfsuite.timeline import BUILD, Recorder
from perfsuite.trial import Failure, Trial
from perfsuite.worker import Attempt, Candidate, WorkerDied

# A candidate within this factor of the fastest of the search may win the race: a visit may be 20 % off in the L3 cache.
_FINALIST = 1.3
# So many race, however long they take; and calls for each round of a race, with those that warm up.
_FEWEST_FINALISTS, _CALLS = 3, 5
# A race may take this share of its workload's share of the budget, and this many seconds however small that is.
_RACE_SHARE, _SHORTEST_RACE = 0.5, 1.0
# Times that each process of a race holds a workload's tensors, and what share of the memory all may take.
_COPIES, _MEMORY_SHARE = 4, 0.25
# Trials of each kernel on a probe: others wait for the ceilings.
_PROBE_TRIALS = 3
# Workloads whose first configs are built ahead.
_AHEAD = 8
# Seconds at the end of a budget for the last step's delay and for the table, at most this share of it.
_MARGIN, _MARGIN_SHARE = 6.0, 0.1


def tune(plan: Plan, results: Results, recorder: Recorder | None = None) -> Generator[Event, None, None]:
    """Carry out the plan. Closing the generator (Ctrl-C) stops the workers; every trial made is stored already.

    The budget counts from the recorder's start.
    """
    jobs, refusals = plan.sifted()
    run = _Run(plan, Knowledge(plan, results), recorder or Recorder())
    yield Started(len(jobs), sum(_trials(plan, job) for job in jobs), refusals)
    try:
        yield from run.everything(jobs)
    finally:
        run.close()
    yield run.finished(len(refusals))


def _trials(plan: Plan, job: Job) -> int:
    return sum(min(plan.effort.trials, len(kernel.space(job.workload, plan.machine))) for kernel in job.kernels)


class _Run:
    """The state of one tuning: the workers, what is known, and the sums."""

    def __init__(self, plan: Plan, knowledge: Knowledge, recorder: Recorder) -> None:
        self.plan, self.knowledge, self.recorder = plan, knowledge, recorder
        self.costs = Costs(lambda workload: plan.registry.ops[workload.op].traffic(workload))
        self.sums: Counter[str] = Counter()
        self.deadline = math.inf
        if plan.budget is not None:
            self.deadline = plan.budget - min(_MARGIN, _MARGIN_SHARE * plan.budget)
        timed, free = detect.divided_cores(plan.policy.threads)
        self.racers = Racers(timed, plan.policy.threads, plan.effort.processes)
        self.builds = Builds.beside(free, plan.policy, recorder)
        bench = self.racers.workers[0]
        self.searches = Searches(plan, knowledge, bench, self.builds, recorder, self.costs)
        self._see_ceilings()

    def _see_ceilings(self) -> None:
        self.knowledge.see_ceilings()
        levels = self.knowledge.ceilings.levels
        capacities = [level.capacity for level in levels if level.capacity is not None]
        for worker in self.racers.workers:
            worker.cache_bytes = max(capacities, default=worker.cache_bytes)

    def close(self) -> None:
        self.racers.close()
        self.builds.close()

    @property
    def remaining(self) -> float:
        """Seconds of the budget."""
        return self.deadline - self.recorder.now

    def everything(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Ceilings, survey, searches, and what the first pass over the ceilings left."""
        probes = self.plan.missing_ceilings(self.knowledge.trials)
        yield from self._probes(probes, self.recorder.now + budget.PROBING * self.remaining)
        yield from self._survey([job for job in jobs if not self.plan.is_probe(job.workload)])
        yield from self._search(jobs)
        yield from self._probes(self.plan.missing_ceilings(self.knowledge.trials), self.deadline)
        self.sums["probes_left"] = len(self.plan.missing_ceilings(self.knowledge.trials))

    def _probes(self, probes: Sequence[Job], deadline: float) -> Iterator[Event]:
        """A few trials of every kernel on the probes, in an order that may be cut anywhere.

        Only probes are built meanwhile: what else a builder runs takes bandwidth that the ceilings must show.
        """
        if not probes or deadline <= self.recorder.now:
            return
        yield Entered("probes", len(probes))
        jobs = {job.workload: job for job in probes}
        order = [jobs[workload] for workload in budget.spread(list(jobs), self.plan.registry.ops)]
        for at, job in enumerate(order):
            self.searches.ahead(order[at + 1 : at + 1 + _AHEAD])
            yield from self._counted("probes", job, min(_PROBE_TRIALS, self.plan.effort.trials), deadline)
        self._see_ceilings()

    def _survey(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """The default kernel of every workload that nothing is known of, the least traffic first."""
        ops = self.plan.registry.ops
        unknown = [job for job in jobs if not self.knowledge.of(job.workload, *job.kernels)]
        if not unknown:
            return
        yield Entered("survey", len(unknown))
        self.searches.ahead(self._ordered(jobs))
        deadline = self.recorder.now + budget.SURVEYING * self.remaining
        for job in sorted(unknown, key=lambda job: ops[job.workload.op].traffic(job.workload)):
            yield from self._counted("survey", Job(job.workload, job.kernels[:1]), 1, deadline)

    def _ordered(self, jobs: Sequence[Job]) -> list[Job]:
        """Those with most to gain first."""
        gains = self.knowledge.gains(jobs)
        return sorted(jobs, key=lambda job: -gains[job.workload])

    def _search(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Every kernel of every workload within its share of what remains, and the races."""
        yield Entered("search", len(jobs))
        gains, order = self.knowledge.gains(jobs), self._ordered(jobs)
        others = sum(gains.values())
        for at, job in enumerate(order):
            self.searches.ahead(order[at + 1 : at + 1 + _AHEAD])
            gain = gains[job.workload]
            others = max(0.0, others - gain)
            self.costs.builds = [span.seconds for span in self.recorder.spans if span.lane == BUILD]
            least = self.costs.least(job.workload, len(job.kernels), self.plan.effort.race_seconds)
            yield from self._job(job, budget.share(gain, others, self.remaining, least))

    def _job(self, job: Job, share: float) -> Iterator[Event]:
        """Search every kernel of one workload, then race the finalists; nothing new begins for a share of 0 s."""
        race = self.costs.race(job.workload, self.plan.effort.race_seconds)
        # Every kernel gets a trial, whatever the share, as long as there is time for the race.
        latest = self.deadline - race if share > 0.0 else 0.0
        until = self.recorder.now + share - race
        whole = yield from self._counted("search", job, self.plan.effort.trials, until, latest)
        good = [t for t in self.knowledge.of(job.workload, *job.kernels) if t.measurement is not None]
        # A race of the surveyed default alone would take the time of the next workload and decide nothing.
        begin = whole or (share > 0.0 and len(good) > 1)
        raced = self._race(job, good, max(_SHORTEST_RACE, _RACE_SHARE * share) if begin else 0.0) if good else None
        if raced is not None:
            yield raced
        elif good or not whole:
            self.sums["left"] += 1
            return
        self.sums["searched" if whole else "shortened"] += 1

    def _counted(
        self, stage: str, job: Job, most: int, deadline: float, latest: float = 0.0
    ) -> Generator[Event, None, bool]:
        """`Searches.tried`, its trials counted; whether all were made."""
        tried = self.searches.tried(stage, job, most, deadline, latest)
        while True:
            try:
                event = next(tried)
            except StopIteration as end:
                return bool(end.value)
            self.sums["known" if event.known else "new"] += 1
            self.sums["failed"] += not event.known and isinstance(event.outcome, Failure)
            yield event

    def _race(self, job: Job, trials: Sequence[Trial], seconds: float) -> Raced | None:
        """Race the finalists unless the very same race is known; its trials are stored together.

        None where it is not known and no `seconds` are for it, or it would not end within the budget.
        """
        plan, workload = self.plan, job.workload
        entrants = finalists(trials, plan.registry.defaults, plan.effort)
        race = digest([f"{t.kernel} {t.digest} {t.config}" for t in entrants] + [str(plan.effort.rounds)])
        if self.knowledge.raced(workload, race):
            self.sums["known"] += len(entrants)
            return Raced(workload, len(entrants), known=True)
        begin = seconds > 0.0
        seconds = min(plan.effort.race_seconds, self.remaining, seconds)
        if not begin or self.costs.race(workload, seconds) > self.remaining:
            return None
        candidates = [Candidate(workload, plan.registry.kernels[t.kernel], t.config) for t in entrants]
        effort = replace(plan.effort, race_seconds=seconds, processes=self._processes(workload))
        judged = [at for at, trial in enumerate(entrants) if trial.kernel in plan.registry.defaults]
        try:
            with self.searches.measuring("race", workload):
                start = self.recorder.now
                measured = self.racers.race(candidates, plan.policy, effort, judged)
        except WorkerDied:
            # It worked a moment ago; the next run races again.
            return None
        self.costs.raced(workload, self.recorder.now - start)
        for candidate, measurement in zip(candidates, measured):
            self.searches.store(candidate, Attempt(measurement), "race", race)
        self.sums["races"] += 1
        self.sums["new"] += len(entrants)
        return Raced(workload, len(entrants), known=False)

    def _processes(self, workload: Workload) -> int:
        """As many as a race may have, whose tensors take up to a share of the memory; on a GPU each takes a context."""
        if self.plan.policy.device != "cpu":
            return FEWEST_PROCESSES
        tensors = _COPIES * self.plan.registry.ops[workload.op].traffic(workload)
        most = int(_MEMORY_SHARE * self.plan.machine.memory / tensors)
        return min(self.plan.effort.processes, max(FEWEST_PROCESSES, most))

    def finished(self, refused: int) -> Finished:
        timeline, sums = self.recorder.timeline(self.plan.policy, self.plan.budget), self.sums
        return Finished(
            trials_new=sums["new"],
            trials_known=sums["known"],
            failed=sums["failed"],
            refused=refused,
            races=sums["races"],
            seconds=timeline.seconds,
            budget=self.plan.budget,
            searched=sums["searched"],
            shortened=sums["shortened"],
            left=sums["left"],
            probes_left=sums["probes_left"],
            spent=timeline.spent,
        )


def finalists(trials: Sequence[Trial], defaults: frozenset[str], effort: Effort) -> list[Trial]:
    """Who races: the configs within reach of the best, as many as there is time for, and the baselines beside them.

    Baselines are the default kernels and inductor: every report quotes the speed-up over both from the same race.
    """
    ordered = sorted(trials, key=lambda t: (t.cost, t.kernel, str(t.config)))
    fastest = ordered[0].cost
    most = int(min(effort.finalists, effort.race_seconds / (_CALLS * FEWEST * fastest)))
    chosen = [t for t in ordered if t.cost <= _FINALIST * fastest][: max(_FEWEST_FINALISTS, most)]
    for trial in ordered:
        first = all(trial.kernel != t.kernel for t in chosen)
        if first and (trial.kernel in defaults or trial.kernel.partition("/")[2].startswith("inductor")):
            chosen.append(trial)
    return chosen
