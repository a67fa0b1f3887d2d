"""A round's row of the campaign's table, from what its stage measured.

Pure. Does not know where rows are kept, nor how they are shown.
"""

from __future__ import annotations

from vcllm.contracts.base import Language
from vcllm.contracts.campaigns import CampaignRound
from vcllm.contracts.evaluation import StageResult
from vcllm.contracts.measure import Measure


def campaign_round(result: StageResult) -> CampaignRound:
    """result: of `round-N`, or of the version before the first round, which is round 0 and has no attacks of its own.

    `seconds` add up the phases of the round, of which some ran side by side; without phases it is the stage's time.
    """
    assert result.version is not None, f"stage '{result.name}' says nothing of which version it measured"
    played = result.round
    work = played.work if played is not None else None
    frozen = result.attack_success.held_out
    return CampaignRound(
        number=played.number if played is not None else 0,
        version=result.version,
        gate=result.gate,
        fresh=played.attacker_success if played is not None else None,
        frozen=_plain(frozen.mean),
        retained=None if result.retention is None else complement(result.retention),
        over_refusal=_plain(result.over_refusal),
        benign_helpful=_plain(result.benign_helpful),
        agreement=_plain(result.agreement),
        broken=_plain(result.broken),
        by_language={language: _plain(frozen[language]) for language in Language},
        num_pairs=(played.num_pairs or 0) if played is not None else 0,
        num_replayed=(played.num_replayed or 0) if played is not None else 0,
        seconds=round(sum(work.seconds.values()), 1) if work is not None and work.seconds else result.seconds,
        judge=result.judge,
        work=work,
    )


def complement(measure: Measure) -> Measure:
    """The share of the others: retention tells what is still answered well, the table what succeeds again."""
    if measure.value is None or measure.low is None or measure.high is None:
        return _plain(measure)
    return Measure(value=1 - measure.value, low=1 - measure.high, high=1 - measure.low, n=measure.n)


def _plain(measure: Measure) -> Measure:
    """Without its languages."""
    return Measure(value=measure.value, low=measure.low, high=measure.high, n=measure.n)
