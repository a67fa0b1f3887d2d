"""Reads a label out of a judge's reply: from the probabilities of one token, or from the end of its reason.

Where a reply cannot be read there is a failure, never a guess: a missing label is not a safe answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vcllm.contracts.answers import JudgeFailure, LevelScore, ScoreMode
from vcllm.contracts.base import Language
from vcllm.evaluation.endpoint import Reply, Token
from vcllm.evaluation.judging.wording import RATING
from vcllm.evaluation.language import is_in

MIN_MASS = 0.9
"""Of the probability that must lie on the labels: Liu et al. 2023, arXiv 2303.16634, weight by it; we ask for it."""
REFUSALS = re.compile(
    r"\bI (?:can(?:no|')t|am (?:not able|unable) to|won't) (?:rate|judge|assess|evaluate|help|assist)|"
    r"(?:我)?(?:无法|不能|不便)(?:对此)?(?:评判|评价|评分|评定|回答|提供|协助)",
    re.IGNORECASE,
)
"""Said by a judge in place of a label; only looked for when there is none."""


@dataclass(frozen=True)
class Label:
    """What the judge said: a share of probability for each label, or a failure."""

    shares: dict[str, float]
    """Sum to one; empty after a failure."""
    mode: ScoreMode
    mass: float | None = None
    failure: JudgeFailure | None = None
    reason: str = ""

    @property
    def choice(self) -> str:
        """The likeliest label."""
        assert self.shares, "a failure has no label"
        return max(self.shares, key=self.shares.__getitem__)

    def level(self) -> LevelScore:
        """Of labels 1 to 5: their expectation."""
        expected = sum(int(label) * share for label, share in self.shares.items())
        levels = [] if self.mass is None else [self.shares.get(str(k), 0.0) * self.mass for k in range(1, 6)]
        return LevelScore(score=min(5.0, max(1.0, expected)), levels=levels, mass=self.mass)


def read_forced(reply: Reply, labels: Sequence[str]) -> Label:
    """The label from the first token's alternatives; tokens that differ by space only count together."""
    if not reply.tokens or not reply.tokens[0].alternatives:
        return Label({}, "logit", failure=JudgeFailure.NO_PROBABILITIES)
    return _weighed(reply.tokens[0], labels, "logit")


def read_reasoned(reply: Reply, labels: Sequence[str], language: Language) -> Label:
    """The label after the last `Rating:`; weighed by that very token's alternatives where they are given.

    A digit in the reason is never taken for the rating.
    """
    found = list(re.finditer(_rating(labels), reply.text, re.IGNORECASE))
    if not found:
        return Label({}, "raw", failure=_why_none(reply), reason=reply.text)
    last = found[-1]
    reason = reply.text[: last.start()].strip()
    if reason and not is_in(language, reason):
        return Label({}, "raw", failure=JudgeFailure.WRONG_LANGUAGE, reason=reason)
    label = last.group("label").upper()
    token = _token_at(reply.tokens, last.start("label"))
    if token is None or not token.alternatives:
        return Label({label: 1.0}, "raw", reason=reason)
    weighed = _weighed(token, labels, "weighted")
    return Label(weighed.shares, "weighted", weighed.mass, weighed.failure, reason)


def _rating(labels: Sequence[str]) -> str:
    words = "|".join(RATING)
    return rf"(?:{words})\W{{0,4}}(?P<label>[{''.join(labels)}])(?![\w.,]\d|\w)"


def _weighed(token: Token, labels: Sequence[str], mode: ScoreMode) -> Label:
    shares = dict.fromkeys(labels, 0.0)
    for text, logprob in token.alternatives:
        if (label := text.strip().strip("▁Ġ").upper()) in shares:
            shares[label] += math.exp(min(0.0, logprob))
    mass = sum(shares.values())
    if mass < MIN_MASS:
        return Label({}, mode, mass, JudgeFailure.LOW_MASS)
    return Label({label: share / mass for label, share in shares.items()}, mode, min(mass, 1.0))


def _token_at(tokens: Sequence[Token], place: int) -> Token | None:
    """The token that holds the character at `place` of the text; None where tokens and text do not agree."""
    start = 0
    for token in tokens:
        end = start + len(token.text)
        if start <= place < end:
            return token
        start = end
    return None


def _why_none(reply: Reply) -> JudgeFailure:
    if reply.finish == "length":
        return JudgeFailure.TRUNCATED
    return JudgeFailure.JUDGE_REFUSED if REFUSALS.search(reply.text) else JudgeFailure.PARSE_ERROR
