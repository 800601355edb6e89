"""Rows that softmax kernels get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from perfsuite.op import torch_dtype

if TYPE_CHECKING:
    import torch


def awkward_rows(dtype: str) -> Iterable[tuple[str, torch.Tensor]]:
    """(description, x) with x in float32; every one is run through each kernel."""
    import torch

    generator = torch.Generator().manual_seed(7)

    def normal(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, generator=generator)

    inf, nan = math.inf, math.nan
    lowest = torch.finfo(torch_dtype(dtype)).min
    yield "no rows", normal(0, 33)
    yield from _lengths(normal)
    for mask in (-inf, -1e4, -1e9, lowest):
        x = normal(6, 77)
        x[0, ::2] = x[1, :64] = x[2, 1:] = x[3, :-1] = x[4, 5] = mask
        yield f"masked with {mask:g}", x
    yield "nothing but -inf", torch.full((3, 45), -inf)
    yield "-inf in one row of two", torch.stack([normal(1, 130)[0], torch.full((130,), -inf)])
    for value in (inf, nan):
        x = normal(6, 70)
        for row, place in enumerate((0, 15, 16, 63, 69)):
            x[row, place] = value
        yield f"{value} at several places", x
    yield "+inf and -inf", torch.tensor([[inf, -inf, 0.0], [0.0, -inf, 1.0], [inf, inf, inf]])
    yield (
        "all equal",
        torch.tensor([[0.0], [3.5], [-1000.0], [2.0**20], [lowest], [-lowest]]).expand(-1, 100).contiguous(),
    )
    x = torch.zeros(4, 90)
    x[0, 3], x[1, 89], x[2, 40], x[3, 0] = 104.0, 105.0, 1e4, -lowest
    yield "one element far above the others", x
    yield "results below the smallest normal", -torch.arange(0, 128, 0.5).repeat(2, 1)
    yield "|x| up to 1000", (torch.rand(4, 333, generator=generator) - 0.5) * 2000
    for scale in (2.0**22, 2.0**30, 1e30, 3e38):
        yield f"|x| up to {scale:g}", (torch.rand(4, 99, generator=generator) - 0.5) * 2 * scale
    yield "large offset", normal(4, 200) + 3000.0
    yield "growing along the row", torch.linspace(-500, 500, 5000).repeat(2, 1)
    yield "falling along the row", torch.linspace(500, -500, 5000).repeat(2, 1)
    x = normal(2, 9000)
    x[0, :8200], x[1, 100:] = -inf, -1e9
    yield "long rows mostly masked", x
    x = normal(3, 9000)
    x[0, 6000], x[1, 8999], x[2, 5000:] = -lowest, 2.0**23, 90.0
    yield "long rows whose maximum comes late", x


def _lengths(normal: Callable[[int, int], torch.Tensor]) -> Iterable[tuple[str, torch.Tensor]]:
    """Every short length, and those around multiples of the vectors that a kernel may take at once."""
    lengths = [*range(1, 41), *(n + d for n in (48, 64, 96, 128, 192, 256, 512) for d in (-1, 0, 1))]
    for cols in lengths:
        yield f"{cols} columns", normal(2, cols)
