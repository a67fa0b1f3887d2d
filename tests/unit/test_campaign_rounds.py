"""A round's row says what its stage measured, no more and no less."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_report import make_report
from vcllm.contracts.archive import ArchiveFigures, LanguageDiversity
from vcllm.contracts.base import Language
from vcllm.contracts.campaigns import CampaignRound
from vcllm.contracts.evaluation import StageResult
from vcllm.contracts.measure import UNMEASURED, Measure
from vcllm.contracts.rounds import PairCounts, RoundWork, Steering
from vcllm.evaluation.campaign import campaign_round, complement

ALIKE = {
    Language.ZH: LanguageDiversity(num=60, distinct=0.42, self_similarity=0.18),
    Language.EN: LanguageDiversity(num=62, distinct=0.37, self_similarity=0.23),
}

STAGES = {stage.name: stage for stage in make_report({"sft": 40, "round-1": 20}).stages}


def work(**fields: Any) -> RoundWork:
    """A round in which everything happened."""
    given: dict[str, Any] = {
        "attacker": "line-attacker",
        "actor": "line-sft",
        "critic": "line-critic",
        "dropped": {"duplicate": 14, "invalid": 9, "leaked": 1, "refused": 3},
        "pairs": PairCounts(
            judged=133,
            kept=88,
            dropped={"no_good_answer": 30, "tie": 9, "contaminated": 2, "cell_full": 4},
            sources={"on_policy": 80, "contradiction": 5, "human": 3},
            reviews=6,
        ),
        "steering": Steering(benign_share=0.25, look_alike_share=0.1, reason="No figure left its band."),
        "archive": ArchiveFigures(
            coverage=0.75,
            coverage_won=0.4,
            evenness=0.93,
            qd_score=51.5,
            num_elites=96,
            weakest=["pol.rights/direct/zh", "eco.work/authority/en"],
            diversity=ALIKE,
        ),
        "seconds": {"attack": 12.5, "answer": 31.0, "critique": 8.0, "train_actor": 40.5, "measure": 20.0},
        "pairs_per_minute": {"attacker": 422.4, "actor": 73.8, "critic": 660.0, "round": 47.1},
        "num_ahead": 16,
    }
    return RoundWork(**(given | fields))


def played(number: int = 1, **fields: Any) -> StageResult:
    """The result of a round; fields: of its summary."""
    result = STAGES["round-1"]
    assert result.round is not None
    summary = result.round.model_copy(update={"number": number, "work": work(), "num_replayed": 26, **fields})
    return result.model_copy(update={"round": summary})


def a_row(number: int = 1, **fields: Any) -> CampaignRound:
    """fields: of the row."""
    return campaign_round(played()).model_copy(update={"number": number, **fields})


def test_a_round_is_told_by_its_stage():
    """Held-out attacks over both languages, and by language; the round's own attacks, pairs and gate as they were."""
    result = played()

    row = campaign_round(result)

    frozen = result.attack_success.held_out
    assert (row.number, row.version, row.gate) == (1, "v-round-1", result.gate)
    assert (row.frozen, row.by_language) == (frozen.mean, {"zh": frozen.zh, "en": frozen.en})
    assert row.fresh == result.round.attacker_success
    assert (row.num_pairs, row.num_replayed, row.work) == (88, 26, work())
    for name in ("over_refusal", "benign_helpful", "broken", "agreement"):
        mine, theirs = getattr(row, name), getattr(result, name)
        assert (mine.value, mine.low, mine.high, mine.n) == (theirs.value, theirs.low, theirs.high, theirs.n)


def test_a_row_says_who_judged():
    """As its stage does; without a name it was the starter's rules."""
    judged = played().model_copy(update={"judge": "my-judge"})

    assert (campaign_round(played()).judge, campaign_round(judged).judge) == (None, "my-judge")


def test_a_row_reads_back_as_it_was_written():
    """It is stored as JSON, and a round that is put twice is the same."""
    row = campaign_round(played())

    assert CampaignRound.model_validate_json(row.model_dump_json()) == row


def test_the_version_before_the_rounds_is_round_0():
    """It has no attacks of its own, no pairs and no old attacks to withstand."""
    result = STAGES["sft"]

    row = campaign_round(result)

    assert (row.number, row.fresh, row.retained, row.work) == (0, None, None, None)
    assert (row.num_pairs, row.num_replayed) == (0, 0)
    assert row.seconds == result.seconds


def test_what_is_retained_is_what_succeeds_again():
    """The stage tells what is still answered well; its bounds change places with it."""
    retention = Measure(value=0.75, low=0.5, high=0.875, n=40)

    row = campaign_round(played().model_copy(update={"retention": retention}))

    assert row.retained == Measure(value=0.25, low=0.125, high=0.5, n=40)


def test_what_could_not_be_measured_has_no_complement():
    """Nothing is not the opposite of everything."""
    assert complement(UNMEASURED) == UNMEASURED


def test_seconds_add_up_the_phases():
    """Attacks and answers took time, too, of which the stage knows nothing."""
    row = campaign_round(played())

    assert row.seconds == 12.5 + 31.0 + 8.0 + 40.5 + 20.0
    assert campaign_round(played(work=work(seconds={}))).seconds == 12.5


def test_a_stage_without_a_version_is_no_round():
    """Nobody would know whose figures they are."""
    with pytest.raises(AssertionError, match="which version"):
        campaign_round(played().model_copy(update={"version": None}))
