"""The native softmax kernels: properties of softmax, awkward lengths and pointers, rows that threads share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import MACHINE

from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Kernel, Run
from perfsuite.op import ROUNDOFF, Workload, torch_dtype

KNOWN = registry.discover()
OP = KNOWN.ops["softmax"]
NATIVE = [kernel for kernel in KNOWN.kernels_for("softmax") if kernel.name.startswith("native_")]
CASES = [
    (kernel, isa, dtype)
    for kernel in NATIVE
    for isa in ("avx2", "avx512")
    for dtype in ("f32", "bf16", "f16")
    if isa in detect.machine().isa
    and kernel.supports(Workload("softmax", (("rows", 1), ("cols", 1)), dtype), MACHINE) is None
]
each_case = pytest.mark.parametrize(("kernel", "isa", "dtype"), CASES, ids=[f"{k.name}-{i}-{d}" for k, i, d in CASES])
few = settings(max_examples=12, deadline=None)
lengths = st.one_of(st.integers(1, 70), st.integers(71, 1100), st.integers(4090, 4100))


def config_of(kernel: Kernel, workload: Workload, isa: str, pick: int) -> Config:
    """One of the kernel's configurations for an ISA; `pick` goes through all of them."""
    every = [config for config in kernel.space(workload, detect.machine()) if config["isa"] == isa]
    return every[pick % len(every)]


def built(kernel: Kernel, x: torch.Tensor, isa: str, pick: int) -> Run:
    workload = OP.bind((x,))
    return kernel.build(OP, workload, config_of(kernel, workload, isa, pick))


def softmax(kernel: Kernel, x: torch.Tensor, isa: str, pick: int = 0) -> torch.Tensor:
    y = torch.full_like(x, math.nan)
    built(kernel, x, isa, pick)((x,), (y,))
    return y


def random_rows(rows: int, cols: int, dtype: str, seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, cols, generator=generator) * scale).to(torch_dtype(dtype))


def assert_right(x: torch.Tensor, y: torch.Tensor) -> None:
    workload = OP.bind((x,))
    assert check.wrong(OP, workload, (y,), OP.expected((x,), workload)) is None


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@each_case
@few
@given(cols=lengths, x_at=st.integers(0, 40), y_at=st.integers(0, 40), pick=st.integers(0, 10**6))
def test_any_length_and_pointer(
    kernel: Kernel, isa: str, dtype: str, cols: int, x_at: int, y_at: int, pick: int
) -> None:
    """Right for tails and unaligned tensors, and what lies around the output stays as it was."""
    rows = 5
    source = torch.zeros(rows * cols + 41, dtype=torch_dtype(dtype))
    x = source[x_at : x_at + rows * cols].view(rows, cols)
    x.copy_(random_rows(rows, cols, dtype, cols))
    target = torch.full((rows * cols + 80,), -7.0, dtype=torch_dtype(dtype))
    y = target[y_at : y_at + rows * cols].view(rows, cols)
    built(kernel, x, isa, pick)((x,), (y,))
    assert_right(x, y)
    assert (target[:y_at] == -7.0).all()
    assert (target[y_at + rows * cols :] == -7.0).all()


@each_case
@few
@given(cols=lengths, shift=st.sampled_from([-8192, -100, 1, 700, 8192]), pick=st.integers(0, 10**6))
def test_a_shift_changes_nothing(kernel: Kernel, isa: str, dtype: str, cols: int, shift: int, pick: int) -> None:
    """x + c for numbers that are exact before and after: the same up to rounding."""
    step = 64.0 if dtype == "bf16" else 2.0**-6
    x = (random_rows(2, cols, "f32", cols) * 4.0 / step).round() * step
    moved = x + round(shift / step) * step
    kept = ((moved.to(torch_dtype(dtype)).float() == moved) & (x.to(torch_dtype(dtype)).float() == x)).all(0)
    x, moved = (t[:, kept].to(torch_dtype(dtype)).contiguous() for t in (x, moved))
    if x.numel():
        tolerance = OP.tolerance(OP.bind((x,)))
        first, second = softmax(kernel, x, isa, pick), softmax(kernel, moved, isa, pick)
        torch.testing.assert_close(first, second, rtol=2 * tolerance.relative, atol=2 * tolerance.absolute)


@each_case
@few
@given(cols=lengths, pick=st.integers(0, 10**6))
def test_a_permutation_permutes(kernel: Kernel, isa: str, dtype: str, cols: int, pick: int) -> None:
    x = random_rows(3, cols, dtype, cols)
    order = torch.randperm(cols, generator=torch.Generator().manual_seed(cols))
    tolerance = OP.tolerance(OP.bind((x,)))
    torch.testing.assert_close(
        softmax(kernel, x[:, order].contiguous(), isa, pick),
        softmax(kernel, x, isa, pick)[:, order],
        rtol=2 * tolerance.relative,
        atol=2 * tolerance.absolute,
    )


