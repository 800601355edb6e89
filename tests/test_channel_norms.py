"""Norms of images beyond the examples that every kernel must pass: any shape, hard inputs, threads, gradients."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Op, Workload

# By name: mypy sees the folder under another.
hard_inputs = importlib.import_module("perfsuite.kernels.norms.channel_ops").hard_inputs
KNOWN = registry.discover()
HERE = detect.machine()
NAMES = ("native_planes", "native_columns", "native_planes_backward", "native_columns_backward")
KERNEL_OF = {op: kernel for name in NAMES for kernel in [KNOWN.kernels[f"norms/{name}"]] for op in kernel.ops}
FORWARD = [name for name in KERNEL_OF if KNOWN.ops[name].backward]
BACKWARD = [name for name in KERNEL_OF if "backward" in name]
Tensors = Sequence[torch.Tensor]

if (reason := KERNEL_OF["batch_norm"].supports(KNOWN.ops["batch_norm"].workloads[0], HERE)) is not None:
    pytest.skip(reason, allow_module_level=True)


def workload_of(name: str, n: int, c: int, side: tuple[int, int], dtype: str = "f32", groups: int = 0) -> Workload:
    grouped = f",groups={groups}" if name.startswith("group") else ""
    return KNOWN.workload(f"{name}[n={n},c={c},h={side[0]},w={side[1]}{grouped},{dtype}]")


def configs(kernel: Kernel, workload: Workload, isa: str | None = None) -> list[Config]:
    """Those of one ISA, the default's: each takes seconds to compile."""
    every = kernel.space(workload, HERE).configs
    return [config for config in every if config["isa"] == (isa or every[0]["isa"])]


def run(
    op: Op, workload: Workload, inputs: Tensors, config: Config | None = None, outputs: Tensors | None = None
) -> Tensors:
    kernel = KERNEL_OF[op.name]
    config = config or configs(kernel, workload)[0]
    return kernel.build(op, workload, config)(inputs, outputs if outputs is not None else op.make_outputs(workload))


