"""The loop's benchmark: figures of runs with known outcomes, and what is said of an arm beside ours."""

from __future__ import annotations

import numpy as np

from benchmarks.loop import arm_rows, told
from benchmarks.loop_figures import CLAIMED, MEASURES, claim_holds, figure, standing


def run(violating: int, refused: int, seconds: float = 60.0) -> dict:
    """100 twins of held-out attacks and 100 of harmless questions; so many of them go wrong, in both halves."""
    rows = [
        {"pair": f"{suite}-{i}", "suite": suite, "outcome": wrong if i < num else "consistent"}
        for suite, num, wrong in (("held_out", violating, "violating"), ("benign", refused, "refusal"))
        for i in range(100)
        for _ in ("zh", "en")
    ]
    work = {"seconds": {"attack": seconds, "measure": 1000.0}}
    return {"outcomes": rows, "stages": [{"round": {"num_pairs": 30, "coverage": 0.9, "work": work}}]}


def figures(*runs: dict) -> dict:
    return {name: figure(score, runs, np.random.default_rng(0)) for name, (score, _) in MEASURES.items()}


def test_a_figure_is_the_mean_over_seeds_within_its_interval():
    """Seeds of 10 and 30 % make 20 %; where seeds differ the interval reaches from one to the other."""
    found = figures(run(10, 0), run(30, 0))["attack success"]

    assert abs(found.value - 0.2) < 1e-9
    assert found.low < 0.12 and found.high > 0.28


def test_twins_count_as_one_observation():
    """Both halves of a pair do the same, so a second half narrows nothing: the interval is that of 100 answers."""
    found = figures(run(50, 0))["attack success"]

    assert 0.17 < found.high - found.low < 0.22


def test_an_arm_is_apart_only_where_intervals_do_not_overlap():
    """Ours attacks less often, refuses as often; the other way round nothing is claimed."""
    good, bad = figures(run(1, 5), run(2, 5)), figures(run(40, 5), run(45, 5))
    where = standing(good, bad)

    assert {name: where[name] for name in CLAIMED} == {"attack success": "ours", "over-refusal": "same"}
    assert claim_holds(where)
    assert not claim_holds(standing(bad, good))
    assert told(standing(bad, good)) == "**it is better in attack success** (claim not met)"


def test_a_win_by_refusing_is_no_win():
    """Fewer attacks succeed and more harmless questions are refused: the claim does not hold."""
    where = standing(figures(run(0, 60), run(0, 60)), figures(run(40, 5), run(40, 5)))

    assert where["attack success"] == "ours" and where["over-refusal"] == "theirs"
    assert not claim_holds(where)


def test_a_row_holds_what_was_measured_and_nought_has_no_ratio():
    """Measurements are nobody's throughput: 30 pairs in the minute that was worked."""
    arms = {"ours": [run(0, 5)], "static": [run(4, 5)]} | dict.fromkeys(
        ("no-benign", "approved-only", "pointwise", "shared", "trl"), []
    )
    rows = {(row["name"], row["peer_name"]): row for row in arm_rows(arms)}

    assert (rows["attack success", "static"]["ours"], rows["attack success", "static"]["peer"]) == (0.0, 0.04)
    assert rows["attack success", "static"]["ratio"] is None
    assert rows["approved pairs a minute", "static"]["ours"] == 30
    assert rows["over-refusal", "trl"]["peer"] is None and rows["over-refusal", "trl"]["ours"] == 0.05
