"""Every configuration once, the default first, the others in a random order."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite.kernel import Space
from perfsuite.search.tried import Known, Search, first


def random(space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> Search:
    for config in space.shuffled(seed, first(elsewhere)):  # not `yield from`: a tuple's iterator cannot be sent costs
        yield config
