"""Probes: ops whose best trials are the machine's ceilings, bandwidth of each memory level and peak of each dtype.

They are tuned like any other op. All repeat their work within one call where one round of it would be shorter than the
call itself: without that neither the first-level cache nor the matrix units could be seen from Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from perfsuite.op import ROUNDOFF, Op, Operand, Sizes, Tolerance, Workload, accumulated, torch_dtype, workloads

_CEILINGS = {"machine ceilings": 1}
_KIB, _MIB = 2**10, 2**20
# Bytes that a call should move at least: 10 us and more at any bandwidth of one core.
_ENOUGH = 4 * _MIB
_LENGTHS = (0, 1, 7, 16, 1000, 4099, 70_001)
# One round of fma on the fixed point 1.0 of v = scale * v + shift.
_FMA_SCALE, _FMA_SHIFT = 1.0 - 2.0**-10, 2.0**-10


def _copy(x: torch.Tensor, passes: int) -> torch.Tensor:
    return x.clone()


def _read(x: torch.Tensor, passes: int) -> torch.Tensor:
    """The sum over every pass."""
    return passes * x.sum().reshape(1)


def _triad(a: torch.Tensor, b: torch.Tensor, scale: float, passes: int) -> torch.Tensor:
    """STREAM's triad (McCalpin 1995)."""
    return a + scale * b


def _fma(x: torch.Tensor, scale: float, shift: float, steps: int) -> torch.Tensor:
    """v = scale * v + shift, `steps` times: in closed form, the distance to the fixed point shrinks by `scale`."""
    fixed = shift / (1.0 - scale)
    return fixed + (x - fixed) * scale**steps


def _mma(x: torch.Tensor, w: torch.Tensor, steps: int) -> torch.Tensor:
    """The sum of `steps` equal products x @ w."""
    return steps * _matmul(x, w)


def _matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.mm(x, w) if x.is_floating_point() else torch.mm(x.long(), w.long())


def _passes(sizes: Sizes) -> int:
    return sizes["passes"]


def _sum_tolerance(workload: Workload) -> Tolerance:
    """A random walk of roundings over 2**18 additions at most, after which f32 sums are added up in f64.

    One element left out of up to 10**4, or a pass too few, would be off by more.
    """
    additions = min(2**18, max(1, workload["elements"] * workload["passes"]))
    return Tolerance(relative=math.sqrt(additions) * ROUNDOFF["f32"], absolute=1e-6)


def _fma_tolerance(workload: Workload) -> Tolerance:
    """One rounding per step of a value below 5; a step too few would be off by 2**-11 of the distance to 1.0."""
    bound = 4.0 * workload["steps"] * ROUNDOFF["f32"]
    return Tolerance(relative=bound, absolute=bound)


def _mma_tolerance(workload: Workload) -> Tolerance:
    """Equal terms are rounded in the same direction, once per step and per column of x; a step too few is 1/steps."""
    steps = workload["steps"]
    return Tolerance(relative=2.0 * steps * ROUNDOFF["f32"], absolute=1e-5 * steps)


def _exact(workload: Workload) -> Tolerance:
    return Tolerance(relative=0.0, absolute=0.0)


def _matrix_cases(dtype: str) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    """A one in one place of x picks a row of w: every place of a tile must find its own."""
    kind = torch_dtype(dtype)
    w = torch.arange(64 * 48).remainder(251).sub(125).reshape(64, 48)
    picks = torch.eye(64)[torch.randperm(64, generator=torch.Generator().manual_seed(2))]
    yield "permutation", (picks.to(kind), w.to(kind))
    yield "extremes", (torch.full((33, 64), -127).to(kind), torch.full((64, 17), 127).to(kind))


