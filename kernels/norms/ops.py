"""Row normalisations: LayerNorm, RMSNorm, and a residual add with the RMSNorm that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from perfsuite.op import Op, Operand, Sizes, Workload, accumulated, torch_dtype, workloads

_Cases = Iterator[tuple[str, tuple[torch.Tensor, ...]]]
_MATRIX = ("rows", "cols")
_X = Operand("x", _MATRIX)
_Y = Operand("y", _MATRIX)
_WEIGHT = Operand("weight", ("cols",), fill="positive")
_BIAS = Operand("bias", ("cols",))
_BOTH = ("f32", "bf16")


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """y = weight (x - mean) / sqrt(var + eps) + bias, var without Bessel's correction (Ba et al. 2016)."""
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() + bias


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = weight x / sqrt(mean(x^2) + eps): Zhang and Sennrich 2019, eps inside the root as in Llama."""
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = x + residual, y = rms_norm(h): y is of the unrounded sum, h is rounded only where it is stored."""
    h = x + residual
    return _rms_norm(h, weight, eps), h


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


def _edge_cases(name: str) -> Callable[[str], _Cases]:
    def cases(dtype: str) -> _Cases:
        kind = torch_dtype(dtype)
        for description, x, size in _hard_rows(dtype):
            weight = torch.linspace(0.5, 1.5, x.shape[1]) * size
            others = {
                "layer_norm": (weight, torch.zeros_like(weight)),
                "rms_norm": (weight,),
                "add_rms_norm": (x.flip(0).mul(0.5).nan_to_num(0.0, 0.0, 0.0), weight),
            }[name]
            yield description, tuple(t.to(kind) for t in (x, *others))
        if name == "add_rms_norm":
            x = torch.linspace(-3.0, 3.0, 96).repeat(4, 1)
            yield "sum cancels to zero", tuple(t.to(kind) for t in (x, -x, torch.ones(96)))

    return cases


def _tests(name: str) -> tuple[Workload, ...]:
    """Lengths around the vector widths and odd ones; no row, one, and numbers that no block of rows divides."""
    both = ((5, 1), (3, 31), (33, 64), (2, 127), (5, 1000), (3, 1023), (0, 8))
    single = ((5, 2), (1, 3), (7, 7), (6, 8), (1, 100), (9, 4096))
    return (
        *workloads(name, [({"rows": rows, "cols": cols}, _BOTH, {}) for rows, cols in both]),
        *workloads(name, [({"rows": rows, "cols": cols}, ("f32",), {}) for rows, cols in single]),
    )


def _per_element(count: int) -> Callable[[Sizes], float]:
    return lambda sizes: float(count * sizes["rows"] * sizes["cols"])


_LLAMA = (
    ({"rows": 1, "cols": 4096}, _BOTH, {"Llama-3-8B decode b=1": 65}),
    ({"rows": 16, "cols": 4096}, _BOTH, {"Llama-3-8B decode b=16": 65}),
    ({"rows": 512, "cols": 4096}, _BOTH, {"Llama-3-8B s=512": 65}),
    ({"rows": 8192, "cols": 4096}, _BOTH, {"Llama-3-8B s=8192": 65}),
)

OPS: tuple[Op, ...] = (
    Op(
        name="layer_norm",
        inputs=(_X, _WEIGHT, _BIAS),
        outputs=(_Y,),
        reference=_layer_norm,
        flops=_per_element(8),
        tolerance=accumulated(lambda sizes: sizes["cols"]),
        attributes=(("eps", 1e-5),),
        edge_cases=_edge_cases("layer_norm"),
        workloads=(
            *workloads(
                "layer_norm",
                [
                    ({"rows": 1024, "cols": 768}, _BOTH, {"BERT-base b=8 s=128": 25, "GPT-2 b=1 s=1024": 25}),
                    ({"rows": 1576, "cols": 768}, _BOTH, {"ViT-B/16 b=8": 25}),
                    ({"rows": 3136, "cols": 96}, _BOTH, {"ConvNeXt-T b=1": 5}),
                    ({"rows": 196, "cols": 384}, _BOTH, {"ConvNeXt-T b=1": 10}),
                    ({"rows": 16384, "cols": 768}, _BOTH, {"GPT-2 b=16 s=1024": 25}),
                    # No model of ours is this wide; OPT-6.7B has 4096 columns and two LayerNorms in each of 32 layers.
                    ({"rows": 8192, "cols": 4096}, ("f32",), {"OPT-6.7B b=4 s=2048": 65}),
                ],
            ),
            *_tests("layer_norm"),
        ),
    ),
    Op(
        name="rms_norm",
        inputs=(_X, _WEIGHT),
        outputs=(_Y,),
        reference=_rms_norm,
        flops=_per_element(4),
        tolerance=accumulated(lambda sizes: sizes["cols"]),
        attributes=(("eps", 1e-5),),
        edge_cases=_edge_cases("rms_norm"),
        # Llama-3-8B: two in each of 32 layers and the final one.
        workloads=(*workloads("rms_norm", _LLAMA), *_tests("rms_norm")),
    ),
    Op(
        name="add_rms_norm",
        inputs=(_X, Operand("residual", _MATRIX), _WEIGHT),
        outputs=(_Y, Operand("h", _MATRIX)),
        reference=_add_rms_norm,
        flops=_per_element(5),
        tolerance=accumulated(lambda sizes: sizes["cols"]),
        attributes=(("eps", 1e-5),),
        edge_cases=_edge_cases("add_rms_norm"),
        # All of Llama-3-8B's norms but the first follow a residual addition.
        workloads=(
            *workloads("add_rms_norm", [(sizes, _BOTH, dict.fromkeys(models, 64)) for sizes, _, models in _LLAMA]),
            *_tests("add_rms_norm"),
        ),
    ),
)
