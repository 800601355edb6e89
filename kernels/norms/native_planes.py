"""Norms of NCHW images in C++: a channel or a group of channels at a time, read once where L2 holds it (planes.cpp)."""

from __future__ import annotations

from .channels import DataFlow

FLOW = DataFlow(
    "planes.cpp",
    ("batch_norm", "batch_norm_inference", "group_norm", "instance_norm"),
    inputs=5,
    outputs=5,
    tile={"VECTORS": 4},
)

KERNEL = FLOW.kernel()
