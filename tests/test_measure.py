"""The CPU timer on runs whose cost is known."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from samples import MACHINE

from perfsuite import bench, registry
from perfsuite.kernel import Run, Tensors
from perfsuite.measure import cpu, sentinel
from perfsuite.measure.placement import Arena
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.trial import REMEDIES, Disturbance, Measurement

pytestmark = pytest.mark.quiet


def busy(seconds: float) -> Run:
    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return outputs

    return run


def timer(run: Run, policy: Policy | None = None) -> cpu.Timer:
    chosen = policy or Policy()
    first = [torch.ones(8)], [torch.empty(8)]
    return cpu.Timer(run, cpu.rotated(first, chosen, cache_bytes=1024), chosen)


@pytest.mark.parametrize("seconds", [3e-6, 2e-4])
def test_a_sample_is_the_time_of_one_call(seconds: float) -> None:
    measured = timer(busy(seconds))
    result = cpu.measure(measured, 0.05)
    # Never less than the run takes; how much more is the machine's affair.
    assert seconds <= min(result.samples)
    assert result.median < 20 * seconds
    assert len(result.samples) >= cpu.FEWEST


def test_short_calls_are_batched_until_a_sample_fills_the_clock() -> None:
    measured = timer(busy(2e-6))
    measured.warm_up(0.05)
    assert measured.calls * 2e-6 >= cpu.SAMPLE_SECONDS / 4
    long = timer(busy(2e-3))
    long.warm_up(0.05)
    assert long.calls == 1


def test_cold_buffers_rotate_beyond_the_cache() -> None:
    seen: list[int] = []

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        seen.append(inputs[0].data_ptr())
        return outputs

    cold = timer(run, Policy(cache="cold"))
    sets = len(cold.buffers)
    assert sets * 2 * 8 * 4 >= 4 * 1024
    cold.calls = 2 * sets
    cold.sample()
    assert len(set(seen)) == sets
    assert seen[:sets] == seen[sets:]


def test_fresh_outputs_are_new_tensors() -> None:
    kept: list[torch.Tensor] = []

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        kept.append(outputs[0])
        return outputs

    fresh = timer(run, Policy(output="fresh"))
    fresh.calls = 5
    fresh.sample()
    assert len({t.data_ptr() for t in kept}) == 5
    reused = timer(run)
    reused.calls = 5
    kept.clear()
    reused.sample()
    assert len({t.data_ptr() for t in kept}) == 1


def test_a_measurement_without_a_time_cannot_be_made() -> None:
    for samples in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(ValueError, match="more than 0 s"):
            Measurement(samples)


def test_policies_are_parsed_and_wrong_ones_named() -> None:
    assert Policy.parse("cold,fresh", 3) == Policy(cache="cold", output="fresh", threads=3)
    assert Policy.parse("") == Policy()
    assert Policy.from_json(Policy.parse("graph,cuda").to_json()) == Policy(launch="graph", device="cuda")
    with pytest.raises(ValueError, match="'tepid' is none of warm, cold"):
        Policy.parse("tepid")
    with pytest.raises(ValueError, match="less than 1"):
        Policy(threads=0)
    assert MACHINE.cache("L2") == 2097152


def test_every_disturbance_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Disturbance)


class Told(sentinel.Sentinel):
    """A sentinel whose reference loop takes as long as it is told."""

    def __init__(self, references: list[float], threads: int = 1) -> None:
        super().__init__(threads)
        self.told: Iterator[float] = iter(references)

    def _reference(self) -> float:
        return next(self.told)


def test_a_falling_clock_marks_the_sample_after_which_it_shows() -> None:
    watch = Told([1.0] * 6 + [1.3, 1.0])
    marks = [watch.take(lambda: 1e-6)[1] for _ in range(8)]
    assert [Disturbance.CLOCK in m for m in marks] == [False] * 6 + [True, False]


def test_a_stall_is_marked_where_threads_wait_for_each_other() -> None:
    times = [1e-3] * 6 + [20e-3, 1e-3]
    for threads, stalls in ((2, 1), (1, 0)):
        watch, samples = Told([1.0] * 8, threads), iter(times)
        assert sum(Disturbance.STALLED in watch.take(lambda: next(samples))[1] for _ in times) == stalls  # noqa: B023


def test_a_sample_during_which_the_thread_was_switched_out_is_marked() -> None:
    """Two processes share one core: each is switched out again and again."""
    core = min(os.sched_getaffinity(0))
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {core})
        while True:
            pass
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
        watch = Told([1.0] * 50)
        run = busy(10e-3)
        marks = [watch.take(lambda: float(run([], []) == []))[1] for _ in range(20)]
    finally:
        os.sched_setaffinity(0, mine)
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert any(Disturbance.SWITCHES in m for m in marks)


def test_disturbed_samples_are_taken_again_and_kept_apart() -> None:
    watch, samples = Told([1.0] * 5 + [2.0, 1.0]), iter([1.0] * 5 + [9.0, 1.1])
    for _ in range(5):
        watch.take(lambda: next(samples))
    sample, again, marks = watch.undisturbed(lambda: next(samples))
    assert (sample, again) == (1.1, [9.0])
    assert Disturbance.CLOCK in marks


def test_a_measurement_among_disturbances_says_so_and_never_averages_them_silently() -> None:
    run = timer(busy(1e-4))
    run.sentinel = Told([1.0] * 5 + [1.0, 2.0, 1.0] * 500)
    result = cpu.measure(run, 0.02)
    assert result.disturbed
    assert Disturbance.CLOCK in result.warnings
    never = timer(busy(1e-4))
    never.sentinel = Told([float(2**n) for n in range(1000)])
    result = cpu.measure(never, 0.005)
    assert Disturbance.CLOCK in result.warnings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_an_arena_gives_the_tensors_other_addresses_and_the_same_values(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 8, 5, 5) * 9).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(3)
    arena = Arena([x, weight], [torch.empty(4, 6), torch.empty(0)], seed=1)
    addresses = set()
    for at in range(20):
        if at % 4 == 0:
            arena.renew()
        (moved, same), (out, empty) = arena.place()
        addresses.add(moved.data_ptr() % 8192)
        assert same is weight
        assert torch.equal(moved, x)
        assert moved.stride() == x.stride()
        assert moved.data_ptr() % 64 == out.data_ptr() % 64 == moved.storage_offset() == 0
        assert (out.shape, empty.shape) == ((4, 6), (0,))
    assert len(addresses) > 5


class Still:
    """A timer that only remembers what it was given."""

    def move(self, buffers: list[cpu.Buffers]) -> None:
        self.first, self.count = buffers[0], len(buffers)


def test_racers_never_follow_each_other_into_a_buffer_that_must_be_cold() -> None:
    op, workload = registry.discover().ops["softmax"], Workload("softmax", (("rows", 4), ("cols", 32)))
    case = bench.Case.of(op, workload, 1, "cpu")
    timers = [Still() for _ in range(3)]
    racers = [bench.Racer(case, cast(Any, timer)) for timer in timers]
    bench.Heat("cold", {}).move(racers, Policy(cache="cold"), 4096)
    assert len({id(timer.first[0][0]) for timer in timers}) == 3
    assert {timer.count for timer in timers} == {4 * 4096 // (2 * 4 * 32 * 4)}
