"""Ageing evolution: children of the fitter parents replace the oldest, not the worst, of the population.

Real et al., "Regularized evolution for image classifier architecture search", AAAI 2019; with a crossover besides.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence

from perfsuite.kernel import Config, Space
from perfsuite.search.tried import Known, Search, Tried

_POPULATION = 10
_TOURNAMENT = 4
_CROSSOVER = 0.3


def evolutionary(space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> Search:
    """Steady-state evolution from the default, winners elsewhere and random configurations.

    A child is a mix of the winners of two tournaments, or one of the untried neighbours of such a mix or winner, the
    less risky of two; without one, a random configuration. Failures have no children. Ends when every configuration
    has been tried.
    """
    tried = Tried(space, seed, elsewhere)
    generator = random.Random(seed)
    yield from tried.sample(max(_POPULATION, tried.opening))
    population = deque((config for config, cost in tried.costs.items() if math.isfinite(cost)), maxlen=_POPULATION)
    while tried.untried:
        child = _child(tried, population, generator) if population else None
        if child is None:
            (child,) = yield from tried.sample(1)
        else:
            yield from tried.ask(child)
        if math.isfinite(tried.costs[child]):
            population.append(child)


def _child(tried: Tried, population: Sequence[Config], generator: random.Random) -> Config | None:
    mother, father = (_winner(tried, population, generator) for _ in range(2))
    if generator.random() < _CROSSOVER:
        mixed = Config(tuple(generator.choice(pair) for pair in zip(mother.values, father.values)))
        if mixed in tried.untried:
            return mixed
    near = tried.near(mother)
    return min(generator.sample(near, min(2, len(near))), key=tried.risk, default=None)


def _winner(tried: Tried, population: Sequence[Config], generator: random.Random) -> Config:
    entrants = generator.sample(population, min(_TOURNAMENT, len(population)))
    return min(entrants, key=lambda c: tried.costs[c])
