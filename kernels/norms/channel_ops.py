"""Norms of images: batch norm, group norm, instance norm and their gradients, of NCHW and of channels-last tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from perfsuite.op import Op, Operand, Sizes, Tolerance, Workload, accumulated, torch_dtype, workloads

from . import channel_formulas as formulas

_Tensors = tuple[torch.Tensor, ...]
_Cases = Iterator[tuple[str, _Tensors]]
_Rows = Sequence[tuple[Mapping[str, int], Sequence[str], Mapping[str, int]]]
_BOTH = ("f32", "bf16")
_EPS = ("eps", 1e-5)
_NHWC = "_nhwc"

_IMAGES = ("n", "c", "h", "w")
_X, _Y, _DY, _DX = (Operand(name, _IMAGES) for name in ("x", "y", "dy", "dx"))
# The parameters and the statistics are f32 for images of any dtype, as mixed-precision training keeps them.
_WEIGHT = Operand("weight", ("c",), "f32", fill="positive")
_BIAS = Operand("bias", ("c",), "f32")
_RUNNING = (Operand("running_mean", ("c",), "f32"), Operand("running_var", ("c",), "f32", fill="positive"))
_NEXT = (Operand("next_mean", ("c",), "f32"), Operand("next_var", ("c",), "f32"))
_GRADIENTS = (_DX, Operand("dweight", ("c",), "f32"), Operand("dbias", ("c",), "f32"))


@dataclass(frozen=True)
class _Norm:
    """What one norm's forward and backward share: the axes of a mean, and the elements that it is of."""

    axes: tuple[str, ...]
    size: Callable[[Sizes], int]
    test: Sizes

    @property
    def statistics(self) -> tuple[Operand, Operand]:
        return Operand("mean", self.axes, "f32"), Operand("rstd", self.axes, "f32", fill="positive")


# For the tests two images of 35 pixels, which no vector's width divides, and channels beyond one vector. A source
# takes a second or two to compile for a dtype and ISA: one op of each is tested in bf16, too.
_BATCH = _Norm(("c",), lambda s: s["n"] * s["h"] * s["w"], {"n": 2, "c": 37, "h": 5, "w": 7})
_GROUP = _Norm(
    ("n", "groups"),
    lambda s: s["c"] // s["groups"] * s["h"] * s["w"],
    {"n": 2, "c": 36, "h": 5, "w": 7, "groups": 4},
)
_INSTANCE = _Norm(("n", "c"), lambda s: s["h"] * s["w"], {"n": 2, "c": 37, "h": 5, "w": 7})


def _per_element(count: int) -> Callable[[Sizes], float]:
    return lambda s: float(count * s["n"] * s["c"] * s["h"] * s["w"])


def _gradient_tolerance(norm: _Norm) -> Callable[[Workload], Tolerance]:
    """Absolutely of the largest gradient: sums of both signs cancel."""

    def tolerance(workload: Workload) -> Tolerance:
        bound = accumulated(norm.size)(workload)
        return replace(bound, absolute=1e-7, of_peak=bound.absolute)

    return tolerance


def _noise(test: Workload) -> torch.Tensor:
    return torch.randn([test[axis] for axis in _IMAGES], generator=torch.Generator().manual_seed(1))


def _odd_images(test: Workload) -> Iterator[tuple[str, torch.Tensor, float]]:
    """(description, x, size of the weights): images that have something out of the ordinary."""
    noise = _noise(test)
    yield "scale 1e-20", noise * 1e-20, 1.0
    yield "zeros", torch.zeros_like(noise), 1.0
    for value in (1e4, torch.nan):
        yield f"{value} at the start", _with(noise, (0, 0, 0, 0), value), 1.0
        yield f"{value} at the end of a channel", _with(noise, (1, 3, 4, 6), value), 1.0


