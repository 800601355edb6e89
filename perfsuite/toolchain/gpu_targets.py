"""What a block may use on the GPU architectures that kernels are compiled for ahead of time."""

from __future__ import annotations

from dataclasses import dataclass

from perfsuite.machine import Machine


@dataclass(frozen=True)
class Target:
    """A GPU architecture and what one block (work-group) may use of one multiprocessor (compute unit).

    `shared` in bytes; `registers` are 32-bit, of all threads together; `lanes` are the threads of a warp (wavefront);
    `multiprocessors` those of its largest GPU.
    """

    arch: str
    backend: str
    shared: int
    registers: int
    thread_registers: int
    multiprocessors: int
    threads: int = 1024
    lanes: int = 32


# NVIDIA: CUDA C++ Programming Guide, "Technical specifications per compute capability" (1 KiB of each multiprocessor's
# shared memory belongs to the system). AMD: CDNA3 ISA guide, 64 KiB of LDS and 4 SIMDs of 512 vector registers.
TARGETS = {
    target.arch: target
    for target in (
        Target("sm_80", "cuda", 163 * 1024, 65536, 255, 108),
        Target("sm_90", "cuda", 227 * 1024, 65536, 255, 132),
        Target("sm_100", "cuda", 227 * 1024, 65536, 255, 148),
        Target("gfx942", "hip", 64 * 1024, 131072, 512, 304, lanes=64),
    )
}


def target_of(machine: Machine) -> Target | None:
    """The target that the machine's first GPU is, None for an architecture whose limits are not known here."""
    return TARGETS.get(machine.gpus[0].arch) if machine.gpus else None


def not_resident(target: Target, warps: int, shared: int = 0, registers: int = 0) -> str | None:
    """The reason why a block of `warps` warps with these needs (registers of one thread) cannot run there, or None."""
    threads = warps * target.lanes
    if threads > target.threads:
        return f"needs {threads} threads in a block, {target.arch} has {target.threads}"
    if shared > target.shared:
        return f"needs {shared} bytes of shared memory, {target.arch} has {target.shared}"
    if registers > target.thread_registers:
        return f"needs {registers} registers in a thread, {target.arch} has {target.thread_registers}"
    if registers * threads > target.registers:
        return f"needs {registers * threads} registers, {target.arch} has {target.registers}"
    return None
