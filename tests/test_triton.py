"""Triton kernels without a GPU: right in the interpreter, compiled for four targets; on a GPU where there is one."""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from hypothesis import given
from hypothesis import strategies as st
from samples import MACHINE

from perfsuite import checks, registry
from perfsuite.kernel import Config, Kernel, Space, Unfit
from perfsuite.machine import Gpu, Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import triton
from perfsuite.toolchain.gpu_targets import TARGETS, Target, not_resident
from perfsuite.toolchain.triton import Compiled, compile_ahead, jit
from perfsuite.toolchain.triton_rows import Tile, row_space

softmax: Any = importlib.import_module("perfsuite.kernels.softmax.triton_rows")
norms: Any = importlib.import_module("perfsuite.kernels.norms.triton_rows")
KNOWN = registry.discover()
KERNELS = tuple(k for k in KNOWN.kernels.values() if k.name.startswith("triton_"))
PAIRS = [(KNOWN.ops[op], kernel) for kernel in KERNELS for op in kernel.ops]
IDS = [str(op) for op, _ in PAIRS]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, this machine has none")


@functools.cache
def interpreted(most: int) -> dict[str, str | None]:
    """So many cases of each op in the interpreter, one process for each kernel."""
    script = str(Path(__file__).with_name("interpreted.py"))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    commands = [[sys.executable, script, str(kernel), str(most)] for kernel in KERNELS]
    found: dict[str, str | None] = {}
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(
            functools.partial(subprocess.run, env=environment, capture_output=True, text=True), commands
        ):
            assert done.returncode == 0, done.stderr
            found |= json.loads(done.stdout)
    return found


