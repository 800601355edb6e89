"""The layers of converted models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor


class _Affine(nn.Module):
    """y = gain * x + offset, where there are a gain and an offset: copies of what is given."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, gain: Tensor | None = None, offset: Tensor | None = None) -> None:
        super().__init__()
        for name, given in (("weight", gain), ("bias", offset)):
            made = None if given is None else nn.Parameter(given.detach().clone(), requires_grad=given.requires_grad)
            self.register_parameter(name, made)

    def _scaled(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x if self.weight is None else x * self.weight
        return x + self.bias if self.weight is None else torch.addcmul(self.bias, x, self.weight)


class RMSNorm(_Affine):
    """gain * x / sqrt(mean(x^2) + eps) + offset over the last dimension, of `width` elements."""

    def __init__(self, width: int, eps: float, gain: Tensor | None = None, offset: Tensor | None = None) -> None:
        super().__init__(gain, offset)
        self.width, self.eps = width, eps

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        return self._scaled(F.rms_norm(x, (self.width,), None, self.eps))


class CRMSNorm(nn.Module):
    """RMSNorm of rows of `width` elements and mean zero, without their last one, before and after: [..., width - 1]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        squares = x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()
        return x * torch.rsqrt(squares / self.width + self.eps)


class Whole(_Affine):
    """gain * x + offset of rows of mean zero that come without their last element, and go with it."""

    def forward(self, x: Tensor) -> Tensor:
        return self._scaled(torch.cat((x, -x.sum(-1, keepdim=True)), -1))


class SelfAttention(nn.Module):
    """What nn.TransformerEncoderLayer asks of nn.MultiheadAttention, whose input may have any width.

    It takes the weights of `attention`, its heads, dropout and `batch_first`.
    """

    # Tells nn.TransformerEncoderLayer that this is nothing for its fused path, which computes LayerNorms.
    in_proj_bias = None

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.batch_first = attention.num_heads, attention.dropout, attention.batch_first
        assert attention.in_proj_weight is not None, "an encoder's layer has one input"
        self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attention of a sequence to itself, [length, width] or a batch of these; masks are added to the scores."""
        batch_first = self.batch_first or query.dim() == 2
        x = self.in_proj(query if batch_first else query.transpose(0, 1))
        # [..., heads, length, width of a head]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for part in x.chunk(3, -1))
        mask = attn_mask
        if mask is not None and mask.dim() == 3:  # one for each sequence and head
            mask = mask.view(*q.shape[:-2], *mask.shape[-2:])
        if key_padding_mask is not None:
            padding = key_padding_mask[..., None, None, :]
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal and mask is None)
        y = self.out_proj(y.transpose(-3, -2).flatten(-2))
        return (y if batch_first else y.transpose(0, 1)), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with these parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer
