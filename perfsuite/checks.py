"""What `perfsuite check` does: every kernel against its float64 reference, on test workloads and edge cases."""

from __future__ import annotations

import functools
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from perfsuite import check, detect, registry, units
from perfsuite.kernel import Config, Kernel, Run, Unfit
from perfsuite.op import Op, Workload
from perfsuite.plan import refused

if TYPE_CHECKING:
    import torch

# Seconds that the checks of one kernel may take; inductor compiles for each shape.
_LONGEST = 900.0

Inputs = Sequence["torch.Tensor"]


@dataclass(frozen=True)
class Case:
    """One set of inputs: random ones of a workload, or an edge case described in words."""

    workload: Workload
    about: str
    inputs: Inputs


@dataclass(frozen=True)
class Finding:
    """What came of one kernel and op: how many answers were compared, and the first wrong one or None.

    They are of the first `workloads` alone; None if of all.
    """

    kernel: str
    op: str
    answers: int
    reason: str | None
    refused: str | None = None
    workloads: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cases(op: Op) -> Iterator[Case]:
    """The op's test workloads with random inputs, and its edge cases in every dtype of these: see `Op`."""
    tests = [workload for workload in op.workloads if workload.test]
    parameters = {name: test[name] for test in tests[:1] for name in op.parameters}
    for workload in tests:
        yield Case(workload, "random inputs", op.make_inputs(workload, seed=1))
    if op.edge_cases is not None:
        for dtype in dict.fromkeys(workload.dtype for workload in tests):
            for about, inputs in op.edge_cases(dtype):
                yield Case(op.bind(inputs, parameters), about, inputs)


def chosen_configs(kernel: Kernel, workload: Workload, count: int) -> tuple[Config, ...]:
    """The default and some others of the kernel's space, the same ones every time.

    The workloads of an op and dtype share the others where their spaces allow: kernels take seconds to compile.
    """
    first, *others = kernel.space(workload, detect.machine())

    def place(config: Config) -> float:
        return random.Random(f"{workload.op} {workload.dtype} {config}").random()

    return (first, *sorted(others, key=place)[: count - 1])


def answer(op: Op, case: Case, run: Run, device: str = "cpu") -> str | None:
    """Why a built kernel's answer to the case, given on `device`, is wrong, or None; outputs are poisoned first."""
    import torch

    inputs = [tensor.to(device, copy=True) for tensor in case.inputs]
    outputs = [tensor.to(device) for tensor in op.make_outputs(case.workload)]
    for output in outputs:
        output.fill_(float("nan") if output.is_floating_point() else 77)
    with torch.no_grad():
        got = [tensor.cpu() for tensor in run(inputs, outputs)]
    for operand, tensor, was in zip(op.inputs, inputs, case.inputs):
        if not torch.equal(tensor.cpu().nan_to_num(7.0), was.nan_to_num(7.0)):
            return f"it changes its input {operand.name}"
    return check.wrong(op, case.workload, got, op.expected(case.inputs, case.workload))


def examine(op: Op, kernel: Kernel, configs: int, most_workloads: int | None = None) -> Finding:
    """Check one kernel on every case of one op, stopping at the first wrong answer.

    With `most_workloads` only the cases of the first so many workloads: for kernels that take seconds to compile.
    """
    machine, answers, reasons = detect.machine(), 0, []
    device = "cuda" if kernel.device == "cuda" else "cpu"
    runs: dict[tuple[Workload, Config], Run] = {}  # edge cases often share a shape, and compiling is what takes time
    for case in cases(op):
        reason = refused(kernel, case.workload, machine)
        if reason is not None:
            reasons.append(reason)
            continue
        if most_workloads is not None and len({*(w for w, _ in runs), case.workload}) > most_workloads:
            continue
        for config in chosen_configs(kernel, case.workload, configs):
            try:
                if (case.workload, config) not in runs:
                    runs[case.workload, config] = kernel.build(op, case.workload, config)
                wrong = answer(op, case, runs[case.workload, config], device)
            except Unfit:  # no user is ever given it
                continue
            except Exception as failed:  # a foreign kernel's code may raise anything
                wrong = f"{type(failed).__name__}: {failed}"
            answers += 1
            if wrong is not None:
                return Finding(str(kernel), op.name, answers, f"{case.workload} {case.about}, {config}: {wrong}")
    refusal = None if answers else next(iter(reasons), "no test workloads")
    return Finding(str(kernel), op.name, answers, None, refusal, most_workloads)


def run(patterns: Sequence[str], configs: int, compiled: int, console: Console | None) -> Iterator[Finding]:
    """Check the kernels that the patterns name, all without any, and print each finding where there is a console.

    Kernels of torch.compile, which takes seconds for each shape and config, are checked with their default on the first
    `compiled` workloads of each op. All run in a child process, so that one that crashes or hangs is a finding like any
    other.
    """
    known = registry.discover()
    pairs = dict.fromkeys(
        (job.workload.op, str(kernel)) for job in known.select(patterns, tests=True) for kernel in job.kernels
    )
    child: ProcessPoolExecutor | None = None
    for op, kernel in pairs:
        child = child or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            finding = child.submit(_examined, op, kernel, configs, compiled).result(_LONGEST)
        except (BrokenProcessPool, TimeoutError) as ended:
            hung = isinstance(ended, TimeoutError)
            reason = f"did not end within {_LONGEST:.0f} s" if hung else "crashed the process"
            finding = Finding(kernel, op, 0, reason)
            _kill(child)
            child = None
        if console is not None:
            console.print(_line(finding), highlight=False)
        yield finding
    if child is not None:
        child.shutdown()


def _examined(op: str, kernel: str, configs: int, compiled: int) -> Finding:
    """`examine` by name: an op and a kernel hold functions, which do not travel to another process."""
    known = _discovered()
    how = (1, compiled) if known.kernels[kernel].name.startswith("inductor") else (configs, None)
    return examine(known.ops[op], known.kernels[kernel], *how)


_discovered = functools.cache(registry.discover)


def _kill(child: ProcessPoolExecutor) -> None:
    for process in list((child._processes or {}).values()):
        process.kill()
    child.shutdown(wait=False, cancel_futures=True)


def _line(finding: Finding) -> Text:
    name = f"{finding.op} {finding.kernel}"
    if finding.refused:
        return Text(f"- {name}: {finding.refused}", style="yellow")
    if finding.reason:
        return Text(f"✗ {name}: {finding.reason}", style="red")
    some = f" on the first {units.several(finding.workloads, 'workload')}" if finding.workloads else ""
    return Text.assemble(("✓ ", "green"), f"{name}: {finding.answers} answers right{some}")
