"""What is computed: an `Op` with its named-axis operands and float64 reference, and a `Workload`, one problem of it."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Sizes = Mapping[str, int]
Scalar = int | float | bool | str

ITEMSIZE = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i64": 8, "i32": 4, "i8": 1, "u8": 1, "f8_e4m3": 1}
# Unit roundoff (half an ulp at 1.0) of the floating types.
ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11, "f8_e4m3": 2.0**-4}
FILLS = ("normal", "weight", "positive", "zeros", "ones", "int8")


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a short name such as `bf16`."""
    import torch

    table = {
        "f64": torch.float64,
        "f32": torch.float32,
        "bf16": torch.bfloat16,
        "f16": torch.float16,
        "i64": torch.int64,
        "i32": torch.int32,
        "i8": torch.int8,
        "u8": torch.uint8,
        "f8_e4m3": torch.float8_e4m3fn,
    }
    return table[name]


@dataclass(frozen=True)
class Operand:
    """One named tensor of an op.

    `axes` name its dimensions, outermost first. `dtype` None means the workload's. `layout` is `contiguous` or
    `channels_last` (the axes stay in NCHW order, the memory is NHWC). `fill` says what random inputs look like:
    `normal` N(0,1); `weight` N(0, 1/fan_in), fan_in being the product of all axes but the first; `positive`
    U(0.5, 1.5); `zeros`, `ones`; `int8` uniform integers in [-127, 127].
    """

    name: str
    axes: tuple[str, ...]
    dtype: str | None = None
    layout: str = "contiguous"
    fill: str = "normal"

    def __post_init__(self) -> None:
        if self.layout not in ("contiguous", "channels_last"):
            raise ValueError(f"operand {self.name}: layout {self.layout!r} is neither contiguous nor channels_last")
        if self.fill not in FILLS:
            raise ValueError(f"operand {self.name}: fill {self.fill!r} is none of {', '.join(FILLS)}")
        if self.dtype is not None and self.dtype not in ITEMSIZE:
            raise ValueError(f"operand {self.name}: dtype {self.dtype!r} is none of {', '.join(ITEMSIZE)}")


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may lie from the float64 reference.

    |got - want| <= absolute + relative * |want| + of_peak * max |want|, the maximum being over the finite values of one
    output: for sums that cancel, and for ops whose outputs have different scales (gradients).
    """

    relative: float
    absolute: float
    of_peak: float = 0.0


_WORKLOAD = re.compile(r"^\s*(?P<op>[A-Za-z_]\w*)\[(?P<body>[^\]]*)\]\s*$")


@dataclass(frozen=True)
class Workload:
    """One problem: an op's name, a length for each of its axes (and integer parameters such as a stride), a dtype.

    Prints as `softmax[rows=4096,cols=1024,f32]` and parses back from it. `models` are the (model, calls per forward
    pass) pairs that it was taken from; `test` marks the small ones that the tests run. Neither is part of its identity.
    """

    op: str
    sizes: tuple[tuple[str, int], ...]
    dtype: str = "f32"
    models: tuple[tuple[str, int], ...] = ()
    test: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise ValueError(f"{self.op}: dtype {self.dtype!r} is none of {', '.join(ITEMSIZE)}")
        for axis, length in self.sizes:
            if not isinstance(length, int) or length < 0:
                raise ValueError(f"{self.op}: {axis}={length!r} is not a length")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Workload) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.op, self.sizes, self.dtype

    def __str__(self) -> str:
        body = ",".join([f"{axis}={length}" for axis, length in self.sizes] + [self.dtype])
        return f"{self.op}[{body}]"

    def __getitem__(self, axis: str) -> int:
        return dict(self.sizes)[axis]

    def distance(self, other: Workload) -> float:
        """How far apart two workloads of an op are: the sum over the axes of the |log2| of the length's ratio."""
        lengths = dict(other.sizes)
        return sum(abs(math.log2((n + 1) / (lengths.get(axis, n) + 1))) for axis, n in self.sizes)

    @classmethod
    def parse(cls, text: str) -> Workload:
        """The workload that prints as `text`; ValueError with an example if it is not spelled like one."""
        match = _WORKLOAD.match(text)
        wrong = f"{text!r} is not a workload; one is spelled like softmax[rows=4096,cols=1024,f32]"
        if match is None:
            raise ValueError(wrong)
        sizes: list[tuple[str, int]] = []
        dtype = "f32"
        for part in filter(None, (p.strip() for p in match["body"].split(","))):
            axis, equals, length = part.partition("=")
            if equals and length.isdigit():
                sizes.append((axis.strip(), int(length)))
            elif not equals and part in ITEMSIZE:
                dtype = part
            else:
                raise ValueError(f"{wrong}: {part!r} is neither axis=length nor one of {', '.join(ITEMSIZE)}")
        return cls(match["op"], tuple(sizes), dtype)

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "sizes": dict(self.sizes),
            "dtype": self.dtype,
            "models": [list(m) for m in self.models],
            "test": self.test,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Workload:
        models = tuple((str(m), int(calls)) for m, calls in data.get("models", ()))
        sizes = tuple((str(k), int(v)) for k, v in data["sizes"].items())
        return cls(data["op"], sizes, data["dtype"], models, bool(data.get("test", False)))


