"""Pictures with lines, areas and bars, as static SVG: by column, around a circle, on a plane, and stacked.

Knows places and shapes; colours and dashes come from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import CellMeasures, Measure
from vcllm.evaluation.benchpage.wording import shortened
from vcllm.evaluation.plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Plane,
    Series,
    axis_top,
    band,
    joined,
    line,
    mark,
    point,
    runs,
    share_axis,
    told,
    tradeoff_axes,
)
from vcllm.evaluation.svg import Scale, drawing, el, title, words
from vcllm.evaluation.wording import LANGUAGES, percent

LETTER = 6.2
"""Width of a letter on an axis."""


def lines_chart(
    columns: Mapping[str, Bilingual],
    series: Sequence[Series],
    label: Bilingual,
    *,
    connected: bool = True,
    floor: float = 1.0,
    width: float = WIDTH,
) -> Markup:
    """Shares by column with 95 % bands; columns that are not `connected` have no order and get whiskers.

    columns: id to the name under the axis.
    """
    names = list(columns)
    unit = (width - LEFT - RIGHT) / len(names)
    places = {name: LEFT + unit * (number + 0.5) for number, name in enumerate(names)}
    top = axis_top([m for one in series for m in one.measures.values()], floor)
    plane = Plane(places, Scale((0, top), (HEIGHT - BOTTOM, TOP)), width - RIGHT)
    parts = [share_axis(top, plane)]
    parts += [
        words(_cut(columns[name], unit), class_="tick mid", x=x, y=HEIGHT - BOTTOM + 18) for name, x in places.items()
    ]
    stretches = [(number, one, run) for number, one in enumerate(series) for run in runs(names, one)]
    if connected:
        parts += [band(run, number, plane) for number, _, run in stretches]
        parts += [line(run, number, plane) for number, _, run in stretches]
    for number, one, run in stretches:
        shift = 0.0 if connected else 12 * (number - (len(series) - 1) / 2)
        alone = not connected or len(run) == 1
        parts += [point(one.name, columns[m[0]], m, number, plane, shift, whisker=alone) for m in run]
    return drawing(width, HEIGHT, *parts, label=label)


def _cut(text: Bilingual, room: float) -> Bilingual:
    length = int(room / LETTER)
    return Bilingual(en=shortened(text.en, length), zh=shortened(text.zh, length))


# Around a circle.


def radar_chart(cells: Mapping[str, CellMeasures], names: Mapping[str, Bilingual], label: Bilingual) -> Markup:
    """One axis per sub-domain, always from 0 in the middle to 100, and one line per language.

    Lines stop beside a sub-domain without a figure. The area has no meaning.
    """
    width, height, radius = 340.0, 300.0, 104.0
    middle = (width / 2, height / 2)
    subdomains = list(cells)
    angles = {id: 2 * math.pi * number / len(subdomains) for number, id in enumerate(subdomains)}

    def at(id: str, share: float, more: float = 0.0) -> tuple[float, float]:
        far = radius * share + more
        return middle[0] + far * math.sin(angles[id]), middle[1] - far * math.cos(angles[id])

    parts, between = [], math.pi / len(subdomains)
    for ring in (0.25, 0.5, 0.75, 1.0):
        parts.append(el("circle", class_="ring", cx=middle[0], cy=middle[1], r=radius * ring))
        x, y = middle[0] + radius * ring * math.sin(between), middle[1] - radius * ring * math.cos(between)
        parts.append(el("text", f"{100 * ring:g}", class_="tick mid small", x=x, y=y + 3))
    for id in subdomains:
        (x, y), (far_x, far_y) = at(id, 1.0), at(id, 1.0, 10)
        parts.append(el("line", class_="grid", x1=middle[0], y1=middle[1], x2=x, y2=y))
        side = "mid" if abs(far_x - middle[0]) < 12 else "end" if far_x < middle[0] else ""
        told_by = title(names.get(id, Bilingual(en=id, zh=id)), id)
        text = el("text", id, class_=f"tick {side}".strip(), x=far_x, y=far_y + 4)
        parts.append(el("g", told_by, text))
    for number, language in enumerate(LANGUAGES):
        known = {id: m for id in subdomains if (m := cells[id][language]).value is not None}
        for one, other in zip(subdomains, [*subdomains[1:], subdomains[0]], strict=True):
            if one in known and other in known:
                ends = [at(id, known[id].value or 0.0) for id in (one, other)]
                parts.append(el("polyline", class_=f"line s{number}", points=joined(ends)))
        for id, m in known.items():
            text = title(LANGUAGES[language], f"{id}: {told(m)}")
            parts.append(el("g", text, mark(number, *at(id, m.value or 0.0), size=3.0)))
    return drawing(width, height, *parts, label=label)


# Attacks withstood against over-refusal.


def tradeoff_chart(
    figures: Sequence[tuple[str, Measure, Measure]], number: int, top: float, label: Bilingual
) -> Markup:
    """Models at (over-refusal, 1 - attack success), with both intervals and an arrow from the first to the last.

    figures: model, over-refusal, attack success. number: of the series, for its colour; top: end of the first axis.
    """
    size = 300.0
    known = [(model, x, y) for model, x, y in figures if x.value is not None and y.value is not None]
    across = Scale((0, top), (LEFT + 8, WIDTH - RIGHT - 8))
    upward = Scale((0, 1), (size - 48, TOP + 6))
    parts = [tradeoff_axes(across, upward, top, size)]
    places = {model: (across(x.value or 0.0), upward(1 - (y.value or 0.0))) for model, x, y in known}
    for model, x, y in known:
        at_x, at_y = places[model]
        ends = {"x1": across(x.low or 0.0), "x2": across(x.high or 0.0), "y1": at_y, "y2": at_y}
        lows = {"x1": at_x, "x2": at_x, "y1": upward(1 - (y.low or 0.0)), "y2": upward(1 - (y.high or 0.0))}
        text = title(Bilingual(en=model, zh=model), f"{told(x)}; 1 - {told(y)}")
        cross = [el("line", class_="cross", **line) for line in (ends, lows)]
        parts.append(el("g", text, *cross, mark(number, at_x, at_y, size=5.0)))
    first, last = figures[0][0], figures[-1][0]
    if first != last and first in places and last in places:
        parts.append(_arrow(places[first], places[last]))
    parts += _tags(places)
    return drawing(WIDTH, size, *parts, label=label)


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    """From mark to mark, ending short of both; nothing between marks that touch."""
    far = math.dist(start, end)
    if far < 24:
        return Markup()
    x, y = (end[0] - start[0]) / far, (end[1] - start[1]) / far
    tail, tip = (start[0] + 8 * x, start[1] + 8 * y), (end[0] - 9 * x, end[1] - 9 * y)
    neck = (tip[0] - 9 * x, tip[1] - 9 * y)
    wings = [(neck[0] - 4.5 * y, neck[1] + 4.5 * x), (neck[0] + 4.5 * y, neck[1] - 4.5 * x)]
    return el(
        "g",
        el("line", class_="arrow", x1=tail[0], y1=tail[1], x2=neck[0], y2=neck[1]),
        el("polygon", class_="arrow", points=joined([tip, *wings])),
    )


def _tags(places: Mapping[str, tuple[float, float]]) -> list[Markup]:
    """Names beside their marks, on the side with more room, pushed down where they would overlap."""
    tags, taken = [], {True: float("-inf"), False: float("-inf")}
    for name, (x, y) in sorted(places.items(), key=lambda pair: pair[1][1]):
        right = x < 0.6 * WIDTH
        taken[right] = max(y - 8, taken[right] + 14)
        look = "tag" if right else "tag end"
        tags.append(el("text", shortened(name, 24), class_=look, x=x + (10 if right else -10), y=taken[right]))
    return tags


# Stacked bars.


@dataclass(frozen=True)
class Stack:
    """One bar: counts by part, in the order of the parts."""

    name: Bilingual
    counts: Sequence[int]


def stacked_bars(stacks: Sequence[Stack], parts: Sequence[Bilingual], label: Bilingual) -> Markup:
    """Shares of one whole each; `c0`, `c1`, ... are the parts' colours. Stacks without a count are empty."""
    row, left, right = 26.0, 128.0, 48.0
    drawn = []
    for number, stack in enumerate(stacks):
        y, total = row * number, sum(stack.counts)
        drawn.append(words(_cut(stack.name, left - 8), class_="tick end", x=left - 10, y=y + 17))
        drawn.append(el("text", f"n = {total}", class_="tick", x=WIDTH - right + 6, y=y + 17))
        drawn += _segments(stack, parts, Scale((0, max(1, total)), (left, WIDTH - right)), y + 4, row - 8)
    return drawing(WIDTH, row * len(stacks), *drawn, label=label)


def _segments(stack: Stack, parts: Sequence[Bilingual], along: Scale, y: float, height: float) -> list[Markup]:
    drawn, before, total = [], 0, sum(stack.counts)
    for number, (part, count) in enumerate(zip(parts, stack.counts, strict=True)):
        start, end = along(before), along(before + count)
        before += count
        if not count:
            continue
        share = percent(count / total)
        text = title(part, f"{count} / {total} ({share} %)")
        pieces = [el("rect", class_=f"part c{number}", x=start, y=y, width=end - start, height=height)]
        if end - start > 28:
            whole = f"{100 * count / total:.0f}"
            pieces.append(el("text", whole, class_=f"mid on{number}", x=(start + end) / 2, y=y + height - 5))
        drawn.append(el("g", text, *pieces))
    return drawn
