"""Norms of NHWC images in C++: sums of columns, merged to statistics, and the same rows once more (columns.cpp)."""

from __future__ import annotations

from .channels import DataFlow

FLOW = DataFlow(
    "columns.cpp",
    ("batch_norm_nhwc", "batch_norm_inference_nhwc", "group_norm_nhwc", "instance_norm_nhwc"),
    inputs=5,
    outputs=5,
    tile={"VECTORS": 1, "ROWS": 8},
    channels_last=True,
)

KERNEL = FLOW.kernel()
