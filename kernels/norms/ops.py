"""Row normalisations: LayerNorm, RMSNorm and their kin, a residual addition with the norm after it, and gradients.

The norms of images are in channel_ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from perfsuite.op import Op, Operand, Sizes, Tolerance, Workload, accumulated, torch_dtype, workloads

from . import channel_ops, formulas

_Cases = Iterator[tuple[str, tuple[torch.Tensor, ...]]]
_Rows = Sequence[tuple[Mapping[str, int], Sequence[str], Mapping[str, int]]]
_MATRIX = ("rows", "cols")
_X = Operand("x", _MATRIX)
_RESIDUAL = Operand("residual", _MATRIX)
_Y = Operand("y", _MATRIX)
_H = Operand("h", _MATRIX)
_WEIGHT = Operand("weight", ("cols",), fill="positive")
_BIAS = Operand("bias", ("cols",))
_BOTH = ("f32", "bf16")
_Q = Operand("q", _MATRIX, dtype="i8")
_SCALE = Operand("scale", ("rows",), dtype="f32")
_DY = Operand("dy", _MATRIX)
_DX = Operand("dx", _MATRIX)
_DWEIGHT = Operand("dweight", ("cols",))
_DBIAS = Operand("dbias", ("cols",))
_EPS = ("eps", 1e-5)


def _hard_rows(dtype: str) -> Iterator[tuple[str, torch.Tensor, float]]:
    """(description, x[5, 100], size of the weights): rows on which a careless kernel fails.

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


def _edge_cases(inputs: tuple[Operand, ...]) -> Callable[[str], _Cases]:
    def cases(dtype: str) -> _Cases:
        kind = torch_dtype(dtype)
        for description, x, size in _hard_rows(dtype):
            weight = torch.linspace(0.5, 1.5, x.shape[1]) * size
            given = {
                "x": x,
                "residual": x.flip(0).mul(0.5).nan_to_num(0.0, 0.0, 0.0),
                "weight": weight,
                "bias": torch.zeros_like(weight),
            }
            yield description, tuple(given[operand.name].to(kind) for operand in inputs)
        if _RESIDUAL in inputs:
            x, vectors = torch.linspace(-3.0, 3.0, 96).repeat(4, 1), [torch.ones(96)] * (len(inputs) - 2)
            yield "sum cancels to zero", tuple(t.to(kind) for t in (x, -x, *vectors))

    return cases


def _tests(name: str, every: bool) -> tuple[Workload, ...]:
    """Lengths around the vector widths and odd ones; no row, one, and numbers that no block of rows divides.

    `every` length is for the ops with kernels of their own beside the one that all share. The others' have one space of
    configs, as the f16 rows do: another is seconds of compilation.
    """
    few: Sequence[str] = (*_BOTH, "f16") if every else _BOTH
    shapes: dict[tuple[int, int], Sequence[str]] = {(33, 65): few, (2, 127): few, (0, 9): _BOTH}
    if every:
        shapes |= dict.fromkeys([(5, 1), (3, 31), (33, 128), (5, 1000), (3, 1023)], _BOTH)
        shapes |= dict.fromkeys([(5, 2), (1, 3), (7, 7), (6, 8), (1, 100), (9, 4096)], ("f32",))
    return workloads(name, [({"rows": rows, "cols": cols}, kinds, {}) for (rows, cols), kinds in shapes.items()])


def _per_element(count: int) -> Callable[[Sizes], float]:
    return lambda sizes: float(count * sizes["rows"] * sizes["cols"])


def _norm(
    reference: Callable[..., object],
    inputs: tuple[Operand, ...],
    flops: int,
    models: _Rows,
    every_test: bool = False,
    **attributes: float,
) -> Op:
    """A row norm of `flops` per element, named as its reference; it stores the sum as well if it adds a residual."""
    name = reference.__name__
    differentiable = name in _DIFFERENTIABLE
    return Op(
        name=name,
        inputs=inputs,
        outputs=(_Y, _H) if _RESIDUAL in inputs else (_Y,),
        reference=reference,
        flops=_per_element(flops),
        tolerance=accumulated(lambda sizes: sizes["cols"]),
        attributes=(_EPS, *attributes.items()),
        edge_cases=_edge_cases(inputs),
        backward=f"{name}_backward" if differentiable else None,
        saves=("x", "weight") if differentiable else (),
        workloads=(*workloads(name, models), *_tests(name, every_test)),
    )