def _hard_images(test: Workload, dtype: str) -> Iterator[tuple[str, torch.Tensor, float]]:
    """The same of images on which a careless kernel fails.

    Small weights turn the op's tolerance into one that the conditioning of x - mean allows, as for the row norms.
    """
    noise, offset = _noise(test), 1e4 if dtype == "f32" else 1e2
    yield f"offset {offset:.0e} + N(0,1)", noise + offset, 1e-3
    yield "constant images", torch.full_like(noise, 3.0), 1e-2
    yield "inf at the start", _with(noise, (0, 0, 0, 0), torch.inf), 1.0
    yield "-inf at the end of a channel", _with(noise, (1, 3, 4, 6), -torch.inf), 1.0


def _with(x: torch.Tensor, place: tuple[int, ...], value: float) -> torch.Tensor:
    x = x.clone()
    x[place] = value
    return x


def hard_inputs(op: Op, dtype: str) -> _Cases:
    """(description, inputs) of a forward op on which a careless kernel fails.

    They are edge cases of batch norm alone, since PyTorch's group norm fails on them: of channels-last images it takes
    E[x^2] - E[x]^2 in f32 (torch 2.13), so that at a mean of 1e4 nothing of y is right.
    """
    for description, x, size in _hard_images(op.workloads[-1], dtype):
        yield description, _given(op, x, size, dtype)


def _edge_cases(op: Op) -> Callable[[str], _Cases]:
    def cases(dtype: str) -> _Cases:
        if "batch_norm" in op.name:
            yield from hard_inputs(op, dtype)
        for description, x, size in _odd_images(op.workloads[-1]):
            yield description, _given(op, x, size, dtype)

    return cases


def _given(op: Op, x: torch.Tensor, size: float, dtype: str) -> _Tensors:
    weight = torch.linspace(0.5, 1.5, x.shape[1]) * size
    last = op.inputs[0].layout == "channels_last"
    layout = torch.channels_last if last else torch.contiguous_format
    given = {
        "x": x.to(torch_dtype(dtype), memory_format=layout),
        "weight": weight,
        "bias": torch.zeros_like(weight),
        "mean": torch.zeros_like(weight),
        "var": torch.ones_like(weight),
    }
    return tuple(given[operand.name.removeprefix("running_")] for operand in op.inputs)


def _forward(
    norm: _Norm,
    reference: Callable[..., object],
    models: _Rows,
    flops: int,
    inputs: tuple[Operand, ...] = (),
    outputs: tuple[Operand, ...] = (),
    attributes: tuple[tuple[str, float], ...] = (),
) -> Op:
    """A norm that stores its statistics, which the backward pass wants."""
    name = reference.__name__
    return Op(
        name=name,
        inputs=(_X, _WEIGHT, _BIAS, *inputs),
        outputs=(_Y, *norm.statistics, *outputs),
        reference=reference,
        flops=_per_element(flops),
        tolerance=accumulated(norm.size),
        attributes=(_EPS, *attributes),
        parameters=("groups",) if "groups" in norm.axes else (),
        backward=f"{name}_backward",
        saves=("x", "mean", "rstd", "weight"),
        workloads=workloads(name, [*models, (norm.test, _BOTH if norm is _BATCH else ("f32",), {})]),
    )


def _backward(norm: _Norm, reference: Callable[..., object], models: _Rows) -> Op:
    """The gradients of a norm from the statistics that it stored."""
    name = reference.__name__
    return Op(
        name=name,
        inputs=(_DY, _X, *norm.statistics, _WEIGHT),
        outputs=_GRADIENTS,
        reference=reference,
        flops=_per_element(14),
        tolerance=_gradient_tolerance(norm),
        workloads=workloads(name, [*models, (norm.test, ("f32",), {})]),
    )


def _frozen(training: Op, models: _Rows) -> Op:
    """Batch norm as in inference: the statistics are given, and of one pass."""
    name = formulas.batch_norm_inference.__name__
    inputs = (*training.inputs[:3], *(replace(o, name=o.name.removeprefix("running_")) for o in training.inputs[3:]))
    return replace(
        training,
        name=name,
        inputs=inputs,
        outputs=(_Y,),
        reference=formulas.batch_norm_inference,
        flops=_per_element(3),
        attributes=(_EPS,),
        backward=f"{name}_backward",
        saves=("x", "mean", "var", "weight"),
        workloads=workloads(name, [*models, (_BATCH.test, ("f32",), {})]),
    )


