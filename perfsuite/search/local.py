"""Multi-start local search: a few random samples, then the unvisited neighbours of the best, again and again."""

from __future__ import annotations

import math
from collections.abc import Generator

from perfsuite.kernel import Config, Space

# A start costs one evaluation, a descent many: three starts keep most of the time for descents.
_STARTS = 3


def local(space: Space, seed: int) -> Generator[Config, float, None]:
    """Hill climbing with restarts.

    First the default and `_STARTS` random configurations; then every neighbour of the best one known whose
    neighbourhood is unexplored; when the best ones are explored, the next random configuration restarts the climb. Ends
    when every configuration has been tried.
    """
    costs: dict[Config, float] = {}
    explored: set[Config] = set()
    order = iter(space.shuffled(seed))

    def next_random() -> Config | None:
        return next((config for config in order if config not in costs), None)

    for _ in range(_STARTS + 1):
        config = next_random()
        if config is None:
            return
        costs[config] = yield config
    while True:
        best = min(costs, key=lambda c: costs[c])
        if best not in explored and math.isfinite(costs[best]):
            explored.add(best)
            for near in space.neighbours(best):
                if near not in costs:
                    costs[near] = yield near
                    if costs[near] < costs[best]:
                        break
            continue
        restart = next_random()
        if restart is None:
            return
        costs[restart] = yield restart
