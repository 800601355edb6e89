"""What the Triton kernels of the row norms share: how a row is read, its statistics, and how it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfsuite.toolchain.triton import inlined

if TYPE_CHECKING:
    import triton.language as tl


@inlined
def loaded(
    x: tl.tensor, residual: tl.tensor, at: tl.tensor, mask: tl.tensor, added: tl.constexpr, eviction: tl.constexpr
) -> tl.tensor:
    """What is normalised, in f32: x, or x + residual."""
    v = tl.load(x + at, mask=mask, other=0.0, eviction_policy=eviction).to(tl.float32)
    if added:
        v += tl.load(residual + at, mask=mask, other=0.0, eviction_policy=eviction).to(tl.float32)
    return v


@inlined
def gained(v: tl.tensor, weight: tl.tensor, at: tl.tensor, cols: tl.constexpr, weighted: tl.constexpr) -> tl.tensor:
    if weighted:
        v *= tl.load(weight + at, mask=at < cols, other=0.0).to(tl.float32)
    return v


@inlined
def stepped(one: tl.tensor, two: tl.tensor, v: tl.tensor, mask: tl.tensor, turn: int) -> tuple[tl.tensor, tl.tensor]:
    """Each lane's running mean and squared deviation with its next element (Welford 1962), `turn` counted from 0.

    An infinite mean stays: the difference from it would be NaN.
    """
    gap = tl.where(mask, tl.where(tl.abs(one) < float("inf"), v - one, v), 0.0)
    one += gap * (1.0 / (turn + 1))
    two += tl.where(mask, gap * (v - one), 0.0)
    return one, two


@inlined
def merged(one: tl.tensor, two: tl.tensor, seen: tl.tensor, axis: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """(mean, sum of squared deviations) of lanes that have `seen` so many elements (Chan, Golub, LeVeque 1983)."""
    count = tl.maximum(tl.sum(seen, axis=axis, keep_dims=True), 1.0)
    mean = tl.sum(one * seen, axis=axis, keep_dims=True) / count
    return mean, tl.sum(two + seen * (one - mean) * (one - mean), axis=axis, keep_dims=True)


@inlined
def swept(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    h: tl.tensor,
    real: tl.tensor,
    begin: int,
    length: tl.constexpr,
    cols: tl.constexpr,
    statistic: tl.constexpr,
    added: tl.constexpr,
    weighted: tl.constexpr,
    quantised: tl.constexpr,
    block: tl.constexpr,
    height: tl.constexpr,
    stages: tl.constexpr,
    eviction: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Of `length` columns from `begin`: (mean, sum of squared deviations) for a variance, else (sum, sum of squares).

    For a variance each lane keeps its own, merged once at the end. The third is max |weight v|, which quantising needs.
    Of what no flag asks for, nothing is computed. `added` stores the sum to h.
    """
    col = tl.arange(0, block)[None, :]
    one = tl.zeros((height, block), tl.float32)
    two = tl.zeros((height, block), tl.float32)
    peak = tl.zeros((height, block), tl.float32)
    for start in tl.range(0, length, block, num_stages=stages):
        at = begin + start + col
        mask = real & (at < cols)
        v = loaded(x, residual, at, mask, added, eviction)
        if added:
            tl.store(h + at, v, mask=mask)
        if statistic == "variance":
            one, two = stepped(one, two, v, mask, start // block)
        else:
            one += v
            two += v * v
        if quantised:
            peak = tl.maximum(peak, tl.abs(gained(v, weight, at, cols, weighted)))
    if statistic == "variance":
        # How many elements of the row each lane has seen.
        seen = ((tl.minimum(tl.maximum(cols - begin, 0), length) - col + block - 1) // block).to(tl.float32)
        one, two = merged(one, two, seen, 1)
    else:
        one, two = tl.sum(one, axis=1, keep_dims=True), tl.sum(two, axis=1, keep_dims=True)
    return one, two, tl.max(peak, axis=1, keep_dims=True)


@inlined
def scale_of(
    one: tl.tensor, two: tl.tensor, eps: float, kappa: float, cols: tl.constexpr, statistic: tl.constexpr
) -> tl.tensor:
    """What the statistics of a row multiply it with; `two` is the sum of distances for `distance`."""
    if statistic == "distance":
        scale = 1.0 / (kappa * two / cols + eps)
    elif statistic == "compressed":
        scale = tl.rsqrt((two + one * one) / (cols + 1) + eps)
    else:
        scale = tl.rsqrt(two / cols + eps)
    return scale


@inlined
def step_of(two: tl.tensor, scale: tl.tensor, peak: tl.tensor) -> tl.tensor:
    """The step of int8 values of the row; NaN where the row has NaN or infinity."""
    return tl.where(two < float("inf"), tl.maximum(peak * scale / 127.0, 2.0**-23), float("nan"))


@inlined
def written(
    v: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    cols: tl.constexpr,
    scale: tl.tensor,
    step: tl.tensor,
    biased: tl.constexpr,
    weighted: tl.constexpr,
    quantised: tl.constexpr,
) -> None:
    """Store v, from which the mean is taken already, scaled."""
    v = gained(v * scale, weight, at, cols, weighted)
    if biased:
        v += tl.load(bias + at, mask=at < cols, other=0.0).to(tl.float32)
    if quantised:
        # 1.5 * 2^23 leaves no bit for a fraction: the sum is rounded half to even.
        v = tl.where(step == step, (v / step + 12582912.0) - 12582912.0, 0.0)
        tl.store(y + at, v.to(tl.int8), mask=mask)
    else:
        tl.store(y + at, v, mask=mask)
