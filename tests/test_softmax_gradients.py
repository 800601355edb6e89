"""The gradients of the softmax family against autograd, and what the native ones promise beyond their ops."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import pytest
import torch
from samples import MACHINE

from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Run, Tensors
from perfsuite.op import Op, Workload

KNOWN = registry.discover()
FORWARDS = [op for op in KNOWN.ops.values() if op.family == "softmax" and op.backward]
each_isa = pytest.mark.parametrize("isa", [isa for isa in ("avx2", "avx512") if isa in detect.machine().isa])


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def built(op: Op, kernel: str, inputs: Tensors, isa: str, **chosen: int) -> Run:
    workload, found = op.bind(inputs), KNOWN.kernels[f"softmax/{kernel}"]
    default = found.space(workload, detect.machine()).configs[0].to_json()
    return found.build(op, workload, Config.of(**{**default, "isa": isa, **chosen}))


def answers(op: Op, kernel: str, inputs: Tensors, isa: str, **chosen: int) -> Tensors:
    return built(op, kernel, inputs, isa, **chosen)(inputs, op.make_outputs(op.bind(inputs)))


def assert_right(op: Op, inputs: Tensors, outputs: Tensors) -> None:
    workload = op.bind(inputs)
    assert check.wrong(op, workload, outputs, op.expected(inputs, workload)) is None


@pytest.mark.parametrize("op", FORWARDS, ids=str)
def test_the_reference_is_what_autograd_gives(op: Op) -> None:
    """In float64, from what the forward says that it saves."""
    backward = KNOWN.ops[str(op.backward)]
    workload = Workload(op.name, tuple((axis, {"heads": 2, "rows": 6, "cols": 37}[axis]) for axis in op.axes))
    inputs = [t.double() if t.is_floating_point() else t for t in op.make_inputs(workload, seed=3)]
    inputs[0].requires_grad_()
    answer = op.reference(*inputs, **dict(op.attributes))
    outputs = answer if isinstance(answer, tuple) else (answer,)
    above = torch.randn(outputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    (expected,) = torch.autograd.grad(outputs[0], inputs[0], above)
    names = [operand.name for operand in (*op.inputs, *op.outputs)]
    saved = [(*inputs, *outputs)[names.index(name)].detach() for name in op.saves]
    assert [operand.name for operand in backward.inputs[: len(saved)]] == list(op.saves)
    torch.testing.assert_close(backward.expected((*saved, above), workload)[0], expected, rtol=1e-12, atol=1e-15)


@each_isa
@pytest.mark.parametrize("name", ["softmax_backward", "log_softmax_backward"])
def test_rows_that_threads_share(name: str, isa: str) -> None:
    """One long row in parts for three threads, which the sum of all parts goes into; several rows for one."""
    op = KNOWN.ops[name]
    for rows, cols, threads in ((1, 65537, 3), (7, 333, 1)):
        torch.set_num_threads(threads)
        inputs = op.make_inputs(Workload(name, (("rows", rows), ("cols", cols))), seed=rows)
        for stream in (0, 1):
            assert_right(op, inputs, answers(op, "native_backward", inputs, isa, stream=stream, unroll=4))


@functools.cache
def batch(name: str) -> Tensors:
    """Enough rows for four threads, their logits far from 0."""
    logits, *others = KNOWN.ops[name].make_inputs(Workload(name, (("rows", 70), ("cols", 1001))), seed=5)
    logits += 500.0
    if name.endswith("_backward"):
        others[1] = logits.double().logsumexp(-1).float()
    return logits, *others


@each_isa
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy_smoothed"])
def test_the_loss_is_the_same_for_any_number_of_threads(name: str, isa: str) -> None:
    op, inputs, found = KNOWN.ops[name], batch(name), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(answers(op, "native_cross_entropy", inputs, isa))
        assert_right(op, inputs, found[-1])
    assert all(torch.equal(loss, found[0][0]) and torch.equal(lse, found[0][1]) for loss, lse in found)


@each_isa
@pytest.mark.parametrize("stream", [0, 1])
def test_the_gradient_may_take_the_place_of_the_logits(isa: str, stream: int) -> None:
    op = KNOWN.ops["cross_entropy_smoothed_backward"]
    logits, *others = batch(op.name)
    run = built(op, "native_cross_entropy", (logits, *others), isa, stream=stream)
    given = logits.clone()
    run((given, *others), (given,))
    assert torch.equal(given, run((logits, *others), (torch.full_like(logits, math.nan),))[0])
    assert (given[others[0] == -100] == 0.0).all()
    exact = op.expected((logits, *others), op.bind((logits, *others)))[0]
    torch.testing.assert_close(given.double(), exact, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("label", [-1, 1001])
def test_a_label_that_is_no_column_is_refused(label: int) -> None:
    logits, labels = batch("cross_entropy")
    labels = labels.clone()
    labels[3] = label
    with pytest.raises(ValueError, match=r"no column of 1001.*-100 \(ignore_index\)"):
        answers(KNOWN.ops["cross_entropy"], "native_cross_entropy", (logits, labels), "avx2")


def test_what_the_kernels_refuse() -> None:
    workload = Workload("cross_entropy", (("rows", 1), ("cols", 8)), "f64")
    assert KNOWN.kernels["softmax/native_cross_entropy"].supports(workload, MACHINE) == "takes f32, bf16, f16, not f64"
