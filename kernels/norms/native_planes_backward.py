"""Gradients of norms of NCHW images in C++, as native_planes goes over them (planes_backward.cpp).

The parameters' gradients have the same bits for any number of threads.
"""

from __future__ import annotations

from .channels import DataFlow

FLOW = DataFlow(
    "planes_backward.cpp",
    ("batch_norm_backward", "batch_norm_inference_backward", "group_norm_backward", "instance_norm_backward"),
    inputs=5,
    outputs=3,
    tile={"VECTORS": 4},
)

KERNEL = FLOW.kernel()
