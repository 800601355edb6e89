"""The child process of `worker`: reads requests as JSON lines, builds, checks and times, answers as JSON lines.

Run as `python -m perfsuite.bench CORES THREADS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from perfsuite import check, registry
from perfsuite.kernel import Config, Run, Tensors
from perfsuite.measure import cpu
from perfsuite.op import Op, Workload
from perfsuite.policy import Policy
from perfsuite.trial import Failure, FailureKind, Measurement

if TYPE_CHECKING:
    import torch

    from perfsuite.measure.cuda import Timer as CudaTimer

    Timer = cpu.Timer | CudaTimer

# Inputs and references of one workload are kept for its next candidate, for two seeds: before and after timing.
_SEEDS = (1, 2)
_LONGEST_REASON = 1500
_RACE_WARM_UP = 0.05


class Rejected(Exception):
    """A candidate that will not be timed, and why."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failure = Failure(kind, reason[:_LONGEST_REASON])


@dataclass
class Case:
    """Inputs of a workload for one seed, with the reference's answer once somebody asks for it."""

    op: Op
    workload: Workload
    inputs: Tensors
    checksums: list[int]
    _expected: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def of(cls, op: Op, workload: Workload, seed: int, device: str) -> Case:
        inputs = [t.to(device) for t in op.make_inputs(workload, seed)]
        return cls(op, workload, inputs, [_checksum(t) for t in inputs])

    def outputs(self) -> list[torch.Tensor]:
        return [t.to(self.inputs[0].device) for t in self.op.make_outputs(self.workload)]

    @property
    def expected(self) -> tuple[torch.Tensor, ...]:
        if self._expected is None:
            self._expected = self.op.expected(self.inputs, self.workload)
        return self._expected

    def answer(self, run: Run) -> Tensors:
        """The kernel's answer, in outputs poisoned so that what it leaves unwritten shows."""
        outputs = self.outputs()
        for output in outputs:
            output.fill_(float("nan") if output.is_floating_point() else 77)
        try:
            return run(self.inputs, outputs)
        except Exception as wrong:  # a foreign kernel's code may raise anything
            raise Rejected(FailureKind.ERROR, f"{type(wrong).__name__}: {wrong}") from wrong

    def check(self, run: Run, when: str = "") -> None:
        reason = check.wrong(self.op, self.workload, self.answer(run), self.expected)
        changed = [o.name for o, t, was in zip(self.op.inputs, self.inputs, self.checksums) if _checksum(t) != was]
        if changed:
            reason = f"it changes its input {', '.join(changed)}"
        if reason is not None:
            raise Rejected(FailureKind.WRONG, when + reason)


@dataclass
class Bench:
    """Builds and times candidates; `say` tells the parent which stage begins."""

    say: Callable[[str], None]
    known: registry.Registry = field(default_factory=registry.discover)
    _workload: Workload | None = None
    _cases: dict[int, Case] = field(default_factory=dict)
    _runs: dict[tuple[str, Config], Run] = field(default_factory=dict)

    def build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        run, case = self._built(request, _SEEDS[0])
        self.say("check")
        case.answer(run)  # torch.compile compiles at the first call
        return {"build_seconds": time.perf_counter() - start}

    def measure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        run, case = self._built(request, _SEEDS[0])
        self.say("check")
        case.check(run)
        seconds = time.perf_counter() - start
        timer = self._timer(run, case, request)
        self.say("measure")
        measurement = _clock(timer.policy).measure(timer, float(request["seconds"]))
        _, fresh = self._built(request, _SEEDS[1])
        self.say("check")
        fresh.check(run, "after timing, on fresh inputs, ")
        if measurement.median < float(request["least"]):
            raise Rejected(
                FailureKind.IMPLAUSIBLE,
                f"{measurement.median:.3g} s is less than the {float(request['least']):.3g} s that its compulsory "
                "traffic and operations take at the ceilings measured here: a measuring error, or work left out",
            )
        return {"outcome": _outcome(measurement), "build_seconds": seconds}

    def race(self, request: Mapping[str, Any]) -> dict[str, Any]:
        timers = []
        for candidate in request["candidates"]:
            asked = {**candidate, "policy": request["policy"]}
            timers.append(self._timer(*self._built(asked, _SEEDS[0]), request))
            self.say("measure")
            timers[-1].warm_up(_RACE_WARM_UP)
        samples: list[list[float]] = [[] for _ in timers]
        order = list(range(len(timers)))
        shuffle = random.Random(int(request["seed"])).shuffle
        gc.disable()
        for _ in range(int(request["rounds"])):
            self.say("measure")
            shuffle(order)
            for at in order:
                samples[at].append(timers[at].after_others())
        gc.enable()
        return {"samples": samples}

    def _built(self, request: Mapping[str, Any], seed: int) -> tuple[Run, Case]:
        workload = Workload.from_json(request["workload"])
        config = Config.from_json(request["config"])
        op, kernel = self.known.ops[workload.op], self.known.kernels[request["kernel"]]
        if workload != self._workload:
            self._workload, self._cases, self._runs = workload, {}, {}
        self.say("build")
        policy = Policy.from_json(request["policy"])
        if seed not in self._cases:
            self._cases[seed] = Case.of(op, workload, seed, policy.device)
        key = str(kernel), config
        if key not in self._runs:
            try:
                self._runs[key] = kernel.build(op, workload, config)
            except Exception as wrong:  # a foreign kernel's code may raise anything
                raise Rejected(FailureKind.BUILD, f"{type(wrong).__name__}: {wrong}") from wrong
        return self._runs[key], self._cases[seed]

    def _timer(self, run: Run, case: Case, request: Mapping[str, Any]) -> Timer:
        policy = Policy.from_json(request["policy"])
        buffers = cpu.rotated((case.inputs, case.outputs()), policy, int(request["cache_bytes"]))
        timer: Timer = _clock(policy).Timer(run, buffers, policy)
        return timer


def _clock(policy: Policy) -> Any:
    """The module that times on the policy's device."""
    return importlib.import_module(f"perfsuite.measure.{policy.device}")


def _checksum(tensor: torch.Tensor) -> int:
    """Sum of the tensor's bits: cheap, and any single change of a value shows in it."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(tensor.view(integers[tensor.element_size()]).sum())


def _outcome(outcome: Measurement | Failure) -> dict[str, Any]:
    return {"ok": isinstance(outcome, Measurement), **asdict(outcome)}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until the parent closes the pipe."""

    def say(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    import torch

    bench = Bench(lambda stage: say({"stage": stage}))
    say({"ready": True})
    for line in requests:
        request = json.loads(line)
        do = {"build": bench.build, "measure": bench.measure, "race": bench.race}[request["do"]]
        try:
            with torch.no_grad():
                say(do(request))
        except Rejected as rejected:
            say({"outcome": _outcome(rejected.failure)})
        except (MemoryError, RuntimeError) as wrong:
            say({"outcome": _outcome(Failure(FailureKind.ERROR, f"{type(wrong).__name__}: {wrong}"[:_LONGEST_REASON]))})


def _settle(cores: str, threads: int) -> None:
    """Pin to the cores, fix the threads, and die with the parent."""
    import torch

    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError):  # Linux alone; elsewhere the closed pipe ends the child
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    # What a kernel prints goes to stderr: the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _settle(sys.argv[1], int(sys.argv[2]))
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
