"""ONNX Runtime as a peer: one-node models, bound to torch's memory so that nothing is copied."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload

# ONNX operator and attributes of each op.
_NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("Softmax", {"axis": -1}),
    "layer_norm": ("LayerNormalization", {"axis": -1, "epsilon": 1e-5}),
    # ONNX Runtime's own operator; the standard's RMSNormalization came with opset 23.
    "rms_norm": ("SimplifiedLayerNormalization", {"axis": -1, "epsilon": 1e-5}),
}
_OPSET = 17


def supports(workload: Workload, machine: Machine) -> str | None:
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}: pip install 'perfsuite[peers]'"
    if 0 in dict(workload.sizes).values():
        return "ONNX Runtime binds no empty tensors"
    return None if workload.dtype == "f32" else "is measured in f32: its CPU provider has no bf16 kernel"


def build(op: Op, workload: Workload, config: Config) -> Run:
    """A session with as many threads as torch has; a call binds the addresses and runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_model(op, workload), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    names = [operand.name for operand in op.inputs]

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        for name, tensor in zip(names, inputs):
            binding.bind_input(name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("y", "cpu", 0, np.float32, tuple(outputs[0].shape), outputs[0].data_ptr())
        session.run_with_iobinding(binding)
        return outputs

    return run


def _model(op: Op, workload: Workload) -> bytes:
    from onnx import TensorProto, helper

    operator, attributes = _NODES[op.name]
    node = helper.make_node(operator, [operand.name for operand in op.inputs], ["y"], **attributes)
    inputs = [helper.make_tensor_value_info(o.name, TensorProto.FLOAT, op.shape(o, workload)) for o in op.inputs]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, op.shape(op.outputs[0], workload))
    graph = helper.make_graph([node], op.name, inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


KERNEL = Kernel(ops=tuple(_NODES), build=build, supports=supports)
