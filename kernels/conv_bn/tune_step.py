"""A training step in Tune mode with its gradients written out (You et al. 2023, arXiv 2305.11624).

It computes Eval mode too, which is the same function of the parameters. Of the feature maps only x is kept: with
Wt = s W, dWt from the convolution's backward, and r = 1 / sqrt(var + eps), the gradients follow from weight-sized
tensors: dW = s dWt, dbeta = sum(grad), dgamma = r (<dWt, W> - mean sum(grad)).
"""

from __future__ import annotations

import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.op import Op, Workload

from .modes import deploy, folded


def build(op: Op, workload: Workload, config: Config) -> Run:
    eps, stride, padding = op.attribute("eps"), workload["stride"], workload["k"] // 2

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        x, weight, gamma, beta, mean, var, grad = inputs
        scaled, bias, scale = folded(weight, gamma, beta, mean, var, eps)
        scaled = scaled.to(x.dtype)
        y = deploy(x, scaled, bias.to(x.dtype), stride=stride)
        dx, dscaled, _ = torch.ops.aten.convolution_backward(
            grad, x, scaled, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
        )
        dbeta = torch.sum(grad, (0, 2, 3), dtype=torch.float32)
        dgamma = torch.rsqrt(var + eps) * ((dscaled * weight).sum((1, 2, 3), dtype=torch.float32) - mean * dbeta)
        return y, dx, (dscaled * scale.view(-1, 1, 1, 1)).to(weight.dtype), dgamma, dbeta

    return run


KERNEL = Kernel(ops=("conv_bn_eval_step", "conv_bn_tune_step"), build=build)
