"""Pictures of points: on rows, as in a forest plot or dumbbells, and on a plane of two languages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import Measure
from vcllm.evaluation.benchpage.wording import DOMAINS, OTHER, shortened
from vcllm.evaluation.plot import WIDTH, mark
from vcllm.evaluation.svg import Scale, drawing, el, title, words
from vcllm.evaluation.wording import percent, sample_size, span

ROW, GUTTER, HEAD = 19.0, 166.0, 26.0
NUM_BINS = 10
"""Of the histograms beside the plane."""
DOMAIN_SERIES = (*DOMAINS.values(), *OTHER.values())
"""By series; what is none of the three domains, such as rows of another set, comes last."""


@dataclass(frozen=True)
class Dot:
    """One value on a row."""

    series: int
    name: Bilingual
    value: Measure


@dataclass(frozen=True)
class DotRow:
    """A row and what lies on it."""

    name: Bilingual
    dots: Sequence[Dot]
    linked: bool = False
    """A line joins the dots, from the lowest to the highest."""
    strong: bool = False
    """A sum over other rows, set apart from them."""


def dot_chart(
    rows: Sequence[DotRow], axis: Bilingual, label: Bilingual, domain: tuple[float, float] = (0, 1)
) -> Markup:
    """Rows of points with their intervals, where they have one; values in percent."""
    along = Scale(domain, (GUTTER, WIDTH - 14))
    height = HEAD + ROW * len(rows) + 8
    parts = [_ticks(along, domain, height), words(axis, class_="tick end", x=WIDTH - 8, y=10)]
    for number, row in enumerate(rows):
        y = HEAD + ROW * (number + 0.5)
        parts.append(_row_name(row, y))
        known = [along(dot.value.value) for dot in row.dots if dot.value.value is not None]
        if row.linked and known:
            parts.append(el("line", class_="link", x1=min(known), x2=max(known), y1=y, y2=y))
        for place, dot in enumerate(row.dots):
            # Whiskers of one row lie beside each other; the points of dumbbells lie on their line.
            parts.append(_dot(dot, along, y if row.linked else y + 5.0 * (place - (len(row.dots) - 1) / 2)))
    return drawing(WIDTH, height, *parts, label=label)


def _ticks(along: Scale, domain: tuple[float, float], height: float) -> Markup:
    parts, (low, high) = [], domain
    for step in range(5):
        tick = low + (high - low) * step / 4
        x, look = along(tick), "axis" if tick == 0 else "grid"
        parts.append(el("line", class_=look, x1=x, x2=x, y1=HEAD, y2=height - 6))
        parts.append(el("text", f"{100 * tick:g}".replace("-", "\N{MINUS SIGN}"), class_="tick mid", x=x, y=HEAD - 4))
    return Markup("").join(parts)


def _row_name(row: DotRow, y: float) -> Markup:
    look = "tag end" if row.strong else "tick end"
    text = Bilingual(en=shortened(row.name.en, 26), zh=shortened(row.name.zh, 26))
    return el("g", el("title", f"{row.name.en} / {row.name.zh}"), words(text, class_=look, x=GUTTER - 10, y=y + 4))


def _dot(dot: Dot, along: Scale, y: float) -> Markup:
    m = dot.value
    if m.value is None:
        return Markup()
    numbers = f"{percent(m.value)} % [{span(m)}], {sample_size(m.n)}" if m.low is not None else f"{percent(m.value)} %"
    parts = [title(dot.name, numbers)]
    if m.low is not None and m.high is not None:
        parts.append(el("line", class_=f"whisker s{dot.series}", x1=along(m.low), x2=along(m.high), y1=y, y2=y))
    return el("g", *parts, mark(dot.series, along(m.value), y, size=3.6))


# The plane of two languages.


@dataclass(frozen=True)
class PairPoint:
    """Value-consistency of one question in both languages."""

    zh: float
    en: float
    domain: str
    id: str


def domain_series(domain: str) -> int:
    return list(DOMAINS).index(domain) if domain in DOMAINS else len(DOMAINS)


def scatter_chart(points: Sequence[PairPoint], label: Bilingual) -> Markup:
    """Chinese to the right, English upwards, the diagonal of equal answers, and how often each value occurs.

    Points that fall together are one mark of a larger size.
    """
    side, left, top = 260.0, 52.0, 56.0
    across, upward = Scale((0, 1), (left, left + side)), Scale((0, 1), (top + side, top))
    parts = [_plane(across, upward)]
    together: dict[tuple[float, float, int], list[str]] = defaultdict(list)
    for p in points:
        together[round(p.zh, 2), round(p.en, 2), domain_series(p.domain)].append(p.id)
    # The largest first, so that no mark hides a smaller one.
    for (zh, en, series), ids in sorted(together.items(), key=lambda group: (-len(group[1]), group[0])):
        text = f"zh {percent(zh)}, en {percent(en)}, {sample_size(len(ids))}: {', '.join(ids[:3])}"
        size = min(9.0, 3.2 + 1.4 * (len(ids) - 1) ** 0.5)
        parts.append(el("g", title(DOMAIN_SERIES[series], text), mark(series, across(zh), upward(en), size=size)))
    parts += _histogram([p.zh for p in points], across, top - 6)
    parts += _histogram([p.en for p in points], upward, left + side + 6, sideways=True)
    return drawing(left + side + 56, top + side + 40, *parts, label=label)


def _plane(across: Scale, upward: Scale) -> Markup:
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = across(tick), upward(tick)
        parts.append(el("line", class_="grid", x1=x, x2=x, y1=upward(0), y2=upward(1)))
        parts.append(el("line", class_="grid", x1=across(0), x2=across(1), y1=y, y2=y))
        parts.append(el("text", f"{100 * tick:g}", class_="tick mid", x=x, y=upward(0) + 16))
        parts.append(el("text", f"{100 * tick:g}", class_="tick end", x=across(0) - 8, y=y + 4))
    parts.append(el("line", class_="diagonal", x1=across(0), y1=upward(0), x2=across(1), y2=upward(1)))
    parts.append(words(Bilingual(en="Chinese", zh="中文"), class_="tick end", x=across(1), y=upward(0) + 33))
    parts.append(words(Bilingual(en="English", zh="英文"), class_="tick", x=4.0, y=upward(1) - 10))
    return Markup("").join(parts)


def _histogram(values: Sequence[float], along: Scale, foot: float, *, sideways: bool = False) -> list[Markup]:
    """Bars away from the plane, the longest 40 long."""
    bins = Counter(min(NUM_BINS - 1, int(value * NUM_BINS)) for value in values)
    longest, bars = max(bins.values(), default=1), []
    for number, count in sorted(bins.items()):
        ends = sorted((along(number / NUM_BINS), along((number + 1) / NUM_BINS)))
        start, thick, long = ends[0] + 1, ends[1] - ends[0] - 2, 40 * count / longest
        place = (
            {"x": foot, "y": start, "width": long, "height": thick}
            if sideways
            else {"x": start, "y": foot - long, "width": thick, "height": long}
        )
        share = f"{10 * number}-{10 * number + 10}: {sample_size(count)}"
        bars.append(el("rect", el("title", share), class_="bar", **place))
    return bars
