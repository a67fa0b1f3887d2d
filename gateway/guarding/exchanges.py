"""A conversation as the Critic reads it: what was asked, what was said to it, and what came before.

Pure functions over messages. A query by itself is never judged: whoever presses a claim is owed an explanation, and no
back end of the Critic tells a hard question from a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import MAX_HISTORY, MAX_QUERY, MAX_RESPONSE, CritiqueItem
from vcllm.evaluation.language import is_in

NO_QUERY = " "
"""In place of a query that is empty or missing: an item needs one."""


@dataclass(frozen=True, slots=True)
class Question:
    """What an answer is an answer to."""

    query: str
    history: tuple[ChatMessage, ...]
    """Turns before the query."""
    begun: str = ""
    """The answer's beginning, where the client has written one: it is judged together with what follows."""

    @property
    def language(self) -> Language:
        return language_of(self.query)

    def item(self, answer: str) -> CritiqueItem | None:
        """To be judged; None when it is more than a Critic takes, so that nothing would be left out in silence.

        Its language is the answer's, or the Critic would call a wanted translation broken, whatever it says.
        """
        response = self.begun + answer
        if len(self.query) > MAX_QUERY or len(self.history) > MAX_HISTORY or len(response) > MAX_RESPONSE:
            return None
        return CritiqueItem(
            query=self.query or NO_QUERY,
            response=response,
            language=language_of(response),
            history=list(self.history),
        )


@dataclass(frozen=True, slots=True)
class Earlier:
    """An answer that the client says was given."""

    question: Question
    answer: str


def question_of(messages: Sequence[ChatMessage]) -> Question:
    """What is to be answered: the last query, with all else that was said."""
    place = _last_query(messages, len(messages))
    begun = "".join(f"{message.content}\n" for message in messages[place + 1 :] if _is_answer(message))
    return _question(messages, place, len(messages), begun)


def earlier_answers(messages: Sequence[ChatMessage]) -> Iterator[Earlier]:
    """Every run of assistant turns is one answer, so that nothing hides by being cut in two."""
    for is_answer, run in groupby(range(len(messages)), lambda place: _is_answer(messages[place])):
        places = list(run)
        text = "\n".join(messages[place].content for place in places)
        if is_answer and text.strip():
            yield Earlier(_question(messages, _last_query(messages, places[0]), places[0]), text)


def language_of(text: str) -> Language:
    """By its letters: English where it has none, Chinese where a good part of them is."""
    return Language.EN if is_in(Language.EN, text) else Language.ZH


def _question(messages: Sequence[ChatMessage], place: int, end: int, begun: str = "") -> Question:
    """place: of the query, -1 where there is none. What a system message says after the query counts as said before."""
    query = messages[place].content if place >= 0 else ""
    after = [message for message in messages[place + 1 : end] if message.role == "system"]
    return Question(query, (*messages[: max(0, place)], *after), begun)


def _last_query(messages: Sequence[ChatMessage], end: int) -> int:
    return next((place for place in reversed(range(end)) if messages[place].role == "user"), -1)


def _is_answer(message: ChatMessage) -> bool:
    return message.role == "assistant"
