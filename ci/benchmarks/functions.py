"""Seconds of the public functions as a user calls them: dispatch, output allocation and kernel, on one thread.

They take the kernels of this machine's table where `perfsuite tune` has left one, else PyTorch's: a step in these times
on one machine asks for a look, a difference between machines says nothing.
"""

from __future__ import annotations

import torch

from perfsuite import ops

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
