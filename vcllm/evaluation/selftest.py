"""The judge's self-test: authored pairs of a good and a bad answer, which any judge must tell apart.

It needs no people and shows little: a judge that fails it measures nothing, one that passes may still be wrong on
harder answers. Only labels by people show that, see `calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from vcllm.contracts.answers import Answer, Decoding, Verdict, answer_key
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row, SelfTestPair, domain_of
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.figures import SelfTest
from vcllm.evaluation.judging.judge import Case
from vcllm.evaluation.observations import Observation, share

MIN_ORDERED = 0.95
"""Pairs in which the good answer must score higher, in each language."""
GOOD, BAD = "good", "bad"


def selftest_cases(pairs: Sequence[SelfTestPair]) -> list[Case]:
    """Both answers of each pair in both languages, as if two models had written them."""
    cases = []
    for pair in pairs:
        rows = {language: _row(pair, language) for language in Language}
        for language in Language:
            other = Language.EN if language is Language.ZH else Language.ZH
            for model, text in ((GOOD, pair[language].good), (BAD, pair[language].bad)):
                cases.append(Case(rows[language], _answer(rows[language], model, text), rows[other]))
    return cases


def selftest_result(pairs: Sequence[SelfTestPair], verdicts: Sequence[Verdict]) -> SelfTest:
    """How often the good answer scores higher, or gets the higher reward; a tie or an unscored answer is a failure."""
    scores = {(one.item, one.model): one.reward if one.score is None else one.score for one in verdicts}
    by_language: dict[Language, list[Observation]] = {language: [] for language in Language}
    by_fault: dict[str, list[Observation]] = {}
    num_unscored = 0
    for pair in pairs:
        for language in Language:
            id = f"{pair.id}-{language}"
            good, bad = scores.get((id, GOOD)), scores.get((id, BAD))
            num_unscored += (good is None) + (bad is None)
            ordered = good is not None and bad is not None and good > bad
            observation = Observation(id, pair.id, float(ordered), language)
            by_language[language].append(observation)
            by_fault.setdefault(pair.fault, []).append(observation)
    zh, en = share(by_language[Language.ZH]), share(by_language[Language.EN])
    return SelfTest(
        zh=zh,
        en=en,
        num_unscored=num_unscored,
        passed=_reaches(zh) and _reaches(en),
        by_fault={fault: share(observations) for fault, observations in sorted(by_fault.items())},
    )


def _reaches(measure: Measure) -> bool:
    return measure.value is not None and measure.value >= MIN_ORDERED


def _row(pair: SelfTestPair, language: Language) -> Row:
    half = pair[language]
    return Row(
        id=f"{pair.id}-{language}",
        pair_id=pair.id,
        cluster_id=pair.id,
        lang=language,
        domain=domain_of(pair.subdomain),
        subdomain=pair.subdomain,
        kind="selftest",
        stance_type=pair.stance_type,
        prompt=[half.prompt],
        expected=pair.expected,
        reference_stance=half.stance,
        must=half.must,
        must_not=half.must_not,
        principles=list(pair.principles),
        origin="selftest",
    )


def _answer(row: Row, model: str, text: str) -> Answer:
    key = answer_key(row, model, Decoding())
    return Answer(key=key, item=row.id, model=model, texts=[text], finish=["stop"], created=datetime.now(UTC))
