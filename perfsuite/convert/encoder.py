"""The main branch of torch.nn.TransformerEncoder."""

from __future__ import annotations

from typing import cast

from torch import nn

from perfsuite.convert.layers import SelfAttention
from perfsuite.convert.trunk import Norm, Trunk


def trunk(module: nn.Module) -> Trunk:
    """Read the branch, and give each layer an attention that need not be as wide as its input."""
    encoder = cast(nn.TransformerEncoder, module)
    if encoder.norm is None:
        raise ValueError(
            "this TransformerEncoder has no final norm, so that the mean of its main branch is part of its output: "
            "only one with norm=nn.LayerNorm(d_model) is converted"
        )
    norms, writers, dropouts = [], [], []
    for layer in encoder.layers:
        if not isinstance(layer, nn.TransformerEncoderLayer):
            raise ValueError(f"a TransformerEncoder of {type(layer).__name__} is not known here")
        if not layer.norm_first:
            raise ValueError(
                "this TransformerEncoder is Post-LN: its norms lie on the main branch. Only a Pre-LN one "
                "(norm_first=True) has an equal one with RMSNorm"
            )
        if isinstance(layer.self_attn, nn.MultiheadAttention):
            layer.self_attn = SelfAttention(layer.self_attn)  # type: ignore[assignment]
        attention = cast(SelfAttention, layer.self_attn)
        norms += [Norm(layer, "norm1", (attention.in_proj,)), Norm(layer, "norm2", (layer.linear1,))]
        writers += [attention.out_proj, layer.linear2]
        dropouts += [layer.dropout1, layer.dropout2]
    final = Norm(encoder, "norm")
    return Trunk(
        module=encoder,
        width=final.layer.normalized_shape[-1],
        norms=(*norms, final),
        writers=tuple(writers),
        tables=(),
        dropouts=tuple(dropouts),
        open_input="src",
    )
