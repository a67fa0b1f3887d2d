"""The Attacker x Actor matrix: kept queries of every round, asked of every version, as figures and as a heat map.

Read down a column for what a version withstands, along a row for how an attack ages: a row that grows dark again to
the right is an old attack that came back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import EvalItem, Judgement
from vcllm.contracts.matrix import Matrix
from vcllm.contracts.measure import Measure
from vcllm.evaluation.measures import attack_success
from vcllm.evaluation.plot import shade, told
from vcllm.evaluation.svg import drawing, el, words
from vcllm.evaluation.wording import percent

CELL_WIDTH, CELL_HEIGHT = 56.0, 30.0
TOP = 44.0
PER_LETTER = 6.6
"""Room for a letter of a name."""
DARK = 7
"""From this step of the colour scale on, figures in a cell are white."""
LABEL = Bilingual(
    en="Attack success of each Attacker version against each Actor version", zh="各版攻击方对各版应答方的攻击成功率"
)


def make_matrix(
    samples: Mapping[str, Sequence[EvalItem]], judgements: Mapping[str, Sequence[Judgement]]
) -> Matrix | None:
    """Attack success of every sample of kept queries against every version of the Actor; harmless ones do not count.

    samples: Attacker version to the queries frozen after its round, oldest first. judgements: Actor version to what
    the report's judge ruled, oldest first; rulings on other items may be among them. None without samples or versions.
    ValueError where a version was asked only a part of a sample.
    """
    if not samples or not judgements:
        return None
    attacks = {attacker: [item for item in items if item.kind == "attack"] for attacker, items in samples.items()}
    rulings = {actor: {ruling.item: ruling for ruling in some} for actor, some in judgements.items()}
    return Matrix(
        attackers=list(samples),
        actors=list(judgements),
        cells=[
            [_cell(attacker, items, actor, known) for actor, known in rulings.items()]
            for attacker, items in attacks.items()
        ],
    )


def _cell(attacker: str, items: Sequence[EvalItem], actor: str, rulings: Mapping[str, Judgement]) -> Measure | None:
    asked = [item for item in items if item.id in rulings]
    if not asked:
        return None
    if len(asked) < len(items):
        raise ValueError(
            f"'{actor}' was asked {len(asked)} of {len(items)} queries of '{attacker}': ask it all of them, or none"
        )
    return attack_success(items, [rulings[item.id] for item in items])


def short_names(names: Sequence[str]) -> list[str]:
    """Without what all of them begin with up to a hyphen, such as their lineage."""
    first, last = min(names), max(names)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(min(first, last)))
    cut = first.rfind("-", 0, common) + 1
    return [name[cut:] for name in names]


def matrix_chart(matrix: Matrix) -> Markup:
    """Attackers down, Actors across; each cell shaded by its share, with the share in it in per cent."""
    names = short_names([*matrix.attackers, *matrix.actors])
    attackers, actors = names[: len(matrix.attackers)], names[len(matrix.attackers) :]
    left = max(70.0, PER_LETTER * max(map(len, attackers)) + 16)
    width = max(CELL_WIDTH, PER_LETTER * max(map(len, actors)) + 12)
    parts = [
        words(Bilingual(en="Attacker", zh="攻击方"), class_="tick end", x=left - 10, y=TOP - 10),
        words(Bilingual(en="Actor", zh="应答方"), class_="tick", x=left + 2, y=14),
    ]
    for column, name in enumerate(actors):
        parts.append(el("text", name, class_="tag mid", x=left + width * (column + 0.5), y=TOP - 10))
    for row, name in enumerate(attackers):
        y = TOP + CELL_HEIGHT * row
        parts.append(el("text", name, class_="tag end", x=left - 10, y=y + CELL_HEIGHT / 2 + 4))
        for column, measure in enumerate(matrix.cells[row]):
            x, versus = left + width * column, f"{name} → {actors[column]}"
            parts.append(_square(measure, versus, x, y, width))
    room = max(300.0, left + width * len(actors) + 4)
    return drawing(room, TOP + CELL_HEIGHT * len(attackers) + 4, *parts, label=LABEL)


def _square(measure: Measure | None, versus: str, x: float, y: float, width: float) -> Markup:
    place = {"x": x + 1, "y": y + 1, "width": width - 2, "height": CELL_HEIGHT - 2}
    if measure is None or measure.value is None:
        return el("rect", class_="untried", **place)
    step = shade(measure.value)
    look = "tag mid pale" if step >= DARK else "tag mid"
    figure = el("text", percent(measure.value), class_=look, x=x + width / 2, y=y + CELL_HEIGHT / 2 + 4)
    return el("g", el("title", f"{versus}: {told(measure)}"), el("rect", class_=f"h{step}", **place), figure)
