"""Softmax and its logarithm over the last axis: what they are, and the problems they meet in real models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from perfsuite.op import ROUNDOFF, Op, Operand, Sizes, Tolerance, Workload, torch_dtype, workloads

from . import attention
from .losses import LOSSES
from .rows import awkward_rows

_Cases = Iterator[tuple[str, tuple[torch.Tensor, ...]]]
_MATRIX = ("rows", "cols")

_ALL = ("f32", "bf16", "f16")
# What may be lost at zero: results below the smallest normal number of f32 and bf16, which may be flushed to zero, and
# half a unit of the subnormal numbers of f16, which are many of its outputs.
_LOST = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-25}


def _softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def _log_softmax(x: torch.Tensor) -> torch.Tensor:
    return x.log_softmax(-1)


def _softmax_backward(y: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    return y * (dy - (y * dy).sum(-1, keepdim=True))


def _log_softmax_backward(y: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    return dy - y.exp() * dy.sum(-1, keepdim=True)


def _of_sums(workload: Workload) -> float:
    """The relative error of a sum of exponentials: 4e-6 for the roundings of x - max, a little for its length."""
    return 4e-6 + 4e-7 * math.log2(max(2, workload["cols"]))


def _of_rounding(workload: Workload) -> float:
    """Two units in the last place of a 16-bit output."""
    return 0.0 if workload.dtype == "f32" else 4.0 * ROUNDOFF[workload.dtype]


def _relative(workload: Workload) -> Tolerance:
    """Whatever the size of the output."""
    return Tolerance(_of_sums(workload) + _of_rounding(workload), absolute=2.0 * _LOST[workload.dtype])


def _logarithmic(workload: Workload) -> Tolerance:
    """The relative error of a sum is the absolute one of its logarithm."""
    error = _of_sums(workload)
    return Tolerance(error + _of_rounding(workload), absolute=error)


def _of_gradient(workload: Workload) -> Tolerance:
    """The sum over dy cancels: its error goes with the largest summands."""
    error = _of_sums(workload)
    return Tolerance(error + _of_rounding(workload), absolute=2.0 * _LOST[workload.dtype], of_peak=error)


def _edge_cases(dtype: str) -> _Cases:
    for description, rows in awkward_rows(dtype):
        yield description, (rows.to(torch_dtype(dtype)),)


def _finite_edge_cases(dtype: str) -> _Cases:
    """Without rows whose answer in float64 lies beyond the dtype."""
    for description, (x,) in _edge_cases(dtype):
        y = _log_softmax(x.double())
        if not (y.isfinite() & y.to(x.dtype).isinf()).any():
            yield description, (x,)


def _gradients(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[str], _Cases]:
    """Outputs of the forward with gradients: masked and spoilt rows, lengths of every kind."""

    def cases(dtype: str) -> _Cases:
        generator = torch.Generator().manual_seed(8)
        for description, x in awkward_rows(dtype):
            y = forward(x.double()).to(torch_dtype(dtype))
            dy = torch.randn(x.shape, generator=generator).to(y.dtype)
            if not (y.isinf() & x.isfinite()).any():
                yield description, (y, dy)
        y = forward(torch.randn(3, 100, generator=generator)).to(torch_dtype(dtype))
        for value in (torch.nan, torch.inf):
            dy = torch.randn(y.shape, generator=generator).to(y.dtype)
            dy[0, 0] = dy[1, 99] = value
            yield f"{value} in dy", (y, dy)

    return cases


def _gradient_samples(
    forward: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[Workload, torch.Generator], tuple[torch.Tensor, ...]]:
    def samples(workload: Workload, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        shape, dtype = (workload["rows"], workload["cols"]), torch_dtype(workload.dtype)
        y = forward(torch.randn(shape, generator=generator))
        return y.to(dtype), torch.randn(shape, generator=generator).to(dtype)

    return samples


def _per_element(count: int) -> Callable[[Sizes], float]:
    return lambda sizes: float(count * sizes["rows"] * sizes["cols"])


_Rows = list[tuple[dict[str, int], tuple[str, ...], dict[str, int]]]


def _tests(dtypes: tuple[str, ...], *sizes: tuple[int, int]) -> _Rows:
    return [({"rows": rows, "cols": cols}, dtypes, {}) for rows, cols in sizes]


_ATTENTION: _Rows = [
    ({"rows": 8 * 12 * 128, "cols": 128}, _ALL, {"BERT-base b=8 s=128": 12}),
    ({"rows": 12 * 1024, "cols": 1024}, _ALL, {"GPT-2 b=1 s=1024": 12}),
    ({"rows": 8 * 12 * 197, "cols": 197}, _ALL, {"ViT-B/16 b=8": 12}),
]
_CLASSES: _Rows = [
    ({"rows": 64, "cols": 1000}, _ALL, {"ResNet-50 b=64": 1}),
    ({"rows": 64, "cols": 50257}, _ALL, {"GPT-2 b=1 s=64": 1}),
    ({"rows": 16, "cols": 128256}, _ALL, {"Llama-3-8B b=16": 1}),
]
_X, _Y, _DY, _DX = (Operand(name, _MATRIX) for name in ("x", "y", "dy", "dx"))
# Every data flow is tested in every dtype by softmax; the others have in 16 bits what is their own.
_FEW = (*_tests(("f32",), (3, 7), (2, 129), (4, 1000), (3, 1)),)

SOFTMAX = Op(
    name="softmax",
    inputs=(_X,),
    outputs=(_Y,),
    reference=_softmax,
    # A subtraction, an exponential, a sum and a product, and the comparison for the maximum.
    flops=_per_element(5),
    workloads=workloads(
        "softmax",
        [
            *_ATTENTION,
            *_CLASSES,
            *_tests(_ALL, (3, 7), (5, 64), (2, 129), (4, 1000), (1, 4097), (3, 1), (1, 70001)),
        ],
    ),
    tolerance=_relative,
    edge_cases=_edge_cases,
    backward="softmax_backward",
    saves=("y",),
)
LOG_SOFTMAX = Op(
    name="log_softmax",
    inputs=(_X,),
    outputs=(_Y,),
    reference=_log_softmax,
    flops=_per_element(5),
    workloads=workloads("log_softmax", [*_CLASSES, *_FEW]),
    tolerance=_logarithmic,
    edge_cases=_finite_edge_cases,
    backward="log_softmax_backward",
    saves=("y",),
)
SOFTMAX_BACKWARD = Op(
    name="softmax_backward",
    inputs=(_Y, _DY),
    outputs=(_DX,),
    reference=_softmax_backward,
    flops=_per_element(4),
    workloads=workloads("softmax_backward", [*_ATTENTION, *_FEW, *_tests(("bf16",), (3, 77))]),
    tolerance=_of_gradient,
    samples=_gradient_samples(_softmax),
    edge_cases=_gradients(_softmax),
)
LOG_SOFTMAX_BACKWARD = Op(
    name="log_softmax_backward",
    inputs=(_Y, _DY),
    outputs=(_DX,),
    reference=_log_softmax_backward,
    flops=_per_element(4),
    workloads=workloads("log_softmax_backward", [*_CLASSES, *_FEW, *_tests(("bf16",), (3, 77))]),
    tolerance=_of_gradient,
    samples=_gradient_samples(_log_softmax),
    edge_cases=_gradients(_log_softmax),
)

OPS: tuple[Op, ...] = (
    SOFTMAX,
    LOG_SOFTMAX,
    SOFTMAX_BACKWARD,
    LOG_SOFTMAX_BACKWARD,
    *attention.ops(_relative, _of_gradient),
    *LOSSES,
)
