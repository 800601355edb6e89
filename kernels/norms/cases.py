"""Rows on which careless row norms fail."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def hard_rows(dtype: str) -> Iterator[tuple[str, torch.Tensor, float]]:
    """(description, x[5, 100], size of the weights) of every kind.

    Small weights turn the op's tolerance into one of the normalised row that its conditioning allows: a mean near 1e4
    that is off by two f32 ulps moves x - mean by 2e-3, whereas E[x^2] - E[x]^2 in f32 loses all of the variance.
    """
    noise = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    offset = 1e4 if dtype == "f32" else 1e2
    yield f"offset {offset:.0e} + N(0,1)", noise + offset, 1e-3
    yield "scale 1e-20", noise * 1e-20, 1.0
    yield "constant rows", torch.arange(-2.0, 3.0).mul(3.0).unsqueeze(1).expand(5, 100).contiguous(), 1e-2
    yield "zeros", torch.zeros(5, 100), 1.0
    for place in (0, 77, 99):
        outlier = noise.clone()
        outlier[:, place] = 1e4
        yield f"outlier 1e4 at {place}", outlier, 1.0
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in (3, 98):
            special = noise.clone()
            special[2, place] = value
            yield f"{value} in one row at {place}", special, 1.0
