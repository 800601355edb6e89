"""Which row norms the tests build, and how; a module that imports this is skipped where there is no AVX2."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from perfsuite import detect, registry
from perfsuite.kernel import Config, Kernel
from perfsuite.op import Workload

KNOWN = registry.discover()
KERNELS = tuple(KNOWN.kernels[f"norms/{name}"] for name in ("native_rows", "native_rows_backward"))
HERE = detect.machine()
DTYPES = ("f32", "bf16", "f16")
Tensors = Sequence[torch.Tensor]

if (reason := KERNELS[0].supports(KNOWN.ops["rms_norm"].workloads[0], HERE)) is not None:
    pytest.skip(reason, allow_module_level=True)


# Each takes seconds to compile: these have every op, dtype and number of rows, the narrowest and the widest vectors.
# The tests of all kernels need ("last", 4) too.
BUILDS = {
    ("layer_norm", "f32"): ("first", 4),
    ("layer_norm", "bf16"): ("last", 2),
    ("layer_norm", "f16"): ("last", 4),
    ("rms_norm", "f32"): ("last", 2),
    ("rms_norm", "bf16"): ("first", 1),
    ("rms_norm", "f16"): ("first", 4),
    ("simple_rms_norm", "f32"): ("last", 4),
    ("crms_norm", "f32"): ("last", 4),
    ("l1_norm", "f32"): ("last", 4),
    ("add_layer_norm", "f32"): ("last", 4),
    ("add_rms_norm", "f32"): ("last", 1),
    ("add_rms_norm", "bf16"): ("first", 4),
    ("rms_norm_int8", "f32"): ("last", 4),
    ("rms_norm_int8", "bf16"): ("first", 1),
    ("rms_norm_fp8", "f32"): ("last", 4),
    ("rms_norm_fp8", "bf16"): ("first", 1),
    ("scaled_layer_norm", "f32"): ("last", 4),
    ("time_layer_norm", "f32"): ("last", 4),
    ("layer_norm_backward", "f32"): ("last", 2),
    ("layer_norm_backward", "f16"): ("last", 4),
    ("rms_norm_backward", "f32"): ("last", 2),
    ("rms_norm_backward", "bf16"): ("first", 1),
    ("simple_rms_norm_backward", "f32"): ("last", 2),
    ("crms_norm_backward", "f32"): ("last", 2),
    ("l1_norm_backward", "f32"): ("last", 2),
    ("add_layer_norm_backward", "f32"): ("last", 2),
    ("add_rms_norm_backward", "f32"): ("last", 2),
    ("scaled_layer_norm_backward", "f32"): ("last", 2),
    ("time_layer_norm_backward", "f32"): ("last", 2),
}
NORMS = tuple(dict.fromkeys(name for name, _ in BUILDS))


def kernel_of(name: str) -> Kernel:
    return next(kernel for kernel in KERNELS if name in kernel.ops)


def sized(name: str, rows: int, cols: int, dtype: str) -> Workload:
    """So many rows, of each of three samples where the op has any."""
    sizes = {"samples": 3, "rows": rows, "cols": cols}
    return Workload(name, tuple((axis, sizes[axis]) for axis in KNOWN.ops[name].axes), dtype)


def every_config(name: str, dtype: str) -> tuple[Config, ...]:
    """Every config for rows of whole cache lines; elsewhere the kernel does without streaming stores."""
    return kernel_of(name).space(sized(name, 64, 4096, dtype), HERE).configs


def configs(name: str, dtype: str) -> list[Config]:
    """The configs that one of BUILDS serves."""
    width, rows = BUILDS[name, dtype]
    every = every_config(name, dtype)
    isas = [isa for isa in ("avx2", "avx512", "avx512_bf16") if any(config["isa"] == isa for config in every)]
    isa = isas[0] if width == "first" else isas[-1]
    return [c for c in every if c["isa"] == isa and c["rows"] == rows and c["vectors"] == 4 // rows]


def norm(name: str, inputs: Tensors, config: Config | None = None, outputs: Tensors | None = None) -> Tensors:
    op = KNOWN.ops[name]
    workload = op.bind(inputs)
    run = kernel_of(name).build(op, workload, config or configs(name, workload.dtype)[0])
    return run(inputs, outputs if outputs is not None else op.make_outputs(workload))
