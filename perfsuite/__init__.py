"""perfsuite finds the fastest kernel for your machine and proves it.

`perfsuite.fastest("softmax")(x)` calls the tuned kernel, `perfsuite.ops.softmax(x)` the same as a function; everything
heavy is imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfsuite import ops
    from perfsuite.dispatch import fastest

__all__ = ["fastest", "ops"]


def __getattr__(name: str) -> Any:
    if name == "fastest":
        return importlib.import_module("perfsuite.dispatch").fastest
    if name == "ops":
        return importlib.import_module("perfsuite.ops")
    raise AttributeError(f"module 'perfsuite' has no attribute {name!r}")
