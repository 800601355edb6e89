"""What a conversion brings: the difference of the outputs, and the times of the models in interleaved rounds."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perfsuite import stats
from perfsuite.convert import RMSNorm, pre_ln_to_crms, pre_ln_to_rms

Call = Callable[..., Any]
Step = Callable[[Call, Mapping[str, Any]], torch.Tensor]
# The chance that an interval misses the mean ratio.
_ERROR = 0.05
RMS, CRMS, BARE = "Pre-RMSNorm", "Pre-CRMSNorm", "no norms"


@dataclass(frozen=True)
class Gain:
    """A converted model against the given one; or one without norms, which bounds what any norm can bring.

    `difference` is the largest absolute difference of their outputs. `inference` and `training` are times of the given
    model over those of the converted one, above 1 where the conversion helps: the ends of a 95 % confidence sequence of
    the mean ratio (geometric), which are 0 and infinity after fewer than three rounds.
    """

    name: str
    difference: float
    inference: tuple[float, float]
    training: tuple[float, float]


def measure(
    model: nn.Module, inputs: Mapping[str, Any], rounds: int = 20, *, compiled: bool = False
) -> tuple[Gain, Gain, Gain]:
    """The gains of Pre-RMSNorm, Pre-CRMSNorm and no norms at all for calls `model(**inputs)`, inference and training.

    A training step is the forward pass and the backward pass of the mean of the (first) output, without an optimiser.
    In each round every model takes each step once, in shuffled order. With `compiled` all go through torch.compile.
    On CPU, eager PyTorch has a fused LayerNorm but no fused RMSNorm (265 us against 416 us for 1024 x 768 in float32 on
    one thread with AVX-512), so that only compiled models are compared fairly there. All are copies in eval mode, so
    that dropout plays no part.

    Raises ValueError for what cannot be converted.
    """
    given = copy.deepcopy(model).eval()
    models = {"Pre-LN": given, RMS: pre_ln_to_rms(given), CRMS: pre_ln_to_crms(given)}
    models[BARE] = _bare(models[RMS])
    calls: dict[str, Call] = {name: torch.compile(each) if compiled else each for name, each in models.items()}
    answers = {name: _inferred(call, inputs) for name, call in calls.items()}
    _timed(calls, inputs, 1)  # warms up, and compiles
    seconds = _timed(calls, inputs, rounds)

    def ratio(name: str, step: Step) -> tuple[float, float]:
        logs = [math.log(a / b) for a, b in zip(seconds["Pre-LN", step], seconds[name, step])]
        low, high = stats.confidence_sequence(stats.winsorised(logs), _ERROR)
        return math.exp(low), math.exp(high)

    def gain(name: str) -> Gain:
        difference = float((answers[name] - answers["Pre-LN"]).abs().max())
        return Gain(name, difference, ratio(name, _inferred), ratio(name, _trained))

    return gain(RMS), gain(CRMS), gain(BARE)


def _bare(model: nn.Module) -> nn.Module:
    """A copy of a Pre-RMSNorm model without its norms."""
    made = copy.deepcopy(model)
    for module in list(made.modules()):
        for name, child in module.named_children():
            if isinstance(child, RMSNorm):
                setattr(module, name, nn.Identity())
    return made


def _timed(calls: Mapping[str, Call], inputs: Mapping[str, Any], rounds: int) -> dict[tuple[str, Step], list[float]]:
    """Seconds of every model's steps, round by round."""
    seconds: dict[tuple[str, Step], list[float]] = {
        (name, step): [] for name in calls for step in (_inferred, _trained)
    }
    for _ in range(rounds):
        for name, step in random.sample(list(seconds), len(seconds)):
            start = time.perf_counter()
            step(calls[name], inputs)
            seconds[name, step].append(time.perf_counter() - start)
    return seconds


def _inferred(call: Call, inputs: Mapping[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return _first(call(**inputs))


def _trained(call: Call, inputs: Mapping[str, Any]) -> torch.Tensor:
    answer = _first(call(**inputs))
    torch.autograd.backward(answer.mean())
    return answer


def _first(output: Any) -> torch.Tensor:
    first: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return first
