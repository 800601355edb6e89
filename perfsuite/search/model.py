"""A forest fitted to the costs so far asks where they may improve most: expected improvement, as in SMAC.

Hutter, Hoos and Leyton-Brown, "Sequential model-based optimization for general algorithm configuration", LION 2011.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perfsuite.kernel import Config, Space
from perfsuite.search.tried import Known, Search, Tried

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Random configurations besides the default and winners elsewhere before the forest is asked; six took a seventh more
# evaluations on measured tables of norms and softmax.
_STARTS = 3
_TREES = 20
# Evaluations per config that is asked for from one fit, so that the fits to many evaluations are few.
_EVALUATIONS = 40
# Log-costs are mostly sums over the dimensions: this share of a linear fit is taken off before a tree learns the rest.
# Without it a search took as many evaluations on the measured tables, but up to twice as many on made-up ones.
_LINEAR = 0.7
# Weight of the penalty on the linear fit, in evaluations.
_RIDGE = 0.3
# Least standard deviation of a predicted log-cost: trees that agree are not certain.
_LEAST_DEVIATION = 1e-3


def model(space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> Search:
    """The default, winners elsewhere and a few random ones, then always that of the largest expected improvement.

    A failure is learnt as a median cost, because the best may be beside it, and lessens the gains that its neighbours
    promise. Ends when every configuration has been tried.
    """
    import numpy as np

    tried = Tried(space, seed, elsewhere)
    forest = _Forest(space, seed)
    yield from tried.sample(tried.opening + _STARTS)
    while tried.untried:
        best = tried.best(tried.costs)
        if best is None:
            yield from tried.sample(1)
            continue
        untried = list(tried.untried)
        safety = np.array([1.0 - tried.risk(config) for config in untried])
        votes = forest.votes(tried.costs, untried)
        order = np.argsort(-safety * _expected_improvement(math.log(tried.costs[best]) - votes), kind="stable")
        for at in order[: 1 + len(tried.costs) // _EVALUATIONS]:
            yield from tried.ask(untried[at])


class _Forest:
    """Regressors of log-costs, each a linear fit and a tree on its residuals, to a bootstrap of what is known."""

    def __init__(self, space: Space, seed: int) -> None:
        import numpy as np

        self.rows = {config: row for row, config in enumerate(space)}
        self.codes = np.array([space.encode(config) for config in space], dtype=np.float32)
        self.indicators = np.array([_indicators(space, config) for config in space])
        self.generator = np.random.default_rng(seed)

    def votes(self, costs: Mapping[Config, float], asked: Sequence[Config]) -> Floats:
        """The log-costs (regressors, asked) that the regressors predict; a failure counts as the median success."""
        import numpy as np
        from sklearn.tree import DecisionTreeRegressor

        typical = statistics.median(cost for cost in costs.values() if math.isfinite(cost))
        logs = np.log([cost if math.isfinite(cost) else typical for cost in costs.values()])
        known, wanted = (np.array([self.rows[config] for config in configs]) for configs in (costs, asked))
        votes = []
        for _ in range(_TREES):
            drawn = self.generator.integers(len(known), size=len(known))
            rows, y = known[drawn], logs[drawn] - logs.mean()
            x = self.indicators[rows]
            weights = _LINEAR * np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y)
            tree = DecisionTreeRegressor(random_state=int(self.generator.integers(2**31)))
            tree.fit(self.codes[rows], y - x @ weights, check_input=False)
            votes.append(
                logs.mean() + self.indicators[wanted] @ weights + tree.predict(self.codes[wanted], check_input=False)
            )
        return np.array(votes)


def _indicators(space: Space, config: Config) -> list[float]:
    """1 for each value that `config` has, 0 for each other value of the dimensions."""
    pairs = zip(space.dimensions, config.values)
    return [float(value == mine) for dimension, (_, mine) in pairs for value in dimension.values]


def _expected_improvement(gains: Floats) -> Floats:
    """E[max(0, gain)] of each column, were its values normally distributed."""
    import numpy as np
    from scipy.special import ndtr

    mean, deviation = gains.mean(axis=0), gains.std(axis=0) + _LEAST_DEVIATION
    z = mean / deviation
    improvement: Floats = mean * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return improvement
