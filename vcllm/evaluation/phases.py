"""Where the time of the rounds went, as one bar for each, in pieces by phase.

Phases of one role have one hue; colours belong to the style sheet (`p0`, `p1`, ... in the order of `PHASES`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.evaluation.plot import WIDTH
from vcllm.evaluation.svg import Scale, drawing, el, title, words
from vcllm.evaluation.wording import PHASES, duration, short_stage_name

ROW, LEFT, RIGHT = 24.0, 40.0, 76.0
LABEL = Bilingual(en="Seconds of each round by phase", zh="各轮各步骤用时")


def phase_chart(rounds: Sequence[tuple[str, Mapping[str, float]]]) -> Markup:
    """rounds: name of the stage, and its seconds by phase. Phases nobody knows the name of are left out."""
    known = [(name, {phase: seconds[phase] for phase in PHASES if phase in seconds}) for name, seconds in rounds]
    longest = max([sum(seconds.values()) for _, seconds in known], default=0.0) or 1.0
    length = Scale((0, longest), (0, WIDTH - LEFT - RIGHT))
    parts = []
    for row, (name, seconds) in enumerate(known):
        y, x = ROW * row, LEFT
        parts.append(words(short_stage_name(name), class_="tick end", x=LEFT - 10, y=y + 15))
        for phase, spent in seconds.items():
            told = title(PHASES[phase], duration(spent))
            place = {"x": x, "y": y + 4, "width": length(spent), "height": ROW - 10}
            parts.append(el("rect", told, class_=f"p{_place(phase)}", **place))
            x += length(spent)
        parts.append(el("text", duration(sum(seconds.values())), class_="tick num", x=x + 7, y=y + 15))
    return drawing(WIDTH, ROW * max(1, len(known)), *parts, label=LABEL)


def phase_key(rounds: Sequence[Mapping[str, float]]) -> list[tuple[Markup, Bilingual]]:
    """The phases that occur: a piece of their colour, and their name."""
    seen = {phase for seconds in rounds for phase in seconds}
    return [(_swatch(phase), name) for phase, name in PHASES.items() if phase in seen]


def _swatch(phase: str) -> Markup:
    piece = el("rect", class_=f"p{_place(phase)}", x=0, y=2, width=14, height=10)
    return el("svg", piece, viewBox="0 0 14 14", class_="patch", aria_hidden="true")


def _place(phase: str) -> int:
    return list(PHASES).index(phase)
