"""The main branch of a Pre-LN transformer: who adds to it, who reads it, and how both change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perfsuite.convert import weights
from perfsuite.convert.layers import CRMSNorm, RMSNorm, Whole


@dataclass(frozen=True)
class Norm:
    """The LayerNorm `owner.name` and the linear layers that read it; without any, its output is the branch's."""

    owner: nn.Module
    name: str
    readers: tuple[nn.Module, ...] = ()

    @property
    def layer(self) -> nn.LayerNorm:
        layer = getattr(self.owner, self.name)
        if not isinstance(layer, nn.LayerNorm):
            raise ValueError(f"{self.name} of {type(self.owner).__name__} is {layer!r}, only a LayerNorm is converted")
        return layer

    def replace(self, made: nn.Module) -> None:
        setattr(self.owner, self.name, made.train(self.layer.training))


@dataclass(frozen=True)
class Trunk:
    """A main branch of `width`.

    `writers` are the linear layers whose outputs are added to it, `tables` the parameters (module, name) whose last
    dimension is, `dropouts` what drops from these before they are added. `module` is called with a first argument that
    comes from outside and becomes the branch if it has a name here, `open_input`. With `shaped_like_branch` it shapes
    the output of its last norm like the branch, so that this can only be made whole after it.
    """

    module: nn.Module
    width: int
    norms: tuple[Norm, ...]
    writers: tuple[nn.Module, ...]
    tables: tuple[tuple[nn.Module, str], ...]
    dropouts: tuple[nn.Module, ...]
    open_input: str | None = None
    shaped_like_branch: bool = False

    def refuse_what_is_not_equal(self, training: bool) -> None:
        name = type(self.module).__name__
        if training and any(getattr(dropout, "p", 0.0) > 0.0 for dropout in self.dropouts):
            raise ValueError(
                f"dropout on the main branch of {name} leaves rows whose mean is not zero, so that the converted model "
                "would not be equal while it trains: call eval() on the model, or set these dropouts to 0, first"
            )
        layers = [*self.writers, *(reader for norm in self.norms for reader in norm.readers)]
        layers += [norm.layer for norm in self.norms]
        if len(set(map(id, layers))) < len(layers):
            raise ValueError(
                f"a layer occurs twice in {name}, but its places need weights of their own: give each a copy.deepcopy"
            )
        for layer in layers:
            if not isinstance(layer, nn.LayerNorm):
                weights.check(layer)

    def to_rms(self) -> None:
        self._centre()
        for norm in self.norms:
            layer = norm.layer
            affine = () if norm.readers else (layer.weight, layer.bias)
            norm.replace(RMSNorm(self.width, layer.eps, *affine))
        self._at_the_input(_centred)

    def to_crms(self) -> None:
        self._centre()
        for norm in self.norms:
            layer = norm.layer
            narrow = CRMSNorm(self.width, layer.eps)
            norm.replace(narrow if norm.readers else self._whole(narrow, layer))
            for reader in norm.readers:
                weights.read_without_last(reader)
        for writer in self.writers:
            weights.write_without_last(writer)
        for module, name in self.tables:
            weights.change_table(module, name, lambda table: table[..., :-1])
        self._at_the_input(_compressed)

    def _centre(self) -> None:
        """Take the mean out of the branch, and the gains and offsets out of the norms that others read."""
        for writer in self.writers:
            weights.centre(writer)
        for module, name in self.tables:
            weights.change_table(module, name, weights.centred)
        for norm in self.norms:
            for reader in norm.readers:
                weights.absorb(reader, norm.layer.weight, norm.layer.bias)

    def _whole(self, narrow: CRMSNorm, layer: nn.LayerNorm) -> nn.Module:
        """What takes the place of the last norm, whose outputs have the width that they had."""
        whole = Whole(layer.weight, layer.bias)
        if not self.shaped_like_branch:
            return nn.Sequential(narrow, whole)
        self.module.add_module("whole", whole)
        self.module.register_forward_hook(_leave)
        return narrow

    def _at_the_input(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.open_input is not None:
            self.module.register_forward_pre_hook(_Entrance(self.open_input, change), with_kwargs=True)


@dataclass(frozen=True)
class _Entrance:
    """A hook that changes the argument of this name, which is the first."""

    name: str
    change: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self.change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, self.name: self.change(kwargs[self.name])}


def _leave(module: nn.Module, args: Any, output: Any) -> Any:
    """A hook that makes the first of the outputs whole, in a tuple or an output of transformers."""
    whole = module.get_submodule("whole")
    if isinstance(output, tuple):
        return (whole(output[0]), *output[1:])
    output.last_hidden_state = whole(output.last_hidden_state)
    return output


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


def _compressed(x: torch.Tensor) -> torch.Tensor:
    return _centred(x)[..., :-1]
