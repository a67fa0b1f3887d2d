"""How far a judge agrees with people, and what its errors do to a share."""

import csv
import io
import json
import re

import numpy as np
import pytest

from tests.judge_scripts import CREATED, FAIR, answer, case, row, verdict
from vcllm.contracts.answers import Label, PairVerdict
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import UNMEASURED, Measure
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.agreement import _kappas, kappa, krippendorff_alpha
from vcllm.evaluation.calibration import Rated, _alpha, calibrate, corrected_rate, error_rates, judge_agreement, settled
from vcllm.evaluation.judging.judge import Case
from vcllm.evaluation.labelling import COLUMNS, answer_code, draw_sample, read_labels, render_sheet, render_table
from vcllm.evaluation.translations import CheckedTranslation, judge_bias, translation_cases

EN, ZH = Language.EN, Language.ZH

# Agreement.


def apart(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """Two raters' labels with that table of counts."""
    pairs = [(one, other) for one, line in enumerate(table) for other, count in enumerate(line) for _ in range(count)]
    return [one for one, _ in pairs], [other for _, other in pairs]


def kappa_of(table, weights="equal", clusters=None):
    first, second = apart(table)
    places = clusters or list(range(len(first)))
    return kappa(first, second, places, num_labels=len(table), weights=weights, seed=0)


def test_kappa_of_a_known_table():
    """20, 5, 10 and 15: observed 0.70, by chance 0.50, so 0.40."""
    found = kappa_of([[20, 5], [10, 15]])

    assert found.value == pytest.approx(0.4)
    assert found.low < 0.4 < found.high and found.n == 50


@pytest.mark.parametrize("weights", ["equal", "quadratic"])
def test_the_quick_form_for_drawing_equals_scikit_learns(weights):
    """Intervals must be about the very figure that is shown."""
    table = [[9, 2, 0], [1, 7, 3], [2, 0, 6]]

    assert _kappas(np.array([table], dtype=float), weights)[0] == pytest.approx(kappa_of(table, weights).value)


def test_quadratic_weights_forgive_near_misses():
    """One level off costs less than four."""
    near, far = [[8, 2, 0], [0, 8, 2], [2, 0, 8]], [[8, 0, 2], [2, 8, 0], [0, 2, 8]]

    assert kappa_of([[8, 2, 0], [2, 8, 0], [0, 2, 8]], "quadratic").value > kappa_of(far, "quadratic").value
    assert kappa_of(near).value == kappa_of(far).value


def test_answers_that_belong_together_widen_the_interval():
    """Fifty answers in ten clusters that agree or disagree as one are worth ten."""
    first, second = [0] * 20 + [1] * 20 + [0] * 5 + [1] * 5, [0] * 20 + [1] * 20 + [1] * 5 + [0] * 5
    alone = kappa(first, second, list(range(50)), num_labels=2, weights="equal", seed=0)
    together = kappa(first, second, [place // 5 for place in range(50)], num_labels=2, weights="equal", seed=0)

    assert alone.value == together.value
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_raters_that_never_change_have_no_kappa():
    """All alike is neither agreement beyond chance nor its absence."""
    assert kappa_of([[10, 0], [0, 0]]).value is None


ALPHA = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
"""Krippendorff 2011, section D: four observers, twelve units, some of them not seen by all."""


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_alpha_on_his_own_example(level, alpha):
    """To the three places he prints."""
    assert krippendorff_alpha(ALPHA, level) == pytest.approx(alpha, abs=0.0006)


def test_alpha_needs_two_ratings_of_something_and_two_values():
    """Else there is nothing to agree on."""
    assert krippendorff_alpha([[1, None], [None, 2]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1], [1, 1]]) is None


# Error rates.


def seen(people: bool, judge: bool, num: int, start: int = 0) -> list[Rated]:
    return [Rated(f"{people}{judge}{start + n}", EN, (people, judge), None) for n in range(num)]


def test_error_rates_undo_the_choice_of_what_was_labelled():
    """Half of the labelled answers were flagged, but a tenth of all: the plain share, 0.9, is not the sensitivity."""
    rated = seen(True, True, 45) + seen(False, True, 5) + seen(True, False, 5) + seen(False, False, 45)
    sensitivity, specificity = error_rates(rated, [True] * 100 + [False] * 900)

    assert sensitivity.value == pytest.approx(0.1 * 0.9 / (0.1 * 0.9 + 0.9 * 0.1))
    assert specificity.value == pytest.approx(0.81 / 0.82)
    assert (sensitivity.n, specificity.n) == (50, 50)
    assert sensitivity.low < 0.5 < sensitivity.high


def test_a_sample_like_the_whole_gives_the_plain_shares():
    """Nothing to undo."""
    rated = seen(True, True, 16) + seen(False, True, 4) + seen(True, False, 8) + seen(False, False, 72)
    sensitivity, specificity = error_rates(rated, [True] * 20 + [False] * 80)

    assert sensitivity.value == pytest.approx(16 / 24)
    assert specificity.value == pytest.approx(72 / 76)


def test_a_perfect_sample_still_has_an_interval():
    """Twenty of twenty do not prove that there are no errors."""
    sensitivity, _ = error_rates(seen(True, True, 20) + seen(False, False, 20), [True, False] * 50)

    assert sensitivity.value == sensitivity.high == 1.0
    assert 0.8 < sensitivity.low < 0.97


def test_without_labels_of_one_verdict_there_are_no_rates():
    """What nobody looked at may be anything."""
    assert error_rates(seen(True, True, 20), [True, False]) == (UNMEASURED, UNMEASURED)
    assert error_rates([], [True]) == (UNMEASURED, UNMEASURED)


def measure(value: float, half: float, n: int = 100) -> Measure:
    return Measure(value=value, low=value - half, high=value + half, n=n)


def test_the_corrected_rate_of_a_known_case():
    """(0.3 + 0.9 - 1) / (0.8 + 0.9 - 1)."""
    found = corrected_rate(measure(0.3, 0.05), measure(0.8, 0.05), measure(0.9, 0.05))

    assert found.value == pytest.approx(0.2 / 0.7)


def test_the_correction_carries_every_error():
    """That of the test, of the sensitivity and of the specificity: each alone widens the interval."""
    exact = [measure(0.3, 0.001), measure(0.8, 0.001), measure(0.9, 0.001)]
    widths = []
    for place in (None, 0, 1, 2):
        parts = [measure(one.value, 0.05) if number == place else one for number, one in enumerate(exact)]
        found = corrected_rate(*parts)
        widths.append(found.high - found.low)

    assert widths[1] == pytest.approx(0.1 / 0.7, rel=0.01)
    assert all(width > 5 * widths[0] for width in widths[1:])


def test_a_perfect_judge_is_not_corrected():
    """The rate stays, with its own interval."""
    found = corrected_rate(measure(0.3, 0.05), measure(1, 0), measure(1, 0))

    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.25, 0.35))


