"""What a search knows: the cost of every configuration it asked for, the untried ones, and which of these may fail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from perfsuite.kernel import Config, Space

Search = Generator[Config, float, None]
# So many winners elsewhere are asked for first: with five trials, as many are left to the search itself.
FIRST = 2
# Untried configurations of which the least risky is taken when a random one is wanted.
_DRAWS = 4


@dataclass(frozen=True)
class Known:
    """Seconds of some of the space's configurations in another place, on another workload or machine.

    `likeness`, from 0 to 1, is how far they tell of the costs here.
    """

    likeness: float
    costs: Mapping[Config, float]

    @property
    def best(self) -> Config:
        return min(self.costs, key=self.costs.__getitem__)


def first(elsewhere: Sequence[Known]) -> tuple[Config, ...]:
    """The winners of the places most alike, at most FIRST."""
    return tuple(dict.fromkeys(known.best for known in elsewhere))[:FIRST]


class Tried:
    """The state that strategies share.

    `costs` holds the seconds of what was asked for, infinity for failures. `untried` is ordered: the default, the
    `first` ones elsewhere, the others at random; `opening` is how many are asked for before a strategy may choose.
    """

    def __init__(self, space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> None:
        self.space = space
        self.costs: dict[Config, float] = {}
        self.untried = dict.fromkeys(space.shuffled(seed, first(elsewhere)))
        self.opening = len({space.configs[0], *first(elsewhere)})
        self._beside_tried: Counter[Config] = Counter()
        self._beside_failed: Counter[Config] = Counter()

    def ask(self, config: Config) -> Generator[Config, float, float]:
        """Ask for an untried configuration; its cost, which is remembered."""
        del self.untried[config]
        cost = yield config
        self.costs[config] = cost
        near = self.space.neighbours(config)
        self._beside_tried.update(near)
        if math.isinf(cost):
            self._beside_failed.update(near)
        return cost

    def sample(self, count: int) -> Generator[Config, float, list[Config]]:
        """Ask for what is left of the opening, then for random configurations: `count` in all, which are returned."""
        sampled: list[Config] = []
        while self.untried and len(sampled) < count:
            draws = 1 if len(self.costs) < self.opening else _DRAWS
            sampled.append(min((config for config, _ in zip(self.untried, range(draws))), key=self.risk))
            yield from self.ask(sampled[-1])
        return sampled

    def walk(self, at: Config, evaluations: int) -> Generator[Config, float, Config]:
        """Go downhill from a tried configuration, asking for at most so many neighbours; where it ends."""
        while True:
            best = self.best((at, *self.space.neighbours(at)))
            if best is not None and best != at:
                at = best
            elif evaluations > 0 and (near := self.near(at)):
                yield from self.ask(near[0])
                evaluations -= 1
            else:
                return at

    def risk(self, config: Config) -> float:
        """How likely a configuration fails, by its tried neighbours: their failures / (1 + their number), below 1."""
        return self._beside_failed[config] / (1 + self._beside_tried[config])

    def near(self, config: Config) -> list[Config]:
        """The untried neighbours, the least risky first."""
        return sorted((near for near in self.space.neighbours(config) if near in self.untried), key=self.risk)

    def best(self, among: Iterable[Config]) -> Config | None:
        """The cheapest of those that were tried and did not fail."""
        succeeded = (config for config in among if math.isfinite(self.costs.get(config, math.inf)))
        return min(succeeded, key=self.costs.__getitem__, default=None)
