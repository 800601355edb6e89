"""What this machine is: CPU, caches, cores, memory, GPUs, versions; read in well under 100 ms, without importing torch.

Linux says nearly everything in /proc and /sys. What it leaves out comes from lscpu; where there is no /proc, from
py-cpuinfo, which is slow (about a second). Nothing here fails: what cannot be found is `none`, `unknown`, 0 or ().
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perfsuite.gpus import gpus
from perfsuite.machine import MACHINE_ISA, Environment, Machine
from perfsuite.toolchain import native

Caches = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Activity:
    """What some cores did for a moment: the share that the hypervisor took, and how many of them were idle."""

    stolen: float
    idle: float


_ROOT = Path("/")
_GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_GROUPS = {"cpu": ("cpu.max", "cpu.cfs_quota_us"), "memory": ("memory.max", "memory.limit_in_bytes")}


@functools.cache
def machine() -> Machine:
    """The machine that this process runs on, as its cgroup lets it see it.

    Not the affinity: a program that is pinned to a core runs on the same machine, and finds the same table.
    """
    told = _lscpu()
    name, flags = read_cpuinfo(_text(_ROOT / "proc/cpuinfo"), told) if _linux() else _from_py_cpuinfo()
    allowed = allowed_cores()
    online, quota = os.cpu_count() or 1, cpu_quota()
    return Machine(
        cpu=name,
        isa=tuple(isa for isa, needed in MACHINE_ISA.items() if flags.issuperset(needed)),
        caches=read_caches() or _caches_from_lscpu(told),
        cores=max(1, min(online, int(quota)) if quota else online),
        memory=usable_memory(),
        numa_nodes=max(1, len([*(_ROOT / "sys/devices/system/node").glob("node[0-9]*")])),
        virtual=hypervisor(flags, told),
        gpus=gpus(),
        environment=environment(allowed),
    )


def environment(allowed: Iterable[int]) -> Environment:
    """The software and the frequency settings of the `allowed` cores."""
    return Environment(
        python=platform.python_version(),
        torch=version("torch"),
        triton=version("triton"),
        compiler=_compiler(),
        openmp=openmp(),
        kernel=f"{platform.system()} {platform.release()}",
        governor=governor(allowed),
        turbo=turbo(),
    )


def allowed_cores() -> tuple[int, ...]:
    """The numbers of the cores that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def divided_cores(threads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cores that kernels of so many threads are timed on, the last ones, and those that are left for builds."""
    cores = allowed_cores()
    return cores[len(cores) - threads :], cores[: len(cores) - threads]


def activity(cores: Iterable[int], seconds: float = 0.2) -> Activity:
    """What the cores do during `seconds`, from /proc/stat; all idle where that is not told."""
    stat = _ROOT / "proc/stat"
    before = read_core_times(_text(stat), cores)
    time.sleep(seconds)
    after = read_core_times(_text(stat), cores)
    spent = [[late - early for early, late in zip(*pair)] for pair in zip(before, after)]
    stolen = sum(times[7] for times in spent) / max(1, sum(map(sum, spent)))
    idle = sum((times[3] + times[4]) / max(1, sum(times)) for times in spent)
    return Activity(stolen, idle if spent else float(len([*cores])))


def read_core_times(text: str, cores: Iterable[int]) -> list[list[int]]:
    """Clock ticks of each core by column of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if re.match(r"cpu\d", line))
    return [[int(ticks) for ticks in lines[f"cpu{core}"].split()[:8]] for core in cores if f"cpu{core}" in lines]


def version(package: str) -> str:
    """The installed version of a Python package, or `none`; the package is not imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def openmp() -> str:
    """The OpenMP runtime that PyTorch brings, such as `libgomp 8.5.0` (the gcc that built it), or `none`."""
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        for file in sorted((Path(folder) / "lib").glob("lib*omp*")):
            runtime = re.match(r"lib(?:gomp|i?omp5?)(?=[-.])", file.name)
            if runtime:
                built = re.search(rb"(?i:gcc)[^\0]{0,20}? (\d+\.\d+\.\d+)", file.read_bytes())
                return f"{runtime[0]} {built[1].decode()}" if built else runtime[0]
    return "none"


def read_cpuinfo(text: str, told: dict[str, str]) -> tuple[str, frozenset[str]]:
    """The CPU's name and flags from /proc/cpuinfo; ARM kernels give no name there, so that lscpu's is taken.

    A name without a model number (`Intel Xeon Processor`, as hypervisors show it) gets the family and model.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    name = tidy(fields.get("model name") or told.get("Model name") or fields.get("Model") or platform.machine())
    if "model" in fields and not re.search(r"\d", name):
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def tidy(name: str) -> str:
    """A CPU's name without trademark signs, clock rate and core count."""
    name = re.sub(r"\((?:R|TM|C)\)|\s+@.*| CPU\b|\b\d+-Core\b", "", name, flags=re.IGNORECASE)
    return " ".join(name.split())


