"""Gradients of norms of NHWC images in C++, as native_columns goes over them (columns_backward.cpp).

The parameters' gradients have the same bits for any number of threads.
"""

from __future__ import annotations

from .channels import DataFlow

FLOW = DataFlow(
    "columns_backward.cpp",
    (
        "batch_norm_backward_nhwc",
        "batch_norm_inference_backward_nhwc",
        "group_norm_backward_nhwc",
        "instance_norm_backward_nhwc",
    ),
    inputs=5,
    outputs=3,
    tile={"VECTORS": 1, "ROWS": 8},
    channels_last=True,
)

KERNEL = FLOW.kernel()
