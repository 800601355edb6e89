"""Multi-start local search: a few random samples, a climb from the best of them, and again."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite.kernel import Space
from perfsuite.search.tried import Known, Search, Tried

# A start costs one evaluation, a climb many: three starts keep most of the time for climbs.
_STARTS = 3


def local(space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> Search:
    """Hill climbing with restarts: to the first better neighbour, those beside failures last.

    The first climb begins at the best of the default, winners elsewhere and `_STARTS` random configurations; each of
    the others at the best of `_STARTS` new ones. Ends when every configuration has been tried.
    """
    tried = Tried(space, seed, elsewhere)
    samples = tried.opening + _STARTS
    while tried.untried:
        start = tried.best((yield from tried.sample(samples)))
        if start is not None:
            yield from tried.walk(start, len(tried.untried))
        samples = _STARTS
