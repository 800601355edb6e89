"""Pre-LN transformers to Pre-RMSNorm and Pre-CRMSNorm ones that compute the same.

After "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers" (Jiang et al. 2023,
arXiv 2305.14858). In a Pre-LN transformer the main branch is read through LayerNorms only, which ignore a row's mean.
So the mean can be taken out of all that is added to the branch, once and in the weights, and RMSNorm does what
LayerNorm did. A row of mean zero is known from all elements but its last: CRMSNorm computes the same from d - 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import nn

from perfsuite.convert import encoder, huggingface
from perfsuite.convert.layers import CRMSNorm, RMSNorm
from perfsuite.convert.trunk import Trunk

__all__ = ["CRMSNorm", "RMSNorm", "pre_ln_to_crms", "pre_ln_to_rms"]

Model = TypeVar("Model", bound=nn.Module)
# A class that is or holds a main branch, by its name (no framework is imported to know it), and what reads it.
_READERS: dict[str, Callable[[nn.Module], Trunk]] = {
    "torch.nn.modules.transformer.TransformerEncoder": encoder.trunk,
    "transformers.models.gpt2.modeling_gpt2.GPT2Model": huggingface.gpt2,
    "transformers.models.vit.modeling_vit.ViTModel": huggingface.vit,
}


def pre_ln_to_rms(model: Model) -> Model:
    """A copy of `model` with RMSNorm in the place of every LayerNorm of its main branches, equal up to rounding.

    `model` is or holds, at any depth, an `nn.TransformerEncoder` of `norm_first=True` and with a final norm, or a
    GPT2Model or ViTModel of transformers. Inputs and outputs keep their shapes and dtypes; hidden states between the
    layers lose their mean. Weights that a branch shares with others, as GPT-2's embedding with its head, are shared no
    more. Weights are folded in float64 and rounded once.

    Trained on, it is a Pre-RMSNorm transformer and no longer equal to a Pre-LN one: neither gradient steps nor dropout
    on the branch keep its mean at zero.

    Raises ValueError, with the remedy where there is one, for a model without such a branch, with Post-LN layers,
    without a final norm, with dropout on the branch in training mode, or with a layer that occurs twice.
    """
    return _converted(model, Trunk.to_rms)


def pre_ln_to_crms(model: Model) -> Model:
    """A copy of `model` with CRMSNorm in the place of every LayerNorm, and main branches one element narrower.

    Takes, promises and raises what `pre_ln_to_rms` does.
    """
    return _converted(model, Trunk.to_crms)


def _converted(model: Model, convert: Callable[[Trunk], None]) -> Model:
    made = copy.deepcopy(model)
    trunks = list(_trunks(made))
    if not trunks:
        known = ", ".join(name.rpartition(".")[2] for name in _READERS)
        raise ValueError(f"{type(model).__name__} has no main branch that is known here ({known})")
    for trunk in trunks:
        trunk.refuse_what_is_not_equal(model.training)
    for trunk in trunks:
        convert(trunk)
    return made


def _trunks(model: nn.Module) -> Iterator[Trunk]:
    for module in model.modules():
        for base in type(module).__mro__:
            reader = _READERS.get(f"{base.__module__}.{base.__qualname__}")
            if reader is not None:
                yield reader(module)
                break
