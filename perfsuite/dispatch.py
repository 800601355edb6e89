"""The fastest kernel at run time: `fastest(op)` looks a call's shapes up in the table of winners.

Imports no database, no search and no timer. After the first call with given shapes a call costs one dictionary look-up,
about 1 us on top of the kernel.
"""

from __future__ import annotations

import functools
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
# Looked up once: the attributes of a module take 15 ns each.
_threads = torch.get_num_threads


@dataclass(frozen=True)
class _Made:
    """An output as the kernel makes it, and its shape as the caller gets it.

    `alike`: the first input has its shape, dtype and layout. `torch.empty_like` takes 0.7 us, `torch.empty` with a
    dtype 1.2 us, with a memory format 2.5 us.
    """

    shape: tuple[int, ...]
    given: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    layout: str
    alike: bool

    def allocate(self, first: torch.Tensor) -> torch.Tensor:
        if self.alike:
            return torch.empty_like(first)
        if self.layout == "contiguous":
            return torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return torch.empty(self.shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)


# A call that is decided: takes the inputs and the tensors of `out` (none where it was not given), checks nothing.
_Ready = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], Any]


@dataclass(frozen=True)
class _Call:
    """Everything about one combination of shapes, decided once.

    `fold` holds the shapes that inputs are viewed as, None for one that stays as it is; None where all do.
    """

    run: Run
    fold: tuple[tuple[int, ...] | None, ...] | None
    made: tuple[_Made, ...]

    def fresh(self, inputs: Sequence[torch.Tensor], _: Sequence[torch.Tensor]) -> Any:
        """The answer in new tensors."""
        inputs = self._folded(inputs)
        answer = self.run(inputs, [m.allocate(inputs[0]) for m in self.made])
        if self.fold is not None:
            answer = [t if m.given == m.shape else t.view(*m.given) for t, m in zip(answer, self.made)]
        return answer[0] if len(answer) == 1 else tuple(answer)

    def into(self, out: Sequence[torch.Tensor]) -> _Ready:
        """Write the answer into tensors such as `out`, without a copy where the kernel can."""
        fits = all(_fits(tensor, made.layout) for tensor, made in zip(out, self.made))
        if fits and self.fold is None:
            return _direct(self.run)

        def call(inputs: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> Any:
            inputs = self._folded(inputs)
            if fits:
                targets = [t if m.given == m.shape else t.view(*m.shape) for t, m in zip(out, self.made)]
            else:
                targets = [m.allocate(inputs[0]) for m in self.made]
            return _placed(self.run(inputs, targets), out)

        return call

    def _folded(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """A shape given as a tuple would take 1.1 us instead of 0.7."""
        if self.fold is None:
            return inputs
        return [t if shape is None else t.view(*shape) for t, shape in zip(inputs, self.fold)]


def _direct(run: Run) -> _Ready:
    """The call of tensors that the kernel takes as they are."""

    def call(inputs: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> Any:
        answer = run(inputs, out)
        if answer is not out:
            return _placed(answer, out)
        return out[0] if len(out) == 1 else out

    return call


def _placed(answer: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> Any:
    """`out`, with what does not lie there already copied into it."""
    for given, got in zip(out, answer):
        if given.data_ptr() != got.data_ptr():
            given.copy_(got if got.shape == given.shape else got.view(given.shape))
    return out[0] if len(out) == 1 else out


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
        self._calls: dict[object, _Ready] = {}

    def __call__(
        self, *inputs: torch.Tensor, out: torch.Tensor | Sequence[torch.Tensor] | None = None, **parameters: int
    ) -> Any:
        """The op's output, a tuple where it has several; leading dimensions are folded into the op's first axis.

        Raises ValueError for tensors that do not fit the op, RuntimeError where gradients would be lost, LookupError
        under the miss policy `error`.
        """
        targets = (out,) if isinstance(out, torch.Tensor) else () if out is None else tuple(out)
        # What checks and choice depend on; strides only where they are not those of a contiguous tensor, which is
        # faster to ask. One tensor in and one out are spelled out: that takes half of the time.
        if len(inputs) == len(targets) == 1 and not parameters:
            x, y = inputs[0], targets[0]
            # fmt: off
            key: tuple[object, ...] = (
                x.shape, x.dtype, x.is_contiguous() or x.stride(), x.is_cpu or x.device,
                y.shape, y.dtype, y.is_contiguous() or y.stride(), y.is_cpu or y.device,
                _threads(),
            )
            # fmt: on
        else:
            key = (
                *[(t.shape, t.dtype, t.is_contiguous() or t.stride(), t.is_cpu or t.device) for t in inputs],
                out is None,
                *[(t.shape, t.dtype, t.is_contiguous() or t.stride(), t.is_cpu or t.device) for t in targets],
                _threads(),
                *parameters.items(),
            )
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._decided(inputs, None if out is None else targets, parameters)
        for tensor in inputs:
            if tensor.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{self.op.name}: perfsuite's kernels are not differentiated: call it under torch.no_grad(), "
                    "or use torch's own function where gradients are needed"
                )
        return call(inputs, targets)

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
            for entry in sorted(entries, key=lambda e: (e.workload.distance(workload), str(e.workload))):
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

    def _decided(
        self, inputs: Sequence[torch.Tensor], out: Sequence[torch.Tensor] | None, parameters: dict[str, int]
    ) -> _Ready:
        """What answers calls with tensors such as these, which are checked here; `out` None: in new tensors."""
        folded = _folded(self.op, inputs)
        workload = self.op.bind(folded, parameters)
        device = inputs[0].device
        for operand, tensor in zip(self.op.inputs, folded):
            if not _fits(tensor, operand.layout):
                how = ".contiguous()" if operand.layout == "contiguous" else ".contiguous(memory_format=channels_last)"
                raise ValueError(f"{self.op.name}: {operand.name} is not {operand.layout}; pass {operand.name}{how}")
            dtype = torch_dtype(self.op.dtype(operand, workload))
            if tensor.dtype != dtype or tensor.device != device:
                raise ValueError(
                    f"{self.op.name}: {operand.name} is {tensor.dtype} on {tensor.device}, expected {dtype} on {device}"
                )
        made = self._made(inputs[0], folded[0], workload)
        if out is not None:
            self._check(out, made)
        kernel, config = self.choice(workload, torch.get_num_threads(), device.type)
        fold = tuple(None if t is f else tuple(f.shape) for t, f in zip(inputs, folded))
        call = _Call(kernel.build(self.op, workload, config), fold if any(fold) else None, made)
        return call.fresh if out is None else call.into(out)

    def _made(self, given: torch.Tensor, first: torch.Tensor, workload: Workload) -> tuple[_Made, ...]:
        """The outputs for a first input that the kernel gets as `first`."""
        folds, lead = first is not given, tuple(given.shape[: given.dim() - first.dim() + 1])
        made = []
        for operand in self.op.outputs:
            shape, dtype = self.op.shape(operand, workload), torch_dtype(self.op.dtype(operand, workload))
            alike = (shape, dtype, operand.layout) == (tuple(first.shape), first.dtype, self.op.inputs[0].layout)
            whole = (*lead, *shape[1:]) if folds and operand.axes[:1] == ("rows",) else shape
            made.append(_Made(shape, whole, dtype, first.device, operand.layout, alike))
        return tuple(made)

    def _check(self, out: Sequence[torch.Tensor], made: Sequence[_Made]) -> None:
        if len(out) != len(made):
            raise ValueError(f"{self.op.name}: out has {len(out)} tensors, expected {len(made)}")
        for tensor, m in zip(out, made):
            if (tensor.shape, tensor.dtype, tensor.device) != (m.given, m.dtype, m.device):
                got = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
                raise ValueError(f"{self.op.name}: out is {got}, expected {m.given} {m.dtype} on {m.device}")


def fastest(op: str, *, miss: str = "default", table: Path | Table | None = None) -> Dispatcher:
    """The tuned kernel of an op, to be called with its tensors: `fastest("softmax")(x)`.

    For shapes that nobody tuned on this machine, `miss` decides: `default` calls the eager kernel, `nearest` the winner
    of the nearest tuned shape that can run it, `error` raises LookupError. `table` defaults to this machine's own, as
    `perfsuite tune` left it.
    """
    if isinstance(table, Table):
        return _dispatcher(op, miss, table)
    return _cached(op, miss, table)


@functools.cache
def _cached(op: str, miss: str, path: Path | None) -> Dispatcher:
    path = path or places.table_path(detect.machine())
    return _dispatcher(op, miss, Table.load(path) if path.exists() else Table(detect.machine(), ()))


def _dispatcher(op: str, miss: str, table: Table) -> Dispatcher:
    if miss not in MISSES:
        raise ValueError(f"miss={miss!r} is none of {', '.join(MISSES)}")
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
        wrong = operand.axes[:1] == ("rows",) and tensor.dim() != len(operand.axes)
        if wrong and not tensor.is_contiguous():
            raise ValueError(f"{op.name}: {operand.name} is not contiguous; pass {operand.name}.contiguous()")
        shape = tuple(tensor.shape) or (1,)
        folded.append(tensor.view(-1, *shape[len(shape) - len(operand.axes) + 1 :]) if wrong else tensor)
    return folded