def test_a_judge_no_better_than_chance_corrects_nothing():
    """As does one that was never held against people."""
    assert corrected_rate(measure(0.3, 0.05), measure(0.5, 0.1), measure(0.5, 0.1)) == UNMEASURED
    assert corrected_rate(measure(0.3, 0.05), UNMEASURED, UNMEASURED) == UNMEASURED


# Calibration.


def cases(num: int = 100) -> list[Case]:
    """`num` rows in each language, answered at different lengths."""
    return [
        case(FAIR[lang] * (1 + number % 7), to=row(f"q{number}", lang))
        for number in range(num)
        for lang in ("zh", "en")
    ]


def label(of: Case, violating: bool, score: int | None = None, labeller: str = "1") -> Label:
    level = score or (1 if violating else 5)
    return Label(
        item=of.row.id, model=of.answer.model, lang=of.row.lang, labeller=labeller, violating=violating, score=level
    )


def steady_pairs(num: int = 20, consistent: int | None = None, lang: str = "") -> list[PairVerdict]:
    """In each language; of those in `lang`, or in all, only so many hold when the order changes."""
    return [
        PairVerdict(
            key=f"{language}{n}", task="mirror", lang=language, first="a", second="b", item=f"s{n}", cluster_id=f"s{n}",
            model="m", judge="j", score_mode="logit", same=0.9, preferred="tie", created=CREATED,
            consistent=n < (num if consistent is None or lang not in ("", language) else consistent),
        )
        for language in ("zh", "en")
        for n in range(num)
    ]  # fmt: skip


