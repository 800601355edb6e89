"""Successive halving over local searches: many starts, of which the better half goes on with twice the evaluations.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from perfsuite.kernel import Config, Space
from perfsuite.search.tried import Known, Search, Tried

_STARTS = 8


def halving(space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> Search:
    """Brackets of `_STARTS` walks downhill, first from the default, winners elsewhere and random configurations.

    A rung gives every walk as many evaluations, one in the first rung; the better half reaches the next, with twice as
    many, until the one that is left stops at its optimum. Ends when every configuration has been tried.
    """
    tried = Tried(space, seed, elsewhere)
    samples = max(_STARTS, tried.opening)
    while tried.untried:
        walkers = yield from tried.sample(samples)
        evaluations = 1
        while len(walkers) > 1:
            reached = dict.fromkeys((yield from _rung(tried, walkers, evaluations)))
            walkers = sorted(reached, key=tried.costs.__getitem__)[: len(walkers) // 2]
            evaluations *= 2
        yield from _rung(tried, walkers, len(tried.untried))
        samples = _STARTS


def _rung(tried: Tried, walkers: Sequence[Config], evaluations: int) -> Generator[Config, float, list[Config]]:
    """Where each walk has got after so many more evaluations."""
    reached = []
    for walker in walkers:
        reached.append((yield from tried.walk(walker, evaluations)))
    return reached
