"""Every configuration, the default first, in the order of the dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite.kernel import Config, Space
from perfsuite.search.tried import Search


def exhaustive(space: Space, seed: int, first: Sequence[Config] = ()) -> Search:
    default, *others = space.configs
    for config in dict.fromkeys((default, *(c for c in first if c in space), *others)):
        yield config  # not `yield from`: a dict's iterator cannot be sent costs
