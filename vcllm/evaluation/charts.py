"""The pictures of the report, as static SVG: pure functions from measures to markup.

Knows places and shapes; colours and dashes come from the page's style sheet (`s0`, `s1`, ... for series).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import ArchiveCell, Measure, StageResult
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
    point,
    runs,
    shade,
    share_axis,
    told,
    tradeoff_axes,
)
from vcllm.evaluation.svg import Scale, drawing, el, title, words
from vcllm.evaluation.verdict import ASIDE
from vcllm.evaluation.wording import short_stage_name, stage_name

ASIDE_STEP = 1.5
"""Columns that a stage aside takes: its name is longer."""

# Figures by stage.


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
    top = axis_top([m for one in series for m in one.measures.values()], floor)
    plane = Plane(_columns(path, aside, width), Scale((0, top), (HEIGHT - BOTTOM, TOP)), width - RIGHT)
    stretches = [(number, run) for number, one in enumerate(series) for run in runs(path, one)]
    parts = [share_axis(top, plane), _stage_axis(path, aside, plane)]
    parts += [band(run, number, plane) for number, run in stretches]
    parts += [line(run, number, plane) for number, run in stretches]
    for number, one in enumerate(series):
        shift = 9 * (number - (len(series) - 1) / 2)
        for run in runs(path, one):
            whisker = len(run) == 1
            parts += [point(one.name, stage_name(m[0]), m, number, plane, whisker=whisker) for m in run]
        for run in runs(aside, one):
            parts += [point(one.name, stage_name(m[0]), m, number, plane, shift, whisker=True) for m in run]
    return drawing(width, HEIGHT, *parts, label=label)


def _columns(path: Sequence[str], aside: Sequence[str], width: float) -> dict[str, float]:
    names, sizes = [*path, *aside], [1.0] * len(path) + [ASIDE_STEP] * len(aside)
    unit = (width - LEFT - RIGHT) / sum(sizes)
    ends = accumulate(sizes)
    return {name: LEFT + unit * (end - own / 2) for name, own, end in zip(names, sizes, ends, strict=True)}


def _stage_axis(path: Sequence[str], aside: Sequence[str], plane: Plane) -> Markup:
    foot = HEIGHT - BOTTOM + 18
    parts = [words(short_stage_name(name), class_="tick mid", x=x, y=foot) for name, x in plane.x.items()]
    if path and aside:
        x = (2 * plane.x[path[-1]] + plane.x[aside[0]]) / 3
        parts.append(el("line", class_="apart", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM))
    return Markup("").join(parts)


# Attack success against over-refusal.


def tradeoff_chart(stages: Sequence[StageResult], path: Sequence[str], label: Bilingual) -> Markup:
    """Every stage at (over-refusal, 1 - held-out attack success), with both intervals; best is top left."""
    size, points = 300.0, [(s, s.over_refusal, s.attack_success.held_out.mean) for s in stages]
    known = [(s, x, y) for s, x, y in points if x.value is not None and y.value is not None]
    top = axis_top([x for _, x, _ in known], 0.05)
    across = Scale((0, top), (LEFT + 8, WIDTH - RIGHT - 8))
    upward = Scale((0, 1), (size - 48, TOP + 6))
    parts = [tradeoff_axes(across, upward, top, size)]
    places = {s.name: (across(x.value or 0.0), upward(1 - (y.value or 0.0))) for s, x, y in known}
    walk = [places[name] for name in path if name in places]
    parts.append(el("polyline", class_="walk", points=joined(walk)))
    parts += [_cross(s.name, x, y, across, upward) for s, x, y in known]
    parts += _tags(places, {s.name: across(x.high or 0.0) for s, x, _ in known})
    return drawing(WIDTH, size, *parts, label=label)


def _cross(stage: str, x: Measure, y: Measure, across: Scale, upward: Scale) -> Markup:
    left, at_x, right = (across(share or 0.0) for share in (x.low, x.value, x.high))
    top, at_y, bottom = (upward(1 - (share or 0.0)) for share in (y.low, y.value, y.high))
    kind = "spot aside" if stage in ASIDE else "spot"
    return el(
        "g",
        title(stage_name(stage), f"{told(x)}; 1 - {told(y)}"),
        el("line", class_="cross", x1=left, x2=right, y1=at_y, y2=at_y),
        el("line", class_="cross", x1=at_x, x2=at_x, y1=top, y2=bottom),
        el("circle", class_=kind, cx=at_x, cy=at_y, r=4.5),
    )


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
