"""Row normalisations: LayerNorm, RMSNorm and their kin, and a residual addition with the norm after it.

Their gradients are in `gradients`, the norms of images in `channel_ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from perfsuite.op import ROUNDOFF, Op, Operand, Sizes, Tolerance, Workload, accumulated, torch_dtype, workloads

from . import channel_ops, formulas
from .cases import hard_rows
from .gradients import BACKWARDS

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
_Q_FP8 = Operand("q", _MATRIX, dtype="f8_e4m3")
_SCALE = Operand("scale", ("rows",), dtype="f32")
# The number of a layer makes no difference to the time; the edge cases have another than 1.
_LAYER = Operand("layer", (), dtype="i64", fill="ones")
_SAMPLES = ("samples", *_MATRIX)
_EPS = ("eps", 1e-5)


def _edge_cases(inputs: tuple[Operand, ...]) -> Callable[[str], _Cases]:
    def cases(dtype: str) -> _Cases:
        kind = torch_dtype(dtype)
        for description, x, size in hard_rows(dtype):
            weight = torch.linspace(0.5, 1.5, x.shape[1]) * size
            given = {
                "x": x,
                "residual": x.flip(0).mul(0.5).nan_to_num(0.0, 0.0, 0.0),
                "weight": weight,
                "bias": torch.zeros_like(weight),
                "layer": torch.tensor(7),
            }
            yield description, tuple(given[o.name].to(kind if o.dtype is None else torch.int64) for o in inputs)
        if _RESIDUAL in inputs:
            x, vectors = torch.linspace(-3.0, 3.0, 96).repeat(4, 1), [torch.ones(96)] * (len(inputs) - 2)
            yield "sum cancels to zero", tuple(t.to(kind) for t in (x, -x, *vectors))

    return cases


def _tests(name: str, every: bool, kinds: Sequence[str]) -> tuple[Workload, ...]:
    """Lengths around the vector widths and odd ones; no row, one, and numbers that no block of rows divides.

    `every` length is for the ops with kernels of their own beside the one that all share. The others' have one space of
    configs, as the f16 rows do: another is seconds of compilation.
    """
    few: Sequence[str] = (*_BOTH, "f16") if every else kinds
    shapes: dict[tuple[int, int], Sequence[str]] = {(33, 65): few, (2, 127): few, (0, 72): kinds}
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
    tested: Sequence[str] = _BOTH,
    **attributes: float,
) -> Op:
    """A row norm of `flops` per element, named as its reference; it stores the sum as well if it adds a residual.

    `tested` are the dtypes of its tests, for an op whose code in the others is another's.
    """
    name = reference.__name__
    backward = next((op for op in BACKWARDS if op.name == f"{name}_backward"), None)
    return Op(
        name=name,
        inputs=inputs,
        outputs=(_Y, _H) if _RESIDUAL in inputs else (replace(inputs[0], name="y"),),
        reference=reference,
        flops=_per_element(flops),
        tolerance=accumulated(lambda sizes: sizes["cols"]),
        attributes=(_EPS, *attributes.items()),
        edge_cases=_edge_cases(inputs),
        backward=backward.name if backward else None,
        saves=tuple(o.name for o in backward.inputs if o.name not in ("dy", "dh")) if backward else (),
        workloads=(*workloads(name, models), *_tests(name, every_test, tested)),
    )


def _int8_tolerance(workload: Workload) -> Tolerance:
    """An integer next to the middle of two may be one off, 1/127 of the largest."""
    return replace(accumulated(lambda sizes: sizes["cols"])(workload), of_peak=1.001 / 127.0)


def _fp8_tolerance(workload: Workload) -> Tolerance:
    """The nearest of the numbers: half a unit in the last place, half of 2^-9 where they lie that far apart."""
    norm = accumulated(lambda sizes: sizes["cols"])(workload)
    return Tolerance(norm.relative + 1.001 * ROUNDOFF["f8_e4m3"], absolute=1.001 * 2.0**-10)


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

OPS: tuple[Op, ...] = (
    _norm(formulas.layer_norm, (_X, _WEIGHT, _BIAS), 8, _LAYER_NORMS, every_test=True),
    _norm(formulas.rms_norm, (_X, _WEIGHT), 4, _LLAMA, every_test=True),
    # All of Llama's norms but the first follow a residual addition.
    _norm(
        formulas.add_rms_norm,
        (_X, _RESIDUAL, _WEIGHT),
        5,
        [(sizes, dtypes, dict.fromkeys(models, 64)) for sizes, dtypes, models in _LLAMA],
    ),
    _norm(formulas.add_layer_norm, (_X, _RESIDUAL, _WEIGHT, _BIAS), 9, _ADDED, tested=("bf16",)),
    _norm(formulas.simple_rms_norm, (_X,), 3, _TRANSNORMER, tested=("bf16",)),
    _norm(formulas.crms_norm, (_X,), 6, _COMPRESSED, tested=("f32",)),
    _norm(
        formulas.l1_norm,
        (_X, _WEIGHT, _BIAS),
        7,
        [({"rows": 1576, "cols": 768}, _BOTH, {"ViT-B/16 with L1 norms b=8": 25})],
        tested=("f32",),
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
    replace(
        _norm(
            formulas.rms_norm_fp8,
            (_X, _WEIGHT),
            8,
            [({"rows": 512, "cols": 4096}, _BOTH, {"Llama-3-8B s=512 FP8": 64})],
            tested=("bf16",),
        ),
        outputs=(_Q_FP8, _SCALE),
        tolerance=_fp8_tolerance,
    ),
    _norm(
        formulas.scaled_layer_norm,
        (_X, _WEIGHT, _BIAS, _LAYER),
        9,
        # Its final norm is not scaled.
        [({"rows": 1024, "cols": 768}, _BOTH, {"GPT-2 with LayerNorm Scaling b=1 s=1024": 24})],
        tested=("f32",),
    ),
    replace(
        _norm(
            formulas.time_layer_norm,
            (Operand("x", _SAMPLES), *(Operand(o.name, ("samples", "cols"), fill=o.fill) for o in (_WEIGHT, _BIAS))),
            8,
            (),
        ),
        flops=lambda sizes: 8.0 * sizes["samples"] * sizes["rows"] * sizes["cols"],
        # Rows are those of layer_norm, which has the edge cases.
        edge_cases=None,
        workloads=workloads(
            "time_layer_norm",
            [
                # Two in each of 39 blocks over 16 x 16 tokens.
                ({"samples": 8, "rows": 256, "cols": 960}, _BOTH, {"DiMR-XL/2R with TD-LN b=8": 78}),
                ({"samples": 3, "rows": 11, "cols": 65}, ("f32",), {}),
                ({"samples": 2, "rows": 0, "cols": 72}, ("f32",), {}),
            ],
        ),
    ),
    *BACKWARDS,
    *channel_ops.OPS,
)
