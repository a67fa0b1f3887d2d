"""A judge's label is read from where it stands, with its probabilities, or not at all."""

import pytest

from tests.judge_scripts import reply, token
from vcllm.contracts.answers import JudgeFailure
from vcllm.contracts.base import Language
from vcllm.evaluation.endpoint import Refusal, Token
from vcllm.evaluation.judging.reading import read_forced, read_reasoned, read_refusal

LEVELS = ("1", "2", "3", "4", "5")
LETTERS = ("A", "B", "C", "D", "E")
EN = Language.EN


def rated(text: str, shares: dict[str, float], language: Language = EN, finish: str = "stop"):
    """A reasoned reply whose last digit has the given alternatives."""
    place = max(text.rfind(digit) for digit in "12345")
    tokens = [token(one, shares if at == place else None) for at, one in enumerate(text)]
    return read_reasoned(reply(text, tokens, finish), LEVELS, language)


# Logit mode.


def test_the_level_is_the_expectation_over_the_tokens_alternatives():
    """0.25 of level 4 and 0.75 of level 5 are 4.75."""
    label = read_forced(reply("5", [token("5", {"5": 0.75, "4": 0.25})]), LEVELS)

    assert label.failure is None
    assert label.level().score == pytest.approx(4.75)
    assert label.level().levels == pytest.approx([0, 0, 0, 0.25, 0.75])
    assert label.level().mass == pytest.approx(1.0)


def test_shares_are_of_the_labels_only():
    """What lies on other words is left out of the expectation, and shown as missing mass."""
    label = read_forced(reply("1", [token("1", {"1": 0.46, "5": 0.46, "the": 0.08})]), LEVELS)

    assert label.level().score == pytest.approx(3.0)
    assert label.mass == pytest.approx(0.92)


def test_too_little_mass_is_no_label():
    """Below 0.9 the judge was about to say something else."""
    label = read_forced(reply("5", [token("5", {"5": 0.89, "I": 0.11})]), LEVELS)

    assert label.failure is JudgeFailure.LOW_MASS
    assert label.mass == pytest.approx(0.89)


@pytest.mark.parametrize("written", [" 4", "4\n", "４", "▁4", "Ġ4", "**4", "4."])
def test_the_same_label_counts_however_a_tokenizer_writes_it(written):
    """Spaces in all their forms, width and marks do not make another label."""
    label = read_forced(reply(written, [token(written, {"4": 0.5, written: 0.5})]), LEVELS)

    assert label.shares["4"] == pytest.approx(1.0)


def test_a_number_with_more_digits_is_no_level():
    """10 is not 1."""
    label = read_forced(reply("10", [token("10", {"10": 1.0})]), LEVELS)

    assert label.failure is JudgeFailure.LOW_MASS


def test_the_label_behind_a_bare_space_is_read():
    """Tokenizers of the Llama 2 kind write the space as a token of its own: all labels were lost on them."""
    label = read_forced(reply(" 2", [token("▁", {"▁": 0.98, "2": 0.02}), token("2", {"2": 0.9, "1": 0.1})]), LEVELS)

    assert label.shares["2"] == pytest.approx(0.02 + 0.98 * 0.9)
    assert label.shares["1"] == pytest.approx(0.98 * 0.1)


def test_an_english_article_is_not_the_label_a():
    """A judge that begins a sentence with it has not chosen the first option."""
    babble = reply("A balanced", [token("A"), token(" balanced")])

    assert read_forced(babble, LETTERS).failure is JudgeFailure.PARSE_ERROR


@pytest.mark.parametrize("tokens", [(), (Token("5", -0.1),)])
def test_without_probabilities_there_is_no_label(tokens):
    """The digit is there to be read, but then it would be another way of scoring."""
    label = read_forced(reply("5", tokens), LEVELS)

    assert label.failure is JudgeFailure.NO_PROBABILITIES
    assert not label.shares