def between_guards(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory with a 77 at either end, and the same tensor in it, one element behind the alignment that torch gives."""
    memory = torch.full((tensor.numel() + 2,), 77.0, dtype=tensor.dtype)
    return memory, memory.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


@given(
    name=st.sampled_from(sorted(KERNEL_OF)),
    n=st.integers(1, 3),
    groups=st.integers(1, 5),
    members=st.integers(1, 40),
    side=st.tuples(st.integers(2, 40), st.integers(1, 25)),
    pick=st.integers(0, 10_000),
)
def test_any_shape_and_config_at_any_address(
    name: str, n: int, groups: int, members: int, side: tuple[int, int], pick: int
) -> None:
    """Up to 200 channels are several panels, 1000 pixels several parts."""
    op = KNOWN.ops[name]
    dtype = "bf16" if pick % 3 == 0 else "f32"
    workload = workload_of(name, n, groups * members, side, dtype, groups)
    known = configs(KERNEL_OF[name], workload)
    inputs = op.make_inputs(workload, seed=pick)
    memory, outputs = zip(*map(between_guards, op.make_outputs(workload)))
    got = run(op, workload, [between_guards(t)[1] for t in inputs], known[pick % len(known)], outputs)
    assert check.wrong(op, workload, got, op.expected(inputs, workload)) is None
    assert all(t[0] == 77.0 and t[-1] == 77.0 for t in memory), "it wrote beyond its output"


@pytest.mark.parametrize("name", FORWARD)
def test_hard_inputs(name: str) -> None:
    op = KNOWN.ops[name]
    test = op.workloads[-1]
    for about, inputs in hard_inputs(op, test.dtype):
        workload = op.bind(inputs, {name: test[name] for name in op.parameters})
        wrong = check.wrong(op, workload, run(op, workload, inputs), op.expected(inputs, workload))
        assert wrong is None, f"{about}: {wrong}"


@pytest.mark.parametrize("name", FORWARD)
def test_outliers_at_the_start_do_not_spoil_what_follows(name: str) -> None:
    """The mean of a start as the shift of the statistics: the worst start is all outliers."""
    op = KNOWN.ops[name]
    workload = workload_of(name, 2, 2, (160, 160), groups=2)
    inputs = op.make_inputs(workload, seed=0)
    inputs[0][:, :, 0] += 1e3
    assert check.wrong(op, workload, run(op, workload, inputs), op.expected(inputs, workload)) is None


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 128, (40, 41)), (7, 8, (60, 50))], ids=["few", "many"])
@pytest.mark.parametrize("name", sorted(KERNEL_OF))
def test_same_bits_for_any_number_of_threads(name: str, shape: tuple[int, int, tuple[int, int]], threads: None) -> None:
    """Fewer slabs than threads share their rows, more do not; 1640 rows are seven parts."""
    op = KNOWN.ops[name]
    workload = workload_of(name, *shape, groups=2)
    inputs = op.make_inputs(workload, seed=5)
    for config in configs(KERNEL_OF[name], workload)[::4]:
        torch.set_num_threads(1)
        alone = run(op, workload, inputs, config)
        assert check.wrong(op, workload, alone, op.expected(inputs, workload)) is None
        for count in (2, 3, 4, 4):
            torch.set_num_threads(count)
            assert all(map(torch.equal, run(op, workload, inputs, config), alone))


@pytest.mark.parametrize("name", FORWARD)
def test_gradients_are_those_of_float64_autograd(name: str) -> None:
    """Of the forward's own reference, from what its kernel saved. One channel is near 100, too."""
    op = KNOWN.ops[name]
    backward = KNOWN.ops[op.backward or ""]
    workload = workload_of(name, 3, 12, (9, 11), groups=3)
    inputs = op.make_inputs(workload, seed=2)
    inputs[0][:, 5] += 100.0
    saved = {o.name: t for o, t in zip(op.inputs + op.outputs, (*inputs, *run(op, workload, inputs)))}
    dy = backward.make_inputs(workload_of(backward.name, 3, 12, (9, 11), groups=3), seed=3)[0]
    exact = [t.double().requires_grad_() for t in inputs[:3]]
    rest = [t.double() for t in inputs[3:]]
    keywords = {**dict(op.attributes), **{name: workload[name] for name in op.parameters}}
    answer = op.reference(*exact, *rest, **keywords)
    y = answer[0] if isinstance(answer, tuple) else answer
    want = torch.autograd.grad(y, exact, dy.double())
    given = (dy, *(saved[operand.name] for operand in backward.inputs[1:]))
    got = run(backward, backward.bind(given), given)
    for have, wish in zip(got, want, strict=True):
        torch.testing.assert_close(have.double(), wish, rtol=1e-5, atol=1e-5 * float(wish.abs().max()))


def test_layouts_and_norms_agree() -> None:
    """Channels-last is as NCHW, one group makes a layer norm, one for each channel an instance norm."""
    x, ones, zeros = torch.randn(2, 6, 9, 11, generator=torch.Generator().manual_seed(0)), torch.ones(6), torch.zeros(6)
    last = x.contiguous(memory_format=torch.channels_last)

    def y(name: str, groups: int = 0) -> torch.Tensor:
        op = KNOWN.ops[name]
        inputs = (last if name.endswith("_nhwc") else x, ones, zeros)
        return run(op, op.bind(inputs, {"groups": groups} if groups else {}), inputs)[0]

    for name in ("group_norm", "group_norm_nhwc"):
        torch.testing.assert_close(y(name, 1), F.layer_norm(x, x.shape[1:]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y(name, 6), y("instance_norm"), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y(name, 2), F.group_norm(x, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y("instance_norm_nhwc"), F.instance_norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["", "_nhwc"])
def test_batch_norm_is_pytorchs_module(layout: str) -> None:
    """Running statistics over two steps, then inference with them."""
    module, generator = torch.nn.BatchNorm2d(40), torch.Generator().manual_seed(0)
    op, frozen = KNOWN.ops[f"batch_norm{layout}"], KNOWN.ops[f"batch_norm_inference{layout}"]
    memory = torch.channels_last if layout else torch.contiguous_format
    weight, bias = module.weight.detach(), module.bias.detach()
    running: Tensors = (torch.zeros(40), torch.ones(40))
    for _ in range(2):
        x = (3.0 + 2.0 * torch.randn(3, 40, 6, 5, generator=generator)).contiguous(memory_format=memory)
        y, _, _, *running = run(op, op.bind((x, weight, bias, *running)), (x, weight, bias, *running))
        torch.testing.assert_close(y, module(x).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(running[0], module.running_mean)
    torch.testing.assert_close(running[1], module.running_var)
    inputs = (x, weight, bias, *running)
    (y,) = run(frozen, frozen.bind(inputs), inputs)
    torch.testing.assert_close(y, module.eval()(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["", "_nhwc"])
def test_gradients_with_frozen_statistics_are_those_of_pytorch(layout: str) -> None:
    """In float64; an infinite element of x makes dx of nothing infinite."""
    op = KNOWN.ops[f"batch_norm_inference_backward{layout}"]
    dy, x, mean, var, weight = op.make_inputs(workload_of(op.name, 3, 40, (9, 7)), seed=4)
    leaves = [t.double().requires_grad_() for t in (x, weight, torch.zeros(40))]
    y = F.batch_norm(leaves[0], mean.double(), var.double(), leaves[1], leaves[2], training=False, eps=1e-5)
    want = torch.autograd.grad(y, leaves, dy.double())
    inputs = (dy, x, mean, var, weight)
    dx, *of_parameters = run(op, op.bind(inputs), inputs)
    for have, wish in zip((dx, *of_parameters), want, strict=True):
        torch.testing.assert_close(have.double(), wish, rtol=1e-5, atol=1e-5 * float(wish.abs().max()))
    x[1, 2, 3, 4] = torch.inf
    assert torch.equal(run(op, op.bind(inputs), inputs)[0], dx)


def test_refusals_say_what_to_do() -> None:
    def says(workload: Workload) -> str | None:
        return KERNEL_OF[workload.op].supports(workload, HERE)

    assert "choose a divisor" in str(says(workload_of("group_norm", 1, 10, (4, 4), groups=3)))
    assert "give it 2 or more" in str(says(workload_of("batch_norm", 1, 10, (1, 1))))
    assert "give it 1 or more" in str(says(workload_of("instance_norm_nhwc", 1, 10, (0, 1))))
    assert says(workload_of("instance_norm", 1, 10, (1, 1))) is None