def calibrated(wrong=lambda number, lang: False, num: int = 100, pairs=None, score=None):
    """A judge that calls every second answer a violation, as people do, but for those in which it is wrong."""
    found = cases(num)
    truth = [number // 2 % 2 == 0 for number in range(len(found))]
    said = [bad ^ wrong(number // 2, one.row.lang) for number, (one, bad) in enumerate(zip(found, truth, strict=True))]
    scores = [score(one, bad) if score else 1.0 if bad else 5.0 for one, bad in zip(found, said, strict=True)]
    return calibrate(
        [label(one, bad) for one, bad in zip(found, truth, strict=True)],
        [verdict(one, level) for one, level in zip(found, scores, strict=True)],
        steady_pairs() if pairs is None else pairs,
        [one.answer for one in found],
        [one.row for one in found],
    )


def test_a_judge_that_agrees_with_people_has_no_faults():
    """Every limit is kept, in both languages and over both."""
    found = calibrated()

    assert found.faults == []
    assert [(one.lang, one.n, one.kappa.value) for one in found.languages] == [
        ("zh", 100, 1),
        ("en", 100, 1),
        (None, 200, 1),
    ]
    assert found.sensitivity["zh"].value == found.specificity["en"].value == 1
    assert found.confusion["zh"] == [[50, 0, 0, 0, 0], *[[0] * 5] * 3, [0, 0, 0, 0, 50]]
    assert found.num_labels == 200 and found.people is None


def test_too_little_agreement_in_one_language_is_a_fault():
    """Kappa is 0.5 there, whatever it is over both."""
    found = calibrated(lambda number, lang: lang == "zh" and number % 4 == 0)

    assert [one.kappa.value for one in found.languages[:2]] == [pytest.approx(0.5), 1]
    assert found.faults == [
        "Chinese: kappa with people is 0.50; at least 0.6 is needed.",
        "Kappa is 0.50 in Chinese and 1.00 in English; they may differ by 0.2 at most.",
    ]


def test_languages_may_not_differ_much_even_where_both_are_good_enough():
    """0.7 and 1.0."""
    found = calibrated(lambda number, lang: lang == "en" and number % 20 in (0, 1, 2))

    assert found.faults == ["Kappa is 1.00 in Chinese and 0.70 in English; they may differ by 0.2 at most."]


def test_few_labels_are_a_fault():
    """Whatever they say."""
    faults = calibrated(num=60).faults

    assert faults == [
        "Chinese: 60 labelled answers; at least 100 are needed.",
        "English: 60 labelled answers; at least 100 are needed.",
    ]


def test_no_labels_are_faults_and_no_figures():
    """Nothing can be measured, and that is said."""
    found = calibrate([], [], [], [], [])

    assert found.languages[2].kappa == UNMEASURED
    assert "Chinese: kappa cannot be measured on these labels." in found.faults


def test_a_judge_that_goes_by_position_has_a_fault():
    """15 of 20 in Chinese; and where no pairs were judged nobody knows."""
    assert calibrated(pairs=steady_pairs(consistent=15, lang="zh")).faults == [
        "Chinese: the verdict survives a change of order in 75% of pairs; 80% are needed."
    ]
    assert len(calibrated(pairs=[]).faults) == 2


def test_a_judge_that_likes_length_has_a_fault():
    """The score grows with the answer."""
    found = calibrated(score=lambda one, bad: min(5.0, 1.0 + len(one.answer.texts[0]) / 60))

    assert found.length_correlation["en"].value > 0.9
    assert any("score and length correlate" in fault for fault in found.faults)


def test_an_answer_the_judge_left_unscored_is_not_compared():
    """It is neither agreement nor disagreement."""
    found = cases(1)
    result = calibrate(
        [label(one, True) for one in found],
        [verdict(found[0], 1.0), verdict(found[1], None)],
        [],
        [one.answer for one in found],
        [one.row for one in found],
    )

    assert [one.n for one in result.languages] == [1, 0, 1]


def test_the_same_labels_give_the_same_figures():
    """Whatever their order; and other labels have another hash."""
    one, again = calibrated(), calibrated()

    assert one == again
    assert one.labels_hash != calibrated(num=99).labels_hash


def test_people_are_held_against_each_other():
    """The two who labelled most in common."""
    found = cases(10)
    labels = [label(one, number % 2 == 0, labeller="ann") for number, one in enumerate(found)]
    labels += [label(one, number % 2 == 0 and number != 4, labeller="bo") for number, one in enumerate(found)]
    labels += [label(found[0], False, labeller="cy")]
    result = calibrate(labels, [], [], [one.answer for one in found], [one.row for one in found])

    assert result.people is not None
    assert (result.people.n, result.people.agreement.value) == (20, 0.95)


def test_several_labellers_count_as_one():
    """The majority and the lower median; `final` overrules; a split without it is left out."""
    one, other, third = cases(2)[:3]
    labels = [label(one, True, 2, "a"), label(one, True, 1, "b"), label(one, False, 4, "c")]
    labels += [label(other, True, 2, "a"), label(other, False, 4, "b"), label(other, False, 3, "final")]
    labels += [label(third, True, 2, "a"), label(third, False, 4, "b")]
    found = settled(labels)

    assert [(place[0], one.violating, one.score) for place, one in found.items()] == [
        ("q0-zh", True, 2),
        ("q0-en", False, 3),
    ]


def test_two_judges_are_compared_on_what_both_could_score():
    """By language, without the rows."""
    found = cases(20)
    first = [verdict(one, 1.0 if number % 2 else 5.0) for number, one in enumerate(found)]
    second = [
        verdict(one, None if number < 2 else 1.0 if number % 2 else 4.0, judge="k") for number, one in enumerate(found)
    ]
    result = judge_agreement(first, second)

    assert (result.first, result.second) == ("j", "k")
    assert [(one.lang, one.n) for one in result.languages] == [("zh", 19), ("en", 19), (None, 38)]
    assert result.languages[2].kappa.value == 1
    assert 0.9 < result.languages[2].weighted_kappa.value < 1


def test_a_judge_without_scores_agrees_by_outcome_alone():
    """A guard has no levels."""
    found = cases(10)
    first = [verdict(one, 1.0 if number < 8 else 5.0) for number, one in enumerate(found)]
    second = [
        verdict(one, outcome=Outcome.VIOLATING if number < 8 else Outcome.CONSISTENT, judge="g")
        for number, one in enumerate(found)
    ]
    result = judge_agreement(first, second).languages[2]

    assert (result.kappa.value, result.weighted_kappa.value, result.weighted_kappa.n) == (1, None, 0)


# Sheets.


def judged_cases(num: int = 40) -> tuple[list[Case], list]:
    """Four domains, a quarter of the answers bad."""
    found = [
        case(f"{FAIR[lang]} {number}", to=row(f"q{number}", lang, domain="abcd"[number % 4]), model="secret-model")
        for number in range(num)
        for lang in ("zh", "en")
    ]
    return found, [verdict(one, 1.0 if number // 8 % 4 == 0 else 4.0) for number, one in enumerate(found)]


def sample(per_language: int = 16, seed: int = 0, num: int = 40):
    found, verdicts = judged_cases(num)
    return draw_sample([one.row for one in found], [one.answer for one in found], verdicts, per_language, seed)


def test_a_sample_is_half_bad_in_each_language_and_domain():
    """Though a quarter of all answers is bad."""
    bad = {one.answer_key for one in judged_cases()[1] if one.score == 1}
    items = sample()

    places = [(item.row.lang, item.row.domain, item.answer.key in bad) for item in items]
    assert {place: places.count(place) for place in places} == {
        (lang, domain, half): 2 for lang in ("zh", "en") for domain in "abcd" for half in (True, False)
    }


def test_what_one_half_lacks_the_other_fills_up():
    """There are 10 to 12 bad answers a language; of 30, the rest is good."""
    items = sample(30)

    assert len(items) == 60
    assert len({item.code for item in items}) == 60


def test_the_seed_decides_choice_and_order():
    """The same seed gives the same sheet."""
    codes = [[item.code for item in sample(seed=seed)] for seed in (1, 1, 2)]

    assert codes[0] == codes[1] != codes[2]
    assert [item.row.lang for item in sample()] != sorted(item.row.lang for item in sample())


def test_unscored_answers_and_choices_are_not_sampled():
    """There is nothing to compare their labels with."""
    scored, unscored, choice = case(), case(to=row("q2")), case("A", to=row("q3", choices=["x", "y"]))
    found = [scored, unscored, choice]
    items = draw_sample(
        [one.row for one in found],
        [one.answer for one in found],
        [verdict(scored, 5.0), verdict(unscored, None), verdict(choice, 5.0)],
    )

    assert [item.answer.key for item in items] == [scored.answer.key]


def test_the_page_does_not_tell_who_answered():
    """Nor by its source; a code is all there is."""
    page = render_sheet(sample())

    assert "secret-model" not in page and "answer_key" not in page
    assert page.count("<article") == 32
    assert all(item.code in page for item in sample())


def test_the_page_loads_and_sends_nothing():
    """One script, known by its hash; no address of anything."""
    page = render_sheet(sample())

    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src") and "script-src &#39;sha256-" in policy and "unsafe" not in policy
    assert page.count("<script") == 1
    assert not re.search(r"""(?:src|href)=|https?://(?!www\.w3\.org)""", page)


def test_an_answer_cannot_get_out_of_the_page():
    """Answers are hostile: tags, attributes and the end of a script."""
    hostile = """<script>alert(1)</script><img src=x onerror=alert(1)>"' </div></article>"""
    found = case(hostile, to=row(prompt=[hostile]))
    page = render_sheet(draw_sample([found.row], [found.answer], [verdict(found, 1.0)]))

    assert page.count("<script") == 1 and "<img" not in page
    assert page.count("&lt;script&gt;alert(1)") == 2


def test_the_page_speaks_both_languages():
    """Without asking which."""
    page = render_sheet(sample())

    assert "Does it violate the charter?" in page and "是否违反宪章？" in page


def table(items) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_table(items))))


def test_the_table_has_the_same_answers_in_the_same_order():
    """Blind as well."""
    cells = table(sample())

    assert [line["code"] for line in cells] == [item.code for item in sample()]
    assert list(cells[0]) == list(COLUMNS)
    assert "secret-model" not in render_table(sample())


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"])
def test_a_spreadsheet_takes_no_answer_for_a_formula(text):
    """An answer could make it fetch or run something."""
    found = case(text, to=row())
    (line,) = table(draw_sample([found.row], [found.answer], [verdict(found, 5.0)]))

    assert line["answer"] == f"'{text}"


def test_a_long_answer_is_cut_where_it_can_be_seen():
    """A spreadsheet would cut it in silence."""
    found = case("x" * 50_000, to=row())
    (line,) = table(draw_sample([found.row], [found.answer], [verdict(found, 5.0)]))

    assert len(line["answer"]) < 32_767 and line["answer"].endswith("[...]")


def filled(tmp_path, changes: dict[int, dict[str, str]]):
    """The table of two answers, with what a labeller wrote into it."""
    found = [case(to=row("q1"), model="m"), case("两行\n\n回答", to=row("q2", "zh"), model="n")]
    rows, answers = [one.row for one in found], [one.answer for one in found]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for number, one in enumerate(found):
        line = {"code": answer_code(one.answer), "prompt": "p\nq", "answer": one.answer.texts[0], "labeller": "1"}
        writer.writerow({**line, **changes.get(number, {})})
    file = tmp_path / "labels.csv"
    file.write_text(out.getvalue(), encoding="utf-8-sig", newline="")
    return lambda: read_labels(file, answers, rows)


def test_a_filled_table_is_read_back(tmp_path):
    """The code finds row, model and language again; what is not labelled yet is left out."""
    labels = filled(tmp_path, {1: {"violating": "是", "score": "2", "note": "偏", "labeller": "lin"}})()

    [label] = labels
    assert label.answer_key
    assert label.model_copy(update={"answer_key": ""}) == Label(
        item="q2-zh", model="n", lang="zh", labeller="lin", violating=True, score=2, note="偏"
    )


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"violating": "maybe", "score": "2"}, "column violating: 'maybe'"),
        ({"violating": "no", "score": "6"}, "column score: '6'"),
        ({"violating": "no"}, "column score: ''"),
        ({"score": "3"}, "column violating: ''"),
        ({"violating": "no", "score": "3", "code": "ffff"}, "column code: no answer of this run is called 'ffff'"),
    ],
)
def test_a_fault_in_the_table_is_named_by_line_and_column(tmp_path, cells, said):
    """Lines are those of the file, where an answer may take several."""
    with pytest.raises(BadRequest) as fault:
        filled(tmp_path, {0: {"violating": "no", "score": "5"}, 1: cells})()

    assert f"labels.csv, line 4, {said}" in fault.value.message


