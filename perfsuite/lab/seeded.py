"""The default search as tuning begins it once something is known: with what won on the nearest other workloads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perfsuite import search
from perfsuite.lab.deciding import trial
from perfsuite.lab.replay import Enough, Player, Replay, Tape, Trace, player
from perfsuite.lab.table import LabTable
from perfsuite.seeds import Seeds
from perfsuite.trial import Trial

NAME = f"seeded {search.DEFAULT}"


def neighbours(table: LabTable, tables: Iterable[LabTable]) -> tuple[LabTable, ...]:
    """The tables that may seed a search on this one: of its kernel, op and dtype, but another workload or machine."""
    return tuple(other for other in tables if _kind(other) == _kind(table) and _place(other) != _place(table))


def seeded(others: Sequence[LabTable], evaluations: int) -> Player:
    """The default search, told what it found itself on the other tables under the same seed in so many evaluations.

    Which of these come first, and how many, is as in tuning.
    """
    tapes = [Tape(other) for other in others]
    strategy = search.STRATEGIES[search.DEFAULT]

    def play(replay: Replay, enough: Enough) -> Trace:
        subject = replay.table.subject
        known = Seeds(subject.machine, (_found(Replay(tape, replay.seed), evaluations) for tape in tapes))
        return player(strategy, known.first(subject.workload, subject.kernel, replay.space))(replay, enough)

    return play


def _found(replay: Replay, evaluations: int) -> Trial:
    trace = player(search.STRATEGIES[search.DEFAULT])(replay, lambda count, best: count >= evaluations)
    best = trace.incumbents(replay)[-1]
    return trial(replay, best, (float(replay.costs[best]),))


def _kind(table: LabTable) -> tuple[str, ...]:
    return table.subject.kernel, table.subject.workload.op, table.subject.workload.dtype


def _place(table: LabTable) -> tuple[object, ...]:
    return table.subject.workload, table.subject.machine.id
