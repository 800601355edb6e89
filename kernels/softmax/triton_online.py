"""The maximum of a row and its sum of exponentials in one pass, in Triton: what softmax and cross-entropy share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfsuite.toolchain.triton import inlined

if TYPE_CHECKING:
    import triton.language as tl


@inlined
def added(v: tl.tensor, peak: tl.tensor, total: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """(peak, total) with v, for each lane on its own, so that no block waits for a reduction over its warps.

    Online maximum and sum: Milakov and Gimelshein 2018. Of exp(peak - new) and exp(v - new) one is always exp(0), which
    leaves one exponential for an element instead of two.
    """
    # -inf against -inf: the difference is NaN, the ratio 1. Such a lane weighs nothing beside a finite one.
    ratio = tl.where(v == peak, 1.0, tl.exp(-tl.abs(v - peak)))
    return tl.maximum(peak, v), tl.where(v > peak, total * ratio + 1.0, total + ratio)


@inlined
def merged(peak: tl.tensor, total: tl.tensor, axis: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """(top, sum of e^(v - top)) of the lanes along an axis; the sum is 0 where there is nothing but -inf."""
    top = tl.max(peak, axis=axis, keep_dims=True)
    weight = tl.where(peak == float("-inf"), 0.0, tl.exp(peak - top))
    return top, tl.sum(total * weight, axis=axis, keep_dims=True)
