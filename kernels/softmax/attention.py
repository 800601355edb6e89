"""Softmax of attention scores: scaled, with an additive mask that all heads share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from perfsuite.op import Op, Operand, Tolerance, Workload, torch_dtype, workloads

_SCORES = ("heads", "rows", "cols")


def masked_softmax(x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale * x + mask) over the last axis; NaN in a row that is masked with -inf throughout, as PyTorch."""
    return (scale * x + mask).softmax(-1)


def _samples(workload: Workload, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Scores under a causal mask, which leaves at least one column of each row."""
    rows, cols, dtype = workload["rows"], workload["cols"], torch_dtype(workload.dtype)
    x = torch.randn(workload["heads"], rows, cols, generator=generator).mul(8.0)
    seen = torch.arange(cols) <= (torch.arange(rows) + cols - rows).clamp(min=0).unsqueeze(-1)
    return x.to(dtype), torch.where(seen, 0.0, -torch.inf).to(dtype)


def _edge_cases(dtype: str) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    kind, generator = torch_dtype(dtype), torch.Generator().manual_seed(11)
    x = torch.randn(2, 6, 77, generator=generator).mul(8.0).to(kind)
    lowest = torch.finfo(kind).min
    for value in (-torch.inf, -1e4, -1e9, lowest):
        mask = torch.zeros(6, 77)
        mask[0, ::2] = mask[1, :64] = mask[2, 1:] = mask[3, :-1] = mask[4, 5] = value
        yield f"masked with {value:g}", (x, mask.to(kind))
    mask = torch.zeros(6, 77).to(kind)
    mask[1] = -torch.inf
    yield "a row masked throughout with -inf", (x, mask)
    if dtype != "f16":
        # In f16 the lowest number is so near that the scores beside it matter, and f32 rounds them.
        mask[1] = lowest
        yield "a row masked throughout with the lowest number", (x, mask)
    distance = torch.arange(77).sub(torch.arange(6).unsqueeze(-1)).abs().mul(-0.5)
    yield "a bias that falls with the distance", (x, distance.to(kind))
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = x.clone()
        spoilt[1, 2, 76] = spoilt[0, 5, 3] = value
        yield f"{value} among the scores", (spoilt, mask)
    late = torch.randn(1, 2, 9000, generator=generator).to(kind)
    late[0, 0, 6000] = 800.0
    mask = torch.zeros(2, 9000)
    mask[0, :5000] = mask[1, 5000:] = -torch.inf
    yield "long rows", (late, mask.to(kind))


def op(tolerance: Callable[[Workload], Tolerance]) -> Op:
    """The Op for heads of 64 columns, with the tolerance of a softmax."""
    dtypes = ("f32", "bf16", "f16")
    return Op(
        name="masked_softmax",
        inputs=(Operand("x", _SCORES), Operand("mask", ("rows", "cols"))),
        outputs=(Operand("y", _SCORES),),
        reference=masked_softmax,
        # Those of a softmax, a product and a sum.
        flops=lambda sizes: 7.0 * sizes["heads"] * sizes["rows"] * sizes["cols"],
        workloads=workloads(
            "masked_softmax",
            [
                ({"heads": 12, "rows": 1024, "cols": 1024}, dtypes, {"GPT-2 b=1 s=1024": 12}),
                ({"heads": 12, "rows": 512, "cols": 512}, dtypes, {"BERT-base b=1 s=512": 12}),
                ({"heads": 3, "rows": 5, "cols": 7}, ("f32",), {}),
                ({"heads": 2, "rows": 4, "cols": 1000}, ("f32",), {}),
                ({"heads": 1, "rows": 3, "cols": 129}, ("f32",), {}),
            ],
        ),
        tolerance=tolerance,
        attributes=(("scale", 0.125),),
        samples=_samples,
        edge_cases=_edge_cases,
    )
