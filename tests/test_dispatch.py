"""The kernel that is picked at run time, and the functions that users call."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import perfsuite
from perfsuite import detect, places, registry
from perfsuite.kernel import Config
from perfsuite.machine import Environment, Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.stats import Verdict
from perfsuite.table import Entry, Table

KNOWN = registry.discover()


def entry(text: str, kernel: str, config: Config | None = None, digest: str | None = None, threads: int = 1) -> Entry:
    workload = KNOWN.workload(text)
    chosen = config or KNOWN.kernels[kernel].space(workload, detect.machine()).configs[0]
    made = KNOWN.kernels[kernel].digest if digest is None else digest
    return Entry(workload, Policy(threads=threads), kernel, chosen, made, 1e-6, Verdict.FASTER)


def table(*entries: Entry, machine: Machine | None = None) -> Table:
    return Table(machine or detect.machine(), entries)


def other() -> str:
    """A kernel of the op that is not the default, and runs here."""
    workload = KNOWN.workload("softmax[rows=6,cols=70]")
    fit = [k for k in KNOWN.kernels_for("softmax") if not k.default and not k.supports(workload, detect.machine())]
    native = [k for k in fit if k.name.startswith("native")]
    if not native:
        pytest.skip("no native kernel runs here")
    return str(native[0])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


SHAPE = "softmax[rows=6,cols=70]"


def test_the_winner_of_the_table_is_called_and_right() -> None:
    kernel = other()
    dispatcher = perfsuite.fastest("softmax", table=table(entry(SHAPE, kernel)))
    assert str(dispatcher.choice(KNOWN.workload(SHAPE))[0]) == kernel
    x = torch.randn(2, 3, 70)
    assert torch.allclose(dispatcher(x), torch.softmax(x, -1), atol=1e-6)
    out = torch.empty(2, 3, 70)
    assert dispatcher(x, out=out) is out
    assert torch.allclose(out, torch.softmax(x, -1), atol=1e-6)


@pytest.mark.parametrize("shape", [(70,), (6, 70), (2, 3, 70), (1, 2, 3, 1, 70)])
def test_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    y = perfsuite.fastest("softmax", table=table())(x)
    assert isinstance(y, torch.Tensor)
    assert y.shape == x.shape
    assert torch.allclose(y, torch.softmax(x, -1), atol=1e-6)


def test_miss_policies() -> None:
    kernel = other()
    known = table(entry(SHAPE, kernel), entry("softmax[rows=4096,cols=4096]", "softmax/eager"))
    near = KNOWN.workload("softmax[rows=7,cols=71]")
    assert KNOWN.kernels[str(perfsuite.fastest("softmax", table=known).choice(near)[0])].default
    assert str(perfsuite.fastest("softmax", miss="nearest", table=known).choice(near)[0]) == kernel
    with pytest.raises(LookupError, match=r"perfsuite tune 'softmax\[rows=7,cols=71,f32\]' --threads 1"):
        perfsuite.fastest("softmax", miss="error", table=known)(torch.randn(7, 71))
    with pytest.raises(ValueError, match="none of default, nearest, error"):
        perfsuite.fastest("softmax", miss="luck")


def test_other_threads_are_a_miss() -> None:
    known = table(entry(SHAPE, other(), threads=2))
    assert perfsuite.fastest("softmax", table=known).choice(KNOWN.workload(SHAPE), threads=1)[0].default
    assert not perfsuite.fastest("softmax", table=known).choice(KNOWN.workload(SHAPE), threads=2)[0].default


def test_a_stale_winner_is_not_used() -> None:
    stale = table(entry(SHAPE, other(), digest="of yesterday"))
    assert perfsuite.fastest("softmax", table=stale).choice(KNOWN.workload(SHAPE))[0].default


@pytest.mark.parametrize("what", ["hardware", "software"])
def test_a_table_of_another_machine_is_not_used_and_says_so(what: str) -> None:
    here = detect.machine()
    fields = here.to_json()
    if what == "hardware":
        fields["cpu"] = "Another 1"
    else:
        fields["environment"] = {**fields["environment"], "torch": "1.0"}
        assert Environment(**fields["environment"]) != here.environment
    foreign = table(entry(SHAPE, other()), machine=Machine.from_json(fields))
    with pytest.warns(UserWarning, match=f"other {what}.*perfsuite tune"):
        dispatcher = perfsuite.fastest("softmax", table=foreign)
    assert dispatcher.choice(KNOWN.workload(SHAPE))[0].default


def test_wrong_calls_say_what_to_do() -> None:
    softmax = perfsuite.fastest("softmax", table=table())
    with pytest.raises(ValueError, match=r"x is not contiguous; pass x\.contiguous\(\)"):
        softmax(torch.randn(70, 6).t())
    with pytest.raises(ValueError, match="dtype"):
        softmax(torch.ones(6, 70, dtype=torch.complex64))
    with pytest.raises(ValueError, match="takes 1 tensors"):
        softmax(torch.ones(3, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="expected"):
        softmax(torch.ones(3, 3), out=torch.ones(3, 4))
    with pytest.raises(RuntimeError, match="not differentiated"):
        softmax(torch.ones(3, 3, requires_grad=True))
    with pytest.raises(ValueError, match="'softmux' is not an op"):
        perfsuite.fastest("softmux")


def test_what_was_decided_once_is_checked_again() -> None:
    """A call that fits leaves no way in for one that does not: in shape, dtype, place or number."""
    softmax = perfsuite.fastest("softmax", table=table(entry(SHAPE, other())))
    x, out = torch.randn(6, 70), torch.empty(6, 70)
    assert softmax(x, out=out) is out
    assert torch.equal(softmax(x), out)
    for wrong, what in (
        (torch.empty(6, 71), r"out is \(6, 71\) torch.float32 on cpu, expected \(6, 70\)"),
        (torch.empty(2, 3, 70), r"out is \(2, 3, 70\)"),
        (torch.empty(6, 70, dtype=torch.bfloat16), "torch.bfloat16 on cpu, expected"),
        (torch.empty(6, 70, device="meta"), "torch.float32 on meta, expected .* on cpu"),
        ([], "out has 0 tensors, expected 1"),
        ([out, out], "out has 2 tensors, expected 1"),
    ):
        with pytest.raises(ValueError, match=what):
            softmax(x, out=wrong)
    with pytest.raises(ValueError, match="takes 1 tensors"):
        softmax(x, out)
    with pytest.raises(RuntimeError, match="not differentiated"):
        softmax(x.clone().requires_grad_(), out=out)
    with torch.no_grad():
        assert softmax(x.clone().requires_grad_(), out=out) is out


def test_every_input_has_the_dtype_and_the_device_of_the_op() -> None:
    rms_norm = perfsuite.fastest("rms_norm", table=table())
    x = torch.randn(6, 70)
    with pytest.raises(ValueError, match=r"weight is torch.bfloat16 on cpu, expected torch.float32 on cpu"):
        rms_norm(x, torch.ones(70, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"weight is torch.float32 on meta, expected torch.float32 on cpu"):
        rms_norm(x, torch.ones(70, device="meta"))


@pytest.mark.parametrize("kernel", ["softmax/eager", "native"])
@settings(max_examples=40, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=3),
    cols=st.sampled_from([1, 8, 70]),
    out=st.sampled_from(["none", "fits", "strided", "list"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape_into_any_output(kernel: str, lead: list[int], cols: int, out: str, dtype: torch.dtype) -> None:
    """Calls of one dispatcher in any order, also into outputs that the kernel cannot write itself."""
    rows = math.prod(lead)
    name = other() if kernel == "native" else kernel
    short = "f32" if dtype == torch.float32 else "bf16"
    softmax = perfsuite.fastest("softmax", table=table(entry(f"softmax[rows={rows},cols={cols},{short}]", name)))
    for _ in range(2):
        x = torch.randn(*lead, cols).to(dtype)
        y = torch.empty(*lead, 2 * cols, dtype=dtype)[..., ::2] if out == "strided" else torch.empty_like(x)
        answer = softmax(x) if out == "none" else softmax(x, out=[y] if out == "list" else y)
        assert (answer is y) == (out != "none")
        tolerance = 1e-6 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(answer.double(), torch.softmax(x.double(), -1), rtol=0, atol=tolerance)


def test_the_machines_own_table_is_found() -> None:
    kernel = other()
    path = places.table_path(detect.machine())
    table(entry(SHAPE, kernel)).save(path)
    assert str(perfsuite.fastest("softmax", table=path).choice(KNOWN.workload(SHAPE))[0]) == kernel


def test_an_unreadable_table_says_what_writes_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="`perfsuite tune` writes a new one"):
        perfsuite.fastest("softmax", table=path)


@pytest.mark.parametrize("dim", [-1, 0, 1, 2, -3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_over_any_dimension(dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 7).to(dtype)
    expected = torch.softmax(x.double(), dim)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    assert torch.allclose(perfsuite.ops.softmax(x, dim).double(), expected, atol=tolerance)
    out = torch.empty_like(x)
    perfsuite.ops.softmax(x, dim, out=out)
    assert torch.allclose(out.double(), expected, atol=tolerance)
    with pytest.raises(ValueError, match="dim=3"):
        perfsuite.ops.softmax(x, 3)


def test_log_and_masked_softmax_match_torch() -> None:
    x, mask = torch.randn(2, 3, 5, 7), torch.zeros(5, 7).masked_fill_(torch.ones(5, 7).triu(1).bool(), -torch.inf)
    assert torch.allclose(perfsuite.ops.log_softmax(x, 1), torch.log_softmax(x, 1), atol=1e-6)
    out, expected = torch.empty_like(x), torch.softmax(x / 8 + mask, -1)
    assert torch.allclose(perfsuite.ops.masked_softmax(x, mask), expected, atol=1e-6)
    assert perfsuite.ops.masked_softmax(x, mask, out=out) is out
    assert torch.allclose(out, expected, atol=1e-6)


def test_cross_entropy_and_its_gradient_match_autograd() -> None:
    """Logits of any number of dimensions, of which the labels lack the last one, and an output without any."""
    logits, labels = torch.randn(4, 6, 50, requires_grad=True), torch.randint(0, 50, (4, 6))
    labels[0, :3] = -100
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    expected.backward()  # type: ignore[no-untyped-call]
    given = logits.detach()
    loss, lse = perfsuite.ops.cross_entropy(given, labels)
    assert loss.shape == ()
    assert lse.shape == labels.shape
    assert torch.allclose(loss, expected, atol=1e-6)
    gradient = perfsuite.ops.cross_entropy_backward(given, labels, lse, torch.tensor(1.0))
    assert logits.grad is not None
    assert torch.allclose(gradient, logits.grad, atol=1e-7)


def test_norms_match_torch() -> None:
    functional = torch.nn.functional
    x, residual, weight, bias = torch.randn(4, 9, 96), torch.randn(4, 9, 96), torch.randn(96), torch.randn(96)
    assert torch.allclose(
        perfsuite.ops.layer_norm(x, weight, bias), functional.layer_norm(x, (96,), weight, bias), atol=1e-5
    )
    eps = float(KNOWN.ops["rms_norm"].attribute("eps"))
    wanted = functional.rms_norm(x, (96,), weight, eps)
    assert torch.allclose(perfsuite.ops.rms_norm(x, weight), wanted, atol=1e-5)
    y, h = perfsuite.ops.add_rms_norm(x, residual, weight)
    assert torch.allclose(h, x + residual, atol=1e-6)
    assert torch.allclose(y, functional.rms_norm(x + residual, (96,), weight, eps), atol=1e-5)
    y, h = perfsuite.ops.add_layer_norm(x, residual, weight, bias)
    assert torch.allclose(y, functional.layer_norm(x + residual, (96,), weight, bias), atol=1e-5)
    assert torch.allclose(perfsuite.ops.simple_rms_norm(x), functional.rms_norm(x, (96,), None, eps), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("layer_norm", "rms_norm", "simple_rms_norm", "crms_norm", "l1_norm"),
        *("add_layer_norm", "add_rms_norm", "scaled_layer_norm", "time_layer_norm"),
    ],
)
def test_norms_and_their_gradients_match_autograd(name: str) -> None:
    """Of three-dimensional tensors: dx is like them, the parameters' gradients are vectors, or one for each sample."""
    op = KNOWN.ops[name]
    lengths = {"samples": (4,), "cols": (96,), "rows": (9,) if "samples" in op.axes else (4, 9)}
    shapes = {o.name: [n for axis in o.axes for n in lengths[axis]] for o in (*op.inputs, *op.outputs)}
    tensors = {o.name: torch.randn(shapes[o.name]) for o in op.inputs if o.name != "layer"}
    learnt = {f"d{key}": t.requires_grad_() for key, t in tensors.items()}
    given: dict[str, Any] = {**tensors, "layer": torch.tensor(3)}
    answer = op.reference(*[given[o.name] for o in op.inputs], **dict(op.attributes))
    outputs = dict(zip((o.name for o in op.outputs), answer if isinstance(answer, tuple) else (answer,)))
    above = {f"d{key}": torch.randn_like(t) for key, t in outputs.items()}
    found = torch.autograd.grad([*outputs.values()], [*learnt.values()], [*above.values()])
    want, known = dict(zip(learnt, found)), given | outputs | above | {"layer": 3}
    backward = KNOWN.ops[str(op.backward)]
    with torch.no_grad():
        again = getattr(perfsuite.ops, name)(*[known[o.name] for o in op.inputs])
        got = getattr(perfsuite.ops, backward.name)(*[known[o.name] for o in backward.inputs])
    for have, wish in zip(again if isinstance(again, tuple) else (again,), outputs.values()):
        torch.testing.assert_close(have, wish, rtol=1e-4, atol=1e-4)
    for operand, have in zip(backward.outputs, got if isinstance(got, tuple) else (got,)):
        torch.testing.assert_close(have, want[operand.name], rtol=1e-4, atol=1e-4)


