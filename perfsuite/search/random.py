"""Every configuration once, the default first, the others in a random order."""

from __future__ import annotations

from collections.abc import Generator

from perfsuite.kernel import Config, Space


def random(space: Space, seed: int) -> Generator[Config, float, None]:
    for config in space.shuffled(seed):  # not `yield from`: a tuple's iterator cannot be sent costs
        yield config
