"""What a report is made from, and which of it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from perfsuite.kernel import Config
from perfsuite.leaderboard import Leaderboard
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.policy import Policy
from perfsuite.roofline import Ceilings
from perfsuite.table import Entry, Table
from perfsuite.timeline import Timeline
from perfsuite.trial import FailureKind, Trial

Times = Mapping[Workload, Mapping[str, Mapping[Config, float]]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a report says follows from this.

    `digests` give today's code of each kernel: a trial with another one is stale, which is said, and not used.
    `refusals` are (workload or op, kernel, reason), `pruned` is (kernel, reason) of every config of the tuned workloads
    that the machine cannot run, `defaults` the kernels a user without perfsuite would call,
    `uncontrolled` sentences on what disturbs times here and could not be helped. `searches` is how the searches did on
    recorded spaces, if that was scored, `timeline` how the last tuning went.
    """

    machine: Machine
    policy: Policy
    trials: Sequence[Trial]
    table: Table
    ops: Mapping[str, Op]
    digests: Mapping[str, str]
    refusals: Sequence[tuple[str, str, str]]
    defaults: frozenset[str]
    uncontrolled: Sequence[str]
    pruned: Sequence[tuple[str, str]] = ()
    searches: Leaderboard | None = None
    timeline: Timeline | None = None

    @cached_property
    def _here(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.machine == self.machine)

    @cached_property
    def fresh(self) -> tuple[Trial, ...]:
        """The trials of this machine and environment and the kernels' code of today, under any policy."""
        return tuple(t for t in self._here if not self.is_stale(t.kernel, t.digest))

    @cached_property
    def used(self) -> tuple[Trial, ...]:
        """The fresh trials under this policy."""
        return tuple(t for t in self.fresh if t.policy == self.policy)

    @cached_property
    def failed(self) -> tuple[Trial, ...]:
        """Those used that gave no time, but for those that were pruned as planned."""
        return tuple(t for t in self.used if t.failure is not None and t.failure.kind is not FailureKind.PRUNED)

    @cached_property
    def stale(self) -> tuple[Trial, ...]:
        return tuple(t for t in self._here if t.policy == self.policy and self.is_stale(t.kernel, t.digest))

    @property
    def elsewhere(self) -> int:
        """How many trials are of another machine, environment or policy, and so compare with nothing here."""
        return len(self.trials) - len(self.used) - len(self.stale)

    def is_stale(self, kernel: str, digest: str) -> bool:
        return self.digests.get(kernel) != digest

    @cached_property
    def ceilings(self) -> Ceilings:
        return Ceilings.of(self.fresh, self.ops, self.policy)

    @cached_property
    def times(self) -> Times:
        """Best median in seconds of every config in the search: those of races are of another hour."""
        times: dict[Workload, dict[str, dict[Config, float]]] = {}
        for trial in self.used:
            if trial.measurement is not None and not trial.race:
                configs = times.setdefault(trial.workload, {}).setdefault(trial.kernel, {})
                configs[trial.config] = min(trial.seconds, configs.get(trial.config, float("inf")))
        return times

    @cached_property
    def raced(self) -> Mapping[str, Trial]:
        """The trials of races by their ids."""
        return {trial.id: trial for trial in self.used if trial.race and trial.measurement is not None}

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The table's entries under this policy whose kernels have not changed since."""
        return tuple(e for e in self.table.entries if e.policy == self.policy and not self.is_stale(e.kernel, e.digest))

    @cached_property
    def outdated(self) -> tuple[Entry, ...]:
        """The table's entries under this policy whose kernels have changed since they won."""
        return tuple(e for e in self.table.entries if e.policy == self.policy and self.is_stale(e.kernel, e.digest))

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Every family but the probes that was timed, in a fixed order: the same colour in every picture."""
        return tuple(sorted({self.family(w) for w in [*self.times, *(e.workload for e in self.entries)]} - {"probes"}))

    def family(self, workload: Workload) -> str:
        op = self.ops.get(workload.op)
        return op.family if op is not None and op.family else workload.op

    def models(self, workload: Workload) -> tuple[tuple[str, int], ...]:
        """(model, calls per forward pass) as the op knows them today."""
        op = self.ops.get(workload.op)
        known = op.workloads if op is not None else ()
        return next((w.models for w in known if w == workload), workload.models)