def _int8_tolerance(workload: Workload) -> Tolerance:
    """An integer next to the middle of two may be one off, 1/127 of the largest."""
    return replace(accumulated(lambda sizes: sizes["cols"])(workload), of_peak=1.001 / 127.0)


def _backward_tolerance(workload: Workload) -> Tolerance:
    """As the forward's, but absolutely of the largest gradient: sums of both signs cancel.

    Of up to four columns little else than the cancelled may be left, 1/sqrt(eps) times as large as dy; 1e-7 is more
    than the least f16.
    """
    forward = accumulated(lambda sizes: sizes["cols"])(workload)
    absolute = 1e-7 if workload["cols"] > 4 else forward.absolute / math.sqrt(_EPS[1])
    return Tolerance(relative=forward.relative, absolute=absolute, of_peak=forward.absolute)


def _backward_edge_cases(dtype: str) -> _Cases:
    kind = torch_dtype(dtype)
    weight = torch.linspace(0.5, 1.5, 100)
    dy = torch.randn(5, 100, generator=torch.Generator().manual_seed(4))
    for description, x, _ in _hard_rows(dtype):
        # What an f32 mean near 1e4 lacks moves dx by more than f32 gradients may be off.
        if "offset" not in description or dtype != "f32":
            yield description, tuple(t.to(kind) for t in (dy, x, weight))
    spike = torch.zeros(5, 100)
    spike[3, 42] = 1e4
    yield "one gradient", tuple(t.to(kind) for t in (spike, dy, weight))


def _backward(reference: Callable[..., object], outputs: tuple[Operand, ...], flops: int, models: _Rows) -> Op:
    """The gradients of a row norm from x and weight alone: the statistics cost two instructions, no traffic."""
    name = reference.__name__
    tests: _Rows = [({"rows": rows, "cols": cols}, _BOTH, {}) for rows, cols in ((3, 65), (70, 127), (33, 96), (0, 72))]
    return Op(
        name=name,
        inputs=(_DY, _X, _WEIGHT),
        outputs=outputs,
        reference=reference,
        flops=_per_element(flops),
        tolerance=_backward_tolerance,
        attributes=(_EPS,),
        edge_cases=_backward_edge_cases,
        workloads=(*workloads(name, models), *workloads(name, tests)),
    )


# Llama-3-8B: two in each of 32 layers and the final one. Llama 2, as wide and deep, was published in f16.
_LLAMA: _Rows = (
    ({"rows": 1, "cols": 4096}, _BOTH, {"Llama-3-8B decode b=1": 65}),
    ({"rows": 16, "cols": 4096}, _BOTH, {"Llama-3-8B decode b=16": 65}),
    ({"rows": 512, "cols": 4096}, _BOTH, {"Llama-3-8B s=512": 65}),
    ({"rows": 512, "cols": 4096}, ("f16",), {"Llama-2-7B s=512": 65}),
    ({"rows": 8192, "cols": 4096}, ("bf16",), {"Llama-3-8B s=8192": 65}),
)
_LAYER_NORMS: _Rows = (
    ({"rows": 1024, "cols": 768}, _BOTH, {"BERT-base b=8 s=128": 25, "GPT-2 b=1 s=1024": 25}),
    ({"rows": 1576, "cols": 768}, _BOTH, {"ViT-B/16 b=8": 25}),
    ({"rows": 3136, "cols": 96}, _BOTH, {"ConvNeXt-T b=1": 5}),
    ({"rows": 196, "cols": 384}, _BOTH, {"ConvNeXt-T b=1": 10}),
    ({"rows": 16384, "cols": 768}, _BOTH, {"GPT-2 b=16 s=1024": 25}),
    # No model of ours is this wide; OPT-6.7B, published in f16, has two LayerNorms in each of 32 layers.
    ({"rows": 8192, "cols": 4096}, ("f32", "f16"), {"OPT-6.7B b=4 s=2048": 65}),
)
# Two in each layer and the final one: 30 layers of 4096 columns, 16 of 2048.
_TRANSNORMER: _Rows = (
    ({"rows": 1, "cols": 4096}, _BOTH, {"TransNormerLLM-7B decode b=1": 61}),
    ({"rows": 2048, "cols": 4096}, _BOTH, {"TransNormerLLM-7B s=2048": 61}),
    ({"rows": 2048, "cols": 2048}, _BOTH, {"TransNormerLLM-1B s=2048": 33}),
)
# Their LayerNorms converted: one column less.
_COMPRESSED: _Rows = (
    ({"rows": 1024, "cols": 767}, _BOTH, {"GPT-2 as Pre-CRMSNorm b=1 s=1024": 25}),
    ({"rows": 1576, "cols": 767}, _BOTH, {"ViT-B/16 as Pre-CRMSNorm b=8": 25}),
)
# All LayerNorms of a pre-norm model but the first follow a residual addition.
_ADDED: _Rows = (
    ({"rows": 1024, "cols": 768}, _BOTH, {"GPT-2 b=1 s=1024": 24}),
    ({"rows": 1576, "cols": 768}, _BOTH, {"ViT-B/16 b=8": 24}),
    ({"rows": 2048, "cols": 4096}, ("f16",), {"OPT-6.7B b=1 s=2048": 64}),
)

