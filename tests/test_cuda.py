"""The GPU timer on an imagined GPU whose clock the test turns; on a real one where there is one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from samples import MACHINE

from perfsuite.kernel import Run, Tensors
from perfsuite.measure import cpu, cuda
from perfsuite.plan import EFFORTS, Plan
from perfsuite.policy import Policy
from perfsuite.registry import Registry
from perfsuite.trial import Disturbance

KERNEL, LAUNCH, REPLAY = 20e-6, 30e-6, 8e-6


@dataclass
class Device:
    """A GPU that runs what is launched in order: its clock, and what a graph being captured has recorded."""

    now: float = 0.0
    host: float = 0.0
    capturing: list[float] | None = None
    slower: Callable[[float], float] = field(default=lambda now: 1.0)

    def launch(self, seconds: float) -> None:
        if self.capturing is not None:
            self.capturing.append(seconds)
            return
        self.host += LAUNCH
        self.now = max(self.now, self.host) + seconds * self.slower(self.now)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """torch.cuda, as far as the timer uses it, and the host's clock belong to an imagined device."""
    gpu = Device()

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = gpu.now = max(gpu.now, gpu.host)

        def synchronize(self) -> None:
            gpu.host = max(gpu.host, gpu.now)

        def elapsed_time(self, other: Event) -> float:
            return 1e3 * (other.at - self.at)

    class Graph:
        recorded: list[float]

        def replay(self) -> None:
            gpu.host += REPLAY
            gpu.now = max(gpu.now, gpu.host) + sum(self.recorded)

    @contextlib.contextmanager
    def capture(graph: Any) -> Iterator[None]:
        gpu.capturing = graph.recorded = []
        yield
        gpu.capturing = None

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(time, "perf_counter", lambda: gpu.host)
    return gpu


def kernel(gpu: Device, seconds: float = KERNEL, seen: list[int] | None = None) -> Run:
    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        if seen is not None:
            seen.append(outputs[0].data_ptr())
        gpu.launch(seconds)
        return outputs

    return run


def sets(count: int = 1) -> list[cpu.Buffers]:
    return [([torch.zeros(8)], [torch.zeros(8)]) for _ in range(count)]


def test_a_graph_times_the_kernel_and_eager_the_launch(device: Device) -> None:
    eager = cuda.measure(cuda.Timer(kernel(device), sets(), Policy(device="cuda")), 0.1)
    graph = cuda.measure(cuda.Timer(kernel(device), sets(), Policy(device="cuda", launch="graph")), 0.1)
    assert eager.median == pytest.approx(LAUNCH, rel=0.05)
    assert graph.median == pytest.approx(KERNEL, rel=0.01)
    assert (eager.warnings, graph.warnings) == ((), ())


def test_a_sample_is_long_enough_for_events_and_one_call_when_that_is(device: Device) -> None:
    short = cuda.Timer(kernel(device, 50e-6), sets(), Policy(device="cuda"))
    assert short.warm_up(0.1)
    assert short.calls * short.sample() >= cuda.SAMPLE_SECONDS
    long = cuda.measure(cuda.Timer(kernel(device, 0.05), sets(), Policy(device="cuda")), 0.1)
    assert long.calls == 1
    assert len(long.samples) == cuda.FEWEST


def test_a_cold_graph_goes_through_all_buffers_a_whole_number_of_times(device: Device) -> None:
    seen: list[int] = []
    timer = cuda.Timer(kernel(device, seen=seen), sets(7), Policy(cache="cold", device="cuda", launch="graph"))
    timer.warm_up(0.1)
    assert timer.calls % 7 == 0
    captured = seen[-timer.calls :]
    assert captured == captured[:7] * (timer.calls // 7)
    assert len(set(captured[:7])) == 7


def test_fresh_outputs_are_new_in_every_call(device: Device) -> None:
    kept: list[torch.Tensor] = []

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        kept.extend(outputs)
        device.launch(1.0)
        return outputs

    buffers = sets()
    timer = cuda.Timer(run, buffers, Policy(output="fresh", device="cuda"))
    timer.sample()
    timer.sample()
    assert len({t.data_ptr() for t in (*kept, *buffers[0][1])}) == 3
    assert all(t.shape == buffers[0][1][0].shape for t in kept)


def test_a_race_refills_the_cache_before_a_warm_sample_only(device: Device) -> None:
    for cache, calls in (("warm", 2), ("cold", 1)):
        seen: list[int] = []
        cuda.Timer(kernel(device, seen=seen), sets(), Policy(cache=cache, device="cuda")).in_race()
        assert len(seen) == calls


def test_falling_clocks_are_reported(device: Device) -> None:
    device.slower = lambda now: 1.0 + now
    slowing = cuda.measure(cuda.Timer(kernel(device, 1e-3), sets(), Policy(device="cuda")), 0.2)
    assert slowing.warnings == (Disturbance.UNSTEADY,)


def test_a_gpu_policy_without_a_gpu_is_refused() -> None:
    policy = Policy(device="cuda")
    assert Plan(MACHINE, Registry(), (), policy, EFFORTS["quick"]).policy is policy
    with pytest.raises(ValueError, match="sees no GPU here; `perfsuite doctor`"):
        Plan(replace(MACHINE, gpus=()), Registry(), (), policy, EFFORTS["quick"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, this machine has none")
@pytest.mark.parametrize("launch", ["eager", "graph"])
def test_a_real_copy_is_as_fast_as_memory_may_be(launch: str) -> None:
    """256 MiB in and as much out: faster than a host's memory, slower than any GPU's of today (8 TB/s and some)."""
    x = torch.ones(1 << 26, device="cuda")

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        outputs[0].copy_(inputs[0])
        return outputs

    for cache in ("warm", "cold"):
        policy = Policy(cache=cache, device="cuda", launch=launch)
        buffers = cpu.rotated(([x], [torch.empty_like(x)]), policy, 64 << 20)
        copied = cuda.measure(cuda.Timer(run, buffers, policy), 0.2)
        assert 1e11 < 2 * x.nbytes / copied.median < 2e13
        assert bool((buffers[-1][1][0] == 1.0).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, this machine has none")
def test_a_graph_spares_a_short_kernel_its_launch() -> None:
    x = torch.ones(1024, device="cuda")

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        torch.add(inputs[0], 1.0, out=outputs[0])
        return outputs

    times = {}
    for launch in ("eager", "graph"):
        policy = Policy(device="cuda", launch=launch)
        times[launch] = cuda.measure(cuda.Timer(run, [([x], [torch.empty_like(x)])], policy), 0.2).median
    assert times["graph"] < times["eager"]
