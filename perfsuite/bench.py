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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from perfsuite import check, registry
from perfsuite.kernel import Config, Run, Tensors, Unfit
from perfsuite.measure import cpu
from perfsuite.measure.placement import Arena
from perfsuite.op import Op, Workload
from perfsuite.policy import Policy
from perfsuite.trial import Failure, FailureKind, Measurement, outcome_to_json

if TYPE_CHECKING:
    import torch

    from perfsuite.measure.cuda import Timer as CudaTimer

    Timer = cpu.Timer | CudaTimer

# Inputs and references of one workload are kept for its next candidate, for two seeds: before and after timing.
_SEEDS = (1, 2)
_LONGEST_REASON = 1500
# A call that takes this many times as long as timing should is timed once: six calls of 5 s each took a third of a
# budget of three minutes, and said no more.
_FAR_LONGER = 20.0
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
    _checksums: list[int] | None = None
    _expected: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def of(cls, op: Op, workload: Workload, seed: int, device: str) -> Case:
        return cls(op, workload, [t.to(device) for t in op.make_inputs(workload, seed)])

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
        if self._checksums is None:  # a race, which checks nothing, goes without: 4 s for 1 GB in three processes
            self._checksums = [_checksum(t) for t in self.inputs]
        reason = check.wrong(self.op, self.workload, self.answer(run), self.expected)
        changed = [o.name for o, t, was in zip(self.op.inputs, self.inputs, self._checksums) if _checksum(t) != was]
        if changed:
            reason = f"it changes its input {', '.join(changed)}"
        if reason is not None:
            raise Rejected(FailureKind.WRONG, when + reason)


@dataclass
class Racer:
    """An entrant of a race: its inputs, and its timer, which is moved to other memory in every round."""

    case: Case
    timer: Timer


@dataclass
class Heat:
    """This process's part of a race: its entrants, built when they first take part, and kept for the next block."""

    id: str
    racers: dict[int, Racer]
    arenas: dict[Workload, Arena] = field(default_factory=dict)

    def renew(self) -> None:
        for arena in self.arenas.values():
            arena.renew()

    def move(self, racers: Sequence[Racer], policy: Policy, cache_bytes: int) -> None:
        """Give the racers other memory, all of one workload the same; on a GPU they stay where they are.

        They go round it from places of their own: who follows another into a buffer would find it in the cache.
        """
        if policy.device != "cpu":
            return
        placed: dict[Workload, list[cpu.Buffers]] = {}
        for at, racer in enumerate(racers):
            case, workload = racer.case, racer.case.workload
            if workload not in self.arenas:
                self.arenas[workload] = Arena(case.inputs, case.outputs(), random.random())
            if workload not in placed:
                placed[workload] = cpu.rotated(self.arenas[workload].place(), policy, cache_bytes)
            buffers = placed[workload]
            start = at * len(buffers) // len(racers)
            racer.timer.move([*buffers[start:], *buffers[:start]])


