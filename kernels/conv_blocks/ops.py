"""Blocks of convolutional networks at inference, batch norm folded: each is one op, so that a kernel may fuse it."""

from __future__ import annotations

from collections.abc import Callable

from perfsuite.op import Op, Operand, Sizes, Tolerance, Workload, workloads

from .blocks import BLOCKS

_Models = dict[str, int]
# Sizes and the models that call them so; a row without a model is a test's.
_Rows = list[tuple[Sizes, _Models]]


def _weight(name: str, *axes: str, layout: str = "contiguous") -> Operand:
    return Operand(name, axes, layout=layout, fill="weight")


def _image(name: str) -> Operand:
    return Operand(name, ("n", "c", "h", "w"), layout="channels_last")


def _bias(name: str, axis: str) -> Operand:
    return Operand(name, (axis,))


def _tolerance(workload: Workload) -> Tolerance:
    """bf16: the intermediate images are rounded to bf16, so cancelling sums are off by a part of the largest values."""
    if workload.dtype == "f32":
        return Tolerance(relative=1e-5, absolute=1e-6, of_peak=5e-6)
    return Tolerance(relative=2e-2, absolute=0.0, of_peak=1e-2)


def _op(name: str, weights: tuple[Operand, ...], flops: Callable[[Sizes], int], rows: _Rows, eps: float = 0.0) -> Op:
    """`flops` are those of one pixel."""
    both = ("f32", "bf16")
    return Op(
        name=name,
        inputs=(_image("x"), *weights),
        outputs=(_image("y"),),
        reference=BLOCKS[name],
        flops=lambda s: s["n"] * s["h"] * s["w"] * flops(s),
        workloads=workloads(name, [(sizes, both, models) for sizes, models in rows]),
        tolerance=_tolerance,
        attributes=(("eps", eps),) if eps else (),
    )


def _mbconv(n: int, c: int, side: int) -> Sizes:
    return {"n": n, "c": c, "h": side, "w": side, "m": 4 * c, "k": 3}


MBCONV = _op(
    "mbconv",
    (
        _weight("expand", "m", "c"),
        _bias("b1", "m"),
        _weight("depthwise", "m", "k", "k"),
        _bias("b2", "m"),
        _weight("project", "c", "m"),
        _bias("b3", "c"),
    ),
    lambda s: 2 * s["m"] * (2 * s["c"] + s["k"] ** 2),
    [
        (_mbconv(4, 32, 56), {"MBConv stack b=4": 1}),
        (_mbconv(4, 64, 28), {"MBConv stack b=4": 1}),
        (_mbconv(4, 128, 14), {"MBConv stack b=4": 1}),
        (_mbconv(4, 256, 14), {"MBConv stack b=4": 1}),
        (_mbconv(8, 96, 14), {"MBConv stack b=8": 1}),
        ({"n": 2, "c": 16, "h": 7, "w": 7, "m": 64, "k": 3}, {}),
        ({"n": 1, "c": 24, "h": 5, "w": 9, "m": 40, "k": 3}, {}),
        ({"n": 1, "c": 5, "h": 1, "w": 1, "m": 7, "k": 3}, {}),
        ({"n": 2, "c": 32, "h": 9, "w": 33, "m": 136, "k": 5}, {}),
    ],
)


def _convnext(c: int, side: int) -> Sizes:
    return {"n": 4, "c": c, "h": side, "w": side, "k": 7, "m": 4 * c}


CONVNEXT = _op(
    "convnext",
    (
        _weight("depthwise", "c", "k", "k"),
        _bias("b1", "c"),
        Operand("gain", ("c",), fill="positive"),
        _bias("shift", "c"),
        _weight("expand", "m", "c"),
        _bias("b2", "m"),
        _weight("project", "c", "m"),
        _bias("b3", "c"),
        _bias("scale", "c"),
    ),
    lambda s: 2 * s["c"] * (s["k"] ** 2 + 2 * s["m"]),
    [
        (_convnext(96, 56), {"ConvNeXt-T b=4": 3}),
        (_convnext(192, 28), {"ConvNeXt-T b=4": 3}),
        (_convnext(384, 14), {"ConvNeXt-T b=4": 9}),
        ({"n": 2, "c": 16, "h": 7, "w": 7, "k": 7, "m": 64}, {}),
        ({"n": 1, "c": 12, "h": 5, "w": 9, "k": 7, "m": 20}, {}),
    ],
    eps=1e-6,
)


def _convfirst(c: int, side: int) -> Sizes:
    return {"n": 4, "c": c, "h": side, "w": side, "g": 8, "k": 3, "m": 4 * c}


CONVFIRST = _op(
    "convfirst",
    (
        _weight("grouped", "c", "g", "k", "k", layout="channels_last"),
        _bias("b1", "c"),
        _weight("expand", "m", "c"),
        _bias("b2", "m"),
        _weight("project", "c", "m"),
        _bias("b3", "c"),
    ),
    lambda s: 2 * s["c"] * (s["g"] * s["k"] ** 2 + 2 * s["m"]),
    [
        (_convfirst(64, 56), {"ConvFirst stack b=4": 1}),
        (_convfirst(128, 28), {"ConvFirst stack b=4": 1}),
        (_convfirst(256, 14), {"ConvFirst stack b=4": 1}),
        ({"n": 2, "c": 16, "h": 7, "w": 7, "g": 8, "k": 3, "m": 64}, {}),
        ({"n": 1, "c": 24, "h": 5, "w": 9, "g": 8, "k": 3, "m": 40}, {}),
    ],
)


def _basic(c: int, side: int) -> Sizes:
    return {"n": 4, "c": c, "h": side, "w": side, "k": 3}


BASIC_BLOCK = _op(
    "basic_block",
    (
        _weight("weight1", "c", "c", "k", "k", layout="channels_last"),
        _bias("b1", "c"),
        _weight("weight2", "c", "c", "k", "k", layout="channels_last"),
        _bias("b2", "c"),
    ),
    lambda s: 4 * s["c"] ** 2 * s["k"] ** 2,
    [
        (_basic(64, 56), {"ResNet-34 b=4": 3}),
        (_basic(128, 28), {"ResNet-34 b=4": 3}),
        (_basic(256, 14), {"ResNet-34 b=4": 5}),
        (_basic(512, 7), {"ResNet-34 b=4": 2}),
        ({"n": 2, "c": 16, "h": 7, "w": 7, "k": 3}, {}),
        ({"n": 1, "c": 5, "h": 5, "w": 9, "k": 3}, {}),
    ],
)

OPS: tuple[Op, ...] = (MBCONV, CONVNEXT, CONVFIRST, BASIC_BLOCK)
