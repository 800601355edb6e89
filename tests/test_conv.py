"""ConvBN and conv blocks: what holds between ops, between calls and at the edges of memory."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Op, Workload
from perfsuite.toolchain import inductor
from perfsuite.toolchain.constants import PerConstants

modes: Any = importlib.import_module("perfsuite.kernels.conv_bn.modes")
KNOWN = registry.discover()
MACHINE = detect.machine()
EPS = 1e-5


def conv_inputs(n: int, c: int, side: int, o: int, k: int) -> list[Tensor]:
    """x, weight, gamma, beta, mean, var in float64."""
    g = torch.Generator().manual_seed(n * 1000 + c * 100 + side * 10 + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    return [normal(n, c, side, side), normal(o, c, k, k), normal(o), normal(o), normal(o), normal(o).square() + 0.1]


@settings(max_examples=25)
@given(
    n=st.integers(1, 2),
    c=st.integers(1, 4),
    side=st.integers(1, 7),
    o=st.integers(1, 5),
    k=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
)
def test_the_modes_are_one_function(n: int, c: int, side: int, o: int, k: int, stride: int) -> None:
    """Tune and Deploy give Eval's output, zero padding included, and Tune gives Eval's gradients."""
    inputs = conv_inputs(n, c, side, o, k)
    evaluated = modes.conv_bn(*inputs, eps=EPS, stride=stride)
    grad = torch.randn(evaluated.shape, dtype=torch.float64)
    weight, bias, _ = modes.folded(*inputs[1:], eps=EPS)
    torch.testing.assert_close(modes.deploy(inputs[0], weight, bias, stride=stride), evaluated)
    tuned = modes.step(modes.tune, 3)(*inputs, grad, eps=EPS, stride=stride)
    for got, want in zip(tuned, modes.step(modes.conv_bn, 3)(*inputs, grad, eps=EPS, stride=stride), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", modes.MODES)
def test_steps_match_finite_differences(name: str) -> None:
    forward, parameters = modes.MODES[name]
    inputs = conv_inputs(2, 2, 4, 3, 3)
    constants: dict[str, Any] = {"stride": 2} if name == "conv_bn_deploy_step" else {"stride": 2, "eps": EPS}
    arguments = inputs[: 1 + parameters] if name == "conv_bn_deploy_step" else inputs
    grad = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    _, *gradients = modes.step(forward, parameters)(*arguments, grad, **constants)
    for place, gradient in enumerate(gradients):
        direction, h = torch.randn_like(arguments[place]), 1e-6
        ends = []
        for sign in (1.0, -1.0):
            moved = [t + sign * h * direction if i == place else t for i, t in enumerate(arguments)]
            ends.append(float((forward(*moved, **constants) * grad).sum()))
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-7)


def test_tune_mode_saves_no_feature_map_but_x() -> None:
    """Eval mode keeps the convolution's output for the gradient of gamma; Tune mode does not."""
    saved: dict[str, int] = {}
    for name in ("conv_bn_eval_step", "conv_bn_tune_step"):
        inputs = conv_inputs(2, 4, 16, 8, 1)
        sizes: dict[int, int] = {}
        leaves = [t.requires_grad_() for t in inputs[:4]]

        def remember(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
            modes.MODES[name][0](*leaves, *inputs[4:], eps=EPS, stride=1)
        saved[name] = sum(sizes.values())
    output = 2 * 8 * 16 * 16 * 8
    weight_sized = 4 * 8 * 8 + 6 * 8 * 8
    assert saved["conv_bn_eval_step"] - saved["conv_bn_tune_step"] == pytest.approx(output, abs=2 * weight_sized)


def test_inductor_rewrites_the_eval_graph() -> None:
    """The option `efficient` does what it says: inductor reports one rewritten pair."""
    from torch._dynamo.utils import counters

    op, kernel = KNOWN.ops["conv_bn_eval_step"], KNOWN.kernels["conv_bn/inductor_step"]
    workload = next(w for w in op.workloads if w.test and w.dtype == "f32")
    config = Config.of(simdlen=inductor.simd_widths(MACHINE)[0], efficient=True)
    inputs = op.make_inputs(workload, 1)
    counters.clear()
    # An answer from a cache would be one that no pass has counted.
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        answer = kernel.build(op, workload, config)(inputs, ())
    assert counters["inductor"]["efficient_conv_bn_eval"] == 1
    assert check.wrong(op, workload, answer, op.expected(inputs, workload)) is None


def test_tensors_bind_with_derived_axes() -> None:
    op = KNOWN.ops["conv_bn_add_relu"]
    workload = op.workloads[-1]
    inputs = op.make_inputs(workload, 1)
    assert op.bind(inputs, {"stride": workload["stride"]}) == workload
    with pytest.raises(ValueError, match=r"p=\d+, but p=\d+ follows"):
        op.bind(inputs, {"stride": workload["stride"] + 1})


def test_constants_are_derived_once() -> None:
    calls: list[float] = []

    def derive(tensors: Any) -> float:
        calls.append(float(tensors[0].sum()))
        return calls[-1]

    per_constants = PerConstants(derive)
    first, second = torch.ones(2), torch.ones(3)
    assert [per_constants([t]) for t in (first, second, first, second)] == [2.0, 3.0, 2.0, 3.0]
    assert calls == [2.0, 3.0]
    first.add_(1.0)
    assert per_constants([first]) == 4.0
    assert per_constants([first]) == 4.0
    assert calls == [2.0, 3.0, 4.0]
    del first
    gc.collect()
    assert len(per_constants._known) == 1


def test_frozen_weights_follow_their_tensor() -> None:
    """Equal constants share a compiled function; changed ones are compiled anew."""
    call = inductor.frozen(lambda x, weight: x @ weight, 1, {})
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    torch.testing.assert_close(call(x, weight), x @ weight)
    torch.testing.assert_close(call(x, weight.clone()), x @ weight)
    weight.mul_(2.0)
    torch.testing.assert_close(call(x, weight), x @ weight)


def mbconv() -> tuple[Op, Kernel, Callable[[Workload, Config], Any]]:
    op, kernel = KNOWN.ops["mbconv"], KNOWN.kernels["conv_blocks/native_mbconv"]
    reason = kernel.supports(op.workloads[0], MACHINE)
    if reason is not None:
        pytest.skip(reason)
    return op, kernel, lambda workload, config: kernel.build(op, workload, config)


def test_mbconv_refuses_what_it_cannot_run() -> None:
    kernel = KNOWN.kernels["conv_blocks/native_mbconv"]
    old = replace(MACHINE, isa=("avx2", "avx512"))
    for machine, text, reason in (
        (replace(MACHINE, isa=("avx2",)), "mbconv[n=1,c=8,h=3,w=3,m=8,k=3,f32]", "needs AVX-512, this CPU has avx2"),
        (old, "mbconv[n=1,c=8,h=3,w=3,m=8,k=3,bf16]", "needs avx512_bf16 or amx_bf16"),
        (old, "mbconv[n=1,c=8,h=3,w=3,m=8,k=7,f32]", "depthwise kernels of 3 and 5, not of 7"),
    ):
        assert reason in (kernel.supports(Workload.parse(text), machine) or "")


def test_mbconv_has_a_space_worth_searching() -> None:
    op, kernel, _ = mbconv()
    for workload in (w for w in op.workloads if not w.test and kernel.supports(w, MACHINE) is None):
        assert len(kernel.space(workload, MACHINE)) >= 100, workload


WIDE = Workload.parse("mbconv[n=1,c=24,h=13,w=9,m=40,k=3,bf16]")


def engines(kernel: Kernel) -> list[Config]:
    """One config of every matrix product that the machine has."""
    configs = kernel.space(WIDE, MACHINE).configs
    return list({config["gemm"]: config for config in configs if config["rows"] == 2}.values())


def test_mbconv_does_not_depend_on_threads() -> None:
    """Strips of rows are computed apart, with their halo: the same numbers for any number of threads."""
    op, kernel, build = mbconv()
    inputs, before = op.make_inputs(WIDE, 3), torch.get_num_threads()
    try:
        for config in engines(kernel):
            answers = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                answers.append(build(WIDE, config)(inputs, op.make_outputs(WIDE))[0])
            assert torch.equal(answers[0], answers[1])
            assert torch.equal(answers[0], answers[2])
    finally:
        torch.set_num_threads(before)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 2), c=st.integers(1, 70), h=st.integers(1, 9), w=st.integers(1, 9))
