"""The fastest kernel at run time: `fastest(op)` looks a call's shapes up in the table of winners.

Imports no database, no search and no timer. After the first call with given shapes a call costs one dictionary look-up.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perfsuite import detect, places, registry
from perfsuite.kernel import Config, Kernel, Run
from perfsuite.op import Op, Workload, torch_dtype
from perfsuite.table import Entry, Table

MISSES = ("default", "nearest", "error")


@dataclass(frozen=True)
class _Made:
    """An output as the kernel makes it, and its shape as the caller gets it."""

    shape: tuple[int, ...]
    given: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    allocate: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, shape: tuple[int, ...], given: tuple[int, ...], like: torch.Tensor, layout: str) -> _Made:
        """`like` has the dtype and the device. A plain torch.empty costs 0.7 us, one with a memory format 2.5 us."""
        keywords: dict[str, Any] = {"dtype": like.dtype}
        if like.device.type != "cpu":
            keywords["device"] = like.device
        if layout == "channels_last":
            keywords["memory_format"] = torch.channels_last
        return cls(shape, given, like.dtype, layout, functools.partial(torch.empty, shape, **keywords))


@dataclass(frozen=True)
class _Call:
    """Everything about one combination of shapes, decided once; `fold` holds the shapes that inputs are viewed as."""

    run: Run
    fold: tuple[tuple[int, ...], ...] | None
    made: tuple[_Made, ...]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self.fold is None:
            return self.run(inputs, [m.allocate() for m in self.made])
        inputs = [t.view(shape) for t, shape in zip(inputs, self.fold)]
        answer = self.run(inputs, [m.allocate() for m in self.made])
        return [t.view(m.given) for t, m in zip(answer, self.made)]

    def into(self, inputs: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Write the answer into `out`, without a copy where the kernel can."""
        targets = out
        if self.fold is not None:
            inputs = [t.view(shape) for t, shape in zip(inputs, self.fold)]
        for tensor, made in zip(out, self.made):
            if not _fits(tensor, made.layout):
                targets = [m.allocate() for m in self.made]
                break
        else:
            if self.fold is not None:
                targets = [t.view(m.shape) for t, m in zip(out, self.made)]
        answer = self.run(inputs, targets)
        if targets is not out or answer is not targets:
            for given, got in zip(out, answer):
                if given.data_ptr() != got.data_ptr():
                    given.copy_(got.view(given.shape))
        return out


def _fits(tensor: torch.Tensor, layout: str) -> bool:
    if layout == "contiguous":
        return tensor.is_contiguous()
    return tensor.is_contiguous(memory_format=torch.channels_last)


class Dispatcher:
    """The fastest known kernel of one op, callable with tensors; see `fastest`."""

    def __init__(self, op: Op, kernels: Sequence[Kernel], entries: Sequence[Entry], miss: str) -> None:
        self.op = op
        self._kernels = {str(kernel): kernel for kernel in kernels}
        self._entries = [e for e in entries if e.workload.op == op.name and self._fresh(e)]
        self._miss = miss
        self._calls: dict[object, _Call] = {}

    def __call__(
        self, *inputs: torch.Tensor, out: torch.Tensor | Sequence[torch.Tensor] | None = None, **parameters: int
    ) -> Any:
        """The op's output, a tuple where it has several; leading dimensions are folded into the op's first axis.

        Raises ValueError for tensors that do not fit the op, RuntimeError where gradients would be lost, LookupError
        under the miss policy `error`.
        """
        key = (torch.get_num_threads(), *[(t.shape, t.dtype, t.stride()) for t in inputs], *parameters.items())
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._decided(inputs, parameters)
        if torch.is_grad_enabled():
            for tensor in inputs:
                if tensor.requires_grad:
                    raise RuntimeError(
                        f"{self.op.name}: perfsuite's kernels are not differentiated: call it under torch.no_grad(), "
                        "or use torch's own function where gradients are needed"
                    )
        if out is None:
            answer = call(inputs)
        else:
            answer = call.into(inputs, self._checked([out] if isinstance(out, torch.Tensor) else out, call))
        return answer[0] if len(answer) == 1 else tuple(answer)

    def choice(self, workload: Workload, threads: int = 1, device: str = "cpu") -> tuple[Kernel, Config]:
        """The kernel and config that a call with this workload gets."""
        entries = [e for e in self._entries if e.policy.threads == threads and e.policy.device == device]
        exact = [e for e in entries if e.workload == workload]
        if exact:
            return self._chosen(exact[0])
        if self._miss == "error":
            raise LookupError(
                f"nothing is known for {workload} with {threads} threads on this machine: run "
                f"`perfsuite tune '{workload}' --threads {threads}`, or choose the miss policy default or nearest"
            )
        if self._miss == "nearest":
            for entry in sorted(entries, key=lambda e: (_distance(e.workload, workload), str(e.workload))):
                if entry.workload.dtype == workload.dtype and self._usable(entry, workload):
                    return self._chosen(entry)
        return self._default(workload)

    def _chosen(self, entry: Entry) -> tuple[Kernel, Config]:
        return self._kernels[entry.kernel], entry.config

    def _default(self, workload: Workload) -> tuple[Kernel, Config]:
        for kernel in self._kernels.values():
            if kernel.default and kernel.supports(workload, detect.machine()) is None:
                return kernel, kernel.space(workload, detect.machine()).configs[0]
        raise LookupError(f"no default kernel runs {workload} here; `perfsuite list {self.op.name}` shows the reasons")

    def _fresh(self, entry: Entry) -> bool:
        kernel = self._kernels.get(entry.kernel)
        return kernel is not None and kernel.digest == entry.digest

    def _usable(self, entry: Entry, workload: Workload) -> bool:
        """Whether the entry's kernel runs another workload with its config."""
        kernel, machine = self._kernels[entry.kernel], detect.machine()
        return kernel.supports(workload, machine) is None and entry.config in kernel.space(workload, machine)

    def _decided(self, inputs: Sequence[torch.Tensor], parameters: dict[str, int]) -> _Call:
        folded = _folded(self.op, inputs)
        workload = self.op.bind(folded, parameters)
        for operand, tensor in zip(self.op.inputs, folded):
            if not _fits(tensor, operand.layout):
                how = ".contiguous()" if operand.layout == "contiguous" else ".contiguous(memory_format=channels_last)"
                raise ValueError(f"{self.op.name}: {operand.name} is not {operand.layout}; pass {operand.name}{how}")
        device = inputs[0].device
        kernel, config = self.choice(workload, torch.get_num_threads(), device.type)
        run = kernel.build(self.op, workload, config)
        fold = None if all(t is f for t, f in zip(inputs, folded)) else tuple(tuple(t.shape) for t in folded)
        lead = tuple(inputs[0].shape[: inputs[0].dim() - folded[0].dim() + 1])
        made = []
        for operand in self.op.outputs:
            shape = self.op.shape(operand, workload)
            like = torch.empty(0, dtype=torch_dtype(self.op.dtype(operand, workload)), device=device)
            made.append(_Made.of(shape, (*lead, *shape[1:]) if fold else shape, like, operand.layout))
        return _Call(run, fold, tuple(made))

    def _checked(self, out: Sequence[torch.Tensor], call: _Call) -> Sequence[torch.Tensor]:
        if len(out) != len(call.made):
            raise ValueError(f"{self.op.name}: out has {len(out)} tensors, expected {len(call.made)}")
        for tensor, made in zip(out, call.made):
            if tensor.shape != made.given or tensor.dtype != made.dtype:
                got = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{self.op.name}: out is {got}, expected {made.given} {made.dtype}")
        return out


