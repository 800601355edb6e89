"""A Gaussian process over configurations, and over the places where they were tried, asks where costs may improve most.

Swersky, Snoek and Adams, "Multi-task Bayesian optimization", NeurIPS 2013: what is known elsewhere counts as much as
that place is alike, and less the more is known here.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perfsuite.kernel import Config, Dimension, Scale, Space
from perfsuite.search.tried import Known, Search, Tried

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from threadpoolctl import ThreadpoolController

    Floats = NDArray[np.float64]

# Correlations, sum and noise were chosen on recorded tables of two machines, where about half or twice of each took up
# to a tenth more evaluations; the other numbers are first guesses.
# Random configurations besides the default, where nothing is known elsewhere.
_STARTS = 1
# How alike the costs of two configurations are that differ in one dimension from end to end, and by a category.
_ENDS, _CATEGORIES = math.exp(-1.0), math.exp(-0.5)
# A configuration's cost is by this share a sum over the dimensions, by the rest a matter of all values together.
_SUM = 0.5
# Variance of a place's level, in that of the costs around it: times of other workloads say nothing of it.
_LEVEL = 4.0
# Standard deviation of one visit, and the least of all costs of a space, in logs.
_NOISE, _LEAST = 0.07, 0.01
# Variance of whether a configuration works, in that of what is like it; and the least likelihood that one does.
_DOUBT, _FAINT = 0.1, 0.01
# Configurations that a place elsewhere tells of: the best and a sample of the others, for a fit takes the cube of all.
_TOLD = 40
# Evaluations per config that is asked for from one fit, so that the fits to many evaluations are few.
_EVALUATIONS = 40


def gaussian(space: Space, seed: int, elsewhere: Sequence[Known] = ()) -> Search:
    """The default, winners elsewhere or a random configuration, then always that of the largest expected improvement.

    A failure is learnt as a median cost, because the best may be beside it, and lessens the gains that what is like it
    promises. Ends when every configuration has been tried.
    """
    import numpy as np

    tried = Tried(space, seed, elsewhere)
    process = _Process(space, elsewhere)
    yield from tried.sample(tried.opening + (0 if elsewhere else _STARTS))
    while tried.untried:
        if tried.best(tried.costs) is None:
            yield from tried.sample(1)
            continue
        untried = list(tried.untried)
        promise = process.improvement(tried.costs, untried) * process.safety(tried.costs, untried)
        for at in np.argsort(-promise, kind="stable")[: 1 + len(tried.costs) // _EVALUATIONS]:
            yield from tried.ask(untried[at])


class _Process:
    """Log-costs here and elsewhere as one process, whose covariance is that of configurations times that of places."""

    def __init__(self, space: Space, elsewhere: Sequence[Known]) -> None:
        import numpy as np

        self.rows = {config: row for row, config in enumerate(space)}
        self.dimensions = [_coded(space, at) for at, d in enumerate(space.dimensions) if len(d.values) > 1]
        self.columns: dict[int, Floats] = {}
        # The place here comes first and is like itself; two others are alike by way of it.
        likeness = np.array([1.0, *(known.likeness for known in elsewhere)])
        self.places = np.outer(likeness, likeness)
        np.fill_diagonal(self.places, 1.0)
        told = [_told(known.costs) for known in elsewhere]
        self.known = [self.rows[config] for costs in told for config in costs]
        self.known_at = np.repeat(np.arange(1, len(told) + 1), [len(costs) for costs in told])
        self.known_logs = np.concatenate([np.zeros(0), *(_centred(list(costs.values())) for costs in told)])

    def improvement(self, costs: Mapping[Config, float], asked: Sequence[Config]) -> Floats:
        """How much less than the best of what was tried the log-cost of each config is expected to be, at least 0."""
        import numpy as np
        from scipy.linalg import cho_factor, cho_solve
        from scipy.special import ndtr

        own, wanted = ([self.rows[config] for config in configs] for configs in (costs, asked))
        typical = statistics.median(cost for cost in costs.values() if math.isfinite(cost))
        logs = _centred([cost if math.isfinite(cost) else typical for cost in costs.values()])
        every, rows = np.concatenate([logs, self.known_logs]), own + self.known
        at = np.concatenate([np.zeros(len(own), dtype=np.intp), self.known_at])
        variance = max(float(np.var(every)), _LEAST**2)
        alike = np.stack([self._column(row) for row in rows], axis=1)
        between = alike[rows] * self.places[np.ix_(at, at)] + _LEVEL * np.equal.outer(at, at)
        here = alike * self.places[0, at] + _LEVEL * (at == 0)
        with _threads().limit(limits=1):  # the builder needs the other cores
            factor = cho_factor(variance * between + _NOISE**2 * np.eye(len(rows)), lower=True)
            expected = variance * here @ cho_solve(factor, every)
            explained = variance**2 * np.sum(here[wanted] * cho_solve(factor, here[wanted].T).T, axis=1)
        deviation = np.sqrt(np.maximum(variance * (1.0 + _LEVEL) - explained, 1e-8))
        gain = expected[own].min() - expected[wanted]
        z = gain / deviation
        improvement: Floats = gain * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        return improvement

    def safety(self, costs: Mapping[Config, float], asked: Sequence[Config]) -> Floats:
        """How likely each config works: regression on what worked here, and that all do where nothing is known."""
        import numpy as np
        from scipy.linalg import cho_factor, cho_solve

        failed = np.array([math.isinf(cost) for cost in costs.values()], dtype=float)
        if not failed.any():
            return np.ones(len(asked))
        own, wanted = ([self.rows[config] for config in configs] for configs in (costs, asked))
        alike = np.stack([self._column(row) for row in own], axis=1)
        with _threads().limit(limits=1):
            risk = alike[wanted] @ cho_solve(cho_factor(alike[own] + _DOUBT * np.eye(len(own)), lower=True), failed)
        return np.clip(1.0 - risk, _FAINT, 1.0)

    def _column(self, row: int) -> Floats:
        """The correlation of every configuration's cost with that of one, were nothing known of them."""
        import numpy as np

        if row not in self.columns:
            alike = np.array([correlation[codes, codes[row]] for codes, correlation in self.dimensions])
            self.columns[row] = _SUM * alike.mean(axis=0) + (1.0 - _SUM) * alike.prod(axis=0)
        return self.columns[row]


