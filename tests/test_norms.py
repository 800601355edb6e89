"""Row norms beyond the examples that every kernel must pass: any length, pointer, config and number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from row_norms import BUILDS, DTYPES, HERE, KERNELS, KNOWN, NORMS, configs, every_config, kernel_of, norm, sized
from samples import MACHINE

from perfsuite import check


def at_odd_address(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, one element behind the alignment that torch gives."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape).copy_(tensor)


@given(
    build=st.sampled_from(sorted(BUILDS)),
    rows=st.integers(0, 9),
    cols=st.integers(1, 300),
    pick=st.integers(0, 10_000),
)
def test_any_length_and_config_at_any_address(build: tuple[str, str], rows: int, cols: int, pick: int) -> None:
    name, dtype = build
    op = KNOWN.ops[name]
    workload = sized(name, rows, cols, dtype)
    known = configs(name, dtype)
    inputs = [at_odd_address(t) if t.is_floating_point() else t for t in op.make_inputs(workload, seed=pick)]
    outputs = op.make_outputs(workload)
    beyond = [torch.full((t.numel() + 2,), 77.0).to(t.dtype) for t in outputs]
    outputs = tuple(t[1:-1].view(output.shape) for t, output in zip(beyond, outputs))
    got = norm(name, inputs, known[pick % len(known)], outputs)
    assert check.wrong(op, workload, got, op.expected(inputs, workload)) is None
    assert all(t[0] == 77.0 and t[-1] == 77.0 for t in beyond), "it wrote beyond its output"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NORMS)
def test_every_config_is_right(name: str, dtype: str) -> None:
    op = KNOWN.ops[name]
    workload = sized(name, 7, 224, dtype)
    inputs = op.make_inputs(workload, seed=3)
    expected = op.expected(inputs, workload)
    for config in every_config(name, dtype):
        wrong = check.wrong(op, workload, norm(name, inputs, config), expected)
        assert wrong is None, f"{config}: {wrong}"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# A build of two seconds each.
STACKED = [
    ("layer_norm", "f32", "avx2"),
    ("layer_norm", "bf16", "avx512_bf16"),
    ("rms_norm_int8", "f32", "avx512"),
    ("layer_norm_backward", "f32", "avx512"),
]


@pytest.mark.parametrize(("name", "dtype", "isa"), STACKED)
def test_stacks_of_short_rows(name: str, dtype: str, isa: str) -> None:
    """Two stacks and the rows that are left, some of them hard: a row has the same bits in a stack as alone."""
    op = KNOWN.ops[name]
    workload = sized(name, 37, 100, dtype)
    every = kernel_of(name).space(workload, HERE).configs
    stacked = [c for c in every if c["isa"] == isa and c["rows"] > 4 and c["vectors"] == 1]
    if not stacked:
        pytest.skip(f"needs {isa}")
    inputs = op.make_inputs(workload, seed=8)
    x = inputs[-2 if "backward" in name else 0]
    x[9:12] += 64.0
    for config in stacked:
        got = norm(name, inputs, config)
        assert check.wrong(op, workload, got, op.expected(inputs, workload)) is None
        if "backward" in name:
            continue
        part = norm(name, [t[7:13].contiguous() if t.shape[0] == 37 else t for t in inputs], config)
        assert all(torch.equal(few, many[7:13]) for few, many in zip(part, got))


# The samples of time_layer_norm are not neighbours of the same kind.
ROWS_ALONE = [name for name, dtype in BUILDS if dtype == "f32" and "backward" not in name and "time" not in name]


@pytest.mark.parametrize("name", ROWS_ALONE)
def test_same_bits_whatever_the_neighbours_and_threads(name: str, threads: None) -> None:
    """A row's result depends on neither the rows beside it nor on who computes it: 67 rows are two threads' work."""
    op = KNOWN.ops[name]
    inputs = op.make_inputs(KNOWN.workload(f"{name}[rows=67,cols=1000,f32]"), seed=5)
    for config in configs(name, "f32")[::3]:
        if config["stream"]:
            continue
        torch.set_num_threads(1)
        alone = norm(name, inputs, config)
        torch.set_num_threads(3)
        assert all(map(torch.equal, norm(name, inputs, config), alone))
        part = norm(name, [t[3:8].contiguous() if t.dim() == 2 else t for t in inputs], config)
        assert all(torch.equal(few, many[3:8]) for few, many in zip(part, alone))


@pytest.mark.parametrize("name", ["layer_norm", "add_rms_norm", "rms_norm_int8"])
def test_same_bits_however_many_threads_share_a_row(name: str, threads: None) -> None:
    """Ten spans of two rows, of which three and seven threads get unequal shares; rows with and without whole lines."""
    op = KNOWN.ops[name]
    for cols in (150_001, 150_016):
        workload = sized(name, 2, cols, "f32")
        inputs = op.make_inputs(workload, seed=6)
        for config in configs(name, "f32")[:: 5 if cols % 16 else 7]:
            torch.set_num_threads(1)
            alone = norm(name, inputs, config)
            assert check.wrong(op, workload, alone, op.expected(inputs, workload)) is None
            for count in (3, 7):
                torch.set_num_threads(count)
                assert all(map(torch.equal, norm(name, inputs, config), alone)), config


@given(shift=st.sampled_from((-4096.0, 0.5, 100.0, 1024.0)), seed=st.integers(0, 1000))
def test_layer_norm_ignores_a_shift(shift: float, seed: int) -> None:
    """Exactly representable sums: what differs is the norm's own rounding."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-64, 64, (4, 200), generator=generator) / 16.0
    weight, bias = torch.ones(200), torch.zeros(200)
    for config in configs("layer_norm", "f32")[::5]:
        still, moved = (norm("layer_norm", (t, weight, bias), config)[0] for t in (x, x + shift))
        torch.testing.assert_close(moved, still, rtol=1e-5, atol=1e-5)


