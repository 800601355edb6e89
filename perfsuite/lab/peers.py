"""Other tuners' searches on our tables: each by its own package, which is optional (`pip install perfsuite[lab]`).

Each peer is told the config that our searches start at; then it asks as it sees fit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import random
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from perfsuite.kernel import Config, Dimension, Scale
from perfsuite.lab.replay import Enough, Evaluations, Player, Replay, Trace

_WHERE = "time"


@dataclass(frozen=True)
class Peer:
    """`module` is what must be installed; `tuner` the project, of whose searches the best counts."""

    tuner: str
    module: str
    play: Player

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def optuna_tpe(replay: Replay, enough: Enough) -> Trace:
    """Optuna's default sampler. It knows no constraints: a config outside the space is pruned, and costs nothing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=replay.seed))
    start = replay.space.configs[0]
    study.enqueue_trial({d.name: _suggested(d, value) for d, (_, value) in zip(replay.space.dimensions, start.values)})
    asked = Evaluations(replay, enough)
    for _ in range(_MOST_ASKED * len(replay.space)):
        trial = study.ask()
        config = Config(tuple((d.name, _suggest(trial, d)) for d in replay.space.dimensions))
        at = replay.places.get(config)
        cost = math.inf if at is None else asked.cost(at)
        if math.isfinite(cost):
            study.tell(trial, cost)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        if asked.over:
            break
    return asked.trace


# Optuna may ask for what is known or not allowed as often as it likes, but not for ever.
_MOST_ASKED = 5


def _suggest(trial: Any, dimension: Dimension) -> Any:
    """Ordered values by their place, so that Optuna knows their order."""
    if dimension.scale in (Scale.ORDERED, Scale.POWERS):
        return dimension.values[trial.suggest_int(dimension.name, 0, len(dimension.values) - 1)]
    return trial.suggest_categorical(dimension.name, dimension.values)


def _suggested(dimension: Dimension, value: Any) -> Any:
    return dimension.values.index(value) if dimension.scale in (Scale.ORDERED, Scale.POWERS) else value


def kernel_tuner(strategy: str, replay: Replay, enough: Enough) -> Trace:
    """One of Kernel Tuner's strategies through its simulation mode, which reads the costs from a cache file.

    It cannot be stopped from outside, so it goes on to the end of its search or of the space.
    """
    import kernel_tuner as tuner

    names = [f"p{at}" for at in range(len(replay.space.dimensions))]
    values = [_numbers(d) for d in replay.space.dimensions]
    configs = [
        tuple(
            numbers[d.values.index(value)] for d, numbers, (_, value) in zip(replay.space.dimensions, values, c.values)
        )
        for c in replay.table.subject.space
    ]
    places = {config: at for at, config in enumerate(configs)}

    def allows(config: dict[str, int]) -> bool:  # a lambda it would take apart and parse again
        return tuple(config[name] for name in names) in places

    parameters = dict(zip(names, values))
    with _simulated(replay, names, parameters, configs) as cache, _quietly(replay.seed):
        results, _ = tuner.tune_kernel(
            *(_KERNEL, "", _PROBLEM, [], parameters),
            restrictions=[allows],
            strategy=strategy,
            strategy_options=None if strategy == _WHOLE else {"max_fevals": len(configs)},
            cache=str(cache),
            simulation_mode=True,
            lang="C",
            quiet=True,
        )
    asked = Evaluations(replay, enough)
    for at in (replay.start, *(places[tuple(result[name] for name in names)] for result in results)):
        asked.cost(at)
        if asked.over:
            break
    return asked.trace


_KERNEL, _PROBLEM = "lab", "1"


def _numbers(dimension: Dimension) -> list[int]:
    """The values as numbers, which all of its strategies can handle: themselves, or their places."""
    if all(type(value) is int for value in dimension.values):
        return [int(value) for value in dimension.values]
    return list(range(len(dimension.values)))


@contextlib.contextmanager
def _simulated(
    replay: Replay, names: list[str], parameters: dict[str, list[int]], configs: list[tuple[int, ...]]
) -> Iterator[Path]:
    """A cache file of Kernel Tuner's with the replay's costs in milliseconds."""
    entries = {}
    for config, cost in zip(configs, replay.costs):
        time = 1e3 * float(cost) if math.isfinite(cost) else "RuntimeFailedConfig"
        timings = dict.fromkeys(("compile_time", "verification_time", "benchmark_time"), 0.0)
        entries[",".join(map(str, config))] = {**dict(zip(names, config)), _WHERE: time, **timings}
    cache = {
        "device_name": "replay",
        "kernel_name": _KERNEL,
        "problem_size": _PROBLEM,
        "tune_params_keys": names,
        "tune_params": parameters,
        "objective": _WHERE,
        "cache": entries,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.json"
        path.write_text(json.dumps(cache))
        yield path


@contextlib.contextmanager
def _quietly(seed: int) -> Iterator[None]:
    """It draws from the global random numbers, and prints and warns as it goes."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


# Kernel Tuner's default is to try all; the others are those that its authors' studies found best.
_WHOLE = "brute_force"
_KERNEL_TUNER = (_WHOLE, "genetic_algorithm", "greedy_ils", "dual_annealing", "bayes_opt", "hybrid_vndx")
PEERS: dict[str, Peer] = {
    "optuna tpe": Peer("Optuna", "optuna", optuna_tpe),
    **{
        f"kernel_tuner {name}": Peer("Kernel Tuner", "kernel_tuner", partial(kernel_tuner, name))
        for name in _KERNEL_TUNER
    },
}
