"""What `perfsuite list` shows: families, ops, workloads and kernels, and what this machine can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from perfsuite import detect, registry
from perfsuite.kernel import Kernel
from perfsuite.machine import Machine
from perfsuite.op import Workload
from perfsuite.plan import refused


@dataclass(frozen=True)
class KernelEntry:
    """A kernel of an op: the sizes of its space over the workloads, and the reasons (reason, workloads) why not."""

    name: str
    default: bool
    smallest: int
    largest: int
    refusals: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class OpEntry:
    family: str
    op: str
    workloads: tuple[Workload, ...]
    kernels: tuple[KernelEntry, ...]


def entries(pattern: str | None = None) -> tuple[OpEntry, ...]:
    """The ops that the pattern names, each with its workloads (the tests' too) and the matching kernels."""
    known, machine = registry.discover(), detect.machine()
    chosen: dict[str, tuple[list[Workload], dict[str, Kernel]]] = {}
    for job in known.select([pattern] if pattern else [], tests=True):
        workloads, kernels = chosen.setdefault(job.workload.op, ([], {}))
        workloads.append(job.workload)
        kernels.update((str(kernel), kernel) for kernel in job.kernels)
    return tuple(
        OpEntry(
            known.ops[op].family,
            op,
            tuple(workloads),
            tuple(_kernel(kernel, workloads, machine) for kernel in kernels.values()),
        )
        for op, (workloads, kernels) in chosen.items()
    )


def _kernel(kernel: Kernel, workloads: Sequence[Workload], machine: Machine) -> KernelEntry:
    reasons = [refused(kernel, workload, machine) for workload in workloads]
    runs = [w for w, reason in zip(workloads, reasons) if reason is None]
    sizes = [len(kernel.space(workload, machine)) for workload in runs] or [0]
    counted = {reason: reasons.count(reason) for reason in reasons if reason is not None}
    return KernelEntry(str(kernel), kernel.default, min(sizes), max(sizes), tuple(counted.items()))


def to_json(entries: Sequence[OpEntry]) -> list[dict[str, Any]]:
    return [{**asdict(entry), "workloads": [str(w) for w in entry.workloads]} for entry in entries]


def show(entries: Sequence[OpEntry], console: Console) -> None:
    """Print family by family; test workloads are counted, not listed."""
    for at, entry in enumerate(entries):
        if at == 0 or entries[at - 1].family != entry.family:
            console.print(Text(f"\n{entry.family}", style="bold"))
        console.print(Text.assemble("  ", (entry.op, "bold cyan")))
        for line in _lines(entry):
            console.print(line, highlight=False)


def _lines(entry: OpEntry) -> Iterator[Text]:
    for kernel in entry.kernels:
        size = "" if kernel.largest == 0 else _plural(kernel.largest, "config")
        if 0 < kernel.smallest < kernel.largest:
            size = f"{kernel.smallest} to {size}"
        note = " (default)" if kernel.default else ""
        yield Text.assemble("    ", (f"{kernel.name}{note}", "green" if kernel.largest else "dim"), f"  {size}")
        for reason, count in kernel.refusals:
            of = "" if count == len(entry.workloads) else f" ({count} of {len(entry.workloads)} workloads)"
            yield Text(f"      refused{of}: {reason}", style="yellow")
    for workload in entry.workloads:
        if not workload.test:
            models = ", ".join(f"{model} x{calls}" for model, calls in workload.models)
            yield Text.assemble("    ", str(workload), ("  " + models, "dim"))
    tests = sum(w.test for w in entry.workloads)
    if tests:
        yield Text(f"    and {_plural(tests, 'test workload')}", style="dim")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