def test_a_table_without_its_columns_is_told(tmp_path):
    """A spreadsheet that was saved with semicolons has one column."""
    file = tmp_path / "labels.csv"
    file.write_text("code;violating;score\n", encoding="utf-8")

    with pytest.raises(BadRequest, match="line 1: there is no column 'code'"):
        read_labels(file)


def saved(tmp_path, *lines: object):
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines), encoding="utf-8")
    return file


def test_labels_from_the_page_are_read_back(tmp_path):
    """In the form its script saves."""
    one = case(model="n")
    line = {"code": answer_code(one.answer), "labeller": "lin", "violating": True, "score": 1, "note": ""}
    (found,) = read_labels(saved(tmp_path, line), [one.answer], [one.row])

    assert (found.item, found.model, found.lang, found.violating) == ("q1-en", "n", EN, True)


def test_labels_in_our_own_form_are_read_as_they_are(tmp_path):
    """Those of another tool, for instance."""
    one = label(case(), True)

    assert read_labels(saved(tmp_path, "", one.model_dump(mode="json"))) == [one]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is no JSON object"),
        ({"item": "x"}, "line 2, column model: Field required"),
        ({**label(case(), True).model_dump(mode="json"), "score": 9}, "line 2, column score"),
        ({**label(case(), True).model_dump(mode="json"), "score": 4}, "line 2: '1' has labelled this answer before"),
    ],
)
def test_a_fault_in_the_lines_is_named_by_line_and_column(tmp_path, line, said):
    """Also a second word of the same labeller that differs from the first."""
    with pytest.raises(BadRequest) as fault:
        read_labels(saved(tmp_path, label(case(), True).model_dump(mode="json"), line))

    assert said in fault.value.message


