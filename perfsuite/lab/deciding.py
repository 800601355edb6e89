"""How the winner among a search's finalists is found: by racing as in tuning, or by a fixed number of repeats."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfsuite import race, winners
from perfsuite.kernel import Config
from perfsuite.lab.replay import Replay
from perfsuite.measure.cpu import REFILLS
from perfsuite.plan import EFFORTS
from perfsuite.stats import BLOCK
from perfsuite.trial import Measurement, Trial
from perfsuite.tune import finalists

# A pick that is this much slower than the best, under fresh data, is a false winner.
FALSE = 0.02
# Repeats that a fixed-repeat tuner may take of each finalist.
REPEATS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)
EFFORT = EFFORTS["default"]
# Rounds that a race may last; the last of them is what tuning allows.
ROUNDS = (12, 24, 48, 96, 192, EFFORT.rounds)


@dataclass(frozen=True)
class Decision:
    """The config picked, those it was picked from, and the samples that this took."""

    pick: int
    among: tuple[int, ...]
    samples: int


def is_false(replay: Replay, pick: int, among: Sequence[int]) -> bool:
    """Whether the pick is a false winner: more than FALSE slower in truth than the best of those it was picked from.

    What the search did not find is no fault of the decision, and not counted here.
    """
    return replay.slower(pick, among) > FALSE


def finalists_of(replay: Replay, evaluated: Sequence[int]) -> tuple[int, ...]:
    """The configs that would race after a search that evaluated these; none if none of them works.

    Where the best of the table ran rounds, the others are left out: they would lose any race.
    """
    trials = [trial(replay, at, (float(replay.costs[at]),)) for at in evaluated if replay.works[at]]
    found = [replay.places[t.config] for t in finalists(trials, frozenset(), EFFORT)] if trials else []
    return tuple(at for at in found if not replay.tape.processes or at in replay.tape.entrants)


def raced(replay: Replay, entrants: Sequence[int], rounds: int = EFFORT.rounds) -> Decision:
    """The race that tuning would hold, on resampled rounds, and its winner by the rule of the table of winners."""
    steps = race.race(len(entrants), rounds, processes=EFFORT.processes)
    active, seconds = next(steps), EFFORT.race_seconds
    for source in itertools.cycle(replay.racing(entrants, EFFORT.processes)):
        racing = [entrants[at] for at in active]
        block = [list(drawn) for drawn in replay.block(racing, source)]
        seconds -= sum(_calls(replay, at) * sum(drawn) for at, drawn in zip(racing, block))
        try:
            active = steps.send((block, seconds <= 0.0))
        except StopIteration as end:
            samples: list[list[float]] = end.value
            break
    trials = [trial(replay, at, taken, race="replayed") for at, taken in zip(entrants, samples)]
    subject = replay.table.subject
    (entry,) = winners.decide(subject.machine, trials, {subject.kernel: subject.digest}, frozenset()).entries
    return Decision(replay.places[entry.config], tuple(entrants), sum(map(len, samples)))


def _calls(replay: Replay, at: int) -> int:
    """Calls for one sample of a race: those that refill the caches, and the sample's own."""
    calls = replay.table.visits[at].calls
    return calls + max(calls, REFILLS)


def repeated(replay: Replay, entrants: Sequence[int], repeats: int, *, in_turn: bool) -> Decision:
    """The lowest median of a fixed number of samples of every entrant.

    They come from one process, as a tuner that measures one config after the other takes them, or from all processes
    `in_turn`, as a race does.
    """
    if in_turn:
        sources = itertools.cycle(replay.racing(entrants, EFFORT.processes))
        blocks = [replay.block(entrants, source) for source in itertools.islice(sources, -(-repeats // BLOCK))]
        taken = np.concatenate(blocks, axis=1)[:, :repeats]
    else:
        taken = replay.visit(entrants, replay.one_pass(), repeats)
    medians = np.median(taken, axis=1)
    return Decision(entrants[int(medians.argmin())], tuple(entrants), repeats * len(entrants))


def trial(replay: Replay, at: int, samples: Sequence[float], race: str = "") -> Trial:
    """What a search, or a race of that name, would store of one config."""
    subject = replay.table.subject
    config: Config = subject.space.configs[at]
    return Trial(
        *(subject.machine, subject.workload, subject.kernel, config, subject.policy, subject.digest),
        Measurement(tuple(map(float, samples)), processes=EFFORT.processes if race else 1),
        created=replay.table.created,
        stage="race" if race else "search",
        race=race,
    )