def test_all_norms_agree_on_rows_of_mean_zero() -> None:
    half = torch.randn(6, 160, generator=torch.Generator().manual_seed(0))
    x, weight = torch.cat([half, -half], dim=1), torch.linspace(0.5, 2.0, 320)
    (rms,) = norm("rms_norm", (x, weight))
    (layer,) = norm("layer_norm", (x, weight, torch.zeros(320)))
    (simple,) = norm("simple_rms_norm", (x,))
    for name, vectors in (("add_rms_norm", [weight]), ("add_layer_norm", [weight, torch.zeros(320)])):
        added, h = norm(name, (0.25 * x, 0.75 * x, *vectors))
        torch.testing.assert_close(added, rms, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(h, x)
    torch.testing.assert_close(layer, rms, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(simple * weight, rms, rtol=2e-6, atol=2e-6)


def test_crms_norm_is_the_rms_norm_of_a_row_whose_sum_is_zero() -> None:
    x = torch.randn(6, 319, generator=torch.Generator().manual_seed(0))
    (compressed,) = norm("crms_norm", (x,))
    (whole,) = norm("simple_rms_norm", (torch.cat([x, -x.sum(1, keepdim=True)], dim=1),))
    torch.testing.assert_close(compressed, whole[:, :-1], rtol=2e-6, atol=2e-6)


def test_l1_norm_makes_the_mean_magnitude_one_over_kappa() -> None:
    """With kappa = sqrt(pi/2), so that a Gaussian row comes out as LayerNorm leaves it."""
    x = 3.0 + 2.0 * torch.randn(4, 20000, generator=torch.Generator().manual_seed(0))
    inputs = (x, torch.ones(20000), torch.zeros(20000))
    (y,) = norm("l1_norm", inputs)
    kappa = KNOWN.ops["l1_norm"].attribute("kappa")
    torch.testing.assert_close(kappa * y.abs().mean(1), torch.ones(4), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(y, norm("layer_norm", inputs)[0], rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_int8_rows_are_the_norm_to_half_a_step(dtype: str) -> None:
    op = KNOWN.ops["rms_norm_int8"]
    inputs = op.make_inputs(KNOWN.workload(f"rms_norm_int8[rows=9,cols=333,{dtype}]"), seed=0)
    inputs[0][4] = 0.0
    q, scale = norm(op.name, inputs)
    (y,) = KNOWN.ops["rms_norm"].expected(inputs, KNOWN.workload(f"rms_norm[rows=9,cols=333,{dtype}]"))
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    torch.testing.assert_close(scale[others].double(), y[others].abs().amax(1) / 127.0, rtol=1e-6, atol=0.0)
    assert float(((q * scale.unsqueeze(1)).double() - y).abs().sub(0.5001 * scale.unsqueeze(1)).max()) <= 0.0
    assert bool((q[others].abs().amax(1) == 127).all())
    assert not q[4].any()
    assert scale[4] == 2.0**-23


def test_int8_row_with_nan_or_infinity_says_so() -> None:
    x = torch.ones(3, 40)
    x[0, 39], x[2, 0] = torch.nan, -torch.inf
    q, scale = norm("rms_norm_int8", (x, torch.ones(40)))
    assert scale.isnan().tolist() == [True, False, True]
    assert torch.equal(q, torch.tensor([0, 127, 0], dtype=torch.int8).unsqueeze(1).expand(3, 40))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_fp8_rows_are_the_nearest_numbers(dtype: str) -> None:
    """Every number of e4m3 in a row whose largest is 448: the scale takes them to themselves, but for f32 roundings."""
    every = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = every[every.isfinite()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles * (1 - 2.0**-7), middles * (1 + 2.0**-7)])
    x = x.to(torch.bfloat16 if dtype == "bf16" else torch.float32).unsqueeze(0)
    q, scale = norm("rms_norm_fp8", (x, torch.ones(x.shape[1], dtype=x.dtype)))
    assert torch.equal(q.float(), x.to(torch.float8_e4m3fn).float())
    largest = 448.0 / float(x.double().square().mean().add(1e-5).sqrt())
    torch.testing.assert_close(scale.double(), torch.tensor([largest / 448.0]).double(), rtol=1e-6, atol=0.0)


def test_fp8_row_with_nan_or_infinity_is_nan() -> None:
    x = torch.ones(4, 40)
    x[0, 39], x[2, 0], x[3] = torch.nan, -torch.inf, 0.0
    q, scale = norm("rms_norm_fp8", (x, torch.ones(40)))
    assert scale.isnan().tolist() == [True, False, True, False]
    assert q.float().isnan().all(1).tolist() == [True, False, True, False]
    assert not q[3].float().any()


def test_scaled_and_time_dependent_norms_are_layer_norms() -> None:
    """Of the first layer; and sample by sample."""
    x, weight, bias = KNOWN.ops["time_layer_norm"].make_inputs(sized("time_layer_norm", 6, 333, "f32"), 4)
    (timed,) = norm("time_layer_norm", (x, weight, bias))
    (first,) = norm("scaled_layer_norm", (x[0], weight[0], bias[0], torch.tensor(1)))
    assert torch.equal(first, timed[0])
    for sample, y in zip(zip(x, weight, bias), timed):
        torch.testing.assert_close(norm("layer_norm", sample)[0], y, rtol=2e-6, atol=2e-6)


def test_the_mean_survives_outliers_at_the_start() -> None:
    """Sums around the mean of a row's start would be worst when that is all outliers."""
    x = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    x[:, :64] += 1e3
    op, workload = KNOWN.ops["layer_norm"], KNOWN.workload("layer_norm[rows=3,cols=4096,f32]")
    inputs = (x, torch.ones(4096), torch.zeros(4096))
    for config in configs("layer_norm", "f32"):
        assert check.wrong(op, workload, norm("layer_norm", inputs, config), op.expected(inputs, workload)) is None


def test_sum_is_not_rounded_before_the_norm() -> None:
    """256 + 1 is 256 in bf16; 0.99 times the norm of 257 among 256s is the next number above that of 256."""
    x = torch.full((1, 64), 256.0, dtype=torch.bfloat16)
    residual = torch.zeros_like(x)
    residual[0, 0] = 1.0
    weight = torch.full((64,), 0.9922, dtype=torch.bfloat16)
    y, h = norm("add_rms_norm", (x, residual, weight))
    assert h[0, 0] == 256.0
    rounded_first = F.rms_norm(x + residual, weight.shape, weight, 1e-5)
    assert y[0, 0] > rounded_first[0, 0]
    assert torch.equal(y[0, 1:], rounded_first[0, 1:])


def test_refusals_say_what_is_missing() -> None:
    workload = KNOWN.ops["rms_norm"].workloads[0]
    assert "needs AVX2" in str(KERNELS[0].supports(workload, replace(MACHINE, isa=())))
    assert "not f64" in str(KERNELS[0].supports(replace(workload, dtype="f64"), HERE))