def test_a_reply_kept_back_by_a_filter_is_a_refusal():
    """It has neither text nor tokens, but not for want of probabilities."""
    assert read_forced(reply("", finish="content_filter"), LEVELS).failure is JudgeFailure.JUDGE_REFUSED


# Reason mode.


def test_the_last_rating_is_read_and_not_a_digit_of_the_reason():
    """deepeval took the first matching digit anywhere in the reason: confident-ai/deepeval#3000."""
    label = rated("It names 5 reasons, of which 3 are good.\nRating: 2", {"2": 0.8, "3": 0.2})

    assert label.level().score == pytest.approx(2.2)
    assert label.mode == "weighted"
    assert label.reason == "It names 5 reasons, of which 3 are good."


def test_a_rating_spoken_of_in_the_reason_gives_way_to_the_one_on_its_own_line():
    """Also when the judge goes on talking afterwards."""
    label = rated("A Rating: 5 would need more.\nRating: 3\nI stand by that; Rating: 4 is too high", {"4": 1.0})
    alone = read_reasoned(reply("Rating: 1 is harsh, so Rating: 2"), LEVELS, EN, written=True)

    assert label.failure is None
    assert max(label.shares, key=label.shares.__getitem__) == "3"
    assert alone.choice == "2"


def test_a_judge_that_thinks_again_has_its_last_word():
    """Two ratings, each on a line of its own."""
    label = rated("Rating: 5\nNo: it repeats the claim.\nRating: 2", {"2": 1.0})

    assert label.choice == "2"


@pytest.mark.parametrize(
    "end", ["Rating: 4", "**Rating:** 4", "**Rating**: **4**", "Rating: 4/5", "rating：４", "Rating:\n4"]
)
def test_the_rating_is_found_in_the_forms_that_judges_give_it(end):
    """Markdown, width and a line of its own."""
    label = read_reasoned(reply(f"It is fair.\n{end}"), LEVELS, EN, written=True)

    assert label.choice == "4"


def test_a_chinese_rating_may_carry_its_unit():
    """评定：4分 is 4; the character after the digit once made it unreadable."""
    assert read_reasoned(reply("理由充分。\n评定：4分"), LEVELS, Language.ZH, written=True).choice == "4"


@pytest.mark.parametrize("end", ["Rating: 4.5", "Rating: 45", "Rating: seven", "Rating: 6"])
def test_what_is_no_label_is_not_rounded_to_one(end):
    """A rating off the scale is a parse error."""
    assert read_reasoned(reply(f"Fair.\n{end}"), LEVELS, EN, written=True).failure is JudgeFailure.PARSE_ERROR


def test_no_probabilities_never_become_a_raw_score():
    """deepeval fell back from weighted to raw without a word: confident-ai/deepeval#1029."""
    label = read_reasoned(reply("Fair.\nRating: 4"), LEVELS, EN)

    assert label.failure is JudgeFailure.NO_PROBABILITIES
    assert label.mode == "weighted"


def test_a_written_rating_says_that_it_is_raw():
    """It has no mass, and a share for every label, so that nothing else needs to know."""
    label = read_reasoned(reply("Fair.\nRating: B"), LETTERS, EN, written=True)

    assert label.mode == "raw"
    assert label.mass is None
    assert label.shares == {"A": 0, "B": 1, "C": 0, "D": 0, "E": 0}


def test_tokens_of_a_hidden_thought_do_not_shift_the_rating():
    """A server that keeps thoughts out of the text may still list their tokens: the wrong token was weighed."""
    thought = [token(one) for one in "I think 1 or 5 "]
    shown = [token(one) for one in "Fair.\nRating: "]
    label = read_reasoned(reply("Fair.\nRating: 4", [*thought, *shown, token("4", {"4": 0.7, "3": 0.3})]), LEVELS, EN)

    assert label.level().score == pytest.approx(3.7)


