"""The gradients of the row norms, from the gradient of the output, the input and the weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from perfsuite.op import Op, Operand, Tolerance, Workload, accumulated, torch_dtype, workloads

from . import formulas
from .cases import hard_rows

_Rows = Sequence[tuple[Mapping[str, int], Sequence[str], Mapping[str, int]]]
_MATRIX = ("rows", "cols")
_BOTH = ("f32", "bf16")
_DY, _DH, _DX, _X, _H = (Operand(name, _MATRIX) for name in ("dy", "dh", "dx", "x", "h"))
_WEIGHT = Operand("weight", ("cols",), fill="positive")
_DWEIGHT, _DBIAS = (Operand(name, ("cols",)) for name in ("dweight", "dbias"))
_LAYER = Operand("layer", (), dtype="i64", fill="ones")
_EPS = ("eps", 1e-5)


def _tolerance(least: float) -> Callable[[Workload], Tolerance]:
    """As the forward's, but absolutely of the largest gradient: sums of both signs cancel.

    Of up to four columns little else than the cancelled may be left, as large as dy over `least`, the smallest number
    that a row is divided by; 1e-7 is more than the least f16.
    """

    def tolerance(workload: Workload) -> Tolerance:
        forward = accumulated(lambda sizes: sizes["cols"])(workload)
        absolute = 1e-7 if workload["cols"] > 4 else forward.absolute / least
        return Tolerance(relative=forward.relative, absolute=absolute, of_peak=forward.absolute)

    return tolerance


def _edge_cases(inputs: tuple[Operand, ...]) -> Callable[[str], Iterator[tuple[str, tuple[torch.Tensor, ...]]]]:
    def cases(dtype: str) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
        def fitted(**given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given |= {"h": given["x"], "dh": given["dy"].flip(0), "weight": weight, "layer": torch.tensor(7)}
            return tuple(given[o.name].to(torch_dtype(o.dtype or dtype)) for o in inputs)

        weight = torch.linspace(0.5, 1.5, 100)
        dy = torch.randn(5, 100, generator=torch.Generator().manual_seed(4))
        for description, x, _ in hard_rows(dtype):
            # What an f32 mean near 1e4 lacks moves dx by more than f32 gradients may be off.
            if "offset" not in description or dtype != "f32":
                yield description, fitted(dy=dy, x=x)
        spike = torch.zeros(5, 100)
        spike[3, 42] = 1e4
        yield "one gradient", fitted(dy=spike, x=dy)

    return cases


def _backward(
    reference: Callable[..., object],
    inputs: tuple[Operand, ...],
    outputs: tuple[Operand, ...],
    flops: int,
    models: _Rows,
    **attributes: float,
) -> Op:
    """The gradients of a row norm from its input alone: the statistics cost two instructions, no traffic.

    Those that share most of layer_norm's and rms_norm's code are tested in f32 only, and by shapes that have one space
    of configs: another is seconds of compilation.
    """
    name = reference.__name__
    kinds: Sequence[str] = ("f32",)
    shapes = [(3, 65), (70, 127), (0, 72)]
    if reference in (formulas.layer_norm_backward, formulas.rms_norm_backward):
        kinds, shapes = _BOTH, [*shapes, (33, 96)]
    tests: _Rows = [({"rows": rows, "cols": cols}, kinds, {}) for rows, cols in shapes]
    return Op(
        name=name,
        inputs=inputs,
        outputs=outputs,
        reference=reference,
        flops=lambda sizes: float(flops * sizes["rows"] * sizes["cols"]),
        # l1_norm has no root around eps.
        tolerance=_tolerance(_EPS[1] if "kappa" in attributes else math.sqrt(_EPS[1])),
        attributes=(_EPS, *attributes.items()),
        edge_cases=_edge_cases(inputs),
        workloads=(*workloads(name, models), *workloads(name, tests)),
    )


def _time_layer_norm() -> Op:
    """The parameters' sums go over the rows of a sample. Rows are those of layer_norm, which has the edge cases."""
    samples, name = ("samples", *_MATRIX), "time_layer_norm_backward"
    dy, x, dx = (Operand(name, samples) for name in ("dy", "x", "dx"))
    dweight, dbias = (Operand(name, ("samples", "cols")) for name in ("dweight", "dbias"))
    return Op(
        name=name,
        inputs=(dy, x, Operand("weight", ("samples", "cols"), fill="positive")),
        outputs=(dx, dweight, dbias),
        reference=formulas.time_layer_norm_backward,
        flops=lambda sizes: 14.0 * sizes["samples"] * sizes["rows"] * sizes["cols"],
        tolerance=_tolerance(math.sqrt(_EPS[1])),
        attributes=(_EPS,),
        workloads=workloads(
            name,
            [
                ({"samples": 8, "rows": 256, "cols": 960}, _BOTH, {"DiMR-XL/2R with TD-LN training b=8": 78}),
                ({"samples": 3, "rows": 71, "cols": 65}, ("f32",), {}),
                ({"samples": 2, "rows": 0, "cols": 72}, ("f32",), {}),
            ],
        ),
    )


BACKWARDS: tuple[Op, ...] = (
    _backward(
        formulas.layer_norm_backward,
        (_DY, _X, _WEIGHT),
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
        (_DY, _X, _WEIGHT),
        (_DX, _DWEIGHT),
        10,
        (
            # Two in each of 16 layers and the final one.
            ({"rows": 2048, "cols": 2048}, _BOTH, {"Llama-3.2-1B training b=1 s=2048": 33}),
            ({"rows": 2048, "cols": 4096}, ("bf16",), {"Llama-3-8B training b=1 s=2048": 65}),
        ),
    ),
    _backward(
        formulas.add_layer_norm_backward,
        (_DY, _DH, _H, _WEIGHT),
        (_DX, _DWEIGHT, _DBIAS),
        15,
        [({"rows": 8192, "cols": 768}, _BOTH, {"GPT-2 training b=8 s=1024": 24})],
    ),
    _backward(
        formulas.add_rms_norm_backward,
        (_DY, _DH, _H, _WEIGHT),
        (_DX, _DWEIGHT),
        11,
        [({"rows": 2048, "cols": 2048}, _BOTH, {"Llama-3.2-1B training b=1 s=2048": 32})],
    ),
    _backward(
        formulas.simple_rms_norm_backward,
        (_DY, _X),
        (_DX,),
        8,
        [({"rows": 2048, "cols": 2048}, _BOTH, {"TransNormerLLM-1B training s=2048": 33})],
    ),
    _backward(
        formulas.crms_norm_backward,
        (_DY, _X),
        (_DX,),
        12,
        [({"rows": 1576, "cols": 767}, _BOTH, {"ViT-B/16 as Pre-CRMSNorm training b=8": 25})],
    ),
    _backward(
        formulas.l1_norm_backward,
        (_DY, _X, _WEIGHT),
        (_DX, _DWEIGHT, _DBIAS),
        13,
        [({"rows": 1576, "cols": 768}, _BOTH, {"ViT-B/16 with L1 norms training b=8": 25})],
        kappa=math.sqrt(math.pi / 2.0),
    ),
    _backward(
        formulas.scaled_layer_norm_backward,
        (_DY, _X, _WEIGHT, _LAYER),
        (_DX, _DWEIGHT, _DBIAS),
        15,
        [({"rows": 8192, "cols": 768}, _BOTH, {"GPT-2 with LayerNorm Scaling training b=8 s=1024": 24})],
    ),
    _time_layer_norm(),
)
