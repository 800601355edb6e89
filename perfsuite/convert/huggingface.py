"""The main branches of models of Hugging Face transformers (written for its version 5.23)."""

from __future__ import annotations

from typing import Any

from perfsuite.convert.trunk import Norm, Trunk


def gpt2(model: Any) -> Trunk:
    """A GPT2Model; the head's copy of the embedding stays as it is."""
    if model.config.add_cross_attention:
        raise ValueError("GPT-2 with cross-attention is not known here: set config.add_cross_attention to False")
    model.config.tie_word_embeddings = False  # its rows lose their means, those of the head keep them
    norms, writers, dropouts = [], [], [model.drop]
    for block in model.h:
        norms += [Norm(block, "ln_1", (block.attn.c_attn,)), Norm(block, "ln_2", (block.mlp.c_fc,))]
        writers += [block.attn.c_proj, block.mlp.c_proj]
        dropouts += [block.attn.resid_dropout, block.mlp.dropout]
    return Trunk(
        module=model,
        width=model.config.hidden_size,
        norms=(*norms, Norm(model, "ln_f")),
        writers=tuple(writers),
        tables=((model.wte, "weight"), (model.wpe, "weight")),
        dropouts=tuple(dropouts),
        shaped_like_branch=True,
    )


def vit(model: Any) -> Trunk:
    """A ViTModel, with or without a pooler."""
    embeddings = model.embeddings
    norms, writers, dropouts = [], [embeddings.patch_embeddings.projection], [embeddings.dropout]
    for layer in model.layers:
        attention = layer.attention
        norms += [
            Norm(layer, "layernorm_before", (attention.q_proj, attention.k_proj, attention.v_proj)),
            Norm(layer, "layernorm_after", (layer.mlp.fc1,)),
        ]
        writers += [attention.o_proj, layer.mlp.fc2]
        dropouts.append(layer.dropout)
    names = ["cls_token", "position_embeddings", *(["mask_token"] if embeddings.mask_token is not None else [])]
    return Trunk(
        module=model,
        width=model.config.hidden_size,
        norms=(*norms, Norm(model, "layernorm")),
        writers=tuple(writers),
        tables=tuple((embeddings, name) for name in names),
        dropouts=tuple(dropouts),
    )
