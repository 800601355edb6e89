"""Two passes with a running maximum, as in online softmax (Milakov and Gimelshein, arXiv 1805.02867), by blocks.

A block in the L1 cache has its maximum found and its exponentials summed; on AVX-512 the maximum is only looked for
where the sum shows that the one before no longer serves. Traffic 2 reads and 1 write.
"""

from __future__ import annotations

from . import native

KERNEL = native.Algorithm("TwoPassOnline", ("softmax", "log_softmax", "masked_softmax"), ("stream", "block")).kernel()