def fastest(op: str, *, miss: str = "default", table: Path | Table | None = None) -> Dispatcher:
    """The tuned kernel of an op, to be called with its tensors: `fastest("softmax")(x)`.

    For shapes that nobody tuned on this machine, `miss` decides: `default` calls the eager kernel, `nearest` the winner
    of the nearest tuned shape that can run it, `error` raises LookupError. `table` defaults to this machine's own, as
    `perfsuite tune` left it.
    """
    if miss not in MISSES:
        raise ValueError(f"miss={miss!r} is none of {', '.join(MISSES)}")
    if isinstance(table, Table):
        return _dispatcher(op, miss, table)
    return _cached(op, miss, table)


@functools.cache
def _cached(op: str, miss: str, path: Path | None) -> Dispatcher:
    path = path or places.table_path(detect.machine())
    return _dispatcher(op, miss, Table.load(path) if path.exists() else Table(detect.machine(), ()))


def _dispatcher(op: str, miss: str, table: Table) -> Dispatcher:
    known = registry.discover()
    if op not in known.ops:
        raise ValueError(f"{op!r} is not an op; there are {', '.join(sorted(known.ops))}")
    return Dispatcher(known.ops[op], known.kernels_for(op), _valid(table), miss)


def _valid(table: Table) -> Sequence[Entry]:
    """The table's entries, if it was made on this hardware with this software."""
    here = detect.machine()
    if table.machine.id != here.id or table.machine.environment_id != here.environment_id:
        what = "other hardware" if table.machine.id != here.id else "other software versions"
        warnings.warn(f"the table of winners was made with {what} and is not used: run `perfsuite tune`", stacklevel=4)
        return ()
    # Warm caches and reused outputs first: the order in which `choice` takes the first that fits.
    return sorted(table.entries, key=lambda e: (e.policy.cache != "warm", e.policy.output != "reused"))


def _folded(op: Op, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Inputs of an op over rows with their leading dimensions folded into one; others as they are."""
    if len(inputs) != len(op.inputs) or op.inputs[0].axes[0] != "rows":
        return list(inputs)
    folded = []
    for operand, tensor in zip(op.inputs, inputs):
        wrong = operand.axes[0] == "rows" and tensor.dim() != len(operand.axes)
        if wrong and not tensor.is_contiguous():
            raise ValueError(f"{op.name}: {operand.name} is not contiguous; pass {operand.name}.contiguous()")
        folded.append(tensor.view(-1, tensor.shape[-1] if tensor.dim() else 1) if wrong else tensor)
    return folded


def _distance(one: Workload, other: Workload) -> float:
    """How far apart two workloads of an op are: the sum over the axes of the |log2| of the length's ratio."""
    lengths = dict(other.sizes)
    return sum(abs(math.log2((n + 1) / (lengths.get(axis, n) + 1))) for axis, n in one.sizes)
