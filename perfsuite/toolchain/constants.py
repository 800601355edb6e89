"""What is derived from constant tensors (folded or packed weights): once per tensor, not once per call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Derived = TypeVar("Derived")


class PerConstants(Generic[Derived]):
    """Calls `derive(constants)` when it has not seen these very tensors, or when they were written to since.

    An answer lives as long as the tensors it was derived from. Writes through `.data` go unseen, as in autograd.
    """

    def __init__(self, derive: Callable[[Sequence[torch.Tensor]], Derived]) -> None:
        self._derive = derive
        self._known: dict[tuple[int, ...], tuple[tuple[int, ...], Derived]] = {}

    def __call__(self, constants: Sequence[torch.Tensor]) -> Derived:
        key = tuple(map(id, constants))
        versions = tuple([0 if t.is_inference() else t._version for t in constants])
        found = self._known.get(key)
        if found is not None and found[0] == versions:
            return found[1]
        derived = self._derive(constants)
        self._known[key] = versions, derived
        if found is None:
            for tensor in constants:
                weakref.finalize(tensor, self._known.pop, key, None).atexit = False
        return derived
