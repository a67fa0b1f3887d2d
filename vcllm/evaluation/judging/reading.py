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
from vcllm.evaluation.endpoint import Refusal, Reply, Token
from vcllm.evaluation.judging.wording import RATING
from vcllm.evaluation.language import is_in

MIN_MASS = 0.9
"""Of the probability that must lie on the labels: Liu et al. 2023, arXiv 2303.16634, weight by it; we ask for it."""
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Chinese input methods write ３ and ： for 3 and :, one character for one."""
AROUND = re.compile(r"^[\W_ĠĊ]+|[\W_ĠĊ]+$")
"""What may stand before and after a label in its token: spaces, in whichever way a tokenizer shows them, and marks."""
REFUSALS = re.compile(
    r"\bI (?:can(?:no|['’])t|am (?:not able|unable) to|won['’]t) (?:rate|judge|assess|evaluate|help|assist)|"
    r"(?:我)?(?:无法|不能|不便)(?:对此|就此)?(?:进行)?(?:评判|评价|评分|评定|回答|提供|协助)",
    re.IGNORECASE,
)
"""Said by a judge in place of a label; only looked for when there is none."""
FILTERED = "content_filter"
"""`finish` of a reply that the judge's server kept back."""
TOO_LONG = re.compile(r"too long|context (?:length|window)|maximum context|token limit|超出.*长度|过长", re.IGNORECASE)
NO_LOGPROBS = re.compile(r"logprob", re.IGNORECASE)
KEPT_BACK = re.compile(r"content.?filter|moderation|flagged|content.{0,20}policy|inappropriate|敏感|审核|违规", re.I)
CLOSED = frozenset({401, 402, 403, 404, 405, 501})
"""Statuses by which a server refuses everybody, whatever they ask."""


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
    """The label from the first token's alternatives; tokens that differ by space or width only count together.

    Where the first token is a bare space, as some tokenizers write one, the label is the second.
    """
    if reply.finish == FILTERED:
        return Label({}, "logit", failure=JudgeFailure.JUDGE_REFUSED)
    if not reply.tokens or not reply.tokens[0].alternatives:
        return Label({}, "logit", failure=JudgeFailure.NO_PROBABILITIES)
    if re.match(r"\s*A\s+[a-z]", reply.text):
        # An English sentence that begins with the article, not the label A.
        return Label({}, "logit", failure=JudgeFailure.PARSE_ERROR)
    first, *rest = reply.tokens
    masses = _masses(first, labels)
    if rest and not AROUND.sub("", first.text):
        later, came = _masses(rest[0], labels), math.exp(min(0.0, first.logprob))
        masses = {label: mass + came * later[label] for label, mass in masses.items()}
    return _label(masses, "logit")


def read_reasoned(reply: Reply, labels: Sequence[str], language: Language, *, written: bool = False) -> Label:
    """The label after the last `Rating:`, weighed by that very token's alternatives; written: taken as it stands.

    A digit in the reason is never taken for the rating.
    """
    mode: ScoreMode = "raw" if written else "weighted"
    text = reply.text.translate(FULL_WIDTH)
    thought, closed, _ = text.rpartition("</think>")
    start = len(thought) + len(closed)
    found = _last_rating(text, start, labels, cut_off=reply.finish == "length")
    if found is None:
        return Label({}, mode, failure=_why_none(reply), reason=reply.text)
    reason = reply.text[start : found.start()].strip()
    if reason and not is_in(language, reason):
        return Label({}, mode, failure=JudgeFailure.WRONG_LANGUAGE, reason=reason)
    if written:
        return Label(dict.fromkeys(labels, 0.0) | {found["label"].upper(): 1.0}, mode, reason=reason)
    token = token_with(reply.tokens, text[found.start() :].rstrip(), found.start("label") - found.start())
    if token is None or not token.alternatives:
        return Label({}, mode, failure=JudgeFailure.NO_PROBABILITIES, reason=reason)
    return _label(_masses(token, labels, any_case=True), mode, reason)


def read_refusal(refusal: Refusal) -> JudgeFailure:
    """Why a judge's server did not take one request; raises the refusal when it would take no other either."""
    if KEPT_BACK.search(refusal.message):
        return JudgeFailure.JUDGE_REFUSED
    if refusal.upstream_status in CLOSED:
        raise refusal
    if NO_LOGPROBS.search(refusal.message):
        return JudgeFailure.NO_PROBABILITIES
    too_long = refusal.upstream_status == 413 or TOO_LONG.search(refusal.message)
    return JudgeFailure.TOO_LONG if too_long else JudgeFailure.OUTAGE


def label_text(token: str) -> str:
    """The word a token stands for, without spaces, marks and width."""
    return AROUND.sub("", token.translate(FULL_WIDTH))


def _last_rating(text: str, start: int, labels: Sequence[str], cut_off: bool) -> re.Match[str] | None:
    """The last on a line of its own, as was asked for, else the last there is.

    cut_off: a reply without its end may have been about to go on, so only a line of its own counts.
    """
    between = r"[^\w\n]{0,8}\n?[^\w\n]{0,4}"
    pattern = rf"(?:{'|'.join(RATING)}){between}(?P<label>[{''.join(labels)}])(?![A-Za-z0-9]|[.,]\d)"
    found = list(re.compile(pattern, re.IGNORECASE).finditer(text, start))
    own = [match for match in found if _has_own_line(match, text)]
    if own:
        return own[-1]
    return found[-1] if found and not cut_off else None


def _has_own_line(match: re.Match[str], text: str) -> bool:
    before = text[: match.start()].rpartition("\n")[2]
    after = text[match.end() :].partition("\n")[0]
    return not re.search(r"\w", before) and not re.search(r"[^\W\d分]", after)


def token_with(tokens: Sequence[Token], phrase: str, offset: int) -> Token | None:
    """The token that holds the character at `offset` of a phrase; None where the tokens do not say the phrase.

    Looked for from the end: what stands before may differ, by a thought that is kept apart or a half character.
    """
    start = "".join(token.text for token in tokens).translate(FULL_WIDTH).rfind(phrase)
    if start < 0:
        return None
    end = 0
    for token in tokens:
        end += len(token.text)
        if start + offset < end:
            return token
    return None


def _masses(token: Token, labels: Sequence[str], any_case: bool = False) -> dict[str, float]:
    """Probability of each label at a token."""
    masses = dict.fromkeys(labels, 0.0)
    for text, logprob in token.alternatives:
        label = label_text(text)
        if (label := label.upper() if any_case else label) in masses:
            masses[label] += math.exp(min(0.0, logprob))
    return masses


def _label(masses: dict[str, float], mode: ScoreMode, reason: str = "") -> Label:
    mass = sum(masses.values())
    if mass < MIN_MASS:
        return Label({}, mode, mass, JudgeFailure.LOW_MASS, reason)
    return Label({label: share / mass for label, share in masses.items()}, mode, min(mass, 1.0), reason=reason)


def _why_none(reply: Reply) -> JudgeFailure:
    if reply.finish == "length":
        return JudgeFailure.TRUNCATED
    is_refused = reply.finish == FILTERED or REFUSALS.search(reply.text)
    return JudgeFailure.JUDGE_REFUSED if is_refused else JudgeFailure.PARSE_ERROR
