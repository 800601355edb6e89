"""Numbers as text: three significant digits and a unit."""

from __future__ import annotations

import datetime


def digits(value: float) -> str:
    """Three significant digits, never in scientific notation: `0.5`, `12.3`, `1240`."""
    if value == 0.0:
        return "0"
    rounded = float(f"{value:.3g}")
    return f"{rounded:.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"


def duration(seconds: float) -> str:
    for scale, unit in ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms"), (120.0, "s")):
        # 999.6 ns rounds to 1000 ns: the next unit says it better.
        if seconds < scale * 0.9995:
            return f"{digits(seconds / _SECONDS[unit])} {unit}"
    return f"{digits(seconds / 60.0)} min"


_SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000.0:
            return f"{digits(count)} {unit}"
        count /= 1024.0
    return f"{digits(count)} TiB"


def bandwidth(value: float) -> str:
    return _decimal(value, "B/s")


def work_rate(value: float, dtype: str) -> str:
    """Operations per second: FLOP/s of a floating dtype, OP/s of an integer one."""
    return _decimal(value, "OP/s" if dtype[0] in "iu" else "FLOP/s")


def _decimal(value: float, unit: str) -> str:
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale * 0.9995:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def ratio(value: float) -> str:
    return f"{value:.2f}×" if value < 9.995 else f"{digits(value)}×"


def percent(share: float) -> str:
    return f"{100.0 * share:.0f} %" if share >= 0.0995 else f"{100.0 * share:.1f} %"


def day(created: float) -> str:
    """The day and minute of seconds since the epoch, in UTC."""
    return datetime.datetime.fromtimestamp(created, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def several(count: int, noun: str, plural: str = "") -> str:
    """`1 trial`, `2,345 trials`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
