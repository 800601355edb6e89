"""Every configuration, the default first, in the order of the dimensions."""

from __future__ import annotations

from collections.abc import Generator

from perfsuite.kernel import Config, Space


def exhaustive(space: Space, seed: int) -> Generator[Config, float, None]:
    for config in space:  # not `yield from`: a tuple's iterator cannot be sent costs
        yield config
