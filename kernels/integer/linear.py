"""The int8 linear layer composed of PyTorch's own functions, and where these can be trusted."""

from __future__ import annotations

import torch

from perfsuite.machine import Machine
from perfsuite.op import Workload


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The int8 rows of x[m, k] and their scales [m, 1] in f32: absmax/127, round half to even, scale 0 for zeros.

    The op is defined by the two roundings that this takes in f32: of 127/absmax, and of its product with x. IEEE 754
    fixes both, so every kernel reaches the very same integers, even where x lies next to the middle of two: computed
    in float64, 2 in 10^6 values of N(0,1) rows would be rounded to the other side. absmax must be finite, and 0 or at
    least 1e-36: below, its inverse overflows.
    """
    x = x.float()
    absmax = x.abs().amax(-1, keepdim=True)
    # 127.0 / absmax would be a reciprocal and a product, which round twice.
    inverse = torch.where(absmax > 0.0, torch.full_like(absmax, 127.0) / absmax, 0.0)
    return (x * inverse).round().to(torch.int8), absmax / 127.0


def int8_linear(x: torch.Tensor, weight: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
    q, scale = quantise(x)
    product: torch.Tensor = torch._int_mm(q, weight.t())
    return (product.float() * scale * w_scale).to(x.dtype)


def supports(workload: Workload, machine: Machine) -> str | None:
    if {"avx512_vnni", "amx_int8"} & set(machine.isa):
        return None
    return "needs AVX-512 VNNI or AMX int8: without them oneDNN's int8 products may saturate in 16 bits"
