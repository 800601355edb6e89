"""Seconds of the public functions as a user calls them: dispatch, output allocation and kernel, on one thread.

And what dispatch adds. The functions take the kernels of this machine's table where `perfsuite tune` has left one, else
PyTorch's: a step in these times on one machine asks for a look, a difference between machines says nothing.
"""

from __future__ import annotations

import timeit

import torch

from perfsuite import detect, fastest, ops, registry
from perfsuite.table import Table

_SHAPES = ((1, 1), (64, 1000), (1024, 1024))


class Functions:
    params = (_SHAPES, ("float32", "bfloat16"))
    param_names = ("shape", "dtype")

    def setup(self, shape: tuple[int, int], dtype: str) -> None:
        torch.set_num_threads(1)
        kind = getattr(torch, dtype)
        self.x, self.residual = torch.randn(shape).to(kind), torch.randn(shape).to(kind)
        self.weight, self.bias = torch.ones(shape[1]).to(kind), torch.zeros(shape[1]).to(kind)
        # The first call of a function in a process finds the kernels, which takes about a second.
        for function in (self.time_softmax, self.time_layer_norm, self.time_rms_norm, self.time_add_rms_norm):
            function(shape, dtype)

    def time_softmax(self, shape: tuple[int, int], dtype: str) -> None:
        ops.softmax(self.x)

    def time_layer_norm(self, shape: tuple[int, int], dtype: str) -> None:
        ops.layer_norm(self.x, self.weight, self.bias)

    def time_rms_norm(self, shape: tuple[int, int], dtype: str) -> None:
        ops.rms_norm(self.x, self.weight)

    def time_add_rms_norm(self, shape: tuple[int, int], dtype: str) -> None:
        ops.add_rms_norm(self.x, self.residual, self.weight)


class Dispatch:
    """Time of a dispatched call over that of the same kernel called bare, where the kernel has next to nothing to do.

    The op's default kernel, which every machine has, writes into given outputs. The fastest of interleaved rounds: the
    noise of a shared machine only adds.
    """

    params = ("softmax[rows=1,cols=64,f32]", "layer_norm[rows=1,cols=64,f32]")
    param_names = ("workload",)
    unit = "ratio"

    def track_dispatched_over_bare(self, text: str) -> float:
        torch.set_num_threads(1)
        known = registry.discover()
        workload = known.workload(text)
        op = known.ops[workload.op]
        dispatcher = fastest(op.name, table=Table(detect.machine(), ()))
        kernel, config = dispatcher.choice(workload)
        run, inputs, outputs = (
            kernel.build(op, workload, config),
            op.make_inputs(workload, 1),
            op.make_outputs(workload),
        )
        (out,) = outputs
        calls = (lambda: dispatcher(*inputs, out=out), lambda: run(inputs, outputs))
        dispatched, bare = zip(*[[timeit.timeit(call, number=2000) for call in calls] for _ in range(20)])
        return float(min(dispatched) / min(bare))
