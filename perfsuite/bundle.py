"""Trials as a JSONL file that travels: a line that names the format, then one trial per line.

Ids are digests of the content, so importing a bundle twice changes nothing and merging commutes. A name that ends in
.xz is compressed, to about a fifth.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from perfsuite.trial import Trial

# First line of a bundle. 1: first format.
HEADER = {"perfsuite": "trials", "format": 1}


class BundleError(ValueError):
    """A file is no bundle, or one of its lines is wrong."""


def write(path: Path, trials: Iterable[Trial]) -> int:
    """Write a bundle; the number of trials written."""
    lines = [json.dumps(trial.to_json(), separators=(",", ":")) for trial in trials]
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ("\n".join([json.dumps(HEADER), *lines]) + "\n").encode()
    path.write_bytes(lzma.compress(data, preset=9) if path.suffix == ".xz" else data)
    return len(lines)


def read(path: Path) -> Iterator[Trial]:
    """The trials of a bundle, in its order; BundleError names the line that is wrong."""
    try:
        data = path.read_bytes()
        lines = (lzma.decompress(data) if path.suffix == ".xz" else data).decode().splitlines()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as wrong:
        raise BundleError(f"{path} cannot be read as a bundle: {wrong}") from wrong
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            if number == 1:
                if data != HEADER:
                    raise ValueError(f"the first line of a bundle is {json.dumps(HEADER)}")
                continue
            yield Trial.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            says = f"lacks {wrong}" if isinstance(wrong, KeyError) else str(wrong)
            raise BundleError(f"{path}, line {number}: {says}; nothing of it is used") from wrong
    if not lines:
        raise BundleError(f"{path} is empty; `perfsuite export` writes a bundle")
