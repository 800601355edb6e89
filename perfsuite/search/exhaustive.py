"""Every configuration, the default first, in the order of the dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite.kernel import Space
from perfsuite.search.tried import Known, Search, first


def exhaustive(space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> Search:
    default, *others = space.configs
    for config in dict.fromkeys((default, *first(elsewhere), *others)):
        yield config  # not `yield from`: a dict's iterator cannot be sent costs
