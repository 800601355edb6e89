"""Search strategies: each a generator that yields a config, is sent its cost in seconds, and knows no device.

`strategy(space, seed, elsewhere)` asks for the default, then for winners elsewhere, then as it sees fit. A failed
config costs infinity. The generator ends when it has nothing more to ask; who drives it stops it earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from perfsuite.kernel import Space
from perfsuite.search.evolutionary import evolutionary
from perfsuite.search.exhaustive import exhaustive
from perfsuite.search.gaussian import gaussian
from perfsuite.search.halving import halving
from perfsuite.search.local import local
from perfsuite.search.model import model
from perfsuite.search.random import random
from perfsuite.search.tried import Known, Search

__all__ = ["DEFAULT", "STRATEGIES", "Known", "Search", "Strategy"]


class Strategy(Protocol):
    def __call__(self, space: Space, seed: int, elsewhere: Sequence[Known] = (), /) -> Search: ...


STRATEGIES: dict[str, Strategy] = {
    "evolutionary": evolutionary,
    "exhaustive": exhaustive,
    "gaussian": gaussian,
    "halving": halving,
    "local": local,
    "model": model,
    "random": random,
}
DEFAULT = "gaussian"
