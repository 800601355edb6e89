"""`torch.compile` on a GPU in its mode max-autotune."""

from __future__ import annotations

from perfsuite.toolchain.inductor import MAX_AUTOTUNE, gpu_kernel

from .inductor import FORMULAS

KERNEL = gpu_kernel(FORMULAS, MAX_AUTOTUNE)