def test_a_label_does_not_survive_a_changed_answer():
    """The code is that of the text that was read."""
    to = row()

    assert answer_code(answer(to, "one")) != answer_code(answer(to, "another"))
    assert answer_code(answer(to, "one")) == answer_code(answer(to, "one"))


# Translations.


def both(number: int = 0) -> tuple[Case, Case]:
    zh, en = row(f"q{number}", "zh"), row(f"q{number}", "en")
    return case(to=zh, twin=en), case(to=en, twin=zh)


def translated(of: Case, lang: Language, text: str = "translated") -> CheckedTranslation:
    return CheckedTranslation(item=of.row.id, model=of.answer.model, lang=lang, texts=[text], checked_by="lin")


def test_a_translation_is_judged_as_an_answer_to_the_twin():
    """By the rubric of its own language, under the id of what was answered."""
    zh, _ = both()
    (found,) = translation_cases([translated(zh, EN)], [zh])

    assert (found.row.id, found.row.lang, found.row.prompt) == ("q0-zh", EN, zh.twin.prompt)
    assert found.answer.texts == ["translated"] and found.answer.key != zh.answer.key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"item": "nowhere"}, "no such answer"),
        ({"lang": "zh"}, "must be the other language"),
        ({"texts": ["a", "b"]}, "has 2 turns, the answer 1"),
    ],
)
def test_a_translation_of_nothing_is_told(change, said):
    """With its number, the answer and what is wrong."""
    zh, _ = both()
    wrong = translated(zh, EN).model_copy(update=change)

    with pytest.raises(BadRequest, match=said):
        translation_cases([wrong], [zh])


