"""How it is computed: a `Kernel`, the `Space` of its configurations, and one `Config` of that space."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from perfsuite.op import Op, Scalar, Workload

if TYPE_CHECKING:
    import torch

    from perfsuite.machine import Machine

Tensors = Sequence["torch.Tensor"]
# run(inputs, outputs) -> outputs. A kernel writes into the given outputs and returns them; one whose framework cannot
# write in place returns new tensors instead.
Run = Callable[[Tensors, Tensors], Tensors]


@dataclass(frozen=True)
class Config:
    """The values a kernel is built with; its own key. Prints as `isa=avx512,unroll=4`, or `-` when empty."""

    values: tuple[tuple[str, Scalar], ...] = ()

    @classmethod
    def of(cls, **values: Scalar) -> Config:
        return cls(tuple(values.items()))

    def __getitem__(self, name: str) -> Any:
        for key, value in self.values:
            if key == name:
                return value
        raise KeyError(f"config {self} has no {name!r}")

    def __str__(self) -> str:
        return ",".join(f"{name}={_short(value)}" for name, value in self.values) or "-"

    def to_json(self) -> dict[str, Scalar]:
        return dict(self.values)

    @classmethod
    def from_json(cls, data: Mapping[str, Scalar]) -> Config:
        return cls(tuple(data.items()))


def _short(value: Scalar) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Dimension:
    """One tunable: its name and values. An `ordered` value neighbours the next; the others all neighbour each other."""

    name: str
    values: tuple[Scalar, ...]
    ordered: bool = True

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"dimension {self.name} has no values")

    def neighbours(self, value: Scalar) -> tuple[Scalar, ...]:
        if not self.ordered:
            return tuple(v for v in self.values if v != value)
        at = self.values.index(value)
        return self.values[max(0, at - 1) : at] + self.values[at + 1 : at + 2]


@dataclass(frozen=True)
class Space:
    """The configurations of a kernel on one workload: every combination of the dimensions that `allows` accepts.

    `default` is what a user would get without tuning; without one it is the first configuration.
    """

    dimensions: tuple[Dimension, ...] = ()
    allows: Callable[[Config], bool] | None = None
    default: Config | None = None

    @cached_property
    def configs(self) -> tuple[Config, ...]:
        """Every allowed configuration, the default first."""
        names = [d.name for d in self.dimensions]
        every = (
            Config(tuple(zip(names, values))) for values in itertools.product(*(d.values for d in self.dimensions))
        )
        allowed = [config for config in every if self.allows is None or self.allows(config)]
        if not allowed:
            raise ValueError(f"the space of {', '.join(names)} allows no configuration")
        if self.default is None:
            return tuple(allowed)
        if self.default not in allowed:
            raise ValueError(f"the default {self.default} is not in its space")
        return (self.default, *(config for config in allowed if config != self.default))

    def __len__(self) -> int:
        return len(self.configs)

    def __iter__(self) -> Iterator[Config]:
        return iter(self.configs)

    def __contains__(self, config: object) -> bool:
        return config in self._known

    @cached_property
    def _known(self) -> frozenset[Config]:
        return frozenset(self.configs)

    def neighbours(self, config: Config) -> tuple[Config, ...]:
        """The allowed configurations that differ from `config` in one dimension by one step."""
        near = []
        for at, dimension in enumerate(self.dimensions):
            for value in dimension.neighbours(config.values[at][1]):
                values = (*config.values[:at], (dimension.name, value), *config.values[at + 1 :])
                if Config(values) in self._known:
                    near.append(Config(values))
        return tuple(near)

    def shuffled(self, seed: int) -> tuple[Config, ...]:
        """The default, then all others in a random order that the seed fixes."""
        first, *others = self.configs
        random.Random(seed).shuffle(others)
        return (first, *others)


def no_space(workload: Workload, machine: Machine) -> Space:
    """The space of a kernel with nothing to tune: one empty configuration."""
    return Space()


def runs_anywhere(workload: Workload, machine: Machine) -> str | None:
    return None


@dataclass(frozen=True)
class Kernel:
    """One implementation of one or several ops.

    `build(op, workload, config)` gives the callable; it may compile, and raises on failure. `space(workload, machine)`
    gives what can be tuned. `supports(workload, machine)` gives None, or the reason why the kernel cannot run there.
    `sources` are further files (beside the kernel's own) whose text is part of its code. `device` is `cpu`,
    `cuda` or `any`. `default` marks the kernel that a user without perfsuite would call (eager): the baseline of every
    speed-up. The registry fills in `family`, `name` (folder and file) and `digest` (of the code).
    """

    ops: tuple[str, ...]
    build: Callable[[Op, Workload, Config], Run]
    space: Callable[[Workload, Machine], Space] = no_space
    supports: Callable[[Workload, Machine], str | None] = runs_anywhere
    device: str = "cpu"
    sources: tuple[str, ...] = ()
    default: bool = False
    family: str = ""
    name: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.family}/{self.name}"
