"""Linear layers seen as y = A x + b, and what the conversion does to A and b: in float64, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Tensor = torch.Tensor


def check(layer: nn.Module) -> None:
    """Raise ValueError if it is no layer that the functions below can change."""
    if type(layer) not in (nn.Linear, nn.Conv2d) and not _is_transposed(layer):
        raise ValueError(f"{layer!r} reads or writes the main branch; only Linear, Conv2d and Conv1D can be converted")


def centred(table: Tensor) -> Tensor:
    """Rows of mean zero."""
    return table - table.mean(-1, keepdim=True)


def change_table(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change a parameter whose last dimension is the width: an embedding, a position, a token."""
    old = getattr(module, name)
    setattr(module, name, _parameter(change(old.detach().double()), old))
    if isinstance(module, nn.Embedding):
        module.embedding_dim = getattr(module, name).shape[1]


def absorb(reader: nn.Module, gain: Tensor | None, offset: Tensor | None) -> None:
    """A (gain x + offset) + b as a layer of x."""
    matrix, bias = _of(reader)
    if offset is not None:
        moved = matrix @ offset.detach().double()
        bias = moved if bias is None else bias + moved
    _set(reader, matrix if gain is None else matrix * gain.detach().double(), bias)


def centre(writer: nn.Module) -> None:
    """Outputs of mean zero."""
    matrix, bias = _of(writer)
    _set(writer, matrix - matrix.mean(0), None if bias is None else centred(bias))


def write_without_last(writer: nn.Module) -> None:
    """All outputs but the last."""
    matrix, bias = _of(writer)
    _set(writer, matrix[:-1], None if bias is None else bias[:-1])


def read_without_last(reader: nn.Module) -> None:
    """The layer of all inputs but the last, which is minus the sum of these."""
    matrix, bias = _of(reader)
    _set(reader, matrix[:, :-1] - matrix[:, -1:], bias)


def _is_transposed(layer: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers: a linear layer with the transposed weight."""
    return f"{type(layer).__module__}.{type(layer).__name__}" == "transformers.pytorch_utils.Conv1D"


def _of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """A, shaped (outputs, inputs), and b."""
    weight = layer.get_parameter("weight").detach().double()
    bias = None if layer.bias is None else layer.get_parameter("bias").detach().double()
    return (weight.t() if _is_transposed(layer) else weight.flatten(1)), bias


def _set(layer: nn.Module, matrix: Tensor, bias: Tensor | None) -> None:
    old = layer.get_parameter("weight")
    outputs, inputs = matrix.shape
    if isinstance(layer, nn.Conv2d):
        layer.weight = _parameter(matrix.view(-1, *old.shape[1:]), old)
        layer.out_channels = outputs
    elif isinstance(layer, nn.Linear):
        layer.weight = _parameter(matrix, old)
        layer.out_features, layer.in_features = outputs, inputs
    else:
        layer.register_parameter("weight", _parameter(matrix.t(), old))
        vars(layer).update(nf=outputs, nx=inputs)
    layer.register_parameter("bias", None if bias is None else _parameter(bias, old))


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype).contiguous(), requires_grad=like.requires_grad)
