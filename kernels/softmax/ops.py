"""Softmax over the last axis: what it is, the problems it meets in real models, and the rows that kernels get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from perfsuite.op import ROUNDOFF, Op, Operand, Tolerance, Workload, torch_dtype, workloads

if TYPE_CHECKING:
    import torch

_ALL = ("f32", "bf16", "f16")
# What may be lost at zero: results below the smallest normal number of f32 and bf16, which may be flushed to zero, and
# half a unit of the subnormal numbers of f16, which are many of its outputs.
_LOST = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-25}


def _softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def _tolerance(workload: Workload) -> Tolerance:
    """Relative, whatever the size of the output: 4e-6 for the roundings of x - max, a little for the long sum, and two
    units in the last place of a 16-bit output."""
    relative = 4e-6 + 4e-7 * math.log2(max(2, workload["cols"]))
    if workload.dtype != "f32":
        relative += 4.0 * ROUNDOFF[workload.dtype]
    return Tolerance(relative=relative, absolute=2.0 * _LOST[workload.dtype])


def _edge_cases(dtype: str) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    for description, rows in _awkward_rows(dtype):
        yield description, (rows.to(torch_dtype(dtype)),)


def _awkward_rows(dtype: str) -> Iterable[tuple[str, torch.Tensor]]:
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


def _rows(*sizes: tuple[int, int]) -> list[tuple[dict[str, int], tuple[str, ...], dict[str, int]]]:
    return [({"rows": rows, "cols": cols}, _ALL, {}) for rows, cols in sizes]


SOFTMAX = Op(
    name="softmax",
    inputs=(Operand("x", ("rows", "cols")),),
    outputs=(Operand("y", ("rows", "cols")),),
    reference=_softmax,
    # A subtraction, an exponential, a sum and a product, and the comparison for the maximum.
    flops=lambda sizes: 5.0 * sizes["rows"] * sizes["cols"],
    workloads=workloads(
        "softmax",
        [
            ({"rows": 8 * 12 * 128, "cols": 128}, _ALL, {"BERT-base b=8 s=128": 12}),
            ({"rows": 12 * 1024, "cols": 1024}, _ALL, {"GPT-2 b=1 s=1024": 12}),
            ({"rows": 8 * 12 * 197, "cols": 197}, _ALL, {"ViT-B/16 b=8": 12}),
            ({"rows": 64, "cols": 1000}, _ALL, {"ResNet-50 b=64": 1}),
            ({"rows": 64, "cols": 50257}, _ALL, {"GPT-2 b=1 s=64": 1}),
            ({"rows": 16, "cols": 128256}, _ALL, {"Llama-3-8B b=16": 1}),
            *_rows((3, 7), (5, 64), (2, 129), (4, 1000), (1, 4097), (3, 1), (1, 70001)),
        ],
    ),
    tolerance=_tolerance,
    edge_cases=_edge_cases,
)

OPS: tuple[Op, ...] = (SOFTMAX,)
