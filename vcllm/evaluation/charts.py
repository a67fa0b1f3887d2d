"""The pictures of the report, as static SVG: pure functions from measures to markup.

Knows places and shapes; colours and dashes come from the page's style sheet (`s0`, `s1`, ... for series).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import ArchiveCell, Measure, StageResult
from vcllm.evaluation.svg import Scale, drawing, el, title, words
from vcllm.evaluation.verdict import ASIDE
from vcllm.evaluation.wording import percent, sample_size, short_stage_name, span, stage_name

WIDTH, HEIGHT = 440.0, 250.0
SLIM = 340.0
"""Width of a picture that stands beside two others."""
ASIDE_STEP = 1.5
"""Columns that a stage aside takes: its name is longer."""
LEFT, RIGHT, TOP, BOTTOM = 40.0, 8.0, 12.0, 36.0
SHADES = 10
"""Steps of the colour scale of archive and heat maps."""


@dataclass(frozen=True)
class Series:
    """One line: a figure of every stage; the position in the list decides colour, dash and mark."""

    name: Bilingual
    measures: Mapping[str, Measure]
    """By stage; stages may be missing."""


# Figures by stage.


@dataclass(frozen=True)
class Plane:
    """Where stages and shares lie on a chart by stage."""

    x: Mapping[str, float]
    """The middle of each stage's column."""
    y: Scale
    right: float
    """End of the axis."""


Run = Sequence[tuple[str, Measure]]
"""Neighbouring stages whose figure is known."""


def stage_chart(
    stages: Sequence[str],
    series: Sequence[Series],
    label: Bilingual,
    floor: float = 1.0,
    width: float = WIDTH,
) -> Markup:
    """Lines with 95 % bands along the path, marks with whiskers for the stages aside.

    The axis starts at 0 and ends at the first round figure above every interval, at least at `floor`.
    """
    path, aside = [s for s in stages if s not in ASIDE], [s for s in stages if s in ASIDE]
    top = _axis_top([m for one in series for m in one.measures.values()], floor)
    plane = Plane(_columns(path, aside, width), Scale((0, top), (HEIGHT - BOTTOM, TOP)), width - RIGHT)
    runs = [(number, run) for number, one in enumerate(series) for run in _runs(path, one)]
    parts = [_share_axis(top, plane), _stage_axis(path, aside, plane)]
    parts += [_band(run, number, plane) for number, run in runs]
    parts += [_line(run, number, plane) for number, run in runs]
    for number, one in enumerate(series):
        shift = 9 * (number - (len(series) - 1) / 2)
        for run in _runs(path, one):
            parts += [_point(one.name, known, number, plane, whisker=len(run) == 1) for known in run]
        for run in _runs(aside, one):
            parts += [_point(one.name, known, number, plane, shift, whisker=True) for known in run]
    return drawing(width, HEIGHT, *parts, label=label)


def _axis_top(measures: Sequence[Measure], floor: float) -> float:
    highest = max([floor, *(m.high for m in measures if m.high is not None)])
    return next(top for top in (0.05, 0.1, 0.2, 0.5, 1.0) if top >= min(highest, 1.0))


def _columns(path: Sequence[str], aside: Sequence[str], width: float) -> dict[str, float]:
    names, sizes = [*path, *aside], [1.0] * len(path) + [ASIDE_STEP] * len(aside)
    unit = (width - LEFT - RIGHT) / sum(sizes)
    ends = accumulate(sizes)
    return {name: LEFT + unit * (end - own / 2) for name, own, end in zip(names, sizes, ends, strict=True)}


def _share_axis(top: float, plane: Plane) -> Markup:
    num_steps = 4 if top in (0.2, 1.0) else 5
    parts = []
    for tick in (top * step / num_steps for step in range(num_steps + 1)):
        y, look = plane.y(tick), "grid" if tick else "axis"
        parts.append(el("line", class_=look, x1=LEFT, x2=plane.right, y1=y, y2=y))
        parts.append(el("text", f"{100 * tick:g}", class_="tick end", x=LEFT - 6, y=y + 4))
    return Markup("").join(parts)


