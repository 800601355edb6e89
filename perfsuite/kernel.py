"""How it is computed: a `Kernel`, the `Space` of its configurations, and one `Config` of that space."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
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


class Scale(StrEnum):
    """What the values of a dimension are to each other: which are neighbours, and how a model sees them as numbers.

    ORDERED: each neighbours the one before and the one after; its rank. POWERS: the same, of powers of two; its log2.
    CATEGORICAL: all neighbour each other; 1 for the value, 0 for each other one. PERMUTATION: strings of the same
    symbols (`mnk`, `nmk`), neighbours when one swap of adjacent symbols apart; the place of each symbol.
    """

    ORDERED = "ordered"
    POWERS = "powers"
    CATEGORICAL = "categorical"
    PERMUTATION = "permutation"


@dataclass(frozen=True)
class Dimension:
    """One tunable: its name, its values, and their scale."""

    name: str
    values: tuple[Scalar, ...]
    scale: Scale = Scale.ORDERED

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"dimension {self.name} has no values")
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"dimension {self.name} has a value twice: {self.values}")
        if self.scale is Scale.POWERS and not all(map(_is_power, self.values)):
            raise ValueError(f"dimension {self.name} has values that are no powers of two: {self.values}")
        if self.scale is Scale.PERMUTATION and not _permute(self.values):
            raise ValueError(f"dimension {self.name} has values that are no permutations: {self.values}")

    def neighbours(self, value: Scalar) -> tuple[Scalar, ...]:
        """The values one step from `value`."""
        at = self.values.index(value)
        match self.scale:
            case Scale.CATEGORICAL:
                return self.values[:at] + self.values[at + 1 :]
            case Scale.PERMUTATION:
                word = str(value)
                swapped = (word[:k] + word[k + 1] + word[k] + word[k + 2 :] for k in range(len(word) - 1))
                return tuple(near for near in swapped if near in self.values)
            case _:
                return self.values[max(0, at - 1) : at] + self.values[at + 1 : at + 2]

    def encode(self, value: Scalar) -> tuple[float, ...]:
        """`value` as the numbers that its scale says, of the same length for every value of the dimension."""
        at = self.values.index(value)
        match self.scale:
            case Scale.ORDERED:
                return (float(at),)
            case Scale.POWERS:
                return (math.log2(float(value)),)
            case Scale.CATEGORICAL:
                return tuple(float(k == at) for k in range(len(self.values)))
            case Scale.PERMUTATION:
                return tuple(float(str(value).index(symbol)) for symbol in sorted(str(value)))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "values": list(self.values), "scale": str(self.scale)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dimension:
        return cls(data["name"], tuple(data["values"]), Scale(data["scale"]))


def _is_power(value: Scalar) -> bool:
    return type(value) is int and value > 0 and value.bit_count() == 1


def _permute(values: Sequence[Scalar]) -> bool:
    """Whether the values are strings of the same symbols, each symbol once."""
    words = [value for value in values if isinstance(value, str)]
    return len(words) == len(values) and all(set(w) == set(words[0]) and len(w) == len(set(w)) for w in words)


@dataclass(frozen=True)
class Space:
    """The configurations of a kernel on one workload: every combination of the dimensions that `allows` accepts.

    `refuses` gives None, or the reason why a config that makes sense cannot run on the machine: it is left out as well,
    and counted in the report. `default` is what a user would get without tuning; without one it is the first
    configuration.
    """

    dimensions: tuple[Dimension, ...] = ()
    allows: Callable[[Config], bool] | None = None
    default: Config | None = None
    refuses: Callable[[Config], str | None] | None = None

    @cached_property
    def configs(self) -> tuple[Config, ...]:
        """Every allowed configuration, the default first."""
        allowed = [config for config, reason in self._sifted if reason is None]
        if not allowed:
            raise ValueError(f"the space of {', '.join(d.name for d in self.dimensions)} allows no configuration")
        if self.default is None:
            return tuple(allowed)
        if self.default not in allowed:
            raise ValueError(f"the default {self.default} is not in its space")
        return (self.default, *(config for config in allowed if config != self.default))

    @property
    def pruned(self) -> tuple[tuple[Config, str], ...]:
        """The configurations that are refused, each with its reason."""
        return tuple((config, reason) for config, reason in self._sifted if reason is not None)

    @cached_property
    def _sifted(self) -> tuple[tuple[Config, str | None], ...]:
        """What `allows` accepts, with the reason why it is refused, or None."""
        names = [d.name for d in self.dimensions]
        every = (
            Config(tuple(zip(names, values))) for values in itertools.product(*(d.values for d in self.dimensions))
        )
        allowed = (config for config in every if self.allows is None or self.allows(config))
        return tuple((config, self.refuses(config) if self.refuses is not None else None) for config in allowed)

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

    def encode(self, config: Config) -> tuple[float, ...]:
        """`config` as numbers for a model: those of its values, in the order of the dimensions."""
        pairs = zip(self.dimensions, config.values)
        return tuple(number for dimension, (_, value) in pairs for number in dimension.encode(value))

    def shuffled(self, seed: int, first: Sequence[Config] = ()) -> tuple[Config, ...]:
        """The default, then those of `first` that are in the space, then all others in an order that the seed fixes."""
        default, *others = self.configs
        random.Random(seed).shuffle(others)
        return tuple(dict.fromkeys((default, *(config for config in first if config in self), *others)))


def no_space(workload: Workload, machine: Machine) -> Space:
    """The space of a kernel with nothing to tune: one empty configuration."""
    return Space()


def runs_anywhere(workload: Workload, machine: Machine) -> str | None:
    return None


class Unfit(Exception):
    """Raised by a kernel's `build`: the compiled code shows that this config had better not run on this machine."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of one or several ops.

    `build(op, workload, config)` gives the callable; it may compile, and raises on failure (`Unfit` to prune).
    `space(workload, machine)` gives what can be tuned. `supports(workload, machine)` gives None, or the reason why the
    kernel cannot run there. `sources` are further files (beside the kernel's own) whose text is part of its code.
    `device` is `cpu`, `cuda` or `any`. `default` marks the kernel that a user without perfsuite would call (eager): the
    baseline of every speed-up. The registry fills in `family`, `name` (folder and file) and `digest` (of the code).
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
