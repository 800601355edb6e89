"""Searches that learn, as tuning begins them once something is known: told what they found on the other tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from perfsuite import search
from perfsuite.lab.deciding import trial
from perfsuite.lab.replay import Enough, Player, Replay, Tape, Trace, player
from perfsuite.lab.table import LabTable
from perfsuite.seeds import Seeds
from perfsuite.trial import Trial

# Name of the row, name of the strategy.
NAMES = {f"seeded {name}": name for name in ("gaussian", "model")}
NAME = f"seeded {search.DEFAULT}"


def neighbours(table: LabTable, tables: Iterable[LabTable]) -> tuple[LabTable, ...]:
    """The tables that may seed a search on this one: of its kernel, but another workload or machine."""
    return tuple(t for t in tables if t.subject.kernel == table.subject.kernel and _place(t) != _place(table))


def seeded(name: str, others: Sequence[LabTable], evaluations: int) -> Player:
    """A search, told what it found itself on the other tables under the same seed in so many evaluations.

    Which of these count, and how much, is as in tuning.
    """
    tapes, strategy = [Tape(other) for other in others], search.STRATEGIES[NAMES[name]]

    def found(replay: Replay) -> Iterator[Trial]:
        trace = player(strategy)(replay, lambda count, best: count >= evaluations)
        return (trial(replay, at, (float(replay.costs[at]),)) for at in trace.evaluated if replay.works[at])

    def play(replay: Replay, enough: Enough) -> Trace:
        subject = replay.table.subject
        known = Seeds(subject.machine, chain.from_iterable(found(Replay(t, replay.seed)) for t in tapes))
        return player(strategy, known.elsewhere(subject.workload, subject.kernel, replay.space))(replay, enough)

    return play


def _place(table: LabTable) -> tuple[object, ...]:
    return table.subject.workload, table.subject.machine.id