def test_mbconv_is_right_for_any_sizes_and_config(data: st.DataObject, n: int, c: int, h: int, w: int) -> None:
    """Sizes that fill no register, tile or chunk, with any config of their space."""
    op, kernel, build = mbconv()
    m, k = data.draw(st.integers(1, 140), "m"), data.draw(st.sampled_from([3, 5]), "k")
    dtype = data.draw(st.sampled_from(["f32", "bf16"]), "dtype")
    workload = Workload.parse(f"mbconv[n={n},c={c},h={h},w={w},m={m},k={k},{dtype}]")
    config = data.draw(st.sampled_from(kernel.space(workload, MACHINE).configs), "config")
    inputs = op.make_inputs(workload, 7)
    answer = build(workload, config)(inputs, op.make_outputs(workload))
    assert check.wrong(op, workload, answer, op.expected(inputs, workload)) is None


def test_mbconv_engines_leave_each_other_alone() -> None:
    """Each configures the tile registers for itself, whoever ran before."""
    op, kernel, build = mbconv()
    inputs = op.make_inputs(WIDE, 4)
    expected = op.expected(inputs, WIDE)
    runs = [build(WIDE, config) for config in engines(kernel)] * 2
    for run in runs:
        assert check.wrong(op, WIDE, run(inputs, op.make_outputs(WIDE)), expected) is None


