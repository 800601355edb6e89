"""An answer against the float64 reference: why it is wrong, or None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perfsuite.op import Op, Tolerance, Workload, torch_dtype

if TYPE_CHECKING:
    import torch


def wrong(op: Op, workload: Workload, answer: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str | None:
    """Why `answer` is not `expected` (float64) within the op's tolerance; None if it is.

    NaN must be met by NaN and infinity by the same infinity.
    """
    if len(answer) != len(op.outputs):
        return f"returned {len(answer)} tensors, {op.name} has {len(op.outputs)} outputs"
    tolerance = op.tolerance(workload)
    for operand, got, want in zip(op.outputs, answer, expected):
        if tuple(got.shape) != op.shape(operand, workload):
            return f"{operand.name} has shape {tuple(got.shape)}, expected {op.shape(operand, workload)}"
        if got.dtype != torch_dtype(op.dtype(operand, workload)):
            return f"{operand.name} has dtype {got.dtype}, expected {op.dtype(operand, workload)}"
        reason = _differs(got, want, tolerance)
        if reason is not None:
            return f"{operand.name} {reason}"
    return None


def _differs(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> str | None:
    import torch

    got, want = got.double(), want.double()
    error = (got - want).abs_()
    bound = want.abs().mul_(tolerance.relative).add_(tolerance.absolute)
    if tolerance.of_peak and want.numel():
        bound += tolerance.of_peak * torch.nan_to_num(want, nan=0.0, posinf=0.0, neginf=0.0).abs().max()
    same = (got == want) | (got.isnan() & want.isnan())
    bad = ~(same | (error <= bound))
    count = int(bad.sum())
    if count == 0:
        return None
    # The worst place is where the error is the largest multiple of its bound; a NaN is worse than any number.
    worst = int(torch.where(bad, torch.nan_to_num(error / bound, nan=torch.inf, posinf=torch.inf), -1.0).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape))
    have, wish = float(got.flatten()[worst]), float(want.flatten()[worst])
    place = f"[{','.join(map(str, index))}]"
    return (
        f"is wrong at {count} of {want.numel()} places, worst at {place}: {have:.9g} instead of {wish:.9g} "
        f"(allowed: {float(bound.flatten()[worst]):.2g} off)"
    )
