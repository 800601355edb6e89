"""Python functions to kernels by torch.compile: static shapes, chosen options, constants frozen on demand."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain.constants import PerConstants
from perfsuite.toolchain.triton import missing_gpu

Function = Callable[..., Any]
# What torch.compile accepts as a value.
Options = Mapping[str, str | int | bool | Callable[..., Any]]
# What its mode max-autotune adds to the default, but for the graphs, which are part of how a kernel is timed.
MAX_AUTOTUNE: Options = {"max_autotune": True, "coordinate_descent_tuning": True}


def simd_widths(machine: Machine) -> tuple[int, ...]:
    """The values of the option `cpp.simdlen` that the machine can run, in bits: its choice between AVX2 and AVX-512."""
    return tuple(width for isa, width in (("avx512", 512), ("avx2", 256)) if isa in machine.isa) or (0,)


def compiled(function: Function, options: Options) -> Function:
    """`function` compiled for the shapes of each call, with `options` of torch._inductor.config."""
    return torch.compile(_alone(function), dynamic=False, options=dict(options))


def gpu_kernel(formulas: Mapping[str, Mapping[str, Function]], options: Options) -> Kernel:
    """The kernel that torch.compile makes of each op's formulas on a GPU; the library's own comes first.

    The formulas are called as `formula(*inputs, *outputs, **attributes)`.
    """

    def build(op: Op, workload: Workload, config: Config) -> Run:
        call, attributes = compiled(formulas[op.name][config["formula"]], options), dict(op.attributes)

        def run(inputs: Tensors, outputs: Tensors) -> Tensors:
            with torch.no_grad():
                call(*inputs, *outputs, **attributes)
            return outputs

        return run

    def space(workload: Workload, machine: Machine) -> Space:
        names = sorted(formulas[workload.op], key=lambda name: name != "library")
        return Space((Dimension("formula", tuple(names), Scale.CATEGORICAL),))

    def supports(workload: Workload, machine: Machine) -> str | None:
        return missing_gpu(machine)

    return Kernel(ops=tuple(formulas), build=build, space=space, supports=supports, device="cuda")


def frozen(function: Function, variables: int, options: Options) -> Function:
    """`function` with all arguments after the first `variables` frozen: folded, packed and laid out when compiled.

    It is compiled at the first call with new constants (by value), so outside of any timed call after a warm-up.
    """
    known: list[tuple[list[torch.Tensor], Function]] = []

    def of(constants: Sequence[torch.Tensor]) -> Function:
        for values, call in known:
            if all(map(torch.equal, values, constants)):
                return call
        call = _with_constants(function, constants, options)
        known.append(([t.clone() for t in constants], call))
        return call

    per_constants = PerConstants(of)

    def run(*arguments: torch.Tensor) -> Any:
        with torch.no_grad():
            return per_constants(arguments[variables:])(*arguments[:variables])

    return run


def _with_constants(function: Function, constants: Sequence[torch.Tensor], options: Options) -> Function:
    """Inductor's freezing takes the parameters of a compiled module for constants, and nothing else."""

    class Frozen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constants = torch.nn.ParameterList([torch.nn.Parameter(t, requires_grad=False) for t in constants])

        def forward(self, *arguments: torch.Tensor) -> Any:
            return function(*arguments, *self.constants)

    Frozen.forward = _alone(Frozen.forward)  # type: ignore[method-assign]
    call = torch.compile(Frozen().eval(), dynamic=False, options={**options, "freezing": True})
    compiled_once = False

    def run(*arguments: torch.Tensor) -> Any:
        nonlocal compiled_once
        if compiled_once:
            return call(*arguments)
        import torch._inductor.config  # takes 1.3 s, and most processes compile nothing

        # Dynamo reads this setting from the global configuration: as an option alone it freezes nothing (torch 2.13).
        with torch._inductor.config.patch(freezing=True):
            answer = call(*arguments)
        compiled_once = True
        return answer

    return run


def _alone(function: Function) -> Function:
    """The function with a code object of its own.

    Dynamo counts recompilations by code object, and from the ninth config of one function on (its recompile_limit) it
    runs eager code without an error.
    """
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"only a plain function can be compiled, not {function!r}: wrap it in one")
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
