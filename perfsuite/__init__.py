"""perfsuite finds the fastest kernel for your machine and proves it.

`perfsuite.fastest("softmax")(x)` calls the tuned kernel, `perfsuite.ops.softmax(x)` the same as a function;
`perfsuite.convert` makes Pre-RMSNorm transformers of Pre-LN ones. Everything heavy is imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfsuite import convert, ops
    from perfsuite.dispatch import fastest

__all__ = ["convert", "fastest", "ops"]


def __getattr__(name: str) -> Any:
    if name == "fastest":
        return importlib.import_module("perfsuite.dispatch").fastest
    if name in ("convert", "ops"):
        return importlib.import_module(f"perfsuite.{name}")
    raise AttributeError(f"module 'perfsuite' has no attribute {name!r}")