@functools.cache
def _threads() -> ThreadpoolController:
    """Of the libraries that are loaded by now: to look for them takes longer than a fit."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _coded(space: Space, at: int) -> tuple[NDArray[np.intp], Floats]:
    """Each configuration's value of a dimension by its place there, and the correlations of these."""
    import numpy as np

    dimension = space.dimensions[at]
    place = {value: row for row, value in enumerate(dimension.values)}
    return np.array([place[config.values[at][1]] for config in space]), _correlation(dimension)


def _correlation(dimension: Dimension) -> Floats:
    """(value, value): how alike the costs are of configurations that differ in it alone."""
    import numpy as np

    count = len(dimension.values)
    if dimension.scale in (Scale.CATEGORICAL, Scale.PERMUTATION) or count == 2:
        same: Floats = np.where(np.eye(count, dtype=bool), 1.0, _CATEGORIES)
        return same
    ranks = np.arange(count)
    ordered: Floats = _ENDS ** (np.abs(np.subtract.outer(ranks, ranks)) / max(1, count - 1))
    return ordered


def _told(costs: Mapping[Config, float]) -> dict[Config, float]:
    """The better half of _TOLD configurations, and as many evenly from the others."""
    ordered = sorted(costs, key=costs.__getitem__)
    best, others = ordered[: _TOLD // 2], ordered[_TOLD // 2 :]
    step = max(1, -(-len(others) // (_TOLD // 2)))
    return {config: costs[config] for config in (*best, *others[::step])}


def _centred(costs: Sequence[float]) -> Floats:
    import numpy as np

    logs = np.log(costs)
    centred: Floats = logs - logs.mean()
    return centred