_DIFFERENTIABLE = ("layer_norm", "rms_norm")

OPS: tuple[Op, ...] = (
    _norm(formulas.layer_norm, (_X, _WEIGHT, _BIAS), 8, _LAYER_NORMS, every_test=True),
    _norm(formulas.rms_norm, (_X, _WEIGHT), 4, _LLAMA, every_test=True),
    # All of Llama's norms but the first follow a residual addition.
    _norm(
        formulas.add_rms_norm,
        (_X, _RESIDUAL, _WEIGHT),
        5,
        [(sizes, dtypes, dict.fromkeys(models, 64)) for sizes, dtypes, models in _LLAMA],
        every_test=True,
    ),
    _norm(formulas.add_layer_norm, (_X, _RESIDUAL, _WEIGHT, _BIAS), 9, _ADDED),
    _norm(formulas.simple_rms_norm, (_X,), 3, _TRANSNORMER),
    _norm(formulas.crms_norm, (_X,), 6, _COMPRESSED),
    _norm(
        formulas.l1_norm,
        (_X, _WEIGHT, _BIAS),
        7,
        [({"rows": 1576, "cols": 768}, _BOTH, {"ViT-B/16 with L1 norms b=8": 25})],
        kappa=math.sqrt(math.pi / 2.0),
    ),
    replace(
        _norm(
            formulas.rms_norm_int8,
            (_X, _WEIGHT),
            8,
            # All but the final one feed linear layers.
            [(sizes, dtypes, {f"{model} W8A8": 64 for model in models}) for sizes, dtypes, models in _LLAMA[:-1]],
        ),
        outputs=(_Q, _SCALE),
        tolerance=_int8_tolerance,
    ),
    _backward(
        formulas.layer_norm_backward,
        (_DX, _DWEIGHT, _DBIAS),
        14,
        (
            ({"rows": 1576, "cols": 768}, _BOTH, {"ViT-B/16 training b=8": 25}),
            ({"rows": 25088, "cols": 96}, _BOTH, {"ConvNeXt-T training b=8": 5}),
            ({"rows": 8192, "cols": 768}, _BOTH, {"GPT-2 training b=8 s=1024": 25}),
            ({"rows": 2048, "cols": 4096}, ("f16",), {"OPT-6.7B training b=1 s=2048": 65}),
        ),
    ),
    _backward(
        formulas.rms_norm_backward,
        (_DX, _DWEIGHT),
        10,
        (
            # Two in each of 16 layers and the final one.
            ({"rows": 2048, "cols": 2048}, _BOTH, {"Llama-3.2-1B training b=1 s=2048": 33}),
            ({"rows": 2048, "cols": 4096}, ("bf16",), {"Llama-3-8B training b=1 s=2048": 65}),
        ),
    ),
    *channel_ops.OPS,
)
