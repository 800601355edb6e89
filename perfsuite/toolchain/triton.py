"""Triton sources to GPU code: jitted on first launch, or compiled ahead of time for a GPU that need not be here.

Nothing here imports triton before it is needed, so a module with Triton kernels can be imported where there is none.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from perfsuite.kernel import Run, Unfit
from perfsuite.machine import Machine
from perfsuite.op import Op, Operand, Scalar, Workload, torch_dtype
from perfsuite.toolchain.gpu_targets import TARGETS, Target, not_resident

if TYPE_CHECKING:
    import torch

_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")

# Triton's names of torch's dtypes.
_TRITON_DTYPE = {
    "torch.float32": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.int64": "i64",
    "torch.int32": "i32",
    "torch.int8": "i8",
    "torch.uint8": "u8",
}


@dataclass(frozen=True)
class Compiled:
    """What a compiled kernel uses: registers and spilled bytes of a thread, bytes of shared memory of a block.

    `error` is the compiler's text where it failed, or why the result cannot be resident on the target.
    """

    registers: int = 0
    spills: int = 0
    shared: int = 0
    error: str | None = None

    @property
    def spilled(self) -> bool:
        return self.spills > _TRADED


# Bytes of stack that are no spill for want of registers: with 40 of 255 in use, ptxas keeps 8 bytes of add_rms_norm
# there (sm_80, 4096 columns in 8 warps) for the sake of occupancy.
_TRADED = 16


class Jitted:
    """A Triton function that becomes `triton.jit`'s when it is first launched or compiled.

    `import triton` takes 0.1 s and is an optional dependency: a CPU-only user should notice neither.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    @functools.cached_property
    def jitted(self) -> Any:
        import triton

        self._resolved(triton)
        return triton.jit(self.function)

    @property
    def _callee(self) -> Any:
        """What another function's call of this one runs; in the interpreter Python's own, ten times as fast."""
        import triton

        if not triton.knobs.runtime.interpret:
            return self.jitted
        self._resolved(triton)
        return self.function

    def _resolved(self, triton: Any) -> None:
        """Triton resolves the names in a kernel's body among its module's globals: its language, and what it calls."""
        known = self.function.__globals__
        known["tl"] = triton.language
        for name in self.function.__code__.co_names:
            if isinstance(known.get(name), Jitted):
                known[name] = known[name]._callee

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        if _recording is not None:
            return functools.partial(self._recorded, _recording)
        launch: Callable[..., Any] = self.jitted[grid]
        return launch

    def _recorded(self, launches: list[Launch], *arguments: Any, **fixed: Any) -> None:
        options = {name: fixed.pop(name) for name in _OPTIONS if name in fixed}
        launches.append(Launch(self, self.jitted.signature.bind(*arguments, **fixed).arguments, options))


_OPTIONS = ("num_warps", "num_stages")
# While a list is here, launches are added to it and not made.
_recording: list[Launch] | None = None


@dataclass(frozen=True)
class Launch:
    """A launch that was not made: a kernel, what it is called with, and the options it is compiled with."""

    kernel: Jitted
    arguments: Mapping[str, Any]
    options: Mapping[str, int]

    def compiled(self, target: Target) -> Compiled:
        """What the launcher would have compiled, for the target, all tensors being aligned to 16 bytes."""
        signature: dict[str, str] = {}
        constexprs: dict[str, Scalar] = {}
        for place, (name, value) in enumerate(self.arguments.items()):
            if self.kernel.jitted.params[place].is_constexpr:
                constexprs[name] = value
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif isinstance(value, int):
                signature[name] = "i32:16" if value % 16 == 0 else "i32:1" if value == 1 else "i32"
            else:
                signature[name] = f"*{_TRITON_DTYPE[str(value.dtype)]}:16"
        return compile_ahead(self.kernel, signature, constexprs, target, self.options)


def resident(op: Op, workload: Workload, run: Run) -> Run:
    """`run`, if what it launches can be resident on this machine's GPU without a spill; else raises Unfit.

    Without a GPU whose limits are known here nothing is compiled.
    """
    target = _present()
    if target is None:
        return run
    for launch in launches(op, workload, run):
        used = launch.compiled(target)
        if used.error is not None:
            raise Unfit(used.error)
        if used.spilled:
            raise Unfit(f"spills {used.spills} bytes of each thread's registers to memory on {target.arch}")
    return run


