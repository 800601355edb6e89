"""Memory in which tensors are placed anew while they are timed, so that no kernel wins by a lucky address."""

from __future__ import annotations

import mmap
import random
from typing import TYPE_CHECKING

from perfsuite.kernel import Tensors

if TYPE_CHECKING:
    import torch

# Offsets are whole cache lines within two pages: all 4 KiB aliasings of inputs with outputs come up.
_LINE, _SPAN = 64, 8192
# Larger tensors stay where they are first placed: copying and mapping them takes longer than a kernel does.
_LARGE = 32 << 20


class Arena:
    """Memory for one workload's tensors; every `place` gives them other addresses, after `renew` other pages.

    The first input and the outputs move. The other inputs are what kernels fold, pack and freeze once per tensor: they
    stay where they are.
    """

    def __init__(self, inputs: Tensors, outputs: Tensors, seed: float) -> None:
        self._inputs = inputs
        self._templates = [inputs[0], *outputs]
        self._random = random.Random(seed)
        self._memory: list[torch.Tensor] = []
        self._placed: list[torch.Tensor] = []
        self._moves = sum(t.numel() * t.element_size() for t in self._templates) <= _LARGE

    def renew(self) -> None:
        """Place the next tensors in newly allocated memory."""
        if self._moves:
            self._memory, self._placed = [], []

    def place(self) -> tuple[Tensors, Tensors]:
        """(inputs, outputs) at addresses of their own, the inputs filled."""
        if not self._memory:
            self._memory = [_allocated(t.numel() * t.element_size() + _SPAN) for t in self._templates]
        if self._moves or not self._placed:
            offsets = [_LINE * self._random.randrange(_SPAN // _LINE) for _ in self._templates]
            self._placed = [
                _view(memory, offset, like) for memory, offset, like in zip(self._memory, offsets, self._templates)
            ]
            self._placed[0].copy_(self._inputs[0])
        return [self._placed[0], *self._inputs[1:]], self._placed[1:]


def _allocated(size: int) -> torch.Tensor:
    """Bytes in pages of their own: a heap would hand out what was freed last, and nothing would have moved."""
    import torch

    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def _view(memory: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor like `like` in `memory`, with a storage that begins at its own first element, as a plain tensor's."""
    import torch

    if like.numel() == 0:
        return like
    flat = torch.frombuffer(memory.numpy().data, dtype=like.dtype, count=like.numel(), offset=offset)
    return flat.as_strided(like.shape, like.stride())
