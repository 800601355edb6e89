"""Every configuration once, the default first, the others in a random order."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite.kernel import Config, Space
from perfsuite.search.tried import Search


def random(space: Space, seed: int, first: Sequence[Config] = ()) -> Search:
    for config in space.shuffled(seed, first):  # not `yield from`: a tuple's iterator cannot be sent costs
        yield config
