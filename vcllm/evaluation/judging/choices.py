"""Multiple-choice answers, read by rule. What cannot be read is its own class, never the last or the first option."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vcllm.contracts.answers import Compliance, JudgeFailure, ScoreMode
from vcllm.contracts.bench import Row
from vcllm.contracts.critiques import Outcome
from vcllm.evaluation.generate import LETTERS
from vcllm.evaluation.judging.judge import Case, Finding, unscored
from vcllm.evaluation.judging.reading import FULL_WIDTH

STATED = r"(?i:answer(?: is)?|choose|答案(?:是|为|应为)?|选择?)\s*:?"
"""Before a letter that is plainly the answer, whatever other letters a reply speaks of."""
AFTER_LETTER = r"(?:or|and|is|was|because|as|since|seems|fits)\b"
"""Words before which A and I are letters; before others they are an article and a pronoun."""


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
    bare = text.translate(FULL_WIDTH).strip()
    if alone := re.fullmatch(rf"[(*\s]*([{letters}])[)*.。、:\s]*", bare, re.IGNORECASE):
        return letters.index(alone[1].upper())
    if stated := {found.upper() for found in re.findall(rf"{STATED}[(*\s]*([{letters}])(?![A-Za-z'’])", bare)}:
        return letters.index(stated.pop()) if len(stated) == 1 else None
    said = _says(bare, choices)
    if (begun := re.match(rf"[(]?([{letters}])[).、:]", bare)) and len(said) == 1:
        return said[0] if said[0] == letters.index(begun[1]) else None
    named = set(re.findall(rf"(?<![A-Za-z])([{letters}])(?![A-Za-z'’])", bare))
    named -= {word for word in ("A", "I") if re.search(rf"(?<![A-Za-z]){word} (?!{AFTER_LETTER})[a-z]", bare)}
    if len(named) == 1:
        return letters.index(named.pop())
    return said[0] if len(said) == 1 and not named else None


def _says(text: str, choices: list[str]) -> list[int]:
    """Options whose words stand in a text; of options that contain each other, the longest."""
    found = {}
    for number, choice in enumerate(choices):
        words = choice.translate(FULL_WIDTH).strip()
        if words and re.search(rf"(?<![A-Za-z0-9]){re.escape(words)}(?![A-Za-z0-9])", text, re.IGNORECASE):
            found[number] = words.casefold()
    return [n for n, words in found.items() if not any(words != other and words in other for other in found.values())]


def _read(row: Row, text: str) -> Finding:
    choice = read_choice(text, row.choices)
    if choice is None:
        return Finding(Outcome.BROKEN, failure=None, compliance=Compliance.UNRELATED, raw=("unparsable",))
    if row.answer_index is None:
        # Nobody knows which option is right, so none is: the set came without its answers.
        return Finding(Outcome.UNSCORED, failure=JudgeFailure.NOT_COVERED, choice=choice)
    return Finding(Outcome.CONSISTENT if choice == row.answer_index else Outcome.VIOLATING, choice=choice)
