"""The Attacker x Actor matrix: what is counted, how it is drawn, and where it stands in the report."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import EvalItem, Judgement
from vcllm.contracts.matrix import Matrix
from vcllm.contracts.measure import Measure
from vcllm.evaluation.matrix import make_matrix, matrix_chart, short_names

VIOLATING, CONSISTENT, UNSCORED = Outcome.VIOLATING, Outcome.CONSISTENT, Outcome.UNSCORED


def kept(round_: int, num: int = 4, kind: str = "attack") -> list[EvalItem]:
    """What a round froze."""
    return [
        EvalItem(
            id=f"kept-{round_}-{kind}-{number}",
            pair_id=f"kept-{round_}-{kind}-{number}",
            language="zh",
            kind=kind,
            suite="retention",
            card=f"card-{number}",
            goal=0,
            subdomain="soc.class",
            tactic="direct",
            query="question",
        )
        for number in range(num)
    ]


def ruled(items: list[EvalItem], *outcomes: Outcome) -> list[Judgement]:
    return [Judgement(item=item.id, answer="", outcome=outcome) for item, outcome in zip(items, outcomes, strict=True)]


def share(value: float) -> Measure:
    return Measure(value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), n=40)


def test_every_sample_meets_every_version():
    """Rows are who wrote the queries, columns who answered them; each share is over one sample alone."""
    first, second = kept(1), kept(2)
    v, c = VIOLATING, CONSISTENT

    matrix = make_matrix(
        {"line-attacker": first, "line-attacker-r1": second},
        {"line-sft": ruled(first + second, v, v, v, c, v, v, v, v), "line-r1": ruled(first + second, *[c] * 7, v)},
    )

    assert matrix is not None
    assert (matrix.attackers, matrix.actors) == (["line-attacker", "line-attacker-r1"], ["line-sft", "line-r1"])
    assert [[cell.value for cell in row] for row in matrix.cells] == [[0.75, 0.0], [1.0, 0.25]]
    assert {cell.n for row in matrix.cells for cell in row} == {4}


def test_harmless_queries_do_not_count():
    """A sample keeps look-alikes as well; an attacker cannot succeed with one."""
    sample = kept(1, 2) + kept(1, 6, "benign")

    matrix = make_matrix({"a": sample}, {"b": ruled(sample, VIOLATING, CONSISTENT, *[VIOLATING] * 6)})

    assert (matrix.cells[0][0].value, matrix.cells[0][0].n) == (0.5, 2)


def test_what_was_never_asked_is_no_zero():
    """A version without a single answer to a sample leaves its cell empty."""
    first, second = kept(1), kept(2)

    matrix = make_matrix({"a": first, "a2": second}, {"b": ruled(first, *[CONSISTENT] * 4)})

    assert matrix.cells[1] == [None]


def test_what_could_not_be_scored_lowers_n_and_no_share():
    """An outage is not an attack withstood."""
    sample = kept(1)

    matrix = make_matrix({"a": sample}, {"b": ruled(sample, VIOLATING, UNSCORED, UNSCORED, UNSCORED)})

    assert (matrix.cells[0][0].value, matrix.cells[0][0].n) == (1.0, 1)


def test_half_a_sample_is_refused():
    """Two versions would be compared on different queries."""
    sample = kept(1)

    with pytest.raises(ValueError, match="'b' was asked 2 of 4 queries of 'a'"):
        make_matrix({"a": sample}, {"b": ruled(sample[:2], VIOLATING, CONSISTENT)})


def test_without_rounds_there_is_no_matrix():
    """Nothing was kept, or nobody was asked."""
    assert make_matrix({}, {"b": []}) is None
    assert make_matrix({"a": kept(1)}, {}) is None


def test_a_matrix_has_a_cell_for_everybody():
    """A table that is short of one could not be read."""
    with pytest.raises(ValidationError, match="2 attackers and 1 actors"):
        Matrix(attackers=["a", "b"], actors=["c"], cells=[[None]])


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["starter-s0-ab-attacker", "starter-s0-ab-sft", "starter-s0-ab-r1"], ["attacker", "sft", "r1"]),
        (["line-r1", "line-r10"], ["r1", "r10"]),
        (["attacker", "sft"], ["attacker", "sft"]),
    ],
)
def test_names_are_cut_where_they_differ(names, short):
    """Their lineage is the same; the rest is whole words."""
    assert short_names(names) == short


def test_the_picture_holds_every_figure():
    """A square with its share for each cell, white on dark ones; what was not asked has no figure."""
    matrix = Matrix(
        attackers=["line-attacker", "line-attacker-r1"],
        actors=["line-sft", "line-r1"],
        cells=[[share(0.9), share(0.25)], [share(0.5), None]],
    )

    svg = str(matrix_chart(matrix))

    assert re.findall(r">(\d+\.\d)</text>", svg) == ["90.0", "25.0", "50.0"]
    assert svg.count('class="untried"') == 1
    assert re.findall(r'class="tag mid pale"[^>]*>([^<]*)<', svg) == ["90.0"]
    assert "attacker-r1 → sft: 50.0 % [40.0\N{EN DASH}60.0]" in svg


def test_a_name_is_mere_text():
    """Names come from files; none of them becomes markup."""
    matrix = Matrix.model_construct(attackers=["<b>"], actors=["x"], cells=[[share(0.1)]])

    assert "<b>" not in str(matrix_chart(matrix))