def test_mbconv_is_as_near_as_unfused_bf16() -> None:
    """Its error is at most twice that of PyTorch's layers, in the root of the mean square."""
    op, kernel, build = mbconv()
    workload = Workload.parse("mbconv[n=1,c=64,h=14,w=14,m=256,k=3,bf16]")
    inputs = op.make_inputs(workload, 5)
    (want,) = op.expected(inputs, workload)
    (eager,) = KNOWN.kernels["conv_blocks/eager"].build(op, workload, Config())(inputs, ())
    allowed = 2.0 * float((eager.double() - want).square().mean())
    for config in engines(kernel):
        (got,) = build(workload, config)(inputs, op.make_outputs(workload))
        assert float((got.double() - want).square().mean()) <= allowed


def test_mbconv_keeps_nan() -> None:
    op, kernel, build = mbconv()
    inputs = op.make_inputs(WIDE, 6)
    inputs[0][0, 3, 5, 4] = torch.nan
    for config in engines(kernel):
        (got,) = build(WIDE, config)(inputs, op.make_outputs(WIDE))
        assert got.isnan().any(1)[0, 4:7, 3:6].all()


GUARDED = """
    import ctypes, mmap, torch
    from perfsuite import detect, registry
    from perfsuite.op import Workload

    known = registry.discover()
    op, kernel = known.ops["mbconv"], known.kernels["conv_blocks/native_mbconv"]
    libc = ctypes.CDLL(None, use_errno=True)

    def at_the_edge(tensor):
        '''A copy whose last byte is the last before a page that must not be touched.'''
        size = tensor.untyped_storage().nbytes()
        pages = -(-size // mmap.PAGESIZE)
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        guard = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
        assert libc.mprotect(guard, mmap.PAGESIZE, 0) == 0
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.untyped_storage().nbytes() // tensor.itemsize,
                                offset=pages * mmap.PAGESIZE - size)
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    for workload in map(Workload.parse, {workloads!r}):
        inputs = [at_the_edge(t) for t in op.make_inputs(workload, 1)]
        outputs = [at_the_edge(t) for t in op.make_outputs(workload)]
        for config in kernel.space(workload, detect.machine()).configs:
            kernel.build(op, workload, config)(inputs, outputs)
"""


def test_mbconv_stays_inside_its_tensors() -> None:
    """Tensors that end where readable memory ends, every config; in a process of its own, which an overrun ends."""
    mbconv()
    workloads = [str(WIDE), "mbconv[n=1,c=32,h=5,w=3,m=40,k=3,bf16]", "mbconv[n=1,c=5,h=3,w=3,m=7,k=3,f32]"]
    code = textwrap.dedent(GUARDED).replace("{workloads!r}", repr(workloads))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
