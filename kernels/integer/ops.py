"""Integer linear layers: activations quantised to int8 row by row as they come, int8 weights, int32 sums."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from perfsuite.op import ROUNDOFF, Op, Operand, Tolerance, Workload, torch_dtype, workloads

from .linear import quantise


def _int8_linear(x: torch.Tensor, weight: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
    """y[i, j] = scale[i] w_scale[j] sum_k q[i, k] weight[j, k] (LLM.int8(), Dettmers et al. 2022, without outliers).

    The sum is exact in float64: at most 127^2 k, which stays below 2^53.
    """
    q, _ = quantise(x)
    scale = x.abs().amax(-1, keepdim=True) / 127.0
    return (q.double() @ weight.double().T) * scale * w_scale


def _tolerance(workload: Workload) -> Tolerance:
    """The integers are exact, so what is left is the f32 rounding of the sum, of three products and of the output.

    One wrong integer changes the sum by 1 or more (unless its weight is 0): in f32 seen wherever |sum| < 10^6.
    """
    rounding = 2.0 * ROUNDOFF[workload.dtype] if workload.dtype != "f32" else 0.0
    return Tolerance(relative=8.0 * ROUNDOFF["f32"] + rounding, absolute=1e-30)


def _samples(workload: Workload, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    m, n, k = (workload[axis] for axis in ("m", "n", "k"))
    x = torch.randn(m, k, generator=generator).to(torch_dtype(workload.dtype))
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    return x, weight, (torch.rand(n, generator=generator) + 0.5) / (127.0 * max(1, k) ** 0.5)


def _edge_cases(dtype: str) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    generator = torch.Generator().manual_seed(2)
    kind, m, n, k = torch_dtype(dtype), 5, 33, 300
    x, scale = torch.randn(m, k, generator=generator), torch.linspace(0.5, 1.5, n)
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    zeros = x.clone()
    zeros[1:4:2] = 0.0
    yield "rows of zeros", (zeros.to(kind), weight, scale)
    # 16-bit sums of two such products saturate: 127 * 127 * 2 and 127 * 128 * 2 with the sign bit moved.
    extreme = torch.full((n, 4096), 127, dtype=torch.int8)
    extreme[1::2] = -128
    signs = torch.ones(m, 4096)
    signs[1::2] = -1.0
    yield "extremes, the longest sums", (signs.to(kind), extreme, scale)
    ties = (torch.arange(k) % 255 - 127).clamp(-126, 126).add(0.5).repeat(m, 1)
    ties[:, 0] = 127.0
    yield "every value between two integers", (ties.to(kind), weight, scale)
    outlier = x.clone()
    outlier[:, 7] = 1e4
    yield "an outlier leaves the other values zero", (outlier.to(kind), weight, scale)
    yield "scale 1e-20", ((x * 1e-20).to(kind), weight, scale)


def _workloads() -> tuple[Workload, ...]:
    models: list[tuple[tuple[int, int, int], dict[str, int]]] = [
        ((512, 4096, 1024), {"Llama-3-8B s=512": 64}),  # the projections to keys and values
        ((16, 4096, 4096), {"Llama-3-8B decode b=16": 64}),  # those to queries and to the output
        ((1, 4096, 4096), {"Llama-3-8B decode b=1": 64}),
        ((512, 768, 3072), {"BERT-base b=4 s=128": 12}),
        ((512, 3072, 768), {"BERT-base b=4 s=128": 12}),
        ((512, 1024, 1024), {"BERT-large b=4 s=128": 96}),
        ((512, 1024, 4096), {"BERT-large b=4 s=128": 24}),
        ((2048, 2048, 2048), {"Llama-3.2-1B s=2048": 32}),
    ]
    tests = [(1, 1, 1), (3, 7, 5), (7, 64, 33), (13, 100, 64), (33, 257, 70), (0, 8, 4), (65, 1030, 130)]
    rows = [*models, *((shape, {}) for shape in tests)]
    return workloads("int8_linear", [(dict(zip("mkn", shape)), ("f32", "bf16"), calls) for shape, calls in rows])


OPS: tuple[Op, ...] = (
    Op(
        name="int8_linear",
        inputs=(
            Operand("x", ("m", "k")),
            Operand("weight", ("n", "k"), dtype="i8", fill="int8"),
            Operand("w_scale", ("n",), dtype="f32", fill="positive"),
        ),
        outputs=(Operand("y", ("m", "n")),),
        reference=_int8_linear,
        flops=lambda sizes: 2.0 * sizes["m"] * sizes["n"] * sizes["k"],
        workloads=_workloads(),
        tolerance=_tolerance,
        samples=_samples,
        edge_cases=_edge_cases,
    ),
)
