"""Two passes over the rows of y and dy: the sum, then dx. 2 reads, 1 write where both rows stay in the cache."""

from __future__ import annotations

from . import native

KERNEL = native.Algorithm(
    "Backward",
    ("softmax_backward", "masked_softmax_backward", "log_softmax_backward"),
    ("stream",),
    aligned_rows=tuple(native.ELEMENTS),
).kernel()
