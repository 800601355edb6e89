"""Numbers as people read them; inside perfsuite everything is seconds and bytes."""

from __future__ import annotations

import datetime
import math


def seconds(value: float) -> str:
    """`12.3 us`, `4.56 ms`, `1.2 s`; `-` for infinity."""
    if not math.isfinite(value):
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{_three(value / scale)} {unit}"
    return f"{_three(value / 1e-9)} ns"


def size(value: float) -> str:
    """`96 KiB`, `4 MiB`, `1.5 GiB`."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:.0f} {unit}"
    return f"{value:.0f} B"


def duration(value: float) -> str:
    """`42 s`, `3 min 05 s`, `1 h 02 min`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bandwidth(value: float) -> str:
    """`83.4 GB/s`."""
    return _decimal(value, "B/s")


def work_rate(value: float, dtype: str) -> str:
    """Operations per second: `1.20 TFLOP/s` of a floating dtype, `2.90 TOP/s` of an integer one."""
    return _decimal(value, "OP/s" if dtype[0] in "iu" else "FLOP/s")


def ratio(value: float) -> str:
    """`1.84×`."""
    return f"{_three(value)}×"


def percent(share: float) -> str:
    """`83 %`, `2.2 %`."""
    return f"{100.0 * share:.0f} %" if share >= 0.0995 else f"{100.0 * share:.1f} %"


def day(created: float) -> str:
    """The minute of seconds since the epoch, in UTC."""
    return datetime.datetime.fromtimestamp(created, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def several(count: int, noun: str) -> str:
    """`1 trial`, `2,345 trials`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `10m`, `1.5h` or a bare number of seconds."""
    scales = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, scale = (text[:-1], scales[text[-1]]) if text[-1:] in scales else (text, 1.0)
    try:
        value = float(number) * scale
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ValueError(f"{text!r} is not a duration; one is spelled like 90s, 10m or 2h")
    return value


def _decimal(value: float, unit: str) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{_three(value / scale)} {prefix}{unit}"
    return f"{_three(value)} {unit}"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
