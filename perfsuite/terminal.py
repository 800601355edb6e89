"""How commands print: text for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output. Piped text is read by programs, or in an editor: it is not folded to 80 columns."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=1 if sys.stdout.isatty() else None))