@each_case
@few
@given(cols=lengths, scale=st.sampled_from([0.1, 1.0, 5.0, 100.0]), pick=st.integers(0, 10**6))
def test_a_row_sums_to_one(kernel: Kernel, isa: str, dtype: str, cols: int, scale: float, pick: int) -> None:
    y = softmax(kernel, random_rows(3, cols, dtype, cols, scale), isa, pick).double()
    # A lane adds up to cols / 8 terms in f32: 2e-6 off was seen at 4,093 columns, where the worst case is 3e-5.
    subnormal = cols * 2.0**-25 if dtype == "f16" else 0.0
    allowed = 2e-6 + 1e-6 * math.sqrt(cols / 1e3) + ROUNDOFF[dtype] + subnormal
    assert ((y.sum(-1) - 1.0).abs() <= allowed).all()
    assert ((y >= 0.0) & (y <= 1.0 + 1e-6)).all()


@each_case
def test_as_accurate_as_its_rounding(kernel: Kernel, isa: str, dtype: str) -> None:
    """On ordinary inputs a few units in the last place, far below the tolerance that the widest inputs need."""
    x = random_rows(8, 3000, dtype, 1, scale=1.0)
    y, want = softmax(kernel, x, isa).double(), x.double().softmax(-1)
    largest = {"f32": 6e-7, "bf16": ROUNDOFF["bf16"] + 1e-4, "f16": ROUNDOFF["f16"] + 4e-6}[dtype]
    subnormal = 2.0**-25 if dtype == "f16" else 0.0
    assert ((y - want).abs() <= largest * want + subnormal).all()


@each_case
@pytest.mark.parametrize("pick", [0, 7, 50])
def test_rows_whose_beginning_misleads(kernel: Kernel, isa: str, dtype: str, pick: int) -> None:
    """The first elements say nothing about the maximum, and later blocks exceed earlier ones more and more."""
    x = random_rows(4, 9000, dtype, 2)
    x[0, :8] = -50.0
    x[1] += torch.arange(9000).div(90.0, rounding_mode="floor")
    x[2, 5000:] = 90.0
    x[3, :4500] = -math.inf
    assert_right(x, softmax(kernel, x, isa, pick))


@each_case
@pytest.mark.parametrize("threads", [2, 3])
def test_rows_that_threads_share(kernel: Kernel, isa: str, dtype: str, threads: int) -> None:
    """Fewer rows than threads: parts that end at odd places, are masked, poisoned or far apart are merged."""
    torch.set_num_threads(threads)
    x = random_rows(1, 65537, dtype, 3)
    for change in ("none", "masked", "far", "nan", "huge", "nothing"):
        row = x.clone()
        if change == "masked":
            row[:, :40000] = -math.inf
        elif change == "far":
            row[:, 50000:] += 300.0
        elif change == "nan":
            row[:, 65536] = math.nan
        elif change == "huge":
            row[:, 7] = -torch.finfo(row.dtype).min
        elif change == "nothing":
            row.fill_(-math.inf)
        assert_right(row, softmax(kernel, row, isa, pick=5))


@each_case
def test_many_rows_on_threads(kernel: Kernel, isa: str, dtype: str) -> None:
    torch.set_num_threads(3)
    x = random_rows(101, 1000, dtype, 4)
    x[50] = math.nan
    assert_right(x, softmax(kernel, x, isa, pick=9))


@pytest.mark.parametrize(("isa", "dtype"), [(i, d) for k, i, d in CASES if k.name == "native_stacks"])
def test_stacks_give_a_row_the_same_bits_wherever_it_is(isa: str, dtype: str) -> None:
    """Alone, at any place in a stack, on any number of threads, streamed or not, with spoilt rows around it."""
    kernel = KNOWN.kernels["softmax/native_stacks"]
    for cols in (64, 197):
        x = random_rows(1001, cols, dtype, 7)
        x[5::17, 3] = math.inf
        every = [c for c in kernel.space(OP.bind((x,)), MACHINE) if (c["isa"], c["ahead"], c["unroll"]) == (isa, 0, 4)]
        answers = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for config in every:
                answers.append(torch.full_like(x, 7.0))
                kernel.build(OP, OP.bind((x,)), config)((x,), (answers[-1],))
        assert_right(x, answers[0])
        for y in answers[1:]:
            torch.testing.assert_close(y, answers[0], rtol=0.0, atol=0.0, equal_nan=True)
        for row in (0, 3, 500, 1000):
            alone = torch.empty_like(x[row : row + 1])
            kernel.build(OP, OP.bind((alone,)), every[0])((x[row : row + 1].contiguous(),), (alone,))
            assert torch.equal(alone[0], answers[0][row])