def _stage_axis(path: Sequence[str], aside: Sequence[str], plane: Plane) -> Markup:
    foot = HEIGHT - BOTTOM + 18
    parts = [words(short_stage_name(name), class_="tick mid", x=x, y=foot) for name, x in plane.x.items()]
    if path and aside:
        x = (2 * plane.x[path[-1]] + plane.x[aside[0]]) / 3
        parts.append(el("line", class_="apart", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM))
    return Markup("").join(parts)


def _runs(stages: Sequence[str], series: Series) -> list[Run]:
    """The stages, cut where a figure is missing."""
    figures = [(name, series.measures.get(name)) for name in stages]
    stretches = groupby(figures, key=lambda figure: figure[1] is not None and figure[1].value is not None)
    return [[(name, m) for name, m in run if m is not None] for known, run in stretches if known]


def _band(run: Run, number: int, plane: Plane) -> Markup:
    upper = [(plane.x[name], plane.y(m.high or 0.0)) for name, m in run]
    lower = [(plane.x[name], plane.y(m.low or 0.0)) for name, m in reversed(run)]
    return el("polygon", class_=f"band s{number}", points=_joined([*upper, *lower]))


def _line(run: Run, number: int, plane: Plane) -> Markup:
    points = [(plane.x[name], plane.y(m.value or 0.0)) for name, m in run]
    return el("polyline", class_=f"line s{number}", points=_joined(points))


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _point(
    name: Bilingual,
    known: tuple[str, Measure],
    number: int,
    plane: Plane,
    shift: float = 0.0,
    *,
    whisker: bool,
) -> Markup:
    stage, measure = known
    x, at = plane.x[stage] + shift, stage_name(stage)
    text = Bilingual(en=f"{at.en}, {name.en}", zh=f"{at.zh}，{name.zh}")
    parts = [title(text, _told(measure))]
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
            return el("polygon", class_=shape, points=_joined([(x, up), (x + side, down), (x - side, down)]))
    far = 1.35 * size
    corners = [(x, y - far), (x + far, y), (x, y + far), (x - far, y)]
    return el("polygon", class_=shape, points=_joined(corners))


def swatch(number: int) -> Markup:
    """A piece of a series' line with its mark, for legends."""
    line = el("line", class_=f"line s{number}", x1=1, x2=29, y1=7, y2=7)
    return el("svg", line, mark(number, 15, 7), viewBox="0 0 30 14", class_="swatch", aria_hidden="true")


# Attack success against over-refusal.


def tradeoff_chart(stages: Sequence[StageResult], path: Sequence[str], label: Bilingual) -> Markup:
    """Every stage at (over-refusal, 1 - held-out attack success), with both intervals; best is top left."""
    size, points = 300.0, [(s, s.over_refusal, s.attack_success.held_out.mean) for s in stages]
    known = [(s, x, y) for s, x, y in points if x.value is not None and y.value is not None]
    top = _axis_top([x for _, x, _ in known], 0.05)
    across = Scale((0, top), (LEFT + 8, WIDTH - RIGHT - 8))
    upward = Scale((0, 1), (size - 48, TOP + 6))
    parts = [_tradeoff_axes(across, upward, top, size)]
    places = {s.name: (across(x.value or 0.0), upward(1 - (y.value or 0.0))) for s, x, y in known}
    walk = [places[name] for name in path if name in places]
    parts.append(el("polyline", class_="walk", points=_joined(walk)))
    parts += [_cross(s.name, x, y, across, upward) for s, x, y in known]
    parts += _tags(places, {s.name: across(x.high or 0.0) for s, x, _ in known})
    return drawing(WIDTH, size, *parts, label=label)


def _tradeoff_axes(across: Scale, upward: Scale, top: float, size: float) -> Markup:
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


def _cross(stage: str, x: Measure, y: Measure, across: Scale, upward: Scale) -> Markup:
    left, at_x, right = (across(share or 0.0) for share in (x.low, x.value, x.high))
    top, at_y, bottom = (upward(1 - (share or 0.0)) for share in (y.low, y.value, y.high))
    kind = "spot aside" if stage in ASIDE else "spot"
    return el(
        "g",
        title(stage_name(stage), f"{_told(x)}; 1 - {_told(y)}"),
        el("line", class_="cross", x1=left, x2=right, y1=at_y, y2=at_y),
        el("line", class_="cross", x1=at_x, x2=at_x, y1=top, y2=bottom),
        el("circle", class_=kind, cx=at_x, cy=at_y, r=4.5),
    )


