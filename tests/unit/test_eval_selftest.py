"""The self-test tells a judge that reads from one that does not."""

import pytest

from tests.judge_scripts import case, charter, endpoint, is_lettered, labelled, row, run, verdict
from vcllm.contracts.answers import Verdict
from vcllm.contracts.bench import SelfTestPair
from vcllm.contracts.critiques import Outcome
from vcllm.evaluation.judging.judge import Case
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.stage import judge_answers
from vcllm.evaluation.selftest import BAD, GOOD, selftest_cases, selftest_result

FAULTS = ("stereotype", "one_sided", "wrong_fact", "preachy_refusal", "accepts_premise")


def pairs(num: int = 20) -> list[SelfTestPair]:
    """Good and bad answers of the same length in every second pair, so that length alone orders half of them."""
    return [_pair(number) for number in range(num)]


def _pair(number: int) -> SelfTestPair:
    filler = "" if number % 2 else " and more of it, at length"
    zh = {
        "prompt": "问题",
        "stance": "立场",
        "must": ["应当"],
        "must_not": ["不应"],
        "good": "公允的回答",
        "bad": "偏颇的回答很长很长",
    }
    en = {"prompt": "a question", "stance": "a stance", "must": ["be fair"], "must_not": ["be unfair"]}
    en |= {"good": f"a fair answer{filler}", "bad": f"a slanted answer{'' if filler else ' and more of it'}"}
    return SelfTestPair.model_validate(
        {
            "id": f"soc.class-selftest-{number + 1:03d}",
            "stance_type": "consensus",
            "expected": "answer",
            "fault": FAULTS[number % 5],
            "principles": ["dignity"],
            "zh": zh,
            "en": en,
        }
    )


def verdicts(cases: list[Case], score) -> list[Verdict]:
    """What a judge says that scores an answer by its text."""
    return [verdict(one, score(one.answer.texts[0])) for one in cases]


def fair(text: str) -> float:
    return 5.0 if "fair" in text or "公允" in text else 1.5


def test_every_answer_stands_in_both_languages_with_its_own_rubric():
    """As if two models had answered; the twin is there for judges that read one language only."""
    cases = selftest_cases(pairs(1))

    assert [(one.row.lang, one.answer.model) for one in cases] == [
        ("zh", GOOD),
        ("zh", BAD),
        ("en", GOOD),
        ("en", BAD),
    ]
    assert cases[0].row.reference_stance == "立场" and cases[2].row.must == ["be fair"]
    assert all(one.twin is not None and one.twin.lang != one.row.lang for one in cases)
    assert cases[0].row.cluster_id == cases[3].row.cluster_id
    assert len({one.answer.key for one in cases}) == 4


def test_a_judge_that_reads_passes():
    """All pairs in both languages, by every fault."""
    result = selftest_result(pairs(), verdicts(selftest_cases(pairs()), fair))

    assert result.passed
    assert (result.zh.value, result.en.value, result.zh.n) == (1.0, 1.0, 20)
    assert set(result.by_fault) == set(FAULTS)


def test_a_judge_by_length_fails():
    """It orders half of the English pairs and none of the Chinese ones."""
    result = selftest_result(pairs(), verdicts(selftest_cases(pairs()), lambda text: min(5.0, 1 + len(text) / 20)))

    assert not result.passed
    assert (result.zh.value, result.en.value) == (0.0, 0.5)


def test_one_language_below_the_limit_is_enough_to_fail():
    """Two of twenty wrong in English: 0.9."""
    cases = selftest_cases(pairs())
    wrong = {"soc.class-selftest-001-en", "soc.class-selftest-002-en"}
    found = [verdict(one, 3.0 if one.row.id in wrong else fair(one.answer.texts[0])) for one in cases]
    result = selftest_result(pairs(), found)

    assert (result.zh.value, result.en.value, result.passed) == (1.0, 0.9, False)


def test_a_tie_is_a_failure():
    """A judge that gives everything the same score has ordered nothing."""
    result = selftest_result(pairs(), verdicts(selftest_cases(pairs()), lambda text: 4.0))

    assert (result.zh.value, result.en.value, result.passed) == (0.0, 0.0, False)


def test_an_unscored_answer_is_a_failure():
    """Also where it is the bad one, and also where there is no verdict at all."""
    found = [
        verdict(one, None if one.answer.model == BAD else 5.0)
        for one in selftest_cases(pairs())
        if one.row.lang == "en"
    ]
    result = selftest_result(pairs(), found)

    assert (result.en.value, result.zh.value, result.passed) == (0.0, 0.0, False)
    assert result.num_unscored == 20 + 40


def test_nothing_tested_is_nothing_passed():
    """A set without pairs validates nobody."""
    assert not selftest_result([], []).passed


def test_a_reward_orders_answers_too():
    """It has no score, and is only ever compared."""
    cases = selftest_cases(pairs())
    found = [verdict(one, outcome=Outcome.UNSCORED, reward=fair(one.answer.texts[0]) - 10) for one in cases]

    assert selftest_result(pairs(), found).passed


@pytest.mark.parametrize(("reads", "passed"), [(True, True), (False, False)])
def test_a_scripted_judge_takes_the_test_from_end_to_end(tmp_path, reads, passed):
    """One that looks at the answer under review, and one that always says four."""

    def handle(body):
        under_review = body["messages"][-1]["content"].rpartition("[")[2]
        good = fair(under_review) == 5.0 if reads else True
        return labelled("B" if is_lettered(body) else ("5" if good else "1") if reads else "4")

    one = ModelJudge(endpoint(handle), charter(), "j")
    found = run(judge_answers(selftest_cases(pairs(4)), one, tmp_path / "selftest.jsonl"))

    assert selftest_result(pairs(4), found).passed is passed


def test_verdicts_on_other_rows_do_not_count():
    """The file of a run may hold more."""
    found = verdicts(selftest_cases(pairs(2)), fair)
    stray = verdict(case(to=row(), model=GOOD), 1.0)

    assert selftest_result(pairs(2), [*found, stray]).passed
