"""What is known while tuning: the trials of this machine, what they say of its ceilings and of what is left to gain."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable

from perfsuite import budget
from perfsuite.kernel import Config, Kernel, Space
from perfsuite.op import Workload
from perfsuite.plan import Plan
from perfsuite.registry import Job
from perfsuite.results import Results
from perfsuite.roofline import Ceilings
from perfsuite.seeds import Seeds
from perfsuite.trial import Trial


class Knowledge:
    """The trials under the plan's policy; what is learned is stored at once."""

    def __init__(self, plan: Plan, results: Results) -> None:
        self._plan, self._results = plan, results
        self.trials = results.trials(plan.machine, policy=plan.policy)
        self._searched: dict[Workload, dict[tuple[str, str, Config], Trial]] = defaultdict(dict)
        self._races: set[tuple[Workload, str]] = set()
        self._new: set[int] = set()
        for trial in self.trials:
            self._enter(trial)
        everywhere = results.trials(policy=plan.policy) if len(results.machines()) > 1 else self.trials
        self.seeds = Seeds(plan.machine, everywhere)
        # Asked for at every turn: each is enumerated once.
        self.space = functools.cache(self._space)
        self.see_ceilings()

    def learn(self, trial: Trial) -> None:
        self._results.add(trial)
        self.trials.append(trial)
        self._new.add(id(trial))
        self._enter(trial)
        self.seeds.learn(trial)

    def _enter(self, trial: Trial) -> None:
        if trial.stage == "search":
            self._searched[trial.workload][trial.kernel, trial.digest, trial.config] = trial
        else:
            self._races.add((trial.workload, trial.race))

    def see_ceilings(self) -> None:
        """Take the ceilings from the trials known by now."""
        self.ceilings = Ceilings.of(self.trials, self._plan.registry.ops, self._plan.policy)

    def _space(self, workload: Workload, kernel: Kernel) -> Space:
        return kernel.space(workload, self._plan.machine)

    def of(self, workload: Workload, *kernels: Kernel) -> list[Trial]:
        """The search's trials of these kernels on the workload with today's code."""
        codes = {str(kernel): kernel.digest for kernel in kernels}
        return [t for t in self._searched[workload].values() if codes.get(t.kernel) == t.digest]

    def is_new(self, trial: Trial) -> bool:
        """Whether it was learned in this run."""
        return id(trial) in self._new

    def raced(self, workload: Workload, race: str) -> bool:
        return (workload, race) in self._races

    def ideal(self, workload: Workload) -> float | None:
        """The workload's seconds at its ceiling; None while the ceilings themselves are measured."""
        op = self._plan.registry.ops[workload.op]
        return None if self._plan.is_probe(workload) else self.ceilings.ideal_seconds(op, workload)

    def least(self, workload: Workload) -> float:
        """Seconds below which a time is implausible; 0.0 where no ceiling says so."""
        op = self._plan.registry.ops[workload.op]
        return 0.0 if self._plan.is_probe(workload) else self.ceilings.least_seconds(op, workload) or 0.0

    def gains(self, jobs: Iterable[Job]) -> dict[Workload, float]:
        """What is left to gain on each workload; nothing on the probes."""
        of = {job.workload: job.kernels for job in jobs}
        probes = {workload: 0.0 for workload in of if self._plan.is_probe(workload)}
        others = [workload for workload in of if workload not in probes]
        ideals = {w: self.ideal(w) for w in others}
        times = {w: min((t.seconds for t in self.of(w, *of[w])), default=math.inf) for w in others}
        seen = {w: seconds for w, seconds in times.items() if math.isfinite(seconds)}
        return budget.gains(budget.likely(others, seen, ideals), ideals) | probes
