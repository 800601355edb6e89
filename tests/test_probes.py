"""What the probes must get right beyond every kernel's checks: odd pointers, packing, tiles, tolerances, passes."""

from __future__ import annotations

import gc
import importlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perfsuite import check, detect, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Op, Workload
from perfsuite.policy import Policy
from perfsuite.roofline import BANDWIDTH, COMPUTE, Ceiling
from perfsuite.trial import Measurement, Trial

packing: Any = importlib.import_module("perfsuite.kernels.probes.packing")
KNOWN = registry.discover()
MACHINE = detect.machine()


def ops() -> list[Op]:
    return [op for op in KNOWN.ops.values() if op.family == "probes"]


def built(name: str, workload: Workload) -> list[tuple[Kernel, Config]]:
    """The kernel's configs on the workload, or none where it is refused."""
    kernel = KNOWN.kernels[f"probes/{name}"]
    if kernel.supports(workload, MACHINE) is not None:
        pytest.skip(str(kernel.supports(workload, MACHINE)))
    return [(kernel, config) for config in kernel.space(workload, MACHINE)]


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, at an address that no vector, cache line or tile is aligned to."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("native_stream", "copy[elements=70001,passes=2,f32]"),
        ("native_stream", "triad[elements=70001,passes=2,f32]"),
        ("native_stream", "read[elements=70001,passes=2,f32]"),
        ("native_fma", "fma[elements=5001,steps=24,f32]"),
        ("native_amx", "matmul[m=70,k=96,n=90,bf16]"),
        ("native_amx", "matmul_int8[m=70,k=100,n=90,i8]"),
        ("native_brgemm", "matmul[m=70,k=96,n=90,bf16]"),
        ("native_brgemm", "matmul[m=70,k=95,n=90,f32]"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_unaligned_tensors_and_threads(name: str, workload: str, threads: int) -> None:
    known = KNOWN.workload(workload)
    op = KNOWN.ops[known.op]
    inputs = [shifted(tensor) for tensor in op.make_inputs(known, seed=3)]
    expected = op.expected(inputs, known)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kernel, config in built(name, known):
            outputs = [shifted(torch.zeros_like(tensor)) for tensor in op.make_outputs(known)]
            answer = kernel.build(op, known, config)(inputs, outputs)
            assert check.wrong(op, known, answer, expected) is None, config
    finally:
        torch.set_num_threads(before)


def test_kernels_that_share_the_tiles_do_not_disturb_each_other() -> None:
    """oneDNN remembers which tile shapes it configured: who changes them must put them back."""
    workload = KNOWN.workload("matmul[m=70,k=100,n=90,bf16]")
    op = KNOWN.ops["matmul"]
    inputs = op.make_inputs(workload, seed=4)
    expected = op.expected(inputs, workload)
    runs = [
        kernel.build(op, workload, config)
        for name in ("native_amx", "native_brgemm", "eager")
        for kernel, config in built(name, workload)[:2]
    ]
    for run in [*runs, *runs[::-1], *runs]:
        assert check.wrong(op, workload, run(inputs, op.make_outputs(workload)), expected) is None


@given(st.integers(1, 150), st.integers(1, 70), st.sampled_from([torch.int8, torch.bfloat16]))
def test_tiles_hold_every_element_in_its_place(k: int, n: int, dtype: torch.dtype) -> None:
    w = torch.arange(k * n).remainder(101).add(1).to(dtype).view(k, n)
    inner = 4 // w.element_size()
    packed = packing.tiles(w)
    assert packed.count_nonzero() == k * n
    rows, columns = torch.arange(k).unsqueeze(1), torch.arange(n).unsqueeze(0)
    step, within = rows // (16 * inner), rows % (16 * inner)
    found = packed[columns // 32, step, columns % 32 // 16, within // inner, columns % 16, within % inner]
    assert torch.equal(found, w)


@given(st.integers(1, 50), st.integers(1, 70), st.sampled_from([16, 32]))
def test_columns_hold_every_element_in_its_place(k: int, n: int, width: int) -> None:
    w = torch.arange(k * n).remainder(101).add(1).to(torch.int8).view(k, n)
    packed = packing.columns(w, width)
    rows, columns = torch.arange(k).unsqueeze(1), torch.arange(n).unsqueeze(0)
    assert torch.equal(packed[columns // width, rows // 4, columns % width, rows % 4], w)
    assert packed.count_nonzero() == k * n


def test_a_weight_is_packed_once_until_it_changes_or_goes() -> None:
    made: list[int] = []

    def pack(weight: torch.Tensor) -> torch.Tensor:
        made.append(id(weight))
        return weight.clone()

    packed, w = packing.Packed(pack), torch.ones(3)
    assert packed(w) is packed(w) and len(made) == 1
    w.add_(1.0)
    assert torch.equal(packed(w), w) and len(made) == 2
    other = torch.zeros(3)
    assert torch.equal(packed(other), other) and torch.equal(packed(w), w) and len(made) == 3
    del w, other
    gc.collect()
    assert packed._known == {}
    with torch.inference_mode():
        unversioned = torch.ones(2)
    assert packed(unversioned) is packed(unversioned)


@pytest.mark.parametrize(
    ("workload", "parameter"),
    [
        ("fma[elements=300,steps=512,f32]", "steps"),
        ("mma[m=32,k=32,n=32,steps=1024,bf16]", "steps"),
        ("mma_int8[m=32,k=64,n=32,steps=1024,i8]", "steps"),
        ("read[elements=4096,passes=256,f32]", "passes"),
    ],
)
def test_a_round_too_few_is_wrong(workload: str, parameter: str) -> None:
    whole = KNOWN.workload(workload)
    op = KNOWN.ops[whole.op]
    fewer = KNOWN.workload(workload.replace(f"{parameter}={whole[parameter]}", f"{parameter}={whole[parameter] - 1}"))
    inputs = op.make_inputs(whole, seed=5)
    answer = [t.to(o.dtype) for t, o in zip(op.expected(inputs, fewer), op.make_outputs(whole))]
    assert check.wrong(op, whole, answer, op.expected(inputs, whole)) is not None
    right = [t.to(o.dtype) for t, o in zip(op.expected(inputs, whole), op.make_outputs(whole))]
    assert check.wrong(op, whole, right, op.expected(inputs, whole)) is None


@pytest.mark.parametrize("elements", [16, 1000, 4099])
def test_an_element_left_out_of_a_sum_is_wrong(elements: int) -> None:
    workload = KNOWN.workload(f"read[elements={elements},passes=1,f32]")
    op = KNOWN.ops["read"]
    (x,) = op.make_inputs(workload, seed=6)
    answer = [x[1:].sum().reshape(1)]
    assert check.wrong(op, workload, answer, op.expected([x], workload)) is not None


def test_footprints_reach_every_level() -> None:
    for name in ("copy", "read", "triad"):
        op = KNOWN.ops[name]
        real = [w for w in op.workloads if not w.test]
        sizes = [op.least_bytes(w) for w in real]
        assert min(sizes) < 17 * 2**10 and max(sizes) > 255 * 2**20
        assert all(op.traffic(w) == op.least_bytes(w) * w["passes"] for w in real)
        # One call that is mostly overhead, to know what a call costs; the others last long enough to see the memory.
        assert [w["passes"] for w in real if op.traffic(w) < 2**20] == [1]


def trial(workload: str, seconds: float) -> Trial:
    done = Measurement((seconds,))
    return Trial(MACHINE, KNOWN.workload(workload), "probes/x", Config(), Policy(), "d", done, created=0.0)


def test_ceilings_count_every_pass_but_the_footprint_once() -> None:
    copy = Ceiling.of(trial("copy[elements=2048,passes=256,f32]", 1e-5), KNOWN.ops["copy"])
    assert (copy.kind, copy.footprint, copy.value) == (BANDWIDTH, 16 * 2**10, 16 * 2**10 * 256 / 1e-5)
    triad = Ceiling.of(trial("triad[elements=1360,passes=256,f32]", 1e-5), KNOWN.ops["triad"])
    assert triad.kind == BANDWIDTH
    peak = Ceiling.of(trial("mma[m=128,k=32,n=128,steps=1024,bf16]", 1e-3), KNOWN.ops["mma"])
    assert (peak.kind, peak.dtype) == (COMPUTE, "bf16")
    assert peak.value == 2 * 128 * 32 * 128 * 1024 / 1e-3


def test_every_probe_has_a_baseline_and_a_kernel_that_reaches_for_the_ceiling() -> None:
    for op in ops():
        kernels = KNOWN.kernels_for(op.name)
        assert [kernel.default for kernel in kernels].count(True) == 1
        assert any(kernel.name.startswith("native_") for kernel in kernels)
