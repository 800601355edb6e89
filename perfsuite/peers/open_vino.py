"""OpenVINO as a peer: one-op models compiled for the CPU, bound to torch's memory so that nothing is copied."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload

Node = Any
# What each op is in OpenVINO's terms: (operations, inputs, attributes) to the node of its output. The CPU plugin fuses
# the normalisation with its gain and offset.
_GRAPHS: dict[str, Callable[[Any, list[Node], dict[str, Any]], Node]] = {
    "softmax": lambda ops, inputs, _: ops.softmax(inputs[0], axis=-1),
    "layer_norm": lambda ops, inputs, attributes: ops.add(
        ops.multiply(
            ops.mvn(inputs[0], np.array([-1]), True, attributes["eps"], "inside_sqrt"),
            inputs[1],
        ),
        inputs[2],
    ),
    "rms_norm": lambda ops, inputs, attributes: ops.multiply(
        ops.multiply(inputs[0], _reciprocal_root(ops, inputs[0], attributes["eps"])), inputs[1]
    ),
}


def _reciprocal_root(ops: Any, x: Node, eps: float) -> Node:
    squares = ops.reduce_mean(ops.power(x, np.float32(2.0)), np.array([-1]), True)
    return ops.divide(np.float32(1.0), ops.sqrt(ops.add(squares, np.float32(eps))))


def supports(workload: Workload, machine: Machine) -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "needs openvino: pip install 'perfsuite[peers]'"
    if 0 in dict(workload.sizes).values():
        return "OpenVINO takes no empty tensors"
    return None if workload.dtype == "f32" else "measured in f32 alone"


def build(op: Op, workload: Workload, config: Config) -> Run:
    """A request with as many threads as torch has; a call binds the addresses and runs."""
    import openvino

    properties = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(_model(op, workload), "CPU", properties).create_infer_request()
    bound: tuple[int, ...] = ()

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        nonlocal bound
        addresses = tuple(t.data_ptr() for t in (*inputs, *outputs))
        if addresses != bound:
            for at, tensor in enumerate(inputs):
                request.set_input_tensor(at, openvino.Tensor(tensor.numpy(), shared_memory=True))
            request.set_output_tensor(0, openvino.Tensor(outputs[0].numpy(), shared_memory=True))
            bound = addresses
        request.start_async()
        request.wait()
        return outputs

    return run


def _model(op: Op, workload: Workload) -> Any:
    import openvino
    from openvino import opset15

    parameters = [opset15.parameter(list(op.shape(o, workload)), np.float32, name=o.name) for o in op.inputs]
    attributes: dict[str, Any] = dict(op.attributes)
    return openvino.Model([_GRAPHS[op.name](opset15, parameters, attributes)], parameters, op.name)


KERNEL = Kernel(ops=tuple(_GRAPHS), build=build, supports=supports)