def workloads(
    op: str, rows: Iterable[tuple[Mapping[str, int], Sequence[str], Mapping[str, int]]]
) -> tuple[Workload, ...]:
    """Workloads of one op from (sizes, dtypes, {model: calls}) rows; a row without models is for the tests."""
    return tuple(
        Workload(op, tuple(sizes.items()), dtype, tuple(models.items()), test=not models)
        for sizes, dtypes, models in rows
        for dtype in dtypes
    )


def accumulated(over: Callable[[Sizes], int], scale: float = 1.0) -> Callable[[Workload], Tolerance]:
    """Tolerance of a reduction of `over(sizes)` elements that accumulates in f32 and rounds once to the output dtype.

    f32: 2e-6 * sqrt(log2 D), absolute and relative. 16-bit: two units in the last place on top, which a correct kernel
    with f32 internals never exceeds.
    """

    def tolerance(workload: Workload) -> Tolerance:
        length = max(2, over(dict(workload.sizes)))
        bound = scale * 2e-6 * math.sqrt(math.log2(length) + 1.0)
        rounding = 0.0 if workload.dtype in ("f32", "f64") else 4.0 * ROUNDOFF.get(workload.dtype, 0.0)
        return Tolerance(relative=bound + rounding, absolute=bound)

    return tolerance


def _default_tolerance(workload: Workload) -> Tolerance:
    return Tolerance(relative=1e-5 + 4.0 * ROUNDOFF.get(workload.dtype, 0.0), absolute=1e-5)


