"""The gradients of the row norms against float64 autograd, and the same for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from row_norms import BUILDS, KNOWN, NORMS, configs, norm, sized


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "dtype"), [build for build in BUILDS if "backward" in build[0]])
def test_gradients_have_the_same_bits_for_any_number_of_threads(name: str, dtype: str) -> None:
    """170 rows are six parts, of which four threads get unequal shares."""
    op = KNOWN.ops[name]
    inputs = op.make_inputs(sized(name, 170, 1000, dtype), seed=5)
    config = configs(name, dtype)[0]
    torch.set_num_threads(1)
    alone = norm(name, inputs, config)
    for count in (2, 3, 4, 4):
        torch.set_num_threads(count)
        assert all(map(torch.equal, norm(name, inputs, config), alone))


@pytest.mark.parametrize("forward", [name for name in NORMS if KNOWN.ops[name].backward])
def test_gradients_are_those_of_float64_autograd(forward: str) -> None:
    """Of the forward's own reference, whose Op says what is saved. Rows near 1e4 too, whose f32 means are off.

    Not for l1_norm: an element that lies on another side of its mean there has another gradient.
    """
    op = KNOWN.ops[forward]
    backward = KNOWN.ops[op.backward or ""]
    inputs = {o.name: t for o, t in zip(op.inputs, op.make_inputs(sized(forward, 37, 300, "f32"), 2))}
    if forward != "l1_norm":
        inputs["x"][..., 5:9, :] += 1e4
    for name in inputs.keys() & {"x", "residual"}:
        inputs[name].mul_(512.0).round_().div_(512.0)  # so that f32 holds their sum
    given = {name: t.double().requires_grad_() if t.is_floating_point() else t + 4 for name, t in inputs.items()}
    answer = op.reference(*given.values(), **dict(op.attributes))
    outputs = dict(zip([o.name for o in op.outputs], answer if isinstance(answer, tuple) else (answer,)))
    generator = torch.Generator().manual_seed(0)
    above = {f"d{name}": torch.randn(y.shape, generator=generator) for name, y in outputs.items()}
    learnt = {f"d{name}": t for name, t in given.items() if t.requires_grad}
    found = torch.autograd.grad([*outputs.values()], [*learnt.values()], [dy.double() for dy in above.values()])
    want = dict(zip(learnt, found))
    if "residual" in inputs:
        assert torch.equal(want.pop("dresidual"), want["dx"])
    saved = {name: (given | outputs)[name].detach() for name in op.saves}
    known = above | {name: t.float() if t.is_floating_point() else t for name, t in saved.items()}
    got = norm(backward.name, [known[operand.name] for operand in backward.inputs])
    assert [operand.name for operand in backward.outputs] == list(want)
    for have, wish in zip(got, want.values()):
        torch.testing.assert_close(have.double(), wish, rtol=1e-5, atol=1e-5 * float(wish.abs().max()))


def test_gradients_of_many_rows_stay_accurate() -> None:
    """Sums of 20000 rows, by parts: 1e-5 of the square root of that, relative to the sum of the magnitudes."""
    op = KNOWN.ops["layer_norm_backward"]
    workload = KNOWN.workload("layer_norm_backward[rows=20000,cols=16,f32]")
    inputs = op.make_inputs(workload, seed=1)
    inputs[0].abs_()
    _, _, dbias = norm(op.name, inputs)
    torch.testing.assert_close(dbias.double(), inputs[0].double().sum(0), rtol=2e-6, atol=0.0)