def _vectors(op: str, operands: int, footprints: tuple[int, ...]) -> tuple[Workload, ...]:
    """Workloads on `operands` f32 vectors that together have these bytes, and the tests' odd lengths."""
    lengths = [(footprint // (4 * operands) // 16 * 16, max(1, _ENOUGH // footprint)) for footprint in footprints]
    shortest = (lengths[0][0], 1)  # a single pass over the fewest bytes shows what a call costs
    return workloads(
        op,
        [
            *(({"elements": n, "passes": passes}, ("f32",), _CEILINGS) for n, passes in (shortest, *lengths)),
            *(({"elements": n, "passes": passes}, ("f32",), {}) for n in _LENGTHS for passes in (1, 3)),
        ],
    )


_POWERS_OF_2 = tuple(16 * _KIB << i for i in range(15))
_POWERS_OF_4 = _POWERS_OF_2[::2]
_CUBES = [({"m": n, "k": n, "n": n}, _CEILINGS) for n in (512, 1024)]
# Neither rows, columns nor k fill whole tiles; the deep one is summed in several blocks of k.
_SHAPES = ((1, 64, 1), (33, 64, 17), (70, 100, 90), (64, 300, 130), (40, 1100, 64), (0, 8, 4))
_ODD: list[tuple[dict[str, int], dict[str, int]]] = [({"m": m, "k": k, "n": n}, {}) for m, k, n in _SHAPES]


def _products(op: str, dtypes: tuple[str, ...]) -> tuple[Workload, ...]:
    return workloads(op, [(sizes, dtypes, models) for sizes, models in (*_CUBES, *_ODD)])


_X, _Y = Operand("x", ("elements",)), Operand("y", ("elements",))
_ROWS, _WEIGHT = Operand("x", ("m", "k")), Operand("w", ("k", "n"), fill="weight")
_INT_ROWS, _INT_WEIGHT = Operand("x", ("m", "k"), fill="int8"), Operand("w", ("k", "n"), fill="int8")


def _product_flops(sizes: Sizes) -> float:
    return 2.0 * sizes["m"] * sizes["k"] * sizes["n"] * sizes.get("steps", 1)


OPS: tuple[Op, ...] = (
    Op(
        "copy",
        (_X,),
        (_Y,),
        reference=_copy,
        flops=lambda sizes: 0.0,
        workloads=_vectors("copy", 2, _POWERS_OF_2),
        tolerance=_exact,
        parameters=("passes",),
        passes=_passes,
    ),
    Op(
        "read",
        (Operand("x", ("elements",), fill="positive"),),
        (Operand("total", ("one",)),),
        reference=_read,
        flops=lambda sizes: float(sizes["elements"] * sizes["passes"]),
        workloads=_vectors("read", 1, _POWERS_OF_4),
        tolerance=_sum_tolerance,
        parameters=("passes",),
        derived=(("one", lambda sizes: 1),),
        passes=_passes,
    ),
    Op(
        "triad",
        (Operand("a", ("elements",)), Operand("b", ("elements",))),
        (_Y,),
        reference=_triad,
        flops=lambda sizes: 2.0 * sizes["elements"] * sizes["passes"],
        workloads=_vectors("triad", 3, _POWERS_OF_4),
        attributes=(("scale", 3.0),),
        parameters=("passes",),
        passes=_passes,
    ),
    Op(
        "fma",
        (_X,),
        (_Y,),
        reference=_fma,
        flops=lambda sizes: 2.0 * sizes["elements"] * sizes["steps"],
        workloads=workloads(
            "fma",
            [
                ({"elements": 49_152, "steps": 512}, ("f32",), _CEILINGS),
                *(({"elements": n, "steps": 24}, ("f32",), {}) for n in (0, 1, 300, 5000)),
            ],
        ),
        tolerance=_fma_tolerance,
        attributes=(("scale", _FMA_SCALE), ("shift", _FMA_SHIFT)),
        parameters=("steps",),
    ),
    Op(
        "mma",
        (_ROWS, _WEIGHT),
        (Operand("y", ("m", "n"), dtype="f32"),),
        reference=_mma,
        flops=_product_flops,
        workloads=workloads(
            "mma",
            [
                ({"m": 128, "k": 32, "n": 128, "steps": 1024}, ("bf16",), _CEILINGS),
                ({"m": 64, "k": 32, "n": 32, "steps": 5}, ("bf16",), {}),
            ],
        ),
        tolerance=_mma_tolerance,
        parameters=("steps",),
    ),
    Op(
        "mma_int8",
        (_INT_ROWS, _INT_WEIGHT),
        (Operand("y", ("m", "n"), dtype="i32"),),
        reference=_mma,
        flops=_product_flops,
        workloads=workloads(
            "mma_int8",
            [
                ({"m": 128, "k": 64, "n": 128, "steps": 1024}, ("i8",), _CEILINGS),
                ({"m": 64, "k": 64, "n": 32, "steps": 5}, ("i8",), {}),
            ],
        ),
        tolerance=_exact,
        parameters=("steps",),
    ),
    Op(
        "matmul",
        (_ROWS, _WEIGHT),
        (Operand("y", ("m", "n")),),
        reference=_matmul,
        flops=_product_flops,
        workloads=_products("matmul", ("f32", "bf16")),
        tolerance=accumulated(lambda sizes: sizes["k"], scale=2.0),
        edge_cases=_matrix_cases,
    ),
    Op(
        "matmul_int8",
        (_INT_ROWS, _INT_WEIGHT),
        (Operand("y", ("m", "n"), dtype="i32"),),
        reference=_matmul,
        flops=_product_flops,
        workloads=_products("matmul_int8", ("i8",)),
        tolerance=_exact,
        edge_cases=_matrix_cases,
    ),
)
