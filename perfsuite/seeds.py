"""What is known elsewhere: the configs that won on the nearest workloads and machines, asked first."""

from __future__ import annotations

from collections.abc import Iterable

from perfsuite.kernel import Config, Space
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.trial import Trial

# Configs that a search is given first: with five trials, as many are left to itself.
MOST = 2


class Seeds:
    """The best trial of every kernel on every workload, here and on other machines."""

    def __init__(self, machine: Machine, trials: Iterable[Trial]) -> None:
        self._machine = machine
        self._best: dict[tuple[str, str, str], dict[tuple[Workload, str], Trial]] = {}
        for trial in trials:
            self.learn(trial)

    def learn(self, trial: Trial) -> None:
        """Keep the trial if it is the fastest of its kernel on its workload and machine; a failed one never is."""
        if trial.measurement is None:
            return
        known = self._best.setdefault((trial.workload.op, trial.workload.dtype, trial.kernel), {})
        key = trial.workload, trial.machine.id
        if key not in known or trial.cost < known[key].cost:
            known[key] = trial

    def best(self, workload: Workload, kernel: str) -> Config | None:
        """The config that was the kernel's fastest on the workload on this machine."""
        known = self._best.get((workload.op, workload.dtype, kernel), {})
        trial = known.get((workload, self._machine.id))
        return None if trial is None else trial.config

    def first(self, workload: Workload, kernel: str, space: Space) -> tuple[Config, ...]:
        """At most MOST configs of the space, of the nearest workload first; of equally near ones, this machine's first.

        What is known of the workload on this machine is no seed but the search's own.
        """
        known = self._best.get((workload.op, workload.dtype, kernel), {}).values()
        others = [t for t in known if t.workload != workload or t.machine.id != self._machine.id]
        near = sorted(
            others,
            key=lambda t: (
                t.workload.distance(workload),
                t.machine.id != self._machine.id,
                t.machine.id,
                str(t.workload),
            ),
        )
        return tuple(dict.fromkeys(t.config for t in near if t.config in space))[:MOST]