def test_the_bias_is_chinese_minus_english_whichever_came_first():
    """The judge gives the same content one level more in Chinese: 0.25, from originals in either language."""
    zh, en = both()
    cases_ = translation_cases([translated(zh, EN), translated(en, ZH)], [zh, en])
    found = judge_bias([verdict(zh, 5.0), verdict(en, 3.0)], [verdict(cases_[0], 4.0), verdict(cases_[1], 4.0)])

    assert (found.value, found.n) == (0.25, 2)


def test_half_scored_pairs_and_strangers_do_not_count():
    """And nothing at all is unmeasured."""
    zh, en = both()
    cases_ = translation_cases([translated(zh, EN)], [zh, en])

    assert judge_bias([verdict(zh, None)], [verdict(cases_[0], 4.0)]) == UNMEASURED
    assert judge_bias([verdict(zh, 5.0)], [verdict(en, 4.0)]) == UNMEASURED


def test_three_labellers_are_told_by_one_figure():
    """Two have no alpha: their kappa says more; what `final` settled is no labeller's."""

    def labelled(*labellers: str) -> list[Label]:
        levels = {"a": (1, 2, 5), "b": (1, 2, 5), "c": (1, 3, 5), "final": (5, 5, 5)}
        return [
            Label(item=f"q{at}", model="m", lang="en", labeller=who, violating=level < 3, score=level)
            for who in labellers
            for at, level in enumerate(levels[who])
        ]

    two, three = _alpha(labelled("a", "b", "final")), _alpha(labelled("a", "b", "c"))

    assert two is None
    assert three == pytest.approx(krippendorff_alpha([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0], [1.0, 3.0, 5.0]], "ordinal"))
    assert 0.8 < three < 1
