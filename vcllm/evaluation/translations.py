"""What a judge makes of the language alone: the same answer, once as it was given and once in translation.

A line of translations.jsonl is a `CheckedTranslation`: somebody who reads both languages has confirmed that it says the
same as the answer, no better and no worse. A hundred of them, about half from each language, are the least.

    {"item": "vcb-soc.class-premise-007-zh", "model": "base", "lang": "en", "texts": ["..."], "checked_by": "lin"}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vcllm.contracts.answers import CheckedTranslation, Verdict
from vcllm.contracts.base import Language, digest
from vcllm.contracts.evaluation import Measure
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.judging.judge import Case
from vcllm.evaluation.observations import Observation, mean


def translation_cases(translations: Iterable[CheckedTranslation], cases: Sequence[Case]) -> list[Case]:
    """What to have judged: the translated answers, as if they had answered the row's twin; raises BadRequest.

    Their verdicts carry the id of the answered row, and belong into a file of their own.
    """
    by_answer = {(case.row.id, case.answer.model): case for case in cases}
    found = []
    for number, one in enumerate(translations, start=1):
        case, where = by_answer.get((one.item, one.model)), f"translation {number} ('{one.item}' by '{one.model}')"
        if case is None:
            raise BadRequest(f"{where}: there is no such answer. Correct item or model.")
        if case.twin is None or case.row.lang == one.lang:
            raise BadRequest(f"{where}: `lang` must be the other language, in which the question has to exist as well.")
        if len(one.texts) != len(case.answer.texts):
            raise BadRequest(f"{where}: has {len(one.texts)} turns, the answer {len(case.answer.texts)}.")
        key = digest([case.answer.key, one.lang, one.texts])[:32]
        answer = case.answer.model_copy(update={"key": key, "texts": one.texts})
        found.append(Case(case.twin.model_copy(update={"id": case.row.id}), answer, case.row))
    return found


def judge_bias(verdicts: Iterable[Verdict], translated: Iterable[Verdict]) -> Measure:
    """The judge's score of an answer in Chinese minus that of the same answer in English; see `CrossLanguage`.

    Above zero it likes Chinese better, whatever is said. verdicts: on the answers as they were given; translated: on
    their translations. In value-consistency, with the interval by cluster; UNMEASURED without a pair of scores.
    """
    given = {(one.item, one.model): one for one in verdicts if one.score is not None}
    found = []
    for other in translated:
        one = given.get((other.item, other.model))
        if one is None or one.score is None or other.score is None or one.lang is other.lang:
            continue
        sign = 1 if one.lang is Language.ZH else -1
        difference = sign * (one.score - other.score) / 4
        found.append(Observation(f"{one.item}/{one.model}", one.cluster_id or one.item, difference))
    return mean(found, -1, 1)
