"""What the C++ kernels over channels of images share: who is refused, the space, a config as a function."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from perfsuite.kernel import Config, Dimension, Kernel, Run, Scale, Space, Tensors
from perfsuite.machine import Machine
from perfsuite.op import ITEMSIZE, Op, Workload
from perfsuite.toolchain import native

from .channel_formulas import frozen, groups, undefined
from .rows import supports

_ISAS = ("avx2", "avx512", "avx512_bf16")
_STORAGE = {"f32": "float", "bf16": "bf16", "f16": "f16"}
_PREFETCH = ("none", "L1", "L2")
_LINE = 64  # bytes of a cache line, and of the widest streaming store


class _Plan(ctypes.Structure):
    """channels.h's Plan."""

    _fields_ = (
        ("images", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("panel", ctypes.c_int64),
        ("frozen", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("momentum", ctypes.c_float),
    )


@dataclass(frozen=True)
class DataFlow:
    """A C++ source of this folder that serves several ops of one layout.

    Its entry point takes so many `inputs` and `outputs`, of which an op may lack the last ones. `tile` are definitions
    that say how many vectors go together. With `channels_last` the pixels are rows, which may go in panels of columns.
    """

    source: str
    ops: tuple[str, ...]
    inputs: int
    outputs: int
    tile: Mapping[str, int]
    channels_last: bool = False

    def kernel(self) -> Kernel:
        return Kernel(ops=self.ops, build=self.build, space=self.space, supports=_supports, sources=(self.source,))

    def space(self, workload: Workload, machine: Machine) -> Space:
        """`stream` writes past the caches; `prefetch` is the cache that what is next is fetched to.

        `panel` is how many channels go together: the fewer, the sooner a cache holds them all; the more, the longer are
        the runs of memory.
        """
        size, pixels = ITEMSIZE[workload.dtype], workload["h"] * workload["w"]
        isas = [isa for isa in _ISAS if isa in machine.isa and (isa != "avx512_bf16" or workload.dtype == "bf16")]
        run = workload["c"] if self.channels_last else pixels  # of elements that are stored together
        streams = (False, True) if run * size % _LINE == 0 else (False,)
        panels = self._panels(workload)
        whole = workload["n"] * workload["c"] * pixels * size
        default = Config.of(
            isa=isas[-1],
            panel=panels[-1] if self.channels_last else self._fitting(panels, workload, machine),
            stream=streams[-1] and whole > 8 * machine.cache("L2") > 0,
            prefetch="L2",
        )
        return Space(
            (
                Dimension("isa", tuple(isas), Scale.CATEGORICAL),
                Dimension("panel", panels),
                Dimension("stream", streams),
                Dimension("prefetch", _PREFETCH, Scale.CATEGORICAL),
            ),
            default=default,
        )

    def _fitting(self, panels: tuple[int, ...], workload: Workload, machine: Machine) -> int:
        """The widest of which L2 holds what is read."""
        channel = workload["n"] * workload["h"] * workload["w"] * ITEMSIZE[workload.dtype]
        fitting = [panel for panel in panels if panel * channel <= machine.cache("L2") // 4]
        return fitting[-1] if fitting else panels[0]

    def _panels(self, workload: Workload) -> tuple[int, ...]:
        """In columns whole groups in whole cache lines, and all channels; of planes a few channels of all images."""
        channels, of_each = workload["c"], groups(workload)
        if not self.channels_last:
            alone = of_each or frozen(workload)  # which keeps nothing of a channel for a second pass
            return (1,) if alone else tuple(count for count in (1, 4, 16) if count <= channels)
        least = math.lcm(channels // of_each if of_each else 1, _LINE // ITEMSIZE[workload.dtype])
        narrow = {math.ceil(columns / least) * least for columns in (64, 256)}
        return (*sorted(columns for columns in narrow if columns < channels), channels)

    def build(self, op: Op, workload: Workload, config: Config) -> Run:
        attributes = dict(op.attributes)
        plan = _Plan(
            workload["n"],
            workload["c"],
            workload["h"] * workload["w"],
            groups(workload),
            config["panel"],
            frozen(workload),
            attributes.get("eps", 0.0),
            attributes.get("momentum", 0.0),
        )
        no_more = (None,) * (self.inputs - len(op.inputs)), (None,) * (self.outputs - len(op.outputs))
        plan_address, address, call = ctypes.byref(plan), torch.Tensor.data_ptr, self._chosen(workload, config)

        def run(inputs: Tensors, outputs: Tensors) -> Tensors:
            call(plan_address, *map(address, inputs), *no_more[0], *map(address, outputs), *no_more[1])
            return outputs

        return run

    def _chosen(self, workload: Workload, config: Config) -> Callable[..., None]:
        defines: dict[str, int | str] = {**self.tile, "T": _STORAGE[workload.dtype]}
        library = native.load(Path(__file__).with_name(self.source), config["isa"], defines)
        library.choose.argtypes = (ctypes.c_bool, ctypes.c_int)
        library.choose.restype = ctypes.c_void_p
        entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (1 + self.inputs + self.outputs))
        return entry(library.choose(config["stream"], _PREFETCH.index(config["prefetch"])))


def _supports(workload: Workload, machine: Machine) -> str | None:
    return undefined(workload) or supports(workload, machine)
