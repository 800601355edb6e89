"""Softmax of attention scores, scaled and with an additive mask that all heads share, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from perfsuite.op import Op, Operand, Tolerance, Workload, torch_dtype, workloads

_SCORES = ("heads", "rows", "cols")
_SCALE = 0.125
_Of = Callable[[Workload], Tolerance]


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


def masked_softmax_backward(y: torch.Tensor, dy: torch.Tensor, scale: float) -> torch.Tensor:
    """The gradient of x: scale y (dy - sum dy y). The mask is constant, and y says all that it did."""
    return scale * y * (dy - (y * dy).sum(-1, keepdim=True))


def _saved(inputs: tuple[torch.Tensor, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The output of the forward, and a gradient of it."""
    x, mask = inputs
    y = masked_softmax(x.double(), mask.double(), _SCALE).to(x.dtype)
    return y, torch.randn(y.shape, generator=generator).to(y.dtype)


def _backward_samples(workload: Workload, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return _saved(_samples(workload, generator), generator)


def _backward_cases(dtype: str) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    generator = torch.Generator().manual_seed(12)
    for description, inputs in _edge_cases(dtype):
        yield description, _saved(inputs, generator)


def _problems(name: str, how: str) -> tuple[Workload, ...]:
    """Those of the forward and of the backward, whose models run as `how` says."""
    every = ("f32", "bf16", "f16")
    return workloads(
        name,
        [
            ({"heads": 12, "rows": 1024, "cols": 1024}, every, {f"GPT-2{how} b=1 s=1024": 12}),
            ({"heads": 12, "rows": 512, "cols": 512}, every, {f"BERT-base{how} b=1 s=512": 12}),
            ({"heads": 3, "rows": 5, "cols": 7}, ("f32",), {}),
            ({"heads": 2, "rows": 4, "cols": 1000}, ("f32",), {}),
            ({"heads": 1, "rows": 3, "cols": 129}, ("f32", "bf16"), {}),
        ],
    )


def ops(of_output: _Of, of_gradient: _Of) -> tuple[Op, Op]:
    """The op and its backward for heads of 64 columns, with the tolerances of those of softmax."""
    forward = Op(
        name="masked_softmax",
        inputs=(Operand("x", _SCORES), Operand("mask", ("rows", "cols"))),
        outputs=(Operand("y", _SCORES),),
        reference=masked_softmax,
        # Those of a softmax, a product and a sum.
        flops=lambda sizes: 7.0 * sizes["heads"] * sizes["rows"] * sizes["cols"],
        workloads=_problems("masked_softmax", ""),
        tolerance=of_output,
        attributes=(("scale", _SCALE),),
        samples=_samples,
        edge_cases=_edge_cases,
        backward="masked_softmax_backward",
        saves=("y",),
    )
    backward = Op(
        name="masked_softmax_backward",
        inputs=(Operand("y", _SCORES), Operand("dy", _SCORES)),
        outputs=(Operand("dx", _SCORES),),
        reference=masked_softmax_backward,
        flops=lambda sizes: 5.0 * sizes["heads"] * sizes["rows"] * sizes["cols"],
        workloads=_problems("masked_softmax_backward", " training"),
        tolerance=of_gradient,
        attributes=(("scale", _SCALE),),
        samples=_backward_samples,
        edge_cases=_backward_cases,
    )
    return forward, backward
