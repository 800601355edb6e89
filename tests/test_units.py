"""Numbers as text."""

from __future__ import annotations

import pytest

from perfsuite import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(1.234e-5), "12.3 us"),
        (units.seconds(3.2e-10), "0.32 ns"),
        (units.seconds(float("inf")), "-"),
        (units.size(512), "512 B"),
        (units.size(2.83 * 2**20), "2.83 MiB"),
        (units.duration(185), "3 min 05 s"),
        (units.bandwidth(83.44e9), "83.4 GB/s"),
        (units.work_rate(1.2e12, "bf16"), "1.20 TFLOP/s"),
        (units.work_rate(2.9e12, "i8"), "2.90 TOP/s"),
        (units.ratio(1.844), "1.84×"),
        (units.ratio(12.34), "12.3×"),
        (units.percent(0.834), "83 %"),
        (units.percent(0.0221), "2.2 %"),
        (units.day(0.0), "1970-01-01 00:00 UTC"),
        (units.several(1, "trial"), "1 trial"),
        (units.several(2345, "trial"), "2,345 trials"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("7", 7.0)])
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3s", "nan", "inf", "3 weeks"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="90s, 10m or 2h"):
        units.parse_duration(text)
