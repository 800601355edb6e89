"""The kernels of softmax.cpp: one per algorithm, for the AVX2 and the AVX-512 that the machine has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from perfsuite.kernel import Config, Dimension, Kernel, Run, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload
from perfsuite.toolchain import native

_ELEMENTS = {"f32": "float", "bf16": "bf16"}
# Degree of the polynomial for 2^f. Relative errors: 1.1e-7 for f32, as good as the rounding around it; 1.0e-4 for bf16,
# whose half unit in the last place is 2e-3. One more degree costs a tenth of the time and shows in no output.
_DEGREES = {"f32": 5, "bf16": 3}
_BLOCKS = (1024, 4096, 16384)


class _Plan(ctypes.Structure):
    """softmax.cpp's Plan: the sizes of the problem, and the tunables that are chosen at run time."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "cols", "unroll", "accumulators", "stream", "block")]


def kernel(algorithm: str, *tunables: str, refuses: Callable[[Workload, Machine], str | None] | None = None) -> Kernel:
    """The kernel of one of softmax.cpp's algorithms.

    `tunables` are those of accumulators, stream and block that it has besides isa and unroll; `refuses` gives a
    further reason why a workload is not for it.
    """

    def supports(workload: Workload, machine: Machine) -> str | None:
        if workload.dtype not in _ELEMENTS:
            return f"takes {' and '.join(_ELEMENTS)}, not {workload.dtype}"
        if "avx2" not in machine.isa:
            return "needs AVX2, which this CPU lacks"
        return native.missing_compiler() or (refuses(workload, machine) if refuses else None)

    def space(workload: Workload, machine: Machine) -> Space:
        return _space(tunables, workload, machine)

    def build(op: Op, workload: Workload, config: Config) -> Run:
        return _build(algorithm, workload, config)

    return Kernel(ops=("softmax",), build=build, space=space, supports=supports, sources=("softmax.cpp",))


def _space(tunables: tuple[str, ...], workload: Workload, machine: Machine) -> Space:
    isas = tuple(isa for isa in ("avx512", "avx2") if isa in machine.isa)
    # A block longer than the row is the row: one such value is enough.
    blocks = tuple(b for k, b in enumerate(_BLOCKS) if k == 0 or _BLOCKS[k - 1] < workload["cols"])
    every = (
        Dimension("isa", isas, ordered=False),
        Dimension("unroll", (1, 2, 4, 8)),
        Dimension("accumulators", (1, 2, 4)),
        Dimension("stream", (False, True), ordered=False),
        Dimension("block", blocks),
    )
    dimensions = tuple(d for d in every if d.name in ("isa", "unroll", *tunables))
    middle = {"isa": isas[0], "unroll": 2, "block": blocks[min(1, len(blocks) - 1)]}
    default = Config(tuple((d.name, middle.get(d.name, d.values[0])) for d in dimensions))
    return Space(dimensions, _allowed, default)


def _allowed(config: Config) -> bool:
    values = config.to_json()
    return int(values.get("accumulators", 1)) <= int(values["unroll"])


def _build(algorithm: str, workload: Workload, config: Config) -> Run:
    defines: dict[str, int | str] = {
        "ALGORITHM": algorithm,
        "ELEMENT": _ELEMENTS[workload.dtype],
        "DEGREE": _DEGREES[workload.dtype],
    }
    softmax = native.load(Path(__file__).with_name("softmax.cpp"), config["isa"], defines).softmax
    softmax.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    softmax.restype = ctypes.c_int
    values = {"accumulators": 1, "stream": False, "block": 0, **config.to_json()}
    plan = _Plan(
        workload["rows"],
        workload["cols"],
        values["unroll"],
        values["accumulators"],
        values["stream"],
        values["block"],
    )
    address = ctypes.addressof(plan)

    def run(inputs: Tensors, outputs: Tensors, plan: _Plan = plan) -> Tensors:
        if softmax(inputs[0].data_ptr(), outputs[0].data_ptr(), address) != 0:
            raise ValueError(
                f"softmax.cpp has no instance for {config}: unroll is 1, 2, 4 or 8, accumulators divides it"
            )
        return outputs

    return run