@dataclass
class Bench:
    """Builds and times candidates; `say` tells the parent which stage begins."""

    say: Callable[[str], None]
    known: registry.Registry = field(default_factory=registry.discover)
    _cases: dict[tuple[Workload, int], Case] = field(default_factory=dict)
    _runs: dict[tuple[Workload, str, Config], Run] = field(default_factory=dict)
    _heat: Heat | None = None

    def build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        run, case = self._built(request, _SEEDS[0])
        self.say("check")
        case.answer(run)  # torch.compile compiles at the first call
        seconds = time.perf_counter() - start
        longest = float(request["longest"])
        if seconds > longest and (call := _seconds(lambda: case.answer(run))) > longest:
            reason = (
                f"a call takes {call:.2g} s, where {longest:.2g} s are already far too slow to win: it is not timed"
            )
            raise Rejected(FailureKind.TIMEOUT, reason)
        return {"build_seconds": seconds}

    def measure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.say("check")
        _ = self._case(request, _SEEDS[0]).expected  # no part of the build, and seconds of work for large tensors
        start = time.perf_counter()
        run, case = self._built(request, _SEEDS[0])
        self.say("check")
        case.check(run)
        seconds = time.perf_counter() - start
        timer = self._timer(run, case, request)
        self.say("measure")
        measurement = _timed(timer, case, float(request["seconds"]))
        _, fresh = self._built(request, _SEEDS[1])
        self.say("check")
        fresh.check(run, "after timing, on fresh inputs, ")
        if measurement.median < float(request["least"]):
            raise Rejected(
                FailureKind.IMPLAUSIBLE,
                f"{measurement.median:.3g} s is less than the {float(request['least']):.3g} s that its compulsory "
                "traffic and operations take at the ceilings measured here: a measuring error, or work left out",
            )
        return {"outcome": outcome_to_json(measurement), "build_seconds": seconds}

    def race(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A block of rounds among the active candidates of a race, every block in memory of its own."""
        policy = Policy.from_json(request["policy"])
        self._heat = self._heat or Heat(str(request["race"]), {})
        for at in request["active"]:
            if at not in self._heat.racers:
                racer = self._heat.racers[at] = self._racer(request["candidates"][at], request)
                if policy.cache == "warm":
                    # Before its first call: outputs of its own, once touched, may be 0.5 GB for each entrant.
                    self._heat.move([racer], policy, int(request["cache_bytes"]))
                self.say("measure")
                racer.timer.warm_up(_RACE_WARM_UP)
        racers = [self._heat.racers[at] for at in request["active"]]
        shuffled = random.Random(int(request["seed"]))
        taken: list[list[Any]] = [[] for _ in racers]
        self._heat.renew()
        start = time.perf_counter()
        gc.disable()
        for at_round in range(int(request["rounds"])):
            self.say("measure")
            if at_round == 0 or policy.cache == "warm":
                self._heat.move(racers, policy, int(request["cache_bytes"]))
            for at in shuffled.sample(range(len(racers)), len(racers)):
                taken[at].append(racers[at].timer.in_race())
        gc.enable()
        return {"taken": taken, "seconds": time.perf_counter() - start}

    def _racer(self, candidate: Mapping[str, Any], request: Mapping[str, Any]) -> Racer:
        run, case = self._built({**candidate, "policy": request["policy"]}, _SEEDS[0])
        return Racer(case, self._timer(run, case, request))

    def _case(self, request: Mapping[str, Any], seed: int) -> Case:
        workload = Workload.from_json(request["workload"])
        if (workload, seed) not in self._cases:
            device = Policy.from_json(request["policy"]).device
            self._cases[workload, seed] = Case.of(self.known.ops[workload.op], workload, seed, device)
        return self._cases[workload, seed]

    def _built(self, request: Mapping[str, Any], seed: int) -> tuple[Run, Case]:
        self.say("build")
        case, config = self._case(request, seed), Config.from_json(request["config"])
        op, workload, kernel = case.op, case.workload, self.known.kernels[request["kernel"]]
        key = workload, str(kernel), config
        if key not in self._runs:
            try:
                self._runs[key] = kernel.build(op, workload, config)
            except Unfit as unfit:
                raise Rejected(FailureKind.PRUNED, str(unfit)) from unfit
            except Exception as wrong:  # a foreign kernel's code may raise anything
                raise Rejected(FailureKind.BUILD, f"{type(wrong).__name__}: {wrong}") from wrong
        return self._runs[key], case

    def forget_all_but(self, request: Mapping[str, Any]) -> None:
        """Let go of what was kept for workloads that the request does not name."""
        named = {Workload.from_json(c["workload"]) for c in request.get("candidates", [request])}
        self._cases = {key: case for key, case in self._cases.items() if key[0] in named}
        self._runs = {key: run for key, run in self._runs.items() if key[0] in named}
        if self._heat is not None and self._heat.id != request.get("race"):
            self._heat = None

    def _timer(self, run: Run, case: Case, request: Mapping[str, Any]) -> Timer:
        policy = Policy.from_json(request["policy"])
        buffers = cpu.rotated((case.inputs, case.outputs()), policy, int(request["cache_bytes"]))
        timer: Timer = _clock(policy).Timer(run, buffers, policy)
        return timer


def _timed(timer: Timer, case: Case, seconds: float) -> Measurement:
    """Samples for about `seconds`, in memory that moves; the first call alone where it takes far longer than that."""
    first = timer.sample()
    if first > _FAR_LONGER * seconds:
        return Measurement((first,))
    if not isinstance(timer, cpu.Timer):
        measurement: Measurement = _clock(timer.policy).measure(timer, seconds)
        return measurement
    arena = Arena(case.inputs, case.outputs(), random.random())

    def renewed() -> list[cpu.Buffers]:
        arena.renew()
        return [arena.place()]

    return cpu.measure(timer, seconds, renewed if timer.policy.cache == "warm" else None)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _clock(policy: Policy) -> Any:
    """The module that times on the policy's device."""
    return importlib.import_module(f"perfsuite.measure.{policy.device}")


def _checksum(tensor: torch.Tensor) -> int:
    """Sum of the tensor's bits: cheap, and any single change of a value shows in it."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(tensor.view(integers[tensor.element_size()]).sum())


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
        bench.forget_all_but(request)
        do = {"build": bench.build, "measure": bench.measure, "race": bench.race}[request["do"]]
        try:
            with torch.no_grad():
                say(do(request))
        except Rejected as rejected:
            say({"outcome": outcome_to_json(rejected.failure)})
        except (MemoryError, RuntimeError) as wrong:
            say(
                {
                    "outcome": outcome_to_json(
                        Failure(FailureKind.ERROR, f"{type(wrong).__name__}: {wrong}"[:_LONGEST_REASON])
                    )
                }
            )


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
