"""Convolution followed by batch normalisation with frozen statistics: inference, and training steps in three modes."""

from __future__ import annotations

from collections.abc import Callable

from perfsuite.op import Op, Operand, Sizes, Tolerance, Workload, workloads

from .modes import MODES, conv_bn, inference, step

EPS = 1e-5


def _tolerance(workload: Workload) -> Tolerance:
    """bf16: intermediate results (the convolution's output, or the folded weight) are rounded to bf16 on the way."""
    if workload.dtype == "f32":
        return Tolerance(relative=1e-5, absolute=1e-6, of_peak=2e-5)
    return Tolerance(relative=2e-2, absolute=0.0, of_peak=1e-2)


def _out(axis: str) -> Callable[[Sizes], int]:
    return lambda s: (s[axis] + 2 * (s["k"] // 2) - s["k"]) // s["stride"] + 1


DERIVED = (("p", _out("h")), ("q", _out("w")))
X = Operand("x", ("n", "c", "h", "w"), layout="channels_last")
WEIGHT = Operand("weight", ("o", "c", "k", "k"), layout="channels_last", fill="weight")
CHANNELS = (
    Operand("gamma", ("o",), "f32", fill="positive"),
    Operand("beta", ("o",), "f32"),
    Operand("mean", ("o",), "f32"),
    Operand("var", ("o",), "f32", fill="positive"),
)
Y = Operand("y", ("n", "o", "p", "q"), layout="channels_last")


def _macs(s: Sizes) -> int:
    return s["n"] * s["p"] * s["q"] * s["o"] * s["c"] * s["k"] ** 2


def _inference(name: str, models: _Rows) -> Op:
    residual = [Operand("residual", Y.axes, layout=Y.layout)] * (name == "conv_bn_add_relu")
    pointwise = {"conv_bn": 2, "conv_bn_relu": 3, "conv_bn_add_relu": 4}[name]

    def flops(s: Sizes) -> float:
        return 2 * _macs(s) + pointwise * s["n"] * s["p"] * s["q"] * s["o"]

    return Op(
        name=name,
        inputs=(X, *residual, WEIGHT, *CHANNELS),
        outputs=(Y,),
        reference=inference(name, conv_bn),
        flops=flops,
        workloads=_workloads(name, models),
        tolerance=_tolerance,
        attributes=(("eps", EPS),),
        parameters=("stride",),
        derived=DERIVED,
    )


def _training(name: str) -> Op:
    """Flops are those of the three convolutions: forward, and the gradients in x and in the weight."""
    deployed = name == "conv_bn_deploy_step"
    parameters = (Operand("bias", ("o",)),) if deployed else CHANNELS[:2]
    statistics = () if deployed else CHANNELS[2:]
    learned = (X, WEIGHT, *parameters)
    return Op(
        name=name,
        inputs=(*learned, *statistics, Operand("grad", Y.axes, layout=Y.layout)),
        outputs=(Y, *(Operand(f"d{o.name}", o.axes, o.dtype, o.layout) for o in learned)),
        reference=step(*MODES[name]),
        flops=lambda s: 3 * 2 * _macs(s),
        workloads=_workloads(name, _STEPS),
        tolerance=_tolerance,
        attributes=() if deployed else (("eps", EPS),),
        parameters=("stride",),
        derived=DERIVED,
    )


# (input channels, output channels, input height and width, kernel, stride) -> calls per forward pass
_Rows = dict[tuple[int, int, int, int, int], dict[str, int]]
_PROJECTIONS: _Rows = {
    (64, 256, 56, 1, 1): {"ResNet-50 b=4": 1},
    (512, 1024, 28, 1, 2): {"ResNet-50 b=4": 1},
    (192, 32, 28, 1, 1): {"MobileNetV2 b=4": 2},
    (384, 64, 14, 1, 1): {"MobileNetV2 b=4": 3},
}
_INNER: _Rows = {
    (64, 64, 56, 3, 1): {"ResNet-50 b=4": 3},
    (128, 128, 28, 3, 1): {"ResNet-50 b=4": 3},
    (128, 128, 56, 3, 2): {"ResNet-50 b=4": 1},
    (1024, 256, 14, 1, 1): {"ResNet-50 b=4": 5},
}
_LAST: _Rows = {
    (64, 256, 56, 1, 1): {"ResNet-50 b=4": 3},
    (128, 512, 28, 1, 1): {"ResNet-50 b=4": 4},
    (256, 1024, 14, 1, 1): {"ResNet-50 b=4": 6},
}
_STEPS: _Rows = {
    (64, 256, 56, 1, 1): {"ResNet-50 b=4": 4},
    (128, 128, 28, 3, 1): {"ResNet-50 b=4": 3},
    (128, 128, 56, 3, 2): {"ResNet-50 b=4": 1},
    (1024, 256, 14, 1, 1): {"ResNet-50 b=4": 5},
}
_TESTS: tuple[Sizes, ...] = (
    {"n": 2, "c": 5, "h": 7, "w": 9, "o": 6, "k": 3, "stride": 1},
    {"n": 1, "c": 16, "h": 9, "w": 7, "o": 32, "k": 3, "stride": 2},
    {"n": 3, "c": 33, "h": 5, "w": 5, "o": 17, "k": 1, "stride": 2},
)


def _workloads(name: str, models: _Rows) -> tuple[Workload, ...]:
    both = ("f32", "bf16")
    rows = [
        ({"n": 4, "c": c, "h": side, "w": side, "o": o, "k": k, "stride": stride}, both, model)
        for (c, o, side, k, stride), model in models.items()
    ]
    return workloads(name, [*rows, *((sizes, both, {}) for sizes in _TESTS)])


OPS: tuple[Op, ...] = (
    _inference("conv_bn", _PROJECTIONS),
    _inference("conv_bn_relu", _INNER),
    _inference("conv_bn_add_relu", _LAST),
    *map(_training, MODES),
)
