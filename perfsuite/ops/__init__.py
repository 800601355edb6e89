"""The ops as functions: the fastest kernel that is known for these shapes on this machine, or eager where none is.

All run without gradients. `out` takes tensors to write into.
"""

from __future__ import annotations

from perfsuite.ops.image_norms import (
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    batch_norm_inference_backward,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
)
from perfsuite.ops.integer import int8_linear
from perfsuite.ops.row_norm_gradients import (
    add_layer_norm_backward,
    add_rms_norm_backward,
    crms_norm_backward,
    l1_norm_backward,
    layer_norm_backward,
    rms_norm_backward,
    scaled_layer_norm_backward,
    simple_rms_norm_backward,
    time_layer_norm_backward,
)
from perfsuite.ops.row_norms import (
    add_layer_norm,
    add_rms_norm,
    crms_norm,
    l1_norm,
    layer_norm,
    rms_norm,
    rms_norm_fp8,
    rms_norm_int8,
    scaled_layer_norm,
    simple_rms_norm,
    time_layer_norm,
)
from perfsuite.ops.softmax import (
    cross_entropy,
    cross_entropy_backward,
    log_softmax,
    masked_softmax,
    masked_softmax_backward,
    softmax,
)

__all__ = [
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "crms_norm",
    "crms_norm_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "int8_linear",
    "l1_norm",
    "l1_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "log_softmax",
    "masked_softmax",
    "masked_softmax_backward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_fp8",
    "rms_norm_int8",
    "scaled_layer_norm",
    "scaled_layer_norm_backward",
    "simple_rms_norm",
    "simple_rms_norm_backward",
    "softmax",
    "time_layer_norm",
    "time_layer_norm_backward",
]