def _told(measure: Measure) -> str:
    return f"{percent(measure.value)} % [{span(measure)}], {sample_size(measure.n)}"


def _tags(places: Mapping[str, tuple[float, float]], edges: Mapping[str, float]) -> list[Markup]:
    """Stage names to the right of the intervals, pushed down where they would overlap."""
    tags, last = [], float("-inf")
    for name, (_, y) in sorted(places.items(), key=lambda pair: pair[1][1]):
        last = max(y, last + 15)
        tags.append(words(short_stage_name(name), class_="tag", x=edges[name] + 7, y=last + 4))
    return tags


# The archive.


def archive_chart(
    archive: Mapping[str, ArchiveCell],
    subdomains: Sequence[str],
    tactics: Sequence[str],
    names: Mapping[str, Bilingual],
    label: Bilingual,
) -> Markup:
    """Sub-domain by tactic; each square holds Chinese (left) and English (right), shaded by the share won."""
    side, left, top = 23.0, 92.0, 100.0
    parts = []
    for column, tactic in enumerate(tactics):
        x, y = left + side * column + side / 2, top - 8
        turned = f"rotate(-50 {x:.0f} {y:.0f})"
        parts.append(words(_name(names, tactic), class_="tick", x=x, y=y, transform=turned))
    for row, subdomain in enumerate(subdomains):
        parts.append(el("text", subdomain, class_="tick end", x=left - 8, y=top + side * row + side / 2 + 4))
        for column, tactic in enumerate(tactics):
            for half, language in enumerate(("zh", "en")):
                cell = archive.get(f"{subdomain}/{tactic}/{language}")
                x, y = left + side * column + half * (side - 3) / 2, top + side * row
                parts.append(_square(cell, f"{subdomain}/{tactic}/{language}", x, y, side))
    width = left + side * len(tactics) + 56
    return drawing(max(width, 300.0), top + side * len(subdomains) + 4, *parts, label=label)


def _name(names: Mapping[str, Bilingual], id: str) -> Bilingual:
    return names.get(id, Bilingual(en=id, zh=id))


def _square(cell: ArchiveCell | None, key: str, x: float, y: float, side: float) -> Markup:
    place = {"x": x, "y": y, "width": (side - 4) / 2, "height": side - 3}
    won, tried = (cell.won, cell.tried) if cell else (0, 0)
    look = f"h{shade(won / tried)}" if tried else "untried"
    return el("rect", el("title", f"{key}: {won} / {tried}"), class_=look, **place)


def shade(share: float) -> int:
    """Step of the colour scale, 0 to `SHADES`."""
    return round(max(0.0, min(1.0, share)) * SHADES)


def scale_key() -> Markup:
    """The colour scale from 0 to 100 %."""
    steps = [el("rect", class_=f"h{i}", x=14 * i, y=0, width=14, height=10) for i in range(SHADES + 1)]
    return el("svg", *steps, viewBox=f"0 0 {14 * (SHADES + 1)} 10", class_="key", aria_hidden="true")


# Costs.


def cost_bars(costs: Sequence[tuple[str, float, str]], label: Bilingual) -> Markup:
    """One bar per stage: its name, its cost in any unit, and the text at its end."""
    row, left, right = 24.0, 76.0, 76.0
    longest = max([cost for _, cost, _ in costs], default=0.0) or 1.0
    length = Scale((0, longest), (0, WIDTH - left - right))
    parts = []
    for number, (stage, cost, text) in enumerate(costs):
        y = row * number
        parts.append(words(short_stage_name(stage), class_="tick end", x=left - 10, y=y + 15))
        parts.append(el("rect", class_="bar", x=left, y=y + 4, width=max(1.0, length(cost)), height=row - 10))
        parts.append(el("text", text, class_="tick num", x=left + length(cost) + 7, y=y + 15))
    return drawing(WIDTH, row * max(1, len(costs)), *parts, label=label)
