"""Sets are mixed by their shares, each row before any row again, in an order that the seed decides."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from vcllm.data.mixture import mixed, shares
from vcllm.data.spool import Spool


def numbered(name: str, size: int) -> list[dict[str, Any]]:
    return [{"text": f"{name}{number}"} for number in range(size)]


def drawn(sizes: list[int], weights: list[float], seed: int = 0) -> list[str]:
    sets = [numbered(name, size) for name, size in zip("abc", sizes, strict=False)]
    return [row["text"] for row in mixed(sets, weights, seed)]


def test_weights_are_shares_of_a_pass_whatever_the_sizes():
    """Two to one: a small set of twice the weight gives twice the rows."""
    assert Counter(text[0] for text in drawn([30, 60], [2.0, 1.0])) == {"a": 60, "b": 30}


def test_a_row_is_repeated_only_when_its_set_is_exhausted():
    """25 draws of 10 rows: every row twice, five of them a third time."""
    counts = Counter(text for text in drawn([10, 15], [1e6, 1e-9]) if text[0] == "a")

    assert sorted(counts.values()) == [2] * 5 + [3] * 5


def test_a_set_that_gives_less_than_it_has_gives_no_row_twice():
    """Drawn without replacement."""
    given = [text for text in drawn([10, 90], [1.0, 3.0]) if text[0] == "b"]

    assert len(given) == len(set(given)) == 75


def test_one_set_alone_comes_whole():
    """Every row once, shuffled."""
    rows = drawn([50], [3.0])

    assert sorted(rows) == sorted(row["text"] for row in numbered("a", 50))
    assert rows != [row["text"] for row in numbered("a", 50)]


def test_the_order_is_decided_by_the_seed():
    """And by nothing else."""
    assert drawn([20, 30], [1.0, 2.0], seed=7) == drawn([20, 30], [1.0, 2.0], seed=7)
    assert drawn([20, 30], [1.0, 2.0], seed=7) != drawn([20, 30], [1.0, 2.0], seed=8)


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [([1, 1, 1], [1, 1, 1], [1, 1, 1]), ([3, 3, 4], [1, 1, 1], [4, 3, 3]), ([0, 10], [5, 1], [0, 10]), ([0], [1], [0])],
)
def test_shares_add_up_to_all_rows(sizes: list[int], weights: list[float], expected: list[int]):
    """Fractions go to the largest remainders, an empty set's share to the others."""
    assert shares(sizes, weights) == expected


def test_sets_stay_on_the_disk(tmp_path: Path):
    """A spool gives any row by number, and leaves no file behind."""
    with Spool(tmp_path) as spool:
        spool.extend(iter(numbered("a", 100)))
        rows = list(islice(mixed([spool], [1.0], 0), 5))

        assert spool[99] == {"text": "a99"}
        assert rows == [{"text": text} for text in drawn([100], [1.0])[:5]]
    assert list(tmp_path.iterdir()) == []