def _frozen_backward(training: Op, frozen: Op, models: _Rows) -> Op:
    """The gradients of batch norm as in inference, which those who fine-tune with frozen norms want."""
    name = formulas.batch_norm_inference_backward.__name__
    return replace(
        training,
        name=name,
        inputs=(_DY, _X, *frozen.inputs[3:], _WEIGHT),
        reference=formulas.batch_norm_inference_backward,
        flops=_per_element(5),
        attributes=(_EPS,),
        workloads=workloads(name, [*models, (_BATCH.test, ("f32",), {})]),
    )


def _images(count: int, shapes: Mapping[tuple[int, int], int], model: str, **more: int) -> _Rows:
    """Rows of workloads for {(channels, side): calls} of one model."""
    return [({"n": count, "c": c, "h": side, "w": side, **more}, _BOTH, {model: k}) for (c, side), k in shapes.items()]


def _nhwc(op: Op) -> Op:
    """The same of channels-last tensors."""

    def laid_out(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
        return tuple(replace(o, layout="channels_last") if o.axes == _IMAGES else o for o in operands)

    return replace(
        op,
        name=op.name + _NHWC,
        inputs=laid_out(op.inputs),
        outputs=laid_out(op.outputs),
        backward=op.backward and op.backward + _NHWC,
        workloads=tuple(replace(workload, op=op.name + _NHWC) for workload in op.workloads),
    )


# {(channels, side): calls}. ResNet-50: the batch norms of its stem and, of each stage, those of one width. Diffusion:
# the U-Net of Stable Diffusion 1 at 64x64 latents, two prompts of which make one step. Instance norm: fast style
# transfer (Johnson et al. 2016, with Ulyanov's norms) at 256x256.
_RESNET = {(64, 112): 1, (64, 56): 6, (512, 28): 5, (256, 14): 11, (2048, 7): 4}
_UNET = {(320, 64): 11, (640, 32): 11, (1280, 16): 11}
_STYLE = {(64, 128): 2, (128, 64): 11}
_MODEL = "ResNet-50"

_TRAINING = _forward(
    _BATCH,
    formulas.batch_norm,
    _images(8, _RESNET, f"{_MODEL} training b=8"),
    8,
    _RUNNING,
    _NEXT,
    (("momentum", 0.1),),
)
_FROZEN = _frozen(_TRAINING, _images(8, _RESNET, f"{_MODEL} inference b=8"))
_TRAINING_BACKWARD = _backward(_BATCH, formulas.batch_norm_backward, _images(8, _RESNET, f"{_MODEL} training b=8"))
_NCHW_OPS = (
    _TRAINING,
    _FROZEN,
    _forward(_GROUP, formulas.group_norm, _images(2, _UNET, "Stable Diffusion 1 U-Net b=2", groups=32), 8),
    _forward(_INSTANCE, formulas.instance_norm, _images(4, _STYLE, "Style transfer b=4"), 8),
    _TRAINING_BACKWARD,
    _frozen_backward(_TRAINING_BACKWARD, _FROZEN, _images(8, _RESNET, f"{_MODEL} fine-tuning b=8")),
    _backward(
        _GROUP, formulas.group_norm_backward, _images(2, _UNET, "Stable Diffusion 1 U-Net training b=2", groups=32)
    ),
    _backward(_INSTANCE, formulas.instance_norm_backward, _images(4, _STYLE, "Style transfer training b=4")),
)
OPS: tuple[Op, ...] = tuple(
    replace(op, edge_cases=_edge_cases(op)) if op.backward else op for op in (*_NCHW_OPS, *map(_nhwc, _NCHW_OPS))
)