@functools.cache
def _present() -> Target | None:
    """The target that torch's GPU is, if it sees one."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties()
    arch = getattr(properties, "gcnArchName", "").partition(":")[0] if torch.version.hip else ""
    return TARGETS.get(arch or f"sm_{properties.major}{properties.minor}")


def _shadows(op: Op, workload: Workload) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The op's inputs and outputs without memory."""
    import torch

    def shadow(operand: Operand) -> torch.Tensor:
        kind = torch_dtype(op.dtype(operand, workload))
        return torch.empty(op.shape(operand, workload), dtype=kind, device="meta")

    return [shadow(operand) for operand in op.inputs], [shadow(operand) for operand in op.outputs]


def launches(op: Op, workload: Workload, run: Run) -> list[Launch]:
    """What a call of `run`, built for the op's workload, would launch."""
    global _recording
    _recording = []
    try:
        run(*_shadows(op, workload))
        return _recording
    finally:
        _recording = None


def jit(function: Callable[..., None]) -> Jitted:
    """Decorator of a Triton kernel; its module needs `import triton.language as tl` under TYPE_CHECKING only."""
    return Jitted(function)


def inlined(function: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned]:
    """Decorator of a function that Triton kernels, and other such functions, call: it becomes a part of each."""
    return cast(Callable[_Arguments, _Returned], Jitted(function))


@functools.cache
def available() -> str | None:
    """The reason why Triton kernels cannot be compiled here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "needs triton, which is not installed: pip install 'perfsuite[gpu]'"
    return None


def missing_gpu(machine: Machine) -> str | None:
    """The reason why Triton kernels cannot run on this machine, or None."""
    return available() or (None if machine.gpus else "needs a GPU, this machine has none")


def compile_ahead(
    kernel: Jitted,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Scalar],
    target: Target,
    options: Mapping[str, int],
) -> Compiled:
    """Compile for a target that need not be here, and say what the result uses; never raises for a kernel's sake.

    `signature` gives the type of every argument that is no constexpr, such as `*fp32` or `i32`; `:16` behind it says
    that it is divisible by 16, which the launcher finds out by itself and on which vector loads depend, `:1` that it
    is 1. `options` are
    `num_warps`, `num_stages` and the like. Takes 0.05 to 0.7 s, nothing when triton's cache has it.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled_by_triton

    arguments = {name: kind.partition(":")[0] for name, kind in signature.items()}
    places = {name: (at,) for at, name in enumerate(kernel.jitted.arg_names)}
    # As the launcher has it, so that it finds the result in triton's cache: an empty list where nothing is known, and
    # none at all for a float and for 1.
    told = {
        name: [["tt.divisibility", 16]] * kind.endswith(":16")
        for name, kind in signature.items()
        if kind not in ("fp32", "i32:1")
    }
    told |= {name: [] for name, value in constexprs.items() if isinstance(value, str)}
    source = ASTSource(
        kernel.jitted,
        arguments | dict.fromkeys(constexprs, "constexpr"),
        dict(constexprs),
        {place: told[name] for name, place in places.items() if name in told},
    )
    arch = int(target.arch.removeprefix("sm_")) if target.backend == "cuda" else target.arch
    try:
        built = compiled_by_triton(source, GPUTarget(target.backend, arch, target.lanes), dict(options))
    except Exception as wrong:  # the compiler's passes raise whatever they like
        return Compiled(error=f"{type(wrong).__name__}: {wrong}")
    used = _nvidia(built.asm["cubin"]) if target.backend == "cuda" else _amd(built.asm["amdgcn"])
    used = replace(used, shared=int(built.metadata.shared))
    return replace(used, error=not_resident(target, int(built.metadata.num_warps), used.shared, used.registers))


def _nvidia(cubin: bytes) -> Compiled:
    """Registers and local memory as cuobjdump reports them; ptxas keeps spilled registers on the stack."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    return Compiled(registers=found["REG"], spills=found["STACK"] + found["LOCAL"])


def _amd(assembly: str) -> Compiled:
    """Vector registers and the scratch memory of one lane, from the metadata at the end of the assembly."""
    found = {name: int(count) for name, count in re.findall(r"\.(\w+):\s+(\d+)", assembly)}
    return Compiled(registers=found["vgpr_count"], spills=found["private_segment_fixed_size"])
