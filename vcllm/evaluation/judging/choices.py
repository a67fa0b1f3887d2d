"""Multiple-choice answers, read by rule. What cannot be read is its own class, never the last or the first option."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vcllm.contracts.answers import Compliance, JudgeFailure, ScoreMode
from vcllm.contracts.bench import Row
from vcllm.contracts.critiques import Outcome
from vcllm.evaluation.generate import LETTERS
from vcllm.evaluation.judging.judge import Case, Finding, unscored


@dataclass(frozen=True)
class ChoiceReader:
    """Reads the option an answer names."""

    name: str = "choice"
    revision: str = "1"
    mode: ScoreMode = "choice"
    prompt_hash: str = ""

    async def judge(self, case: Case) -> list[Finding]:
        if not case.row.choices:
            return [unscored(JudgeFailure.NOT_COVERED) for _ in case.answer.texts]
        *early, last = case.answer.texts
        return [*(unscored(JudgeFailure.NOT_COVERED) for _ in early), _read(case.row, last)]


def read_choice(text: str, choices: list[str]) -> int | None:
    """The one option that a reply names, by letter or by its words; None where there is none or more than one."""
    letters = LETTERS[: len(choices)]
    bare = text.strip()
    if alone := re.fullmatch(rf"[(（]?([{letters}])[)）.。、:：]?", bare, re.IGNORECASE):
        return letters.index(alone[1].upper())
    named = set(re.findall(rf"(?<![A-Za-z])([{letters}])(?![A-Za-z'’])", bare))
    if "A" in named and re.match(r"A [a-z]", bare):
        named.discard("A")
    if len(named) == 1:
        return letters.index(named.pop())
    said = [number for number, choice in enumerate(choices) if choice.strip().casefold() in bare.casefold()]
    return said[0] if len(said) == 1 and not named else None


def _read(row: Row, text: str) -> Finding:
    choice = read_choice(text, row.choices)
    if choice is None:
        return Finding(Outcome.BROKEN, failure=None, compliance=Compliance.UNRELATED, raw=("unparsable",))
    right = row.answer_index is None or choice == row.answer_index
    return Finding(Outcome.CONSISTENT if right else Outcome.VIOLATING, choice=choice)
