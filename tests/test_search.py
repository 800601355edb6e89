"""Search strategies on spaces of every scale, with holes and failures: no device, simulated costs."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfsuite import search
from perfsuite.kernel import Config, Dimension, Scale, Space
from perfsuite.op import Scalar
from perfsuite.search.tried import FIRST, Tried

NAMES = sorted(search.STRATEGIES)
LEARNING = sorted(set(NAMES) - {"exhaustive", "random"})
INFINITE = float("inf")


def asked(strategy: search.Strategy, space: Space, cost: Callable[[Config], float], seed: int = 1) -> list[Config]:
    """All that a strategy asks for, in its order."""
    return answered(strategy(space, seed), cost)


def answered(steps: search.Search, cost: Callable[[Config], float]) -> list[Config]:
    configs = [next(steps)]
    while True:
        try:
            configs.append(steps.send(cost(configs[-1])))
        except StopIteration:
            return configs


VALUES: dict[Scale, st.SearchStrategy[tuple[Scalar, ...]]] = {
    Scale.ORDERED: st.sampled_from([(0, 512, 1024), (False, True), (6,)]),
    Scale.POWERS: st.sampled_from([(1, 2), (1024, 4096, 16384)]),
    Scale.CATEGORICAL: st.sampled_from([("avx2", "avx512"), ("none", "L1", "L2")]),
    Scale.PERMUTATION: st.sampled_from([("mn", "nm"), ("mnk", "knm", "mkn")]),
}


@dataclass(frozen=True)
class Problem:
    """A space with holes, what its configs cost, and what some of them cost elsewhere."""

    space: Space
    costs: dict[Config, float]
    elsewhere: tuple[search.Known, ...]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    scales = draw(st.lists(st.sampled_from(Scale), min_size=1, max_size=3))
    dimensions = tuple(Dimension(f"d{at}", draw(VALUES[scale]), scale) for at, scale in enumerate(scales))
    every = Space(dimensions).configs
    allowed = draw(st.sets(st.sampled_from(every), min_size=1))
    space = Space(
        dimensions, lambda config: config in allowed, draw(st.sampled_from([None, *sorted(allowed, key=str)]))
    )
    cost = st.one_of(st.just(INFINITE), st.floats(1e-9, 1e3))
    costs = dict(zip(every, draw(st.lists(cost, min_size=len(every), max_size=len(every)))))
    told = st.dictionaries(st.sampled_from(sorted(allowed, key=str)), st.floats(1e-9, 1e3), min_size=1)
    known = st.builds(search.Known, st.floats(0.0, 1.0), told)
    return Problem(space, costs, tuple(draw(st.lists(known, max_size=3))))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_every_config_once_the_default_and_winners_elsewhere_before_and_the_same_again(
    name: str, problem: Problem, seed: int
) -> None:
    strategy, space = search.STRATEGIES[name], problem.space
    configs = answered(strategy(space, seed, problem.elsewhere), problem.costs.__getitem__)
    assert len(configs) == len(set(configs)) == len(space)
    winners = list(dict.fromkeys(known.best for known in problem.elsewhere))[:FIRST]
    opening = list(dict.fromkeys([space.configs[0], *winners]))
    assert configs[: len(opening)] == opening
    assert answered(strategy(space, seed, problem.elsewhere), problem.costs.__getitem__) == configs


@pytest.mark.parametrize("name", NAMES)
def test_strategies_survive_failures_everywhere(name: str) -> None:
    assert set(asked(search.STRATEGIES[name], SMALL, lambda config: INFINITE)) == set(SMALL)


SMALL = Space(tuple(Dimension(name, tuple(range(4))) for name in "ab"))
CUBE = Space(tuple(Dimension(name, tuple(range(8))) for name in "abc"))


def bowl(config: Config) -> float:
    """A smooth cost with its optimum at (5, 2, 6)."""
    return 1.0 + float(sum((config[name] - best) ** 2 for name, best in (("a", 5), ("b", 2), ("c", 6))))


def until_best(name: str, seed: int) -> int:
    """How many evaluations a strategy needs for the optimum of `bowl`."""
    steps = search.STRATEGIES[name](CUBE, seed)
    config = next(steps)
    for number in itertools.count(1):
        if bowl(config) == 1.0:
            return number
        config = steps.send(bowl(config))
    raise AssertionError("a count ends")


@pytest.mark.parametrize("name", LEARNING)
def test_what_learns_needs_a_fraction_of_random(name: str) -> None:
    chance = statistics.median(until_best("random", seed) for seed in range(9))
    assert statistics.median(until_best(name, seed) for seed in range(5)) < chance / 3


def test_a_gaussian_process_believes_what_is_alike_and_unlearns_what_is_wrong() -> None:
    """Told all but the best it finds that next; told the opposite it still needs a fraction of the space."""
    truth = {config: bowl(config) for config in CUBE}
    best = min(truth, key=truth.__getitem__)
    near = search.Known(0.8, {config: cost for config, cost in truth.items() if config != best})
    assert answered(search.STRATEGIES["gaussian"](CUBE, 1, (near,)), bowl).index(best) <= 6
    wrong = search.Known(0.8, {config: 1.0 / cost for config, cost in truth.items()})
    assert answered(search.STRATEGIES["gaussian"](CUBE, 1, (wrong,)), bowl).index(best) < len(CUBE) / 4


def half_fails(config: Config) -> float:
    return INFINITE if config["a"] >= 4 else 1.0 + 0.1 * random.Random(str(config)).random()


@pytest.mark.parametrize("name", ["evolutionary", "gaussian", "local", "model"])
def test_failures_teach(name: str) -> None:
    """Half of the cube fails, and a third at most of the first 60 configs of what learns."""
    for seed in range(3):
        steps = search.STRATEGIES[name](CUBE, seed)
        costs = [half_fails(next(steps))]
        while len(costs) < 60:
            costs.append(half_fails(steps.send(costs[-1])))
        assert sum(map(math.isinf, costs)) <= 20


def test_what_is_beside_failures_is_asked_last() -> None:
    tried = Tried(SMALL, 1)
    middle, near = Config.of(a=1, b=1), Config.of(a=2, b=1)
    for config, cost in ((middle, 1.0), (Config.of(a=3, b=1), INFINITE), (Config.of(a=0, b=0), 2.0)):
        steps = tried.ask(config)
        assert next(steps) == config
        with pytest.raises(StopIteration):
            steps.send(cost)
    assert tried.near(middle)[-1] == near
    assert tried.risk(near) == 1 / 3
    assert tried.best(SMALL) == middle


def test_the_default_strategy_is_known() -> None:
    assert search.DEFAULT in search.STRATEGIES


def test_importing_strategies_loads_no_model() -> None:
    code = "import sys, perfsuite.search; print(any(m in sys.modules for m in ('sklearn', 'scipy', 'numpy', 'torch')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
