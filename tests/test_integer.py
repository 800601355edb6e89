"""int8_linear beyond the examples that every kernel must pass: exact sums, exact quantisation, packed weights."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import MACHINE

from perfsuite import detect, registry
from perfsuite.kernel import Config, Kernel

KNOWN = registry.discover()
OP = KNOWN.ops["int8_linear"]
HERE = detect.machine()
NATIVE = [kernel for kernel in KNOWN.kernels_for("int8_linear") if kernel.name.startswith("native")]
quantise = importlib.import_module("perfsuite.kernels.integer.linear").quantise

if (reason := NATIVE[0].supports(OP.workloads[0], HERE)) is not None:
    pytest.skip(reason, allow_module_level=True)


def every_config(kernel: Kernel, inputs: tuple[torch.Tensor, ...]) -> list[tuple[Config, torch.Tensor]]:
    workload = OP.bind(inputs)
    answers = []
    for config in kernel.space(workload, HERE):
        (y,) = kernel.build(OP, workload, config)(inputs, OP.make_outputs(workload))
        answers.append((config, y))
    return answers


@pytest.mark.parametrize("kernel", NATIVE, ids=str)
@pytest.mark.parametrize("k", [4, 127, 1000, 4096])
def test_sums_are_exact(kernel: Kernel, k: int) -> None:
    """With scales of one the output is the int64 sum, rounded once to f32, also where all products add up."""
    generator = torch.Generator().manual_seed(k)
    x = torch.randint(-127, 128, (37, k), generator=generator)
    x[:, 0] = 127
    x[0], x[1] = 127, -127
    weight = torch.randint(-128, 128, (70, k), generator=generator)
    weight[0], weight[1] = 127, -128
    want = (x @ weight.T).float()
    inputs = (x.float(), weight.to(torch.int8), torch.ones(70))
    for config, y in every_config(kernel, inputs):
        assert torch.equal(y, want), f"{config}: {int((y != want).sum())} sums are wrong"


@given(seed=st.integers(0, 10_000), cols=st.integers(1, 200), scale=st.sampled_from((1e-20, 1e-3, 1.0, 1e4)))
def test_quantised_rows_are_the_nearest_integers(seed: int, cols: int, scale: float) -> None:
    x = torch.randn(3, cols, generator=torch.Generator().manual_seed(seed)) * scale
    x[1] = 0.0
    q, step = quantise(x)
    off = (q.double() * step.double() - x.double()).abs()
    assert bool((off <= step.double() * (0.5 + 2e-5)).all())
    assert int(q[0].int().abs().max()) == 127
    assert int(q[1].abs().max()) == 0
    assert float(step[1]) == 0.0


def test_halves_are_rounded_to_even() -> None:
    q, _ = quantise(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]]))
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("kernel", NATIVE, ids=str)
def test_error_of_the_layer_is_bounded(kernel: Kernel) -> None:
    """|y - x w^T| <= k absmax |w|max / 254 for rows quantised to half a step; w is exact here."""
    workload = KNOWN.workload("int8_linear[m=9,k=300,n=40,f32]")
    inputs = OP.make_inputs(workload, seed=0)
    x, weight, w_scale = inputs
    exact = x.double() @ (weight.double() * w_scale.double().unsqueeze(1)).T
    largest = (weight.int().abs().amax(1) * w_scale).double()
    bound = 300 * x.abs().amax(1, keepdim=True).double() * largest / 254.0 * (1.0 + 1e-4)
    for config, y in every_config(kernel, inputs)[::5]:
        assert bool(((y - exact).abs() <= bound).all()), str(config)


@pytest.mark.parametrize("kernel", NATIVE, ids=str)
def test_same_bits_with_any_number_of_threads(kernel: Kernel) -> None:
    workload = KNOWN.workload("int8_linear[m=70,k=130,n=200,bf16]")
    inputs = OP.make_inputs(workload, seed=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = every_config(kernel, inputs)
        torch.set_num_threads(3)
        together = every_config(kernel, inputs)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) and torch.equal(a, alone[0][1]) for (_, a), (_, b) in zip(alone, together))


@pytest.mark.parametrize("kernel", NATIVE, ids=str)
def test_weights_are_packed_anew_when_they_change(kernel: Kernel) -> None:
    workload = KNOWN.workload("int8_linear[m=3,k=64,n=8,f32]")
    inputs = OP.make_inputs(workload, seed=4)
    run = kernel.build(OP, workload, kernel.space(workload, HERE).configs[0])
    (before,) = run(inputs, OP.make_outputs(workload))
    inputs[1].neg_()
    (after,) = run(inputs, OP.make_outputs(workload))
    assert torch.equal(after, -before)


@pytest.mark.parametrize("kernel", NATIVE, ids=str)
def test_refusal_without_vnni(kernel: Kernel) -> None:
    assert "needs" in str(kernel.supports(OP.workloads[0], MACHINE))