def read_caches(root: Path = _ROOT) -> Caches:
    """(name, total bytes, instances) of the data caches in /sys, the smallest level first."""
    sizes: dict[tuple[str, str], int] = {}
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"):
        level, kind = _text(folder / "level"), _text(folder / "type")
        if kind != "Instruction" and level:
            name = f"L{level}d" if kind == "Data" else f"L{level}"
            sizes[name, _text(folder / "shared_cpu_list")] = _bytes(_text(folder / "size"))
    names = sorted({name for name, _ in sizes})
    each = {name: [size for (other, _), size in sizes.items() if other == name] for name in names}
    return tuple((name, sum(each[name]), len(each[name])) for name in names)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """How many cores' time the cgroup (version 1 or 2) grants, None when it sets no limit."""
    quotas = []
    for file in _cgroup_files("cpu", root):
        limit, _, period = _text(file).partition(" ")
        period = period or _text(file.with_name("cpu.cfs_period_us")) or "100000"
        if limit.isdigit() and int(limit) > 0:
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def usable_memory(root: Path = _ROOT) -> int:
    """Bytes of memory within the cgroup's limit, to the GiB, as kernels differ in what they keep for themselves."""
    found = re.search(r"MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"))
    if found:
        total = int(found[1]) * 1024
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    limits = [int(limit) for file in _cgroup_files("memory", root) if (limit := _text(file)).isdigit()]
    total = min(total, *limits) if limits else total
    return round(total / _GIB) * _GIB if total >= _GIB else total


def _cgroup_files(controller: str, root: Path) -> list[Path]:
    """The limit files of the process's cgroup and of its ancestors, as far as a container can see them."""
    unified, legacy = _GROUPS[controller]
    files = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            mount, name = root / "sys/fs/cgroup" / controller, legacy
        elif not controllers:
            mount, name = root / "sys/fs/cgroup", unified
        else:
            continue
        group = Path(path.lstrip("/"))
        files += [mount / folder / name for folder in (group, *group.parents)]
    return [file for file in files if file.is_file()]


def hypervisor(flags: frozenset[str], told: dict[str, str]) -> str:
    """The hypervisor's name in lower case, `none` on bare metal, `unknown` where neither lscpu nor a flag tells."""
    vendor = told.get("Hypervisor vendor") or _text(_ROOT / "sys/hypervisor/type")
    if vendor:
        return vendor.lower()
    known_bare = _linux() and platform.machine() in ("x86_64", "AMD64") and "hypervisor" not in flags
    return "none" if known_bare else "unknown"


def governor(allowed: Iterable[int], root: Path = _ROOT) -> str:
    """The frequency governor of the allowed cores, several joined by `+`, `unknown` where the system hides it."""
    folders = [root / f"sys/devices/system/cpu/cpu{core}/cpufreq" for core in allowed]
    found = {_text(folder / "scaling_governor") for folder in folders} - {""}
    return "+".join(sorted(found)) or "unknown"


def turbo(root: Path = _ROOT) -> str:
    """`on`, `off` or `unknown`."""
    cpu = root / "sys/devices/system/cpu"
    forbidden, allowed = _text(cpu / "intel_pstate/no_turbo"), _text(cpu / "cpufreq/boost")
    if forbidden:
        return "on" if forbidden == "0" else "off"
    return {"": "unknown", "0": "off"}.get(allowed, "on")


def _caches_from_lscpu(told: dict[str, str]) -> Caches:
    found = []
    for name in ("L1d", "L2", "L3"):
        match = re.match(r"(\d+)(?:\s+\((\d+) instances?\))?", told.get(f"{name} cache", ""))
        if match:
            found.append((name, int(match[1]), int(match[2] or 1)))
    return tuple(found)


def _from_py_cpuinfo() -> tuple[str, frozenset[str]]:
    import cpuinfo

    told = cpuinfo.get_cpu_info()
    return tidy(told.get("brand_raw") or platform.machine() or "unknown"), frozenset(told.get("flags", ()))


def _compiler() -> str:
    try:
        return native.compiler_version()
    except (OSError, subprocess.SubprocessError):  # $CXX names a file that cannot be run
        return "none"


def _lscpu() -> dict[str, str]:
    try:
        done = subprocess.run(
            ["lscpu", "-B"], capture_output=True, text=True, timeout=5, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _linux() -> bool:
    return (_ROOT / "proc/cpuinfo").is_file()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) * _UNITS[match[2]] if match else 0
