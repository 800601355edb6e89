"""Cross-entropy of logits with integer labels, with and without label smoothing and z-loss, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from perfsuite.op import ROUNDOFF, Op, Operand, Scalar, Tolerance, Workload, torch_dtype, workloads

_Tensors = tuple[torch.Tensor, ...]
_Cases = Iterator[tuple[str, _Tensors]]
_IGNORED = -100
# Smoothing as in Szegedy et al. 2016 (arXiv 1512.00567) and the Transformer, z-loss as in PaLM (arXiv 2204.02311).
_PLAIN: Mapping[str, Scalar] = {"ignore_index": _IGNORED, "label_smoothing": 0.0, "z_loss": 0.0}
_SMOOTHED: Mapping[str, Scalar] = {"ignore_index": _IGNORED, "label_smoothing": 0.1, "z_loss": 1e-4}
_LOGITS, _DLOGITS = (Operand(name, ("rows", "cols")) for name in ("logits", "dlogits"))
_LABELS = Operand("labels", ("rows",), dtype="i64")
_LSE = Operand("lse", ("rows",), dtype="f32")
_LOSS, _DLOSS = (Operand(name, (), dtype="f32") for name in ("loss", "dloss"))


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, lse): lse[rows] = ln sum e^x; the loss is the mean over the rows whose label is not ignore_index.

    With c the label and s the smoothing a row's loss is lse - (1 - s) x_c - s mean(x) + z_loss lse^2. The lse of a
    row that is ignored is 0, and its logits count for nothing. Without any other row the loss is NaN, and so are loss
    and lse with NaN, +inf or nothing but -inf in a row, as in PyTorch's cross_entropy.
    """
    kept = labels != ignore_index
    lse = logits.logsumexp(-1)
    lse = torch.where(lse.isinf(), torch.nan, lse)
    row = lse - (1.0 - label_smoothing) * logits.gather(-1, torch.where(kept, labels, 0).unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        row = row - label_smoothing * logits.mean(-1)
    if z_loss:
        row = row + z_loss * lse.square()
    return torch.where(kept, row, 0.0).sum() / kept.sum(), torch.where(kept, lse, 0.0)


def cross_entropy_backward(
    logits: torch.Tensor,
    labels: torch.Tensor,
    lse: torch.Tensor,
    dloss: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> torch.Tensor:
    """w ((1 + 2 z_loss lse) e^(x - lse) - s / cols - (1 - s) [c]), with w = dloss / the number of rows that count; 0
    in the others."""
    kept, cols = (labels != ignore_index).unsqueeze(-1), logits.shape[-1]
    lse = lse.unsqueeze(-1)
    label = torch.arange(cols, device=labels.device) == labels.unsqueeze(-1)
    gradient = (1.0 + 2.0 * z_loss * lse) * (logits - lse).exp() - label_smoothing / cols
    gradient = torch.where(label, gradient - (1.0 - label_smoothing), gradient)
    return torch.where(kept, gradient * (dloss / kept.sum()), 0.0)


def _error(workload: Workload) -> float:
    """Of a sum of exponentials: 4e-6 for the roundings of x - max, a little for its length."""
    return 4e-6 + 4e-7 * math.log2(max(2, workload["cols"]))


def _of_loss(workload: Workload) -> Tolerance:
    """The relative error of a sum is the absolute one of its logarithm; the outputs are f32 for all logits."""
    return Tolerance(_error(workload), absolute=_error(workload))


def _of_gradient(workload: Workload) -> Tolerance:
    """Relative where smoothing takes nothing away; what it takes is of the size of the peak or below."""
    rounding = 0.0 if workload.dtype == "f32" else 4.0 * ROUNDOFF[workload.dtype]
    return Tolerance(_error(workload) + rounding, absolute=2.0**-24 if workload.dtype == "f16" else 1e-37, of_peak=1e-6)


def _sample(rows: int, cols: int, dtype: str, generator: torch.Generator) -> _Tensors:
    """Logits, and labels of which about one in eight is ignored."""
    logits = torch.randn(rows, cols, generator=generator).mul(2.0).to(torch_dtype(dtype))
    labels = torch.randint(0, cols, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.125] = _IGNORED
    labels[:1] = cols - 1
    return logits, labels


def _saved(logits: torch.Tensor, labels: torch.Tensor) -> _Tensors:
    """What the backward pass gets after these."""
    return logits, labels, logits.double().logsumexp(-1).float(), torch.tensor(0.75)


def _samples(workload: Workload, generator: torch.Generator) -> _Tensors:
    return _sample(workload["rows"], workload["cols"], workload.dtype, generator)


def _backward_samples(workload: Workload, generator: torch.Generator) -> _Tensors:
    return _saved(*_samples(workload, generator))


def _cases(dtype: str) -> _Cases:
    """Lengths and rows that leave every answer finite and no gradient a mere rounding, as that of one column is."""
    generator = torch.Generator().manual_seed(9)
    for cols in (2, 15, 16, 17, 31, 33, 64, 65, 129):
        yield f"{cols} columns", _sample(3, cols, dtype, generator)
    logits, labels = _sample(6, 100, dtype, generator)
    labels[:] = torch.tensor([0, 99, 5, _IGNORED, 15, 16])
    yield "first and last label", (logits, labels)
    spoilt = logits.clone()
    spoilt[3] = torch.nan
    yield "NaN in an ignored row", (spoilt, labels)
    masked = logits.clone()
    masked[:, 20:60] = -1e4
    yield "masked with -1e4", (masked, labels)
    yield "growing along the row", (torch.linspace(-300, 300, 100).repeat(6, 1).to(logits.dtype), labels)
    long, label = _sample(2, 9000, dtype, generator)
    long[0, :4500], long[1, 6000] = -1e4, 80.0
    yield "a maximum that comes late", (long, label)


def _edge_cases(smoothed: bool) -> Callable[[str], _Cases]:
    def cases(dtype: str) -> _Cases:
        yield from _cases(dtype)
        generator = torch.Generator().manual_seed(10)
        yield "one column", _sample(3, 1, dtype, generator)
        logits, labels = _sample(4, 70, dtype, generator)
        yield "every row ignored", (logits, torch.full_like(labels, _IGNORED))
        yield "no rows", (logits[:0], labels[:0])
        labels[:] = torch.arange(4)
        for value in (torch.nan, torch.inf):
            spoilt = logits.clone()
            spoilt[1, 69] = value
            yield f"{value} in a row", (spoilt, labels)
        if not smoothed:
            masked = logits.clone()
            masked[:, 40:] = -torch.inf
            yield "masked with -inf", (masked, labels)
            masked[2] = -torch.inf
            yield "nothing but -inf", (masked, labels)

    return cases


def _backward_cases(dtype: str) -> _Cases:
    for description, (logits, labels) in _cases(dtype):
        yield description, _saved(logits, labels)


_Rows = list[tuple[dict[str, int], tuple[str, ...], dict[str, int]]]


def _ops(name: str, attributes: Mapping[str, Scalar]) -> tuple[Op, Op]:
    """The loss and its gradient."""
    smoothed = bool(attributes["label_smoothing"])
    # Labels are smoothed in classification; language models take the logits of some hundred rows at a time.
    models: _Rows = [({"rows": 64, "cols": 1000}, ("f32", "bf16"), {"ResNet-50 training b=64": 1})]
    if not smoothed:
        models.append(({"rows": 256, "cols": 50257}, ("f32", "bf16"), {"GPT-2 b=1 s=256": 1}))
        models.append(({"rows": 128, "cols": 128256}, ("bf16",), {"Llama-3-8B s=128": 1}))
    tests: _Rows = [
        ({"rows": 3, "cols": 7}, ("f32",), {}),
        ({"rows": 9, "cols": 1000}, ("f32",), {}),
        ({"rows": 4, "cols": 130}, ("bf16",), {}),
    ]
    forward = Op(
        name=name,
        inputs=(_LOGITS, _LABELS),
        outputs=(_LOSS, _LSE),
        reference=cross_entropy,
        flops=lambda sizes: 4.0 * sizes["rows"] * sizes["cols"],
        workloads=workloads(name, [*models, *tests]),
        tolerance=_of_loss,
        attributes=tuple(attributes.items()),
        samples=_samples,
        edge_cases=_edge_cases(smoothed),
        backward=f"{name}_backward",
        saves=("logits", "labels", "lse"),
    )
    backward = Op(
        name=f"{name}_backward",
        inputs=(_LOGITS, _LABELS, _LSE, _DLOSS),
        outputs=(_DLOGITS,),
        reference=cross_entropy_backward,
        flops=lambda sizes: 3.0 * sizes["rows"] * sizes["cols"],
        workloads=workloads(f"{name}_backward", [*models, *tests]),
        tolerance=_of_gradient,
        attributes=tuple(attributes.items()),
        samples=_backward_samples,
        edge_cases=_backward_cases,
    )
    return forward, backward


LOSSES = (*_ops("cross_entropy", _PLAIN), *_ops("cross_entropy_smoothed", _SMOOTHED))
