"""Weights in the order in which matrix kernels read them, made once per weight."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F

_TILE_COLUMNS, _TILE_ROWS, _ROW_BYTES = 16, 16, 4


class Packed:
    """Calls `pack` on a weight when it is first seen, and again after it was written to; forgets it with the weight."""

    def __init__(self, pack: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._pack = pack
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        key, version = id(weight), 0 if weight.is_inference() else weight._version
        known = self._known.get(key)
        if known is not None and known[0]() is weight and known[1] == version:
            return known[2]
        packed = self._pack(weight)
        forget = weakref.ref(weight, lambda _: self._known.pop(key, None))
        self._known[key] = (forget, version, packed)
        return packed


def tiles(w: torch.Tensor) -> torch.Tensor:
    """w[k, n] as pairs of AMX tiles, [n/32][k/step][2][16 rows][16 columns][4 bytes of k], zero-padded."""
    inner = _ROW_BYTES // w.element_size()
    k, n = w.shape
    w = F.pad(w, (0, -n % (2 * _TILE_COLUMNS), 0, -k % (_TILE_ROWS * inner)))
    pairs = w.reshape(-1, _TILE_ROWS, inner, w.shape[1] // (2 * _TILE_COLUMNS), 2, _TILE_COLUMNS)
    return pairs.permute(3, 0, 4, 1, 5, 2).contiguous()


def columns(w: torch.Tensor, width: int) -> torch.Tensor:
    """w[k, n] as [n/width][k/inner][width][inner], zero-padded: `inner` values of k fill 4 bytes (the VNNI order)."""
    inner = _ROW_BYTES // w.element_size()
    k, n = w.shape
    w = F.pad(w, (0, -n % width, 0, -k % inner))
    return w.reshape(w.shape[0] // inner, inner, -1, width).permute(2, 0, 3, 1).contiguous()