@pytest.mark.parametrize("most", [8, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", [op for op, _ in PAIRS], ids=IDS)
def test_right_in_the_interpreter(op: Op, most: int) -> None:
    cases = {name: why for name, why in interpreted(most).items() if name.startswith((f"{op}[", f"{op} "))}
    assert len(cases) >= 4
    assert {name: why for name, why in cases.items() if why is not None} == {}


def on(arch: str) -> Machine:
    return replace(MACHINE, gpus=(Gpu("Imaginary 1", arch, 1 << 36, "570.1"),))


def compiled(op: Op, kernel: Kernel, workload: Workload, config: Config, target: Target) -> Compiled:
    """What the op's kernel launches, compiled for the target: the worst of every need, and the first error."""
    run = kernel.build(op, workload, config)
    made = [launch.compiled(target) for launch in triton.launches(op, workload, run)]
    return Compiled(
        registers=max(used.registers for used in made),
        spills=max(used.spills for used in made),
        shared=max(used.shared for used in made),
        error=next((used.error for used in made if used.error), None),
    )


def widths(op: Op) -> list[Workload]:
    """The op's workloads of the shortest, a middle and the longest rows (of images, by bytes), in each dtype."""

    def width(workload: Workload) -> int:
        return dict(workload.sizes).get("cols") or op.least_bytes(workload)

    widest = sorted({(width(w), w.dtype): w for w in op.workloads if not w.test}.values(), key=width)
    return [w for dtype in ("f32", "bf16") for each in [[w for w in widest if w.dtype == dtype]] for w in picked(each)]


def picked(each: list[Workload]) -> list[Workload]:
    return list(dict.fromkeys([each[0], each[len(each) // 2], each[-1]])) if each else []


def compilations() -> list[ParameterSet]:
    """(op, kernel, target, whether on workloads of every width): of a width that differs from target to target.

    The norms of images share their kernels, so that each is compiled for one of the targets.
    """
    found = []
    for op, kernel in PAIRS:
        for at, target in enumerate(TARGETS.values()):
            name = f"{op}-{target.arch}"
            if "cols" in op.axes or kernel.ops.index(op.name) % len(TARGETS) == at:
                found.append(pytest.param(op, kernel, target, False, id=f"{name}-one"))
            found.append(pytest.param(op, kernel, target, True, id=f"{name}-every", marks=pytest.mark.slow))
    return found


@pytest.mark.parametrize(("op", "kernel", "target", "every"), compilations())
def test_compiles_ahead_and_is_resident(op: Op, kernel: Kernel, target: Target, every: bool) -> None:
    """The default without a spill, and another config of the space, which `allows` has found resident."""
    found = widths(op)
    for workload in found if every else [found[list(TARGETS).index(target.arch) % len(found)]]:
        space: Space = kernel.space(workload, on(target.arch))
        default, other = space.configs[0], random.Random(str(workload)).choice(space.configs)
        used = compiled(op, kernel, workload, default, target)
        assert (used.error, used.spilled, used.registers > 0) == (None, False, True), f"{workload} {default}"
        if other != default:
            used = compiled(op, kernel, workload, other, target)
            assert used.error is None, f"{workload} {other}"


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.backend == "cuda"], ids=lambda t: t.arch)
def test_shared_memory_is_foreseen_and_refused(target: Target) -> None:
    """16384 columns, three deep, of three tensors in f32 need 384 KiB: refused before and after compiling."""
    workload = Workload.parse("add_rms_norm[rows=64,cols=128256,f32]")
    op, kernel = KNOWN.ops["add_rms_norm"], norms.KERNEL
    config = Config.of(block=16384, height=1, warps=16, stages=3, keep=False, split=1)
    reason = f"needs 393216 bytes of shared memory, {target.arch} has {target.shared}"
    assert Tile.of(config, 128256).refused(ITEMSIZE["f32"], 3, target.arch) == reason
    assert compiled(op, kernel, workload, config, target).error == reason
    space = norms.space(workload, on(target.arch))
    assert config not in space
    assert config in norms.space(workload, replace(MACHINE, gpus=()))
    assert Config.of(block=2048, height=1, warps=16, stages=3, keep=False, split=1) in space


def test_a_spill_is_counted() -> None:
    """64 KiB of a row in 128 threads are 128 registers too many for each, on every target but the one with 512."""
    workload, config = Workload.parse("softmax[rows=64,cols=32768,f32]"), Config.of(block=32768, height=1, warps=4)
    full = Config((*config.values, ("stages", 1), ("keep", False), ("split", 1)))
    used = {
        arch: compiled(KNOWN.ops["softmax"], softmax.KERNEL, workload, full, target) for arch, target in TARGETS.items()
    }
    assert all(used[arch].spills > 100 for arch in ("sm_80", "sm_90", "sm_100"))
    assert used["gfx942"].spills == 0


def test_what_spills_is_not_built_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, tile = Workload.parse("softmax[rows=64,cols=32768,f32]"), {"height": 1, "keep": False, "split": 1}
    monkeypatch.setattr(triton, "_present", lambda: TARGETS["sm_90"])
    softmax.build(KNOWN.ops["softmax"], workload, Config.of(block=2048, warps=8, stages=2, **tile))
    with pytest.raises(Unfit, match=r"^spills \d+ bytes of each thread's registers to memory on sm_90$"):
        softmax.build(KNOWN.ops["softmax"], workload, Config.of(block=32768, warps=4, stages=1, **tile))
    wide = Workload.parse("softmax[rows=64,cols=128256,f32]")
    with pytest.raises(Unfit, match=r"^needs \d+ bytes of shared memory, sm_90 has 232448$"):
        softmax.build(KNOWN.ops["softmax"], wide, Config.of(block=32768, warps=32, stages=3, **tile))


def test_what_cannot_be_resident_is_pruned_from_the_space() -> None:
    workload = Workload.parse("add_rms_norm[rows=64,cols=128256,f32]")
    everywhere, here = (norms.space(workload, replace(MACHINE, gpus=gpus)) for gpus in ((), on("sm_90").gpus))
    assert {config for config, _ in here.pruned} == set(everywhere) - set(here)
    assert len(here.pruned) > 20 and everywhere.pruned == ()
    assert all("sm_90 has" in reason for _, reason in here.pruned)


@given(cols=st.integers(0, 300_000), dtype=st.sampled_from(["f32", "bf16"]), arch=st.sampled_from([*TARGETS, "sm_12"]))
def test_every_row_has_a_space_of_a_few_tiles(cols: int, dtype: str, arch: str) -> None:
    workload = Workload("softmax", (("rows", 64), ("cols", cols)), dtype)
    for tensors in (1, 3):
        space = row_space(workload, on(arch), tensors)
        assert space.default in space
        assert 5 <= len(space) <= 1000


def test_the_shortest_rows_compile() -> None:
    """A channel of an image has one pixel."""
    for op, kernel in PAIRS:
        short = {"cols", "h", "w"}
        workload = op.complete(Workload(op.name, tuple((axis, 1 if axis in short else 5) for axis in op.axes)))
        config = kernel.space(workload, MACHINE).configs[0]
        assert compiled(op, kernel, workload, config, TARGETS["sm_90"]).error is None


def test_not_resident_says_what_is_short() -> None:
    h100, mi300 = TARGETS["sm_90"], TARGETS["gfx942"]
    assert not_resident(h100, warps=32, shared=232448, registers=64) is None
    assert not_resident(h100, 1, shared=300000) == "needs 300000 bytes of shared memory, sm_90 has 232448"
    assert not_resident(mi300, 32) == "needs 2048 threads in a block, gfx942 has 1024"
    assert not_resident(h100, 1, registers=256) == "needs 256 registers in a thread, sm_90 has 255"
    assert not_resident(h100, 16, registers=200) == "needs 102400 registers, sm_90 has 65536"


@jit
def wrong(x: int, n: int) -> None:
    tl.store(x + n, no_such_name)  # type: ignore[name-defined]  # noqa: F821


def test_a_compile_error_is_a_text() -> None:
    used = compile_ahead(wrong, {"x": "*fp32:16", "n": "i32"}, {}, TARGETS["sm_90"], {"num_warps": 1})
    assert used.error is not None
    assert "no_such_name is not defined" in used.error


@pytest.mark.parametrize("module", [softmax, norms], ids=["softmax", "norms"])
def test_without_gpu_or_triton_or_dtype_the_reason_is_told(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Kernel = module.KERNEL
    sizes = (("rows", 64), ("cols", 768))
    workload = Workload(kernel.ops[0], sizes)
    assert kernel.supports(workload, MACHINE) is None
    assert kernel.supports(workload, replace(MACHINE, gpus=())) == "needs a GPU, this machine has none"
    assert kernel.supports(Workload(kernel.ops[0], sizes, "i8"), MACHINE) == "computes f32, bf16, f16, not i8"
    monkeypatch.setitem(sys.modules, "triton", None)
    triton.available.cache_clear()
    reason = kernel.supports(workload, MACHINE)
    triton.available.cache_clear()
    assert reason == "needs triton, which is not installed: pip install 'perfsuite[gpu]'"


def test_norms_of_images_say_why_they_refuse() -> None:
    def says(text: str) -> str | None:
        workload = KNOWN.workload(text)
        (kernel,) = (kernel for op, kernel in PAIRS if op.name == workload.op)
        return kernel.supports(workload, on("sm_90"))

    assert says("batch_norm[n=8,c=64,h=56,w=56,f32]") is None
    assert "fewer images" in str(says("batch_norm_backward_nhwc[n=4096,c=2048,h=16,w=16,bf16]"))
    assert "choose a divisor" in str(says("group_norm_nhwc[n=1,c=10,h=4,w=4,groups=3,f32]"))
    assert "give it 2 or more" in str(says("batch_norm[n=1,c=10,h=1,w=1,f32]"))


def test_importing_the_kernels_does_not_import_triton() -> None:
    code = f"import sys, {softmax.__name__}, {norms.__name__}; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(("op", "kernel"), PAIRS, ids=IDS)
def test_right_on_the_gpu(op: Op, kernel: Kernel) -> None:
    finding = checks.examine(op, kernel, configs=2, most_workloads=3)
    assert (finding.reason, finding.refused) == (None, None)
