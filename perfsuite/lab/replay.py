"""A table played back: what a search, a race and the truth would be under one seed, without any device.

The seed splits the passes over the whole space into two halves, the further passes over the best likewise, and the
processes that held rounds. A search sees one pass of the first half, as one process of a tuning does: of every config
the quiet time of a bootstrap resample of its visit. A race draws each block from the rounds that the best configs ran
side by side in a process of the first half. The truth is what the second halves, which neither has seen, say of the
median of a config beside all others: in the same rounds of those that raced, else in the same pass. A table without
rounds gives a race visits of its first halves instead. The kernel's default is hidden, because its author chose it on
such a machine: a search starts at a random config that works.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from perfsuite.kernel import Space
from perfsuite.lab.table import LabTable
from perfsuite.search import Known, Strategy
from perfsuite.stats import BLOCK, quiet

Floats = npt.NDArray[np.float64]

# A search that asks this often for what it knows has nothing more to ask.
_IDLE = 1_000


class Tape:
    """A table as arrays, made once and played under many seeds."""

    def __init__(self, table: LabTable) -> None:
        self.table = table
        self.visits = [[np.array(taken) for taken in visits.passes] for visits in table.visits]
        self.works = np.array([not visits.failure for visits in table.visits])
        self.processes = [np.array(process) for process in table.raced.processes]
        self.entrants = {at: row for row, at in enumerate(table.raced.entrants)}
        self.places = {config: at for at, config in enumerate(table.subject.space)}

    @cached_property
    def levels(self) -> Floats:
        """(config, pass): log median seconds, less what the pass was slower than others for all configs alike.

        A process in which all times are 5 % longer says nothing of one config against another. Infinity for a config
        that fails, NaN for a pass that it was not in.
        """
        most = max(map(len, self.visits))
        levels = np.full((len(self.works), most), math.nan)
        for at, visits in enumerate(self.visits):
            levels[at, : len(visits)] = [math.log(float(np.median(taken))) for taken in visits]
        working = levels[self.works]
        levels[self.works] -= np.nanmedian(working - np.nanmedian(working, axis=1, keepdims=True), axis=0)
        levels[~self.works] = math.inf
        return levels

    @cached_property
    def level(self) -> Floats:
        """Log seconds of each config over all passes, and over all rounds of those that raced."""
        return self.over(slice(None), slice(None))

    @cached_property
    def _raced(self) -> Floats:
        """(entrant, process): log seconds, less what the process was slower than others for all entrants alike."""
        levels = np.array([np.median(np.log(process), axis=1) for process in self.processes]).T
        return np.asarray(levels - levels.mean(axis=0) + levels.mean())

    def over(self, passes: Any, processes: Any) -> Floats:
        """Log seconds of each config over some passes, and over some processes of those that raced.

        What raced lies as high as it does in the passes: the two were recorded at different times.
        """
        levels = np.asarray(np.nanmedian(self.levels[:, passes], axis=1))
        if self.processes:
            entrants = list(self.entrants)
            raced = self._raced[:, processes].mean(axis=1)
            levels[entrants] = raced - raced.mean() + levels[entrants].mean()
        return levels


class Replay:
    """One table under one seed; configs are their places in the table."""

    def __init__(self, tape: Tape, seed: int) -> None:
        self.tape, self.seed = tape, seed
        self.table, self.works, self.places = tape.table, tape.works, tape.places
        self.random = np.random.default_rng([seed, len(tape.works)])
        split = self.random.permutation(self.table.passes)
        further = self.random.permutation(np.arange(self.table.passes, tape.levels.shape[1]))
        self._seen = split[: self.table.passes // 2]
        self._raced = np.concatenate([self._seen, further[: len(further) // 2]])
        self._fresh = np.concatenate([split[self.table.passes // 2 :], further[len(further) // 2 :]])
        held = self.random.permutation(len(tape.processes))
        self._held, self._held_fresh = held[: len(held) // 2], held[len(held) // 2 :]
        self.costs = self._costs()
        self.start = int(self.random.choice(np.flatnonzero(self.works)))

    @cached_property
    def space(self) -> Space:
        """The table's space, with the start as its default."""
        space = self.table.subject.space
        return replace(space, default=space.configs[self.start])

    def _costs(self) -> Floats:
        """Seconds that a search is told for each config; infinity for one that fails."""
        costs = np.full(len(self.works), math.inf)
        seen = self.one_pass()
        for at in np.flatnonzero(self.works):
            visit = self.tape.visits[at][seen]
            costs[at] = quiet(self.random.choice(visit, len(visit)).tolist())
        return costs

    @cached_property
    def truth(self) -> Floats:
        """Seconds of each config under the fresh data; infinity for one that fails."""
        return np.asarray(np.exp(self.tape.over(self._fresh, self._held_fresh)))

    def best(self, among: Sequence[int] | None = None) -> int:
        """The best config (of those given) over all passes.

        The lowest of many noisy times is lower than any config is: so all passes choose it, and the fresh ones say how
        fast it is.
        """
        chosen = np.arange(len(self.works)) if among is None else np.asarray(among)
        return int(chosen[self.tape.level[chosen].argmin()])

    def slower(self, at: int, among: Sequence[int] | None = None) -> float:
        """How much slower than the best (of those given) a config truly is: 0.05 for 5 %; never less than 0."""
        return max(0.0, float(self.truth[at] / self.truth[self.best(among)]) - 1.0)

    @cached_property
    def regret(self) -> Floats:
        """How much slower than the best of the space each config truly is."""
        return np.asarray(np.maximum(0.0, self.truth / self.truth[self.best()] - 1.0))

    @cached_property
    def wall(self) -> Floats:
        """Seconds that one evaluation takes: its share of all builds, and the calls of its samples.

        A build that several configs share was recorded with the first of them; here all configs bear all builds alike.
        """
        built = statistics.fmean(v.build_seconds for v in self.table.visits)
        timed = [len(v.passes[0]) * v.calls if v.passes else 0 for v in self.table.visits]
        return np.asarray(built + np.where(self.works, self.costs, 0.0) * np.array(timed))

    def racing(self, entrants: Sequence[int], processes: int) -> list[int]:
        """Where a race of the entrants takes its blocks from in turn: `processes` of the first half that held rounds.

        Of a table without rounds, all passes of the first halves that all entrants were in.
        """
        if self.tape.processes:
            return [int(n) for n in self.random.choice(self._held, min(processes, len(self._held)), replace=False)]
        return [int(n) for n in self._raced if all(n < len(self.tape.visits[at]) for at in entrants)]

    def block(self, entrants: Sequence[int], source: int) -> Floats:
        """(entrant, round): BLOCK successive rounds of one of the sources of a race."""
        if not self.tape.processes:
            return self.visit(entrants, source, BLOCK)
        rounds = self.tape.processes[source]
        first = BLOCK * int(self.random.integers(rounds.shape[1] // BLOCK))
        return np.asarray(rounds[[self.tape.entrants[at] for at in entrants], first : first + BLOCK])

    def visit(self, entrants: Sequence[int], number: int, count: int) -> Floats:
        """(entrant, sample): so many samples of each entrant, drawn from its visit in the pass."""
        return np.array([self.random.choice(self.tape.visits[at][number], count) for at in entrants])

    def one_pass(self) -> int:
        """A pass of the first half, as a tuner that measures one config after the other has it."""
        return int(self.random.choice(self._seen))


@dataclass(frozen=True)
class Trace:
    """The configs that a search evaluated, each once, in its order, as places in the table."""

    evaluated: tuple[int, ...]

    def incumbents(self, replay: Replay) -> list[int]:
        """After each evaluation, the config of the lowest cost so far: what the search would return."""
        best, incumbents = self.evaluated[0], []
        for at in self.evaluated:
            best = at if replay.costs[at] < replay.costs[best] else best
            incumbents.append(best)
        return incumbents


# Whether a search is over that has made so many evaluations and whose best is this config.
Enough = Callable[[int, int], bool]
# Plays a search, ours or a peer's, on a replay.
Player = Callable[[Replay, Enough], Trace]


class Evaluations:
    """Answers a search's questions; what is asked again is not evaluated again, as in tuning."""

    def __init__(self, replay: Replay, enough: Enough) -> None:
        self._replay, self._enough = replay, enough
        self._known: dict[int, float] = {}
        self._best = -1
        self._idle = 0

    def cost(self, at: int) -> float:
        if at in self._known:
            self._idle += 1
            return self._known[at]
        self._idle = 0
        self._known[at] = cost = float(self._replay.costs[at])
        if self._best < 0 or cost < self._known[self._best]:
            self._best = at
        return cost

    @property
    def over(self) -> bool:
        """Whether the search has seen everything, has evaluated enough, or asks only for what it knows."""
        count = len(self._known)
        return count == len(self._replay.space) or self._idle > _IDLE or self._enough(count, self._best)

    @property
    def trace(self) -> Trace:
        return Trace(tuple(self._known))


def player(strategy: Strategy, elsewhere: Sequence[Known] = ()) -> Player:
    """One of our strategies as tuning drives it, told what is known elsewhere."""

    def play(replay: Replay, enough: Enough) -> Trace:
        asked = Evaluations(replay, enough)
        steps = strategy(replay.space, replay.seed, elsewhere)
        try:
            config = next(steps)
            while True:
                cost = asked.cost(replay.places[config])
                if asked.over:
                    break
                config = steps.send(cost)
        except StopIteration:
            pass
        return asked.trace

    return play