@dataclass(frozen=True)
class Op:
    """What is computed, defined by `reference`: float64 PyTorch from the inputs to the output(s).

    `reference(*inputs, **attributes, **parameters)` gets floating inputs as float64 and integer inputs as they are, and
    returns a tensor or a tuple in the order of `outputs`. `attributes` are constants of the op (eps); `parameters`
    name the sizes of a workload that are no axis of an operand (stride). `derived` gives axes that follow from others
    (the output height of a convolution). `flops(sizes)` counts useful operations, a multiply-add as two. The least
    bytes follow from the operands; `passes(sizes)` says how often a probe goes over them in one call.
    `samples(workload, generator)` replaces the default random inputs where an op needs related ones.
    `edge_cases(dtype)` yields (description, inputs) that every kernel must get right, their `parameters` being those of
    the first test workload. A backward pass is an op of its own, named by `backward`; `saves` are the operands of the
    forward that it needs.
    """

    name: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    reference: Callable[..., Any]
    flops: Callable[[Sizes], float]
    workloads: tuple[Workload, ...] = ()
    tolerance: Callable[[Workload], Tolerance] = _default_tolerance
    attributes: tuple[tuple[str, Scalar], ...] = ()
    parameters: tuple[str, ...] = ()
    derived: tuple[tuple[str, Callable[[Sizes], int]], ...] = ()
    samples: Callable[[Workload, torch.Generator], tuple[torch.Tensor, ...]] | None = None
    edge_cases: Callable[[str], Iterable[tuple[str, tuple[torch.Tensor, ...]]]] | None = None
    backward: str | None = None
    saves: tuple[str, ...] = ()
    passes: Callable[[Sizes], int] | None = None
    family: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def axes(self) -> tuple[str, ...]:
        """The sizes that a workload must give, in the order of their first appearance."""
        derived = {name for name, _ in self.derived}
        seen = [axis for operand in self.inputs + self.outputs for axis in operand.axes if axis not in derived]
        return tuple(dict.fromkeys([*seen, *self.parameters]))

    def attribute(self, name: str) -> Any:
        return dict(self.attributes)[name]

    def sizes(self, workload: Workload) -> dict[str, int]:
        """Every axis length of the workload, the derived ones too."""
        sizes = dict(workload.sizes)
        for name, follows in self.derived:
            sizes[name] = follows(sizes)
        return sizes

    def complete(self, workload: Workload) -> Workload:
        """The workload with its axes in the op's order, its models known; ValueError names missing and unknown axes."""
        given = dict(workload.sizes)
        missing = [axis for axis in self.axes if axis not in given]
        unknown = [axis for axis in given if axis not in self.axes]
        if missing or unknown:
            says = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(
                unknown
            )
            raise ValueError(f"{workload} {' and '.join(says)}: the axes of {self.name} are {', '.join(self.axes)}")
        ordered = replace(workload, sizes=tuple((axis, given[axis]) for axis in self.axes))
        return next((known for known in self.workloads if known == ordered), ordered)

    def shape(self, operand: Operand, workload: Workload) -> tuple[int, ...]:
        sizes = self.sizes(workload)
        return tuple(sizes[axis] for axis in operand.axes)

    def dtype(self, operand: Operand, workload: Workload) -> str:
        return operand.dtype or workload.dtype

    def least_bytes(self, workload: Workload) -> int:
        """Compulsory traffic in bytes: every input read once and every output written once."""
        return sum(self._bytes(operand, workload) for operand in self.inputs + self.outputs)

    def memory_passes(self, workload: Workload) -> tuple[float, float]:
        """(reads, writes): the compulsory bytes in units of the largest operand's, (1, 1) for a copy."""
        sizes = [[self._bytes(o, workload) for o in operands] for operands in (self.inputs, self.outputs)]
        largest = max(1, *sizes[0], *sizes[1])
        return sum(sizes[0]) / largest, sum(sizes[1]) / largest

    def _bytes(self, operand: Operand, workload: Workload) -> int:
        return _numel(self.shape(operand, workload)) * ITEMSIZE[self.dtype(operand, workload)]

    def traffic(self, workload: Workload) -> int:
        """Bytes read and written in one call: the least bytes, as often as the op goes over its operands."""
        return self.least_bytes(workload) * (1 if self.passes is None else self.passes(self.sizes(workload)))

    def operations(self, workload: Workload) -> float:
        return self.flops(self.sizes(workload))

    def make_inputs(self, workload: Workload, seed: int) -> tuple[torch.Tensor, ...]:
        """Random inputs of the workload; the same seed gives the same tensors."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        if self.samples is not None:
            return self.samples(workload, generator)
        return tuple(self._sample(operand, workload, generator) for operand in self.inputs)

    def _sample(self, operand: Operand, workload: Workload, generator: torch.Generator) -> torch.Tensor:
        import torch

        shape = self.shape(operand, workload)
        dtype = torch_dtype(self.dtype(operand, workload))
        if operand.fill == "int8":
            tensor = torch.randint(-127, 128, shape, generator=generator).to(dtype)
        elif operand.fill in ("zeros", "ones"):
            tensor = torch.full(shape, float(operand.fill == "ones"), dtype=dtype)
        elif operand.fill == "positive":
            tensor = (torch.rand(shape, generator=generator) + 0.5).to(dtype)
        else:
            scale = max(1, _numel(shape[1:])) ** -0.5 if operand.fill == "weight" else 1.0
            tensor = (torch.randn(shape, generator=generator) * scale).to(dtype)
        return _laid_out(tensor, operand)

    def make_outputs(self, workload: Workload) -> tuple[torch.Tensor, ...]:
        """Uninitialised tensors of the outputs' shapes, dtypes and layouts."""
        import torch

        return tuple(
            _laid_out(torch.empty(self.shape(o, workload), dtype=torch_dtype(self.dtype(o, workload))), o)
            for o in self.outputs
        )

    def expected(self, inputs: Sequence[torch.Tensor], workload: Workload) -> tuple[torch.Tensor, ...]:
        """The float64 reference's answer."""
        import torch

        exact = [t.double() if t.is_floating_point() else t for t in inputs]
        keywords: dict[str, Any] = {**dict(self.attributes), **{name: workload[name] for name in self.parameters}}
        with torch.no_grad():
            answer = self.reference(*exact, **keywords)
        return answer if isinstance(answer, tuple) else (answer,)

    def bind(self, inputs: Sequence[torch.Tensor], parameters: Sizes | None = None) -> Workload:
        """The workload that these tensors are; ValueError says which tensor does not fit."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(o.name for o in self.inputs)
            raise ValueError(f"{self.name} takes {len(self.inputs)} tensors ({names}), got {len(inputs)}")
        sizes: dict[str, int] = dict(parameters or {})
        for operand, tensor in zip(self.inputs, inputs):
            if tensor.dim() != len(operand.axes):
                shape = tuple(tensor.shape)
                raise ValueError(f"{self.name}: {operand.name} has axes {operand.axes}, got a tensor of shape {shape}")
            for axis, length in zip(operand.axes, tensor.shape):
                if sizes.setdefault(axis, length) != length:
                    raise ValueError(
                        f"{self.name}: {operand.name} has {axis}={length}, but {axis}={sizes[axis]} elsewhere"
                    )
        for axis, follows in self.derived:
            length = sizes.pop(axis) if axis in sizes else follows(sizes)
            if length != follows(sizes):
                raise ValueError(
                    f"{self.name}: {axis}={length}, but {axis}={follows(sizes)} follows from the other axes"
                )
        leading = next((t for o, t in zip(self.inputs, inputs) if o.dtype is None), inputs[0])
        short = next((name for name in ITEMSIZE if torch_dtype(name) == leading.dtype), None)
        if short is None:
            raise ValueError(f"{self.name}: dtype {leading.dtype} is none of {', '.join(ITEMSIZE)}")
        return self.complete(Workload(self.name, tuple(sizes.items()), short))


def _numel(shape: tuple[int, ...]) -> int:
    return functools.reduce(operator.mul, shape, 1)


def _laid_out(tensor: torch.Tensor, operand: Operand) -> torch.Tensor:
    import torch

    return tensor.contiguous(memory_format=torch.channels_last) if operand.layout == "channels_last" else tensor
