"""The CPU timer on runs whose cost is known."""

from __future__ import annotations

import time

import pytest
import torch
from samples import MACHINE

from perfsuite.kernel import Run, Tensors
from perfsuite.measure import cpu
from perfsuite.policy import Policy
from perfsuite.trial import Measurement


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
