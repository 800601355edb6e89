"""Search strategies: each a generator that yields a config, is sent its cost in seconds, and knows no device.

A failed config costs infinity. The generator ends when it has nothing more to ask; who drives it stops it earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from perfsuite.kernel import Config, Space
from perfsuite.search.exhaustive import exhaustive
from perfsuite.search.local import local
from perfsuite.search.random import random

Search = Generator[Config, float, None]
Strategy = Callable[[Space, int], Search]

STRATEGIES: dict[str, Strategy] = {"exhaustive": exhaustive, "local": local, "random": random}
DEFAULT = "local"
