"""The GPUs that the process can see: NVIDIA's by NVML, else nvidia-smi; AMD's as the kernel driver lists them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from perfsuite.machine import Gpu

_QUERY = "--query-gpu=uuid,name,compute_cap,memory.total,driver_version"
_TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")


def gpus() -> tuple[Gpu, ...]:
    """The visible GPUs; () where there is none. NVIDIA's come first."""
    nvidia = _by_nvml() or _by_nvidia_smi() if _has_nvidia() else []
    return (*visible(nvidia, os.environ.get("CUDA_VISIBLE_DEVICES")), *amd())


def visible(found: Sequence[tuple[str, Gpu]], chosen: str | None) -> tuple[Gpu, ...]:
    """What $CUDA_VISIBLE_DEVICES leaves of (uuid, GPU) pairs: numbers or uuids, ended by the first unknown one."""
    if chosen is None:
        return tuple(gpu for _, gpu in found)
    seen: list[Gpu] = []
    for token in (t.strip() for t in chosen.split(",")):
        if token.isdigit() and int(token) < len(found):
            seen.append(found[int(token)][1])
        elif token.startswith("GPU-") and any(uuid.startswith(token) for uuid, _ in found):
            seen.append(next(gpu for uuid, gpu in found if uuid.startswith(token)))
        else:
            break
    return tuple(seen)


def read_nvidia_smi(text: str) -> list[tuple[str, Gpu]]:
    """(uuid, GPU) pairs from what `nvidia-smi` prints for _QUERY as csv without header and units."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5 and fields[3].isdigit():
            uuid, name, capability, mebibytes, driver = fields
            found.append((uuid, Gpu(name, f"sm_{capability.replace('.', '')}", int(mebibytes) * 2**20, driver)))
    return found


def amd(topology: Path = _TOPOLOGY, driver: Path = Path("/sys/module/amdgpu/version")) -> tuple[Gpu, ...]:
    """AMD GPUs; the driver encodes gfx942 as gfx_target_version 90402, and CPUs as 0."""
    found = []
    try:
        release = driver.read_text().strip() if driver.is_file() else "amdgpu"
        for node in sorted(topology.glob("[0-9]*"), key=lambda folder: int(folder.name)):
            target = re.search(r"^gfx_target_version (\d+)", (node / "properties").read_text(), re.MULTILINE)
            if target and int(target[1]):
                major, minor, step = int(target[1]) // 10000, int(target[1]) // 100 % 100, int(target[1]) % 100
                arch = f"gfx{major}{minor:x}{step:x}"
                found.append(Gpu(f"AMD {arch}", arch, _amd_memory(node), release))
    except OSError:
        return ()
    return tuple(found)


def _amd_memory(node: Path) -> int:
    """Bytes of a node's frame buffer: heap types 1 (visible to the CPU) and 2."""
    banks = [bank.read_text() for bank in node.glob("mem_banks/*/properties")]
    sizes = [re.search(r"^size_in_bytes (\d+)", bank, re.MULTILINE) for bank in banks if "heap_type 0" not in bank]
    return sum(int(size[1]) for size in sizes if size)


def _has_nvidia() -> bool:
    """Whether an NVIDIA driver is loaded: spares importing NVML (40 ms) where there is none."""
    return Path("/proc/driver/nvidia").exists() or Path("/dev/dxg").exists() or shutil.which("nvidia-smi") is not None


def _by_nvml() -> list[tuple[str, Gpu]]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            gpu = Gpu(str(pynvml.nvmlDeviceGetName(handle)), f"sm_{major}{minor}", memory, driver)
            found.append((str(pynvml.nvmlDeviceGetUUID(handle)), gpu))
        pynvml.nvmlShutdown()
        return found
    except pynvml.NVMLError:
        return []


def _by_nvidia_smi() -> list[tuple[str, Gpu]]:
    try:
        command = ["nvidia-smi", _QUERY, "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return read_nvidia_smi(done.stdout)
