"""What is known elsewhere: a kernel's trials on the nearest other workloads and machines, which searches learn from."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable

from perfsuite.kernel import Config, Space
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.search import Known
from perfsuite.trial import Trial

# What another dtype, op or machine adds to the distance of workloads: as if a length were so many times doubled.
_DTYPE, _OP, _MACHINE = 2.0, 1.0, 2.0
# How alike the costs of two neighbours are at most, and the distance at which they are half as much.
_LIKENESS, _HALF = 0.8, 4.0
# So many of the nearest places count.
_NEAREST = 6

_Place = tuple[Workload, str]


class Seeds:
    """The lowest cost of every config of every kernel that was tried, on each workload and machine."""

    def __init__(self, machine: Machine, trials: Iterable[Trial]) -> None:
        self._machine = machine
        self._costs: dict[str, dict[_Place, dict[Config, float]]] = defaultdict(lambda: defaultdict(dict))
        for trial in trials:
            self.learn(trial)

    def learn(self, trial: Trial) -> None:
        """Keep what a trial that did not fail took."""
        if trial.measurement is not None:
            costs = self._costs[trial.kernel][trial.workload, trial.machine.id]
            costs[trial.config] = min(trial.cost, costs.get(trial.config, trial.cost))

    def best(self, workload: Workload, kernel: str) -> Config | None:
        """The config that was the kernel's fastest on the workload on this machine."""
        costs = self._costs[kernel].get((workload, self._machine.id), {})
        return min(costs, key=costs.__getitem__, default=None)

    def elsewhere(self, workload: Workload, kernel: str, space: Space) -> tuple[Known, ...]:
        """What is known of the space on other workloads and machines, the most alike first.

        What is known of the workload on this machine is the search's own.
        """
        known = self._costs[kernel]
        distances = {place: self._distance(workload, place) for place in known if place != (workload, self._machine.id)}
        nearest = sorted(distances, key=lambda place: (distances[place], *map(str, place)))
        inside = ((place, {c: cost for c, cost in known[place].items() if c in space}) for place in nearest)
        usable = ((place, costs) for place, costs in inside if costs)
        return tuple(
            Known(_LIKENESS * 0.5 ** (distances[place] / _HALF), costs)
            for place, costs in itertools.islice(usable, _NEAREST)
        )

    def _distance(self, workload: Workload, place: _Place) -> float:
        other, machine = place
        apart = _DTYPE * (other.dtype != workload.dtype) + _OP * (other.op != workload.op)
        return workload.distance(other) + apart + _MACHINE * (machine != self._machine.id)