@each_case
def test_a_spoilt_row_spoils_no_other(kernel: Kernel, isa: str, dtype: str) -> None:
    """Rows that take the careful path between rows that do not, the last one included."""
    for spoilt in ([0], [3], [6], [0, 1, 2, 3, 4, 5, 6]):
        x = random_rows(7, 256, dtype, 5)
        x[spoilt] = math.inf
        y = softmax(kernel, x, isa, pick=3)
        assert_right(x, y)
        assert y.isnan().all(-1).nonzero().flatten().tolist() == spoilt


@each_case
def test_subnormals_are_computed_as_before(kernel: Kernel, isa: str, dtype: str) -> None:
    """The kernel flushes its own subnormals to zero, and gives the thread's mode back."""
    softmax(kernel, random_rows(2, 100, dtype, 6), isa)
    assert float(torch.tensor(1e-39) * 0.5) > 0.0


@pytest.mark.parametrize("kernel", NATIVE, ids=str)
def test_a_config_outside_the_space_is_refused(kernel: Kernel) -> None:
    x = torch.zeros(2, 64)
    config = kernel.space(OP.bind((x,)), MACHINE).configs[0]
    odd = Config(tuple((name, 3 if name == "unroll" else value) for name, value in config.values))
    if config["isa"] not in detect.machine().isa:
        pytest.skip("needs an ISA that this machine lacks")
    with pytest.raises(ValueError, match="unroll=3"):
        kernel.build(OP, OP.bind((x,)), odd)((x,), (torch.empty_like(x),))


def test_what_the_kernels_refuse() -> None:
    long = Workload("softmax", (("rows", 1), ("cols", 1 << 22)))
    half = Workload("softmax", (("rows", 1), ("cols", 64)), "bf16")
    reasons = {kernel.name: (kernel.supports(long, MACHINE), kernel.supports(half, MACHINE)) for kernel in NATIVE}
    assert "16.0 MiB" in (reasons.pop("native_resident")[0] or "")
    assert "twice" in (reasons.pop("native_three_pass_reload")[1] or "")
    assert "256 columns" in (reasons.pop("native_stacks")[0] or "")
    assert set(reasons.values()) == {(None, None)}


def test_resident_streams_16_bit_rows_only_where_they_are_aligned() -> None:
    kernel = KNOWN.kernels["softmax/native_resident"]
    for cols, dtype, values in ((1000, "bf16", {False}), (1024, "bf16", {False, True}), (1000, "f32", {False, True})):
        space = kernel.space(Workload("softmax", (("rows", 9), ("cols", cols)), dtype), MACHINE)
        assert {config["stream"] for config in space} == values


@pytest.mark.parametrize("isa", [isa for isa in ("avx2", "avx512") if isa in detect.machine().isa])
def test_streaming_begins_anywhere_in_a_line_and_writes_nothing_beside_its_rows(isa: str) -> None:
    kernel = KNOWN.kernels["softmax/native_resident"]
    for cols in (1, 5, 17, 197, 1000, 1024, 1027, 2055, 2500):
        x = random_rows(7, cols, "f32", 6) + torch.linspace(0.0, 60.0, cols)  # blocks of different pivots
        around = torch.full((7 * cols + 64,), 7.0)
        y, plain = around[3 : 3 + 7 * cols].view(7, cols), torch.empty_like(x)
        configs = [c for c in kernel.space(OP.bind((x,)), MACHINE) if (c["isa"], c["ahead"]) == (isa, 0)]
        for unroll in (1, 4):
            around.fill_(7.0)
            for stream, out in ((False, plain), (True, y)):
                config = next(c for c in configs if (c["unroll"], c["stream"]) == (unroll, stream))
                kernel.build(OP, OP.bind((x,)), config)((x,), (out,))
            assert_right(x, plain)
            assert torch.equal(y, plain)
            assert (around[:3] == 7.0).all() and (around[3 + 7 * cols :] == 7.0).all()


@pytest.mark.parametrize("isa", [isa for isa in ("avx2", "avx512") if isa in detect.machine().isa])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_the_logarithm_is_exact_up_to_its_rounding(isa: str, dtype: str) -> None:
    """In 16 bits too, for a row with one probability near 1, whose logarithm is near 0."""
    op, kernel = KNOWN.ops["log_softmax"], KNOWN.kernels["softmax/native_two_pass_online"]
    x = random_rows(4, 1001, dtype, 11)
    x[1, 500] = 20.0
    x[2] += 200.0
    y, workload = torch.full_like(x, math.nan), op.bind((x,))
    kernel.build(op, workload, config_of(kernel, workload, isa, 5))((x,), (y,))
    assert ((y.double() - op.expected((x,), workload)[0]).abs() <= 1e-6 + ROUNDOFF[dtype] * y.double().abs()).all()
