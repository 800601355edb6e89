"""A picture of a report, and what all of them share: two themes, an empty plot, labels that do not collide."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

# Inches; every picture is this wide, so that text has the same size in all of them.
WIDTH = 10.0
DPI = 144
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


@dataclass(frozen=True)
class Theme:
    """Colours: `hues` for what is told apart, the same order in both themes."""

    surface: str
    ink: str
    muted: str
    grid: str
    water: str
    hues: tuple[str, ...]

    def hue(self, at: int) -> str:
        return self.hues[at] if at < len(self.hues) else self.muted


LIGHT = Theme(
    surface="#ffffff",
    ink="#1d2430",
    muted="#6b7585",
    grid="#e3e7ec",
    water="#bcd9ee",
    hues=("#1f6fb8", "#d1690b", "#2b8a57", "#8a4fbd", "#c4384b", "#0f8a96", "#8a6d1f", "#b9478c"),
)
DARK = Theme(
    surface="#171c24",
    ink="#e4e8ee",
    muted="#929cab",
    grid="#2c3440",
    water="#23486a",
    hues=("#68aef2", "#f2a04d", "#63c68f", "#b993ea", "#f27d8b", "#4fc5d0", "#cfb060", "#ea92c4"),
)


@dataclass(frozen=True)
class Picture:
    """`name` is the file's, `title` says what is shown, `caption` how to read it; `draw` makes it in a theme."""

    name: str
    title: str
    caption: str
    draw: Callable[[Theme], Figure]

    def png(self, theme: Theme) -> bytes:
        """With a palette of 64 colours, enough for the few hues of a plot: a quarter of the bytes."""
        drawn, target = io.BytesIO(), io.BytesIO()
        self.draw(theme).savefig(drawn, format="png", metadata={"Software": None})
        Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(target, "png", optimize=True)
        return target.getvalue()


def panels(
    theme: Theme, height: float, count: int, left: float = 0.85, right: float = 0.35, legend_rows: int = 0
) -> tuple[Figure, list[Axes]]:
    """A figure of WIDTH x `height` inches with plots side by side; margins in inches, room for legend rows above."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.surface)
    FigureCanvasAgg(figure)
    bottom, top, gap = 0.52, 0.2 + 0.22 * legend_rows, 0.2
    wide = (WIDTH - left - right - gap * (count - 1)) / count
    axes = [
        figure.add_axes(
            ((left + at * (wide + gap)) / WIDTH, bottom / height, wide / WIDTH, 1.0 - (bottom + top) / height)
        )
        for at in range(count)
    ]
    for each in axes:
        clothe(each, theme)
    return figure, axes


def plot(
    theme: Theme, height: float, left: float = 0.85, right: float = 0.35, legend_rows: int = 0
) -> tuple[Figure, Axes]:
    """A figure with a single plot."""
    figure, (axes,) = panels(theme, height, 1, left, right, legend_rows)
    return figure, axes


def clothe(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.surface)
    axes.set_axisbelow(True)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.tick_params(which="both", colors=theme.muted, labelsize=9, length=0)
    axes.xaxis.label.set(color=theme.ink, size=10)
    axes.yaxis.label.set(color=theme.ink, size=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)


def legend(axes: Axes, theme: Theme, columns: int = 8) -> None:
    """The legend above the plot, where it covers nothing; `plot` made room for its rows."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        borderpad=0.0,
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
        handletextpad=0.4,
        columnspacing=1.4,
    )


def log_scale(axis: Axis, text: Callable[[float], str]) -> None:
    """Ticks at 1, 2 and 5 of each decade, at 1 alone where the final limits span many; `text` says a value."""
    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high / low < 10.0**2.6 else (1.0,)
    axis.set_major_locator(LogLocator(10.0, steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(text(value))))


def tick(text: str) -> str:
    """`16 KiB` for `16.0 KiB`: what stands at a tick is exact."""
    return re.sub(r"\.0+(?= )", "", text)


def halo(theme: Theme) -> list[AbstractPathEffect]:
    """Lines stop before a text that is drawn with it."""
    return [withStroke(linewidth=2.5, foreground=theme.surface)]


def note_row(axes: Axes, row: float, text: str, color: str, size: float = 8.0) -> None:
    """Words to the right of the plot, level with a row of it."""
    axes.annotate(
        text,
        (1.0, row),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=size,
        color=color,
    )


def margin(labels: Sequence[str], points: float = 8.0) -> float:
    """Inches that the longest of some row labels takes."""
    return 0.25 + max(len(label) for label in labels) * 0.6 * points / 72.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def text_box(left: float, bottom: float, text: str, points: float) -> Box:
    """About the space that a line of text takes; DejaVu Sans is 0.6 of its size wide on average."""
    unit = points * DPI / 72.0
    return Box(left, bottom, left + 0.6 * unit * len(text), bottom + 1.15 * unit)


def label_points(
    axes: Axes, theme: Theme, points: Sequence[tuple[float, float, str]], taken: Sequence[Box] = (), size: float = 7.5
) -> int:
    """Write each label beside its (x, y) where it meets no point and no other label; returns how many found a place.

    Axis limits and scales must be final. `taken` are further places to keep free.
    """
    unit = size * DPI / 72.0
    places = [axes.transData.transform((x, y)) for x, y, _ in points]
    occupied = [*taken, *(Box(x - 0.4 * unit, y - 0.4 * unit, x + 0.4 * unit, y + 0.4 * unit) for x, y in places)]
    frame = axes.get_window_extent()
    inside = Box(frame.x0, frame.y0, frame.x1, frame.y1)
    written = 0
    for (x, y), (_, _, label) in zip(places, points):
        width = 0.6 * unit * len(label)
        for right, up in _offsets(width / unit):
            box = text_box(x + right * unit, y + up * unit, label, size)
            fits = inside.left <= box.left and box.right <= inside.right
            fits = fits and inside.bottom <= box.bottom and box.top <= inside.top
            if fits and not any(box.meets(other) for other in occupied):
                at = axes.transAxes.inverted().transform((box.left, box.bottom + 0.2 * unit))
                axes.text(
                    at[0],
                    at[1],
                    label,
                    transform=axes.transAxes,
                    color=theme.ink,
                    fontsize=size,
                    zorder=6,
                    path_effects=halo(theme),
                )
                occupied.append(box)
                written += 1
                break
    return written


def _offsets(width: float) -> list[tuple[float, float]]:
    """Where a label of that width may start, seen from its point, the best place first; in units of its size."""
    sides = (0.7, -0.7 - width)
    return (
        [(side, up) for up in (-0.45, 0.5, -1.5) for side in sides]
        + [(-width / 2, 0.8)]
        + [(side, up) for up in (1.5, -2.5) for side in (0.2, -0.2 - width)]
    )
