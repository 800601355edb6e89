"""`torch.compile` on a GPU, as it is without options."""

from __future__ import annotations

from perfsuite.toolchain.inductor import gpu_kernel

from .inductor import FORMULAS

KERNEL = gpu_kernel(FORMULAS, {})
