"""The loop's benchmark: figures of runs with known outcomes, and what is said of an arm beside ours."""

from __future__ import annotations

import numpy as np

from benchmarks.loop import arm_rows, differences, points, told
from benchmarks.loop_figures import CLAIMED, MEASURES, claim_holds, figure, standing
from benchmarks.loop_pace import pace_rows, pace_table, spent_by


def run(violating: int, refused: int, seconds: float = 60.0, seed: int = 0) -> dict:
    """100 twins of held-out attacks and 100 of harmless questions; so many of them go wrong, in both halves."""
    rows = [
        {"pair": f"{suite}-{i}", "suite": suite, "outcome": wrong if i < num else "consistent"}
        for suite, num, wrong in (("held_out", violating, "violating"), ("benign", refused, "refusal"))
        for i in range(100)
        for _ in ("zh", "en")
    ]
    work = {"seconds": {"attack": seconds / 3, "answer": seconds / 3, "critique": seconds / 3, "measure": 1000.0}}
    return {"seed": seed, "outcomes": rows, "stages": [{"round": {"num_pairs": 30, "coverage": 0.9, "work": work}}]}


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


def test_what_a_start_has_of_its_own_cancels_in_the_difference():
    """Seeds of 10 and 50 % lie far apart, and an arm that has 10 points more in both has them almost for certain."""
    ours = [run(10, 0, seed=0), run(50, 0, seed=1)]
    theirs = [run(60, 0, seed=1), run(20, 0, seed=0)]
    found = differences(ours, theirs)["attack success"]

    assert abs(found.value - 0.1) < 1e-9 and found.low > 0.03 and found.high < 0.17
    assert standing(figures(*ours), figures(*theirs))["attack success"] != "ours", "the intervals overlap"
    assert points(found).startswith("**+10.0 (")


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
    """An arm that was not run has a row that says so."""
    arms = {"ours": [run(0, 5)], "static": [run(4, 5)]} | dict.fromkeys(
        ("no-benign", "approved-only", "pointwise", "shared", "trl"), []
    )
    rows = {(row["name"], row["peer_name"]): row for row in arm_rows(arms)}

    assert (rows["attack success", "static"]["ours"], rows["attack success", "static"]["peer"]) == (0.0, 0.04)
    assert rows["attack success", "static"]["ratio"] is None
    assert rows["over-refusal", "trl"]["peer"] is None and rows["over-refusal", "trl"]["ours"] == 0.05


def test_the_judges_measurements_are_nobodys_throughput():
    """30 pairs in the minute that was worked; TRL made 20 in 30 s of attacks and 90 of its own."""
    trl = {"seed": 0, "attack_seconds": 30.0, "trl": {"seconds": 90.0, "critic_seconds": 10.0, "approved": 20}}
    ours = run(0, 5)
    alone = run(0, 5, seconds=1.0, seed=1)
    rows = {row["name"]: row for row in pace_rows({"ours": [alone, ours], "trl": [trl]})}

    assert (rows["approved pairs a minute"]["ours"], rows["approved pairs a minute"]["peer"]) == (30, 10)
    assert rows["approved pairs a minute"]["ratio"] == 3
    assert spent_by(trl) == {"attacker": 30, "answers and training": 80, "critic": 10}
    assert pace_table({"ours": [ours], "trl": []}).count("\n") == 2
