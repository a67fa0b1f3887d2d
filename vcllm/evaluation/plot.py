"""The parts that charts of shares are made of: a plane, its axis, lines with bands, marks, and the colour scale.

Knows places and shapes; colours and dashes come from the page's style sheet (`s0`, `s1`, ... for series).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import Measure
from vcllm.evaluation.svg import Scale, el, title, words
from vcllm.evaluation.wording import percent, sample_size, span

WIDTH, HEIGHT = 440.0, 250.0
SLIM = 340.0
"""Width of a picture that stands beside two others."""
LEFT, RIGHT, TOP, BOTTOM = 40.0, 8.0, 12.0, 36.0
SHADES = 10
"""Steps of the colour scale of archive and heat maps."""


@dataclass(frozen=True)
class Series:
    """One line: a figure of every column; the position in the list decides colour, dash and mark."""

    name: Bilingual
    measures: Mapping[str, Measure]
    """By column, such as a stage; columns may be missing."""


@dataclass(frozen=True)
class Plane:
    """Where columns and shares lie on a chart."""

    x: Mapping[str, float]
    """The middle of each column."""
    y: Scale
    right: float
    """End of the axis."""


Run = Sequence[tuple[str, Measure]]
"""Neighbouring columns whose figure is known."""


def axis_top(measures: Sequence[Measure], floor: float) -> float:
    """The first round share above every interval, at least `floor`."""
    highest = max([floor, *(m.high for m in measures if m.high is not None)])
    return next(top for top in (0.05, 0.1, 0.2, 0.5, 1.0) if top >= min(highest, 1.0))


def share_axis(top: float, plane: Plane) -> Markup:
    num_steps = 4 if top in (0.2, 1.0) else 5
    parts = []
    for tick in (top * step / num_steps for step in range(num_steps + 1)):
        y, look = plane.y(tick), "grid" if tick else "axis"
        parts.append(el("line", class_=look, x1=LEFT, x2=plane.right, y1=y, y2=y))
        parts.append(el("text", f"{100 * tick:g}", class_="tick end", x=LEFT - 6, y=y + 4))
    return Markup("").join(parts)


def runs(columns: Sequence[str], series: Series) -> list[Run]:
    """The columns, cut where a figure is missing."""
    figures = [(name, series.measures.get(name)) for name in columns]
    stretches = groupby(figures, key=lambda figure: figure[1] is not None and figure[1].value is not None)
    return [[(name, m) for name, m in run if m is not None] for known, run in stretches if known]


def band(run: Run, number: int, plane: Plane) -> Markup:
    upper = [(plane.x[name], plane.y(m.high or 0.0)) for name, m in run]
    lower = [(plane.x[name], plane.y(m.low or 0.0)) for name, m in reversed(run)]
    return el("polygon", class_=f"band s{number}", points=joined([*upper, *lower]))


def line(run: Run, number: int, plane: Plane) -> Markup:
    points = [(plane.x[name], plane.y(m.value or 0.0)) for name, m in run]
    return el("polyline", class_=f"line s{number}", points=joined(points))


def joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def point(
    name: Bilingual,
    at: Bilingual,
    known: tuple[str, Measure],
    number: int,
    plane: Plane,
    shift: float = 0.0,
    *,
    whisker: bool,
) -> Markup:
    """The mark of a figure with what is told about it: `name` at `at`."""
    column, measure = known
    x = plane.x[column] + shift
    text = Bilingual(en=f"{at.en}, {name.en}", zh=f"{at.zh}，{name.zh}")
    parts = [title(text, told(measure))]
    if whisker:
        low, high = plane.y(measure.low or 0.0), plane.y(measure.high or 0.0)
        parts.append(el("line", class_=f"whisker s{number}", x1=x, x2=x, y1=low, y2=high))
    return el("g", *parts, mark(number, x, plane.y(measure.value or 0.0)))


def mark(number: int, x: float, y: float, size: float = 4.0) -> Markup:
    """The mark of a series: circle, square, triangle, diamond, in turn."""
    shape = f"mark s{number}"
    match number % 4:
        case 0:
            return el("circle", class_=shape, cx=x, cy=y, r=size)
        case 1:
            side = 1.8 * size
            return el("rect", class_=shape, x=x - side / 2, y=y - side / 2, width=side, height=side)
        case 2:
            up, side, down = y - 1.3 * size, 1.2 * size, y + 0.9 * size
            return el("polygon", class_=shape, points=joined([(x, up), (x + side, down), (x - side, down)]))
    far = 1.35 * size
    corners = [(x, y - far), (x + far, y), (x, y + far), (x - far, y)]
    return el("polygon", class_=shape, points=joined(corners))


def swatch(number: int) -> Markup:
    """A piece of a series' line with its mark, for legends."""
    line = el("line", class_=f"line s{number}", x1=1, x2=29, y1=7, y2=7)
    return el("svg", line, mark(number, 15, 7), viewBox="0 0 30 14", class_="swatch", aria_hidden="true")


def tradeoff_axes(across: Scale, upward: Scale, top: float, size: float) -> Markup:
    """Over-refusal to the right up to `top`, attacks withstood upwards; `size` is the height of the drawing."""
    left, right, floor = across(0) - 8, across(top) + 8, upward(0) + 6
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(el("line", class_="grid", x1=left, x2=right, y1=upward(tick), y2=upward(tick)))
        parts.append(el("text", f"{100 * tick:g}", class_="tick end", x=left - 6, y=upward(tick) + 4))
    for i in range(6):
        tick = top * i / 5
        parts.append(el("text", f"{100 * tick:g}", class_="tick mid", x=across(tick), y=floor + 16))
    parts.append(el("line", class_="axis", x1=left, x2=right, y1=floor, y2=floor))
    name = Bilingual(en="over-refusal of harmless questions, %", zh="无害问题误拒率，%")
    parts.append(words(name, class_="tick end", x=right, y=size - 6))
    return Markup("").join(parts)


def told(measure: Measure) -> str:
    """A share with its interval and n, in one line."""
    return f"{percent(measure.value)} % [{span(measure)}], {sample_size(measure.n)}"


def shade(share: float) -> int:
    """Step of the colour scale, 0 to `SHADES`."""
    return round(max(0.0, min(1.0, share)) * SHADES)


def scale_key() -> Markup:
    """The colour scale from 0 to 100 %."""
    steps = [el("rect", class_=f"h{i}", x=14 * i, y=0, width=14, height=10) for i in range(SHADES + 1)]
    return el("svg", *steps, viewBox=f"0 0 {14 * (SHADES + 1)} 10", class_="key", aria_hidden="true")