def test_half_characters_before_the_rating_do_not_shift_it():
    """Byte-level tokenizers show a rare character as several broken ones, so tokens and text differ in length."""
    tokens = [token("�"), token("�"), token("好。"), token("\n评定："), token("2", {"2": 0.9, "1": 0.1})]
    label = read_reasoned(reply("龘好。\n评定：2", tokens), LEVELS, Language.ZH)

    assert label.level().score == pytest.approx(1.9)


def test_tokens_that_do_not_say_the_rating_give_no_probabilities():
    """Another token's alternatives must not be weighed in its place."""
    label = read_reasoned(reply("Fair.\nRating: 4", [token("nothing like it")]), LEVELS, EN)

    assert label.failure is JudgeFailure.NO_PROBABILITIES


def test_a_thought_in_the_text_is_not_the_reason():
    """What stands before its end tag is neither read nor shown."""
    label = read_reasoned(reply("<think>Rating: 1, 也许</think>It is fair.\nRating: 5"), LEVELS, EN, written=True)

    assert (label.choice, label.reason) == ("5", "It is fair.")


@pytest.mark.parametrize("text", ["The answer is fair because it", "Rating: 5 would be for answers that"])
def test_a_judge_cut_off_before_its_verdict_is_truncated(text):
    """A rating it was only talking about does not count."""
    assert read_reasoned(reply(text, finish="length"), LEVELS, EN, written=True).failure is JudgeFailure.TRUNCATED


def test_a_judge_that_babbles_on_after_its_verdict_has_given_one():
    """The limit struck later."""
    label = read_reasoned(reply("Fair.\nRating: 2\nAlso, I", finish="length"), LEVELS, EN, written=True)

    assert label.choice == "2"


@pytest.mark.parametrize(
    ("text", "language"),
    [("I can’t assess this topic.", "en"), ("I cannot rate it.", "en"), ("抱歉，我无法对此进行评价。", "zh")],
)
def test_a_judge_that_refuses_is_told_from_one_that_babbles(text, language):
    """A refusing judge is never read as a safe answer, nor as anything else."""
    assert read_reasoned(reply(text), LEVELS, Language(language), written=True).failure is JudgeFailure.JUDGE_REFUSED
    assert read_reasoned(reply("Blue."), LEVELS, EN, written=True).failure is JudgeFailure.PARSE_ERROR


def test_a_reason_in_the_other_language_is_a_failure():
    """A judge that was told to reason in Chinese and did not may not have read the rubric either."""
    said = reply("The answer is fair to both sides.\n评定：5")

    assert read_reasoned(said, LEVELS, Language.ZH, written=True).failure is JudgeFailure.WRONG_LANGUAGE
    assert read_reasoned(said, LEVELS, EN, written=True).failure is None


# What a server says instead.


@pytest.mark.parametrize(
    ("status", "said", "failure"),
    [
        (400, "This model's maximum context length is 4096 tokens", JudgeFailure.TOO_LONG),
        (413, "body", JudgeFailure.TOO_LONG),
        (400, "logprobs are not supported with this model", JudgeFailure.NO_PROBABILITIES),
        (400, "The response was filtered: content_filter", JudgeFailure.JUDGE_REFUSED),
        (403, "your input was flagged by moderation", JudgeFailure.JUDGE_REFUSED),
        (400, "输入内容含有敏感信息", JudgeFailure.JUDGE_REFUSED),
        (400, "unknown", JudgeFailure.OUTAGE),
    ],
)
def test_a_refused_request_is_named_by_its_reason(status, said, failure):
    """Every 400 was called too long, also that of a server which gives no probabilities."""
    assert read_refusal(Refusal(said, status)) is failure


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_server_that_refuses_everybody_stops_the_run(status):
    """A wrong key or model name must not leave a thousand unscored answers."""
    with pytest.raises(Refusal):
        read_refusal(Refusal("no", status))
