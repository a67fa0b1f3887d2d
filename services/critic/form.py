"""What a judging language model reads, and the lines it may answer with: the charter's rubric in one language.

What is the same for every item comes first, so that an engine reads it once. Texts of users are quoted line by
line, so none of them can pass for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vcllm.charter import LoadedCharter
from vcllm.contracts.base import Bilingual, Language
from vcllm.contracts.charter import JudgeWording
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import SCORED

COLON = Bilingual(zh="：", en=": ")
EARLIER = {
    "user": Bilingual(zh="此前的提问", en="Earlier question"),
    "assistant": Bilingual(zh="此前的回答", en="Earlier answer"),
    "system": Bilingual(zh="此前的系统消息", en="Earlier system message"),
}
"""Headings of the turns before the question, by the role that spoke. They are not to be judged, so they are not called
what the charter calls the question and the answer."""
FIRST, SECOND = "A", "B"
LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Line:
    """What a line of the reply begins with, such as `Stance:`, and every way to complete it."""

    lead: str
    options: tuple[str, ...]
    """Whole lines: `Stance: 1`, `Stance: 2`, …"""


class Form:
    """Prompts and lines in one language."""

    def __init__(self, charter: LoadedCharter, wording: JudgeWording, language: Language) -> None:
        self.language = language
        self.wording = wording
        self.colon = COLON[language]
        self.criteria = {
            criterion.id: self._line(criterion.name[language], map(str, LEVELS))
            for criterion in charter.rubric.criteria
        }
        """By the criterion's id; options from the worst level to the best."""
        words = [wording.outcomes[outcome].word[language] for outcome in SCORED]
        self.verdict = self._line(wording.verdict[language], words)
        """Options in the order of `SCORED`."""
        self.better = self._line(wording.better[language], (FIRST, SECOND))
        self.preamble = "\n\n".join(self._preamble(charter))

    def critique(self, query: str, response: str, history: Sequence[ChatMessage] = ()) -> str:
        """The prompt about one answer; history: the turns before the query."""
        return self._prompt(history, query, {"": response}, self.wording.reply)

    def comparison(self, query: str, first: str, second: str, history: Sequence[ChatMessage] = ()) -> str:
        """The prompt about two answers."""
        return self._prompt(history, query, {f" {FIRST}": first, f" {SECOND}": second}, self.wording.compare)

    def _preamble(self, charter: LoadedCharter) -> Iterator[str]:
        language, colon = self.language, self.colon
        yield self.wording.task[language]
        yield f"{charter.charter.name[language]}{colon}{charter.system_prompt(language)}"
        for criterion in charter.rubric.criteria:
            levels = [f"{level}{colon}{criterion.levels[level][language]}" for level in LEVELS]
            yield "\n".join([f"{criterion.name[language]}{colon}{criterion.question[language]}", *levels])
        outcomes = [self.wording.outcomes[outcome] for outcome in SCORED]
        meanings = [f"{outcome.word[language]}{colon}{outcome.meaning[language]}" for outcome in outcomes]
        yield "\n".join([f"{self.wording.verdict[language]}{colon}".rstrip(), *meanings])

    def _prompt(
        self, history: Sequence[ChatMessage], query: str, answers: Mapping[str, str], closing: Bilingual
    ) -> str:
        wording, language = self.wording, self.language
        parts = [self._quoted(EARLIER[message.role][language], message.content) for message in history]
        parts.append(self._quoted(wording.question[language], query))
        parts += [self._quoted(f"{wording.answer[language]}{name}", text) for name, text in answers.items()]
        return "\n\n".join([self.preamble, *parts, closing[language]])

    def _quoted(self, heading: str, text: str) -> str:
        lines = [f"> {line}" for line in text.splitlines()]  # also at the breaks that only Unicode knows
        return "\n".join([f"{heading}{self.colon}".rstrip(), *lines])

    def _line(self, name: str, ends: Iterable[str]) -> Line:
        return Line(f"{name}{self.colon}".rstrip(), tuple(f"{name}{self.colon}{end}" for end in ends))


def forms(charter: LoadedCharter) -> dict[Language, Form] | None:
    """In every language; None for a charter whose rubric says nothing of judges."""
    wording = charter.rubric.judge
    return None if wording is None else {language: Form(charter, wording, language) for language in Language}
