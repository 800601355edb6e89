"""JAX as a peer: jitted for XLA's CPU backend, reading torch's memory; XLA allocates what it returns."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch.utils.dlpack

from perfsuite.kernel import Config, Kernel, Run, Tensors
from perfsuite.machine import Machine
from perfsuite.op import Op, Workload


def _softmax(x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    # Of bf16 it would be computed in bf16, which is off by 2 %.
    return jax.nn.softmax(x.astype(jnp.float32), axis=-1).astype(x.dtype)


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    import jax.numpy as jnp
    from jax import lax

    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (y * weight + bias).astype(x.dtype)


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    import jax.numpy as jnp
    from jax import lax

    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps) * weight).astype(x.dtype)


_FUNCTIONS: dict[str, Callable[..., Any]] = {"softmax": _softmax, "layer_norm": _layer_norm, "rms_norm": _rms_norm}


def supports(workload: Workload, machine: Machine) -> str | None:
    if importlib.util.find_spec("jax") is None:
        return "needs jax: pip install 'perfsuite[peers]'"
    return "jax takes no empty tensors through dlpack" if 0 in dict(workload.sizes).values() else None


def build(op: Op, workload: Workload, config: Config) -> Run:
    """A jitted function; its inputs are the same memory while the addresses stay the same."""
    import jax

    attributes = dict(op.attributes)
    compiled = jax.jit(lambda *inputs: _FUNCTIONS[op.name](*inputs, **attributes))
    bound: tuple[int, ...] = ()
    arrays: list[Any] = []

    def run(inputs: Tensors, outputs: Tensors) -> Tensors:
        nonlocal bound, arrays
        addresses = tuple(t.data_ptr() for t in inputs)
        if addresses != bound:
            arrays, bound = [jax.dlpack.from_dlpack(t) for t in inputs], addresses
        return [torch.utils.dlpack.from_dlpack(compiled(*arrays).block_until_ready())]

    return run


KERNEL = Kernel(ops=tuple(_FUNCTIONS), build=build, supports=supports)