def test_a_layer_below_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="layer=0, but layers are counted from 1"):
        perfsuite.ops.scaled_layer_norm(torch.ones(2, 8), torch.ones(8), torch.ones(8), 0)


@pytest.mark.parametrize(("name", "largest"), [("rms_norm_int8", 127.0), ("rms_norm_fp8", 448.0)])
def test_quantised_norms_are_the_norm(name: str, largest: float) -> None:
    x, weight = torch.randn(3, 5, 96), torch.rand(96)
    q, scale = getattr(perfsuite.ops, name)(x, weight)
    assert (q.shape, scale.shape) == (x.shape, (3, 5))
    wanted = perfsuite.ops.rms_norm(x, weight)
    torch.testing.assert_close(scale, wanted.abs().amax(-1) / largest)
    assert torch.allclose(q.float() * scale.unsqueeze(-1), wanted, rtol=0.07, atol=0.51 * float(scale.max()))


def test_gradient_of_masked_softmax_matches_autograd() -> None:
    x, mask, dy = torch.randn(2, 3, 5, 7), torch.randn(5, 7), torch.randn(2, 3, 5, 7)
    x.requires_grad_()
    y = torch.softmax(x / 8 + mask, -1)
    (want,) = torch.autograd.grad(y, x, dy)
    out = torch.empty_like(dy)
    assert perfsuite.ops.masked_softmax_backward(y.detach(), dy, out=out) is out
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(perfsuite.ops.masked_softmax_backward(y.detach(), dy), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_norms_of_images_match_autograd(layout: torch.memory_format) -> None:
    functional, ops = torch.nn.functional, perfsuite.ops
    x, dy = (torch.randn(2, 6, 5, 7).contiguous(memory_format=layout) for _ in range(2))
    weight, bias, mean, var = torch.randn(6), torch.randn(6), torch.randn(6), torch.rand(6) + 0.5
    y = ops.batch_norm_inference(x, weight, bias, mean, var)
    assert torch.allclose(y, functional.batch_norm(x, mean, var, weight, bias), atol=1e-5)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    like, scale, offset = leaves
    frozen = torch.autograd.grad(functional.batch_norm(like, mean, var, scale, offset), leaves, dy)
    for have, wish in zip(ops.batch_norm_inference_backward(dy, x, mean, var, weight), frozen, strict=True):
        torch.testing.assert_close(have, wish, rtol=1e-4, atol=1e-4)
    for name, answer, wanted in (
        (
            "batch",
            ops.batch_norm(x, weight, bias, mean, var),
            functional.batch_norm(like, None, None, scale, offset, True),
        ),
        ("group", ops.group_norm(x, 3, weight, bias), functional.group_norm(like, 3, scale, offset)),
        ("instance", ops.instance_norm(x, weight, bias), functional.instance_norm(like, None, None, scale, offset)),
    ):
        y, *statistics = answer
        assert y.is_contiguous(memory_format=layout)
        assert torch.allclose(y, wanted, atol=1e-5)
        gradients = getattr(ops, f"{name}_norm_backward")(dy, x, *statistics[:2], weight)
        for have, wish in zip(gradients, torch.autograd.grad(wanted, leaves, dy), strict=True):
            torch.testing.assert_close(have, wish, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="choose a divisor"):
        ops.group_norm(x, 4, weight, bias)


def test_workloads_and_tensors_agree() -> None:
    assert KNOWN.ops["softmax"].bind([torch.empty(6, 70)]) == Workload.parse(SHAPE)


def test_a_program_pinned_to_one_core_finds_the_same_table() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from perfsuite import detect as d; "
    code += "print(d.machine().id, d.machine().environment_id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [detect.machine().id, detect.machine().environment_id], done.stderr
