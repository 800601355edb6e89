"""Two passes without a maximum: exponentials are pairs (mantissa, exponent), so that their sum cannot overflow.

Dukhan and Ablavatski, "The Two-Pass Softmax Algorithm", arXiv 2001.04438. Traffic 2 reads and 1 write.
"""

from __future__ import annotations

from . import native

KERNEL = native.Algorithm("TwoPassPairs", ("softmax", "log_softmax"), ("accumulators", "stream")).kernel()
