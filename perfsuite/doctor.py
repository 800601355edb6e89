"""What this machine is, what works on it, what is missing or cannot be controlled, and the remedy for each."""

from __future__ import annotations

import ctypes
import functools
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import make_url

from perfsuite import detect, places, units
from perfsuite.detect import Activity
from perfsuite.machine import Machine
from perfsuite.toolchain import native, smoke

# Of these ISAs a program is compiled and run; what the CPU must have for each.
_TRIED = {"avx2": "avx2", "avx512": "avx512", "avx512_bf16": "avx512_bf16", "amx": "amx_int8"}
_IMPORT_SECONDS = 60.0
# Linux x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
_ASK_FOR_TILES = (158, 0x1023, 18)
_NO_TURBO = "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo (or 0 into cpufreq/boost)"


class Kind(StrEnum):
    MISSING = "missing"
    UNCONTROLLED = "uncontrolled"


@dataclass(frozen=True)
class Fact:
    """One line of what was found; `ok` is None where nothing can be right or wrong."""

    name: str
    value: str
    ok: bool | None = None


@dataclass(frozen=True)
class Finding:
    """What is missing or uncontrolled, what it costs, and the remedy."""

    kind: Kind
    what: str
    cost: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """Facts by group, and the findings, the missing ones first."""

    name: str
    machine: tuple[Fact, ...]
    toolchain: tuple[Fact, ...]
    gpus: tuple[Fact, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_Said = Iterator[Fact | Finding]
_Failures = Mapping[str, str | None]


def examine() -> Diagnosis:
    """Look at everything and try what can be tried; takes as long as importing torch does."""
    machine = detect.machine()
    activity = detect.activity(detect.allowed_cores())  # before anything here keeps the cores busy
    failures = _tried(machine)
    groups = {
        "machine": [*_machine(machine, activity)],
        "toolchain": [*_compiler(machine, failures), *_packages(machine, failures), *_folders()],
        "gpus": [*_gpus(machine)],
    }
    facts = {name: tuple(said for said in group if isinstance(said, Fact)) for name, group in groups.items()}
    findings = [said for group in groups.values() for said in group if isinstance(said, Finding)]
    findings.sort(key=lambda finding: finding.kind is Kind.UNCONTROLLED)
    return Diagnosis(machine.slug, **facts, findings=tuple(findings))


def uncontrolled(machine: Machine) -> tuple[str, ...]:
    """Sentences on what may disturb times on this machine and cannot be helped from here."""
    return tuple(f"{finding.what}: {finding.cost}." for finding in _disturbing(machine))


def _tried(machine: Machine) -> _Failures:
    """By name, why a compile, a run or an import failed, or None."""
    isas = [isa for isa, needed in _TRIED.items() if needed in machine.isa]
    tries: dict[str, Callable[[], str | None]] = {isa: functools.partial(smoke.isa_fails, isa) for isa in isas}
    tries["OpenMP"] = smoke.openmp_fails
    for package in ("torch", "triton"):
        tries[package] = functools.partial(_import_fails, package)
    with ThreadPoolExecutor(max(2, machine.cores)) as pool:
        return dict(zip(tries, pool.map(lambda attempt: attempt(), tries.values())))


def _import_fails(package: str) -> str | None:
    """Why `import package` fails, tried in a process of its own: a wrong build may end it by a signal."""
    if detect.version(package) == "none":
        return "is not installed"
    command = [sys.executable, "-c", f"import {package}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"was not imported within {_IMPORT_SECONDS:.0f} s"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"cannot be imported: {last}" if done.returncode else None


def _machine(machine: Machine, activity: Activity) -> _Said:
    environment = machine.environment
    yield Fact("CPU", machine.cpu)
    yield Fact("instruction sets", " ".join(machine.isa) or "none that kernels ask for", bool(machine.isa))
    allowed = min(machine.cores, len(detect.allowed_cores()))
    yield Fact(
        "cores", f"{machine.cores}, {allowed} for this process, {activity.idle:.1f} idle now", activity.idle > 0.5
    )
    caches = (f"{name} {units.size(size // max(1, n))}" + f" ×{n}" * (n > 1) for name, size, n in machine.caches)
    yield Fact("caches", ", ".join(caches) or "unknown")
    nodes = f", {machine.numa_nodes} NUMA nodes" if machine.numa_nodes > 1 else ""
    yield Fact("memory", units.size(machine.memory) + nodes)
    yield Fact("hypervisor", machine.virtual, machine.virtual == "none")
    yield Fact("stolen time", f"{units.percent(activity.stolen)} of the last 0.2 s", activity.stolen < 0.01)
    yield Fact("governor", environment.governor, environment.governor == "performance")
    yield Fact("turbo", environment.turbo, environment.turbo == "off")
    yield Fact("system", environment.kernel)
    yield from _disturbing(machine)
    if activity.stolen >= 0.01:
        yield Finding(
            Kind.UNCONTROLLED,
            f"The hypervisor just took {units.percent(activity.stolen)} of the cores' time",
            "samples are disturbed and taken again, so that tuning takes longer",
            "move to a dedicated host, or run when the neighbours are quiet",
        )
    if activity.idle < 0.5:
        yield Finding(
            Kind.UNCONTROLLED,
            f"Other processes keep the cores busy: {activity.idle:.1f} of {machine.cores} are idle",
            "kernels share caches and cores with them, and builds cannot run beside the timing",
            "stop them, or give perfsuite cores of its own: taskset -c CORES perfsuite tune",
        )


def _disturbing(machine: Machine) -> Iterator[Finding]:
    environment = machine.environment
    if machine.virtual != "none":
        kind = f"virtual ({machine.virtual})" if machine.virtual != "unknown" else "perhaps virtual"
        yield Finding(
            Kind.UNCONTROLLED,
            f"The machine is {kind}",
            "other guests share its caches, memory and clock, unseen",
            "compare times of one run only, as races do; a dedicated or bare-metal host for absolute times",
        )
    if environment.governor != "performance":
        state = "unknown" if environment.governor == "unknown" else environment.governor
        yield Finding(
            Kind.UNCONTROLLED,
            f"The frequency governor is {state}",
            "the clock may ramp up while a kernel is timed",
            "sudo cpupower frequency-set -g performance, where the system lets you",
        )
    if environment.turbo != "off":
        yield Finding(
            Kind.UNCONTROLLED,
            f"Turbo is {environment.turbo}",
            "the clock depends on temperature and on what the other cores do",
            _NO_TURBO,
        )
    if machine.cores == 1:
        yield Finding(
            Kind.UNCONTROLLED,
            "There is one core for everything",
            "builds, the system and other processes run on the core that is timed",
            "allow the process a second core",
        )


def _compiler(machine: Machine, failures: _Failures) -> _Said:
    missing = native.missing_compiler()
    yield Fact("C++ compiler", machine.environment.compiler, missing is None)
    if missing is not None:
        yield Finding(
            Kind.MISSING,
            f"Nothing here compiles C++: {missing.partition(': ')[0]}",
            "native kernels and inductor (it compiles C++ too) are refused; only eager runs on the CPU",
            missing.partition(": ")[2],
        )
    isas = [isa for isa in _TRIED if isa in failures]
    yield Fact("compiled and run", ", ".join(isa for isa in isas if failures[isa] is None) or "none", missing is None)
    for isa in isas if missing is None else ():
        if failures[isa] is not None:
            yield Finding(
                Kind.MISSING,
                f"The compiler does not build for {isa}, which the CPU has: {failures[isa]}",
                f"native kernels for {isa} fail to build",
                "install g++ 12 or later, or clang++ 16 or later, and name it in CXX",
            )
    if missing is None and failures["OpenMP"] is not None:
        yield Finding(
            Kind.MISSING,
            f"OpenMP does not work: {failures['OpenMP']}",
            "no native kernel can be built, and inductor runs with one thread",
            "install the compiler's OpenMP library (libgomp1, libomp-dev)",
        )
    works = "compiled and run" if failures["OpenMP"] is None else "not compiled"
    yield Fact("OpenMP", f"{machine.environment.openmp}, {works}", failures["OpenMP"] is None)
    if "amx" in machine.isa:
        refused = platform.system() == "Linux" and ctypes.CDLL(None).syscall(*_ASK_FOR_TILES) != 0
        yield Fact("AMX permission", "refused" if refused else "granted", not refused)
        if refused:
            yield Finding(
                Kind.MISSING,
                "The system refuses this process the AMX tiles",
                "AMX kernels fail, and PyTorch multiplies bf16 and int8 many times slower",
                "Linux 5.16 or later, and a sandbox that lets arch_prctl pass",
            )


def _packages(machine: Machine, failures: _Failures) -> _Said:
    costs = {
        "torch": ("nothing can be run", "pip install torch"),
        "triton": ("Triton kernels are refused, and cannot be checked without a GPU", "pip install triton"),
    }
    for package, (cost, remedy) in costs.items():
        installed = detect.version(package)
        works = "imported" if failures[package] is None else "not imported"
        yield Fact(package, f"{installed}, {works}" if installed != "none" else "none", failures[package] is None)
        if failures[package] is not None:
            yield Finding(Kind.MISSING, f"{package} {failures[package]}", cost, remedy)
    yield Fact("Python", machine.environment.python)


def _folders() -> _Said:
    cache, where = native.cache_path(), make_url(places.database_url())
    found = {"compiled kernels": cache}
    if where.get_backend_name() == "sqlite" and where.database:
        found["database"] = Path(where.database).parent
    else:
        yield Fact("database", where.render_as_string(hide_password=True))
    for name, folder in found.items():
        refused = _unwritable(folder)
        yield Fact(name, f"{folder}" + ", not writable" * bool(refused), refused is None)
        if refused is not None:
            variable = "PERFSUITE_DB" if name == "database" else "PERFSUITE_CACHE"
            yield Finding(
                Kind.MISSING,
                f"The folder of the {name} cannot be written: {refused}",
                "no result is stored" if name == "database" else "no native kernel can be built",
                f"set {variable} to a place that can",
            )


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in the folder, which is made if need be, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as wrong:
        return f"{wrong.strerror or wrong}"


def _gpus(machine: Machine) -> _Said:
    for gpu in machine.gpus:
        yield Fact(gpu.name, f"{gpu.arch}, {units.size(gpu.memory)}, driver {gpu.driver}", True)
    if not machine.gpus:
        yield Fact("none", "Triton kernels are compiled and checked, never timed")
    elif "+cpu" in machine.environment.torch:
        yield Finding(
            Kind.MISSING,
            f"torch {machine.environment.torch} cannot use the GPU",
            "kernels for it are refused",
            "install a build of torch with CUDA or ROCm",
        )


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the facts in two columns, then every finding with its cost and remedy."""
    console.print(Text(diagnosis.name, style="bold"))
    groups = {"machine": diagnosis.machine, "toolchain": diagnosis.toolchain, "GPUs": diagnosis.gpus}
    for title, facts in groups.items():
        _section(console, title, "bold cyan", _facts(facts, ("!", "yellow") if title == "machine" else ("✗", "red")))
    for kind, title, colour in ((Kind.MISSING, "missing", "red"), (Kind.UNCONTROLLED, "not controlled", "yellow")):
        found = [finding for finding in diagnosis.findings if finding.kind is kind]
        if found:
            _section(console, title, f"bold {colour}", _findings(found, colour))
        elif kind is Kind.MISSING:
            console.print(Text("\nnothing is missing", style="bold green"))


def _section(console: Console, title: str, style: str, grid: Table) -> None:
    console.print()
    console.print(Text(title, style=style))
    console.print(grid, soft_wrap=False)


def _facts(facts: tuple[Fact, ...], bad: tuple[str, str]) -> Table:
    marks = {True: ("✓", "green"), False: bad, None: (" ", "")}
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=3, justify="right")
    grid.add_column(style="dim", no_wrap=True, min_width=16)
    grid.add_column(overflow="fold")
    for fact in facts:
        grid.add_row(Text(*marks[fact.ok]), fact.name, Text(fact.value))
    return grid


def _findings(findings: list[Finding], colour: str) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=3, justify="right")
    grid.add_column(overflow="fold")
    for finding in findings:
        grid.add_row(Text("•", style=colour), Text(finding.what, style="bold"))
        grid.add_row("", Text(finding.cost))
        grid.add_row(Text("→", style="green"), Text(finding.remedy, style="green"))
    return grid
