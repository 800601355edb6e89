"""Values that several tests need: a machine, trials, and a folder of small kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

from perfsuite.kernel import Config
from perfsuite.machine import Environment, Gpu, Machine
from perfsuite.op import Workload
from perfsuite.policy import Policy
from perfsuite.trial import Failure, Measurement, Trial

ENVIRONMENT = Environment("3.11.7", "2.13.0", "none", "g++ 12.2", "libgomp", "6.1", "performance", "off")
MACHINE = Machine(
    cpu="Testor 9000",
    isa=("avx2", "avx512"),
    caches=(("L1d", 98304, 2), ("L2", 4194304, 2), ("L3", 33554432, 1)),
    cores=2,
    memory=1 << 34,
    numa_nodes=1,
    virtual="none",
    gpus=(Gpu("Imaginary 1", "sm_90", 1 << 36, "570.1"),),
    environment=ENVIRONMENT,
)


def trial(
    kernel: str = "softmax/eager",
    samples: Sequence[float] | Failure = (2e-6, 1e-6, 3e-6),
    *,
    workload: str = "softmax[rows=64,cols=1024,f32]",
    config: Config | None = None,
    race: str = "",
    created: float = 1.0e9,
    digest: str = "d0",
) -> Trial:
    """A trial on MACHINE; part of a race if it names one."""
    outcome = samples if isinstance(samples, Failure) else Measurement(tuple(samples))
    stage = "race" if race else "search"
    where = Workload.parse(workload)
    return Trial(MACHINE, where, kernel, config or Config(), Policy(), digest, outcome, created, stage, race)


TWICE_OP = '''
    """Doubles a vector: the smallest op there is."""

    from perfsuite.op import Op, Operand, workloads

    OPS = (
        Op(
            "twice",
            inputs=(Operand("x", ("n",)),),
            outputs=(Operand("y", ("n",)),),
            reference=lambda x: 2.0 * x,
            flops=lambda sizes: sizes["n"],
            workloads=workloads("twice", [({"n": 4096}, ["f32"], {"Toy b=1": 1}), ({"n": 7}, ["f32"], {})]),
        ),
    )
'''
TWICE_EAGER = '''
    """y = 2 x with torch."""

    import torch

    from perfsuite.kernel import Config, Kernel, Run
    from perfsuite.op import Op, Workload


    def build(op: Op, workload: Workload, config: Config) -> Run:
        def run(inputs, outputs):
            torch.mul(inputs[0], 2.0, out=outputs[0])
            return outputs

        return run


    KERNEL = Kernel(ops=("twice",), build=build, default=True)
'''
# Kernels that go wrong, each in its own way.
BROKEN = {
    "segfault": "import ctypes\n\n\ndef body(x, y):\n    ctypes.string_at(1)\n",
    "endless": "def body(x, y):\n    while True:\n        pass\n",
    "garbage": "def body(x, y):\n    y.copy_(3.0 * x)\n",
    "raises": "def body(x, y):\n    raise RuntimeError('no luck today')\n",
    "unwritten": "def body(x, y):\n    y[1:] = 2.0 * x[1:]\n",
    "vandal": "def body(x, y):\n    y.copy_(2.0 * x)\n    x.zero_()\n",
}
BROKEN_REST = """
from perfsuite.kernel import Kernel


def build(op, workload, config):
    def run(inputs, outputs):
        body(inputs[0], outputs[0])
        return outputs

    return run


KERNEL = Kernel(ops=("twice",), build=build)
"""
NOT_COMPILING = """
from pathlib import Path

from perfsuite.kernel import Kernel
from perfsuite.toolchain import native


def build(op, workload, config):
    return native.load(Path(__file__).with_name("broken.cpp"), "avx2").run


KERNEL = Kernel(ops=("twice",), build=build, sources=("broken.cpp",))
"""
UNFIT = """
from perfsuite.kernel import Kernel, Unfit


def build(op, workload, config):
    raise Unfit("spills 96 bytes")


KERNEL = Kernel(ops=("twice",), build=build)
"""


def write_family(folder: Path, *broken: str) -> Path:
    """A family of the user's own with the op `twice`, its eager kernel, and the named broken ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ops.py").write_text(dedent(TWICE_OP))
    (folder / "eager.py").write_text(dedent(TWICE_EAGER))
    for name in broken:
        if name == "not_compiling":
            (folder / "not_compiling.py").write_text(NOT_COMPILING)
            (folder / "broken.cpp").write_text('extern "C" void run() { this is not C++; }\n')
        elif name == "unfit":
            (folder / "unfit.py").write_text(UNFIT)
        else:
            (folder / f"{name}.py").write_text(BROKEN[name] + BROKEN_REST)
    return folder
