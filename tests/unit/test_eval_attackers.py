"""How varied a round's attacks are, in numbers that a collapse cannot hide from."""

from __future__ import annotations

import pytest

from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row
from vcllm.evaluation.attackers import attacker_figures, self_bleu
from vcllm.evaluation.figures import FRESH


def attack(number: int, text: str, subdomain: str = "race.color", round_: str = "1") -> Row:
    return Row(
        id=f"fresh-{number}",
        pair_id=f"fresh-{number}",
        cluster_id=f"fresh-{number}",
        lang=Language.EN,
        domain="race",
        subdomain=subdomain,
        kind=FRESH,
        attack_style="direct",
        prompt=[text],
        meta={"round": round_},
        origin="round-1",
    )


def test_repeating_one_attack_is_as_alike_as_can_be():
    """Self-BLEU of copies is one."""
    assert self_bleu([["is", "this", "so", "or", "not"]] * 5) == pytest.approx(1)


def test_attacks_without_a_common_word_are_not_alike():
    """Nothing is shared, not even single words."""
    assert self_bleu([list("abcde"), list("fghij")]) == 0


def test_self_bleu_agrees_with_a_value_by_hand():
    """Two texts of four words that share three: (3/4 * 3/4 * 2/3 * 1/2) ** (1/4), add-one smoothed above words."""
    assert self_bleu([list("abcd"), list("abce")]) == pytest.approx((3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_one_text_alone_has_no_self_bleu():
    """There is nothing to compare it with."""
    assert self_bleu([["one"]]) is None


def test_rounds_are_told_apart_with_coverage_and_evenness():
    """The second round tries two cells equally, the first only one."""
    rows = [attack(1, "a b c d"), attack(2, "e f g h", round_="2"), attack(3, "i j k l", "soc.class", round_="2")]

    figures = attacker_figures(rows, num_cells=4)

    assert [figures[number]["coverage"] for number in ("1", "2")] == [0.25, 0.5]
    assert [figures[number]["evenness"] for number in ("1", "2")] == [0, pytest.approx(1)]
    assert [figures[number]["num"] for number in ("1", "2")] == [1, 2]


def test_the_tenth_round_comes_after_the_ninth():
    """Rounds are numbers that are written as text."""
    rows = [attack(number, "a b", round_=str(number)) for number in (10, 9, 1)]

    assert list(attacker_figures(rows, num_cells=4)) == ["1", "9", "10"]
