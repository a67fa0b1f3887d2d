"""Rows to token ids and a mask of what is learned: every answer with its end of turn, or every word of a text.

How a template writes a conversation is learned from the template: it is asked once for each shape of conversation
(the sequence of roles) what stands between the messages. Every rendered text is then walked along that outline,
which finds the answers also where the template strips, folds or reorders the other messages.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Generic, NamedTuple, TypeVar

from vcllm.contracts.problems import BadRequest
from vcllm.engine.prompts import Turns, blank_special_tokens, encode, end_of_turn_ids, first_end, render, render_all

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""In a template: it marks what the assistant says by itself."""
MARK = re.compile("\ue000([0-9]+)\ue001")
"""Stands for the content of message number N in an outline."""
NO_MARKS = re.compile("[\ue000\ue001]")
NO_END = "The end-of-turn token lies outside the loss mask: the model would never learn to stop."
ALL_CUT = f"{NO_END} All rows are cut before it; raise max_length."

Span = tuple[int, int]
"""Characters of a rendered text: from, to."""
T = TypeVar("T")


class Chat(NamedTuple):
    """One encoded row. `learned[i]`: token i is learned; never the first, which nothing predicts."""

    ids: list[int]
    learned: list[bool]


class Pair(NamedTuple):
    """Two answers behind the same tokens; each ends with its end of turn unless it was cut."""

    prefix: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class Encoded(Generic[T]):
    """One entry per row, in order. None: within `max_length` there is nothing to learn from it."""

    rows: list[T | None]
    num_cut: int
    """Rows longer than `max_length`, those that are None included."""

    @property
    def kept(self) -> list[T]:
        return [row for row in self.rows if row is not None]

    @property
    def num_dropped(self) -> int:
        return self.rows.count(None)


def encode_chat(tokenizer: Any, messages: Turns, max_length: int) -> Chat | None:
    """One conversation; see `encode_chats`, which is much faster for many."""
    return encode_chats(tokenizer, [messages], max_length).rows[0]


def encode_chats(
    tokenizer: Any, conversations: Sequence[Turns], max_length: int, *, insist: bool = True
) -> Encoded[Chat]:
    """All answers of each conversation are learned, their ends of turn included; longer rows are cut at the end.

    The ids are those of the whole rendered text, so the tokens before an answer are what a server feeds the model.
    BadRequest when answers cannot be told apart, or when no end of turn would be learned.
    """
    whole = _encode_whole(tokenizer, conversations)
    encoded = Encoded([_cut(chat, max_length) for chat in whole], sum(len(chat.ids) > max_length for chat in whole))
    check_end_of_turn(tokenizer, whole, encoded.kept, insist)
    return encoded


def encode_preference(tokenizer: Any, prompt: Turns, chosen: str, rejected: str, max_length: int) -> Pair | None:
    """One pair; see `encode_preferences`, which is much faster for many."""
    return encode_preferences(tokenizer, [(prompt, chosen, rejected)], max_length).rows[0]


def encode_preferences(
    tokenizer: Any, rows: Sequence[tuple[Turns, str, str]], max_length: int, *, insist: bool = True
) -> Encoded[Pair]:
    """Rows are (prompt, chosen, rejected). `prefix` is what both renderings begin with, the answers are the rest.

    Where an answer's first letters change the prompt's last token, the prefix ends before that token. What a template
    writes behind the end of turn belongs to neither answer. None: the prompt alone fills `max_length`.
    """
    both = _encode_whole(tokenizer, [_answered(row[0], answer) for row in rows for answer in row[1:]])
    whole = [_as_pair(both[i], both[i + 1]) for i in range(0, len(both), 2)]
    pairs = [_cut_pair(pair, max_length) for pair in whole]
    answers = [Chat(answer, [True] * len(answer)) for pair in pairs if pair for answer in pair[1:]]
    check_end_of_turn(tokenizer, both, answers, insist)
    longest = [len(pair.prefix) + max(len(pair.chosen), len(pair.rejected)) for pair in whole]
    return Encoded(pairs, sum(length > max_length for length in longest))


def encode_documents(tokenizer: Any, rows: Sequence[dict[str, Any]], max_length: int) -> Encoded[Chat]:
    """Everything is learned. Rows are `{"text"}` or `{"messages"}`.

    A text begins as the tokenizer begins texts and ends with its `eos_token`; a conversation is what its template
    writes.
    """
    chats = _blanked(tokenizer, [row["messages"] for row in rows if "messages" in row])
    rendered = iter(encode(tokenizer, render_all(tokenizer, chats)) if chats else [])
    plain = iter(_texts(tokenizer, [row["text"] for row in rows if "messages" not in row]))
    whole = [next(rendered) if "messages" in row else next(plain) for row in rows]
    found = [_cut(Chat(ids, [False] + [True] * (len(ids) - 1)), max_length) for ids in whole]
    return Encoded(found, sum(len(ids) > max_length for ids in whole))


def check_end_of_turn(tokenizer: Any, whole: Sequence[Chat], kept: Sequence[Chat], insist: bool) -> None:
    """A model that never learns to stop is useless: BadRequest before any time is spent.

    insist: these are all rows there are; else one of those to come may be short enough.
    """
    if whole and not learns_end(tokenizer, whole):
        raise BadRequest(f"{NO_END} Check the tokenizer's chat template.")
    if whole and insist and not learns_end(tokenizer, kept):
        raise BadRequest(ALL_CUT)


def learns_end(tokenizer: Any, chats: Sequence[Chat]) -> bool:
    """Whether any of them learns an end of turn."""
    ends = end_of_turn_ids(tokenizer)
    return any(token in ends for chat in chats for token, on in zip(*chat, strict=True) if on)


def show_mask(tokenizer: Any, ids: Sequence[int], learned: Sequence[bool]) -> str:
    """The row as text, special tokens included, with what is learned in ⟦ ⟧."""
    stops = [0]
    for _, run in groupby(learned):
        stops.append(stops[-1] + len(list(run)))
    # Whole beginnings are decoded, not runs: some decoders trim the start of a text.
    texts = [tokenizer.decode(list(ids[:stop]), skip_special_tokens=False) if stop else "" for stop in stops]
    shown = ""
    for (start, _), (before, text) in zip(pairwise(stops), pairwise(texts), strict=True):
        piece = text[len(before) :]
        shown += f"⟦{piece}⟧" if learned[start] else piece
    return shown


def _encode_whole(tokenizer: Any, conversations: Sequence[Turns]) -> list[Chat]:
    """Uncut."""
    chats = _blanked(tokenizer, conversations)
    for number, chat in enumerate(chats):
        if not any(turn["role"] == "assistant" for turn in chat):
            raise BadRequest(f"Conversation {number + 1} has no assistant turn: there is nothing to learn from it.")
    if not chats:
        return []
    marked = GENERATION.search(tokenizer.get_chat_template())
    return (_by_template if marked else _by_outline)(tokenizer, chats)


def _blanked(tokenizer: Any, conversations: Sequence[Turns]) -> list[Turns]:
    """Without spellings of special tokens, as when serving, and without our own marks."""
    blank = blank_special_tokens(tokenizer)
    return [
        [{**turn, "content": NO_MARKS.sub(" ", blank(turn["content"]))} for turn in turns] for turns in conversations
    ]


def _by_template(tokenizer: Any, chats: Sequence[Turns]) -> list[Chat]:
    """The template marks answers itself."""
    encoded = tokenizer.apply_chat_template(
        chats, return_dict=True, return_assistant_tokens_mask=True, enable_thinking=False
    )
    masks = encoded["assistant_masks"]
    return [Chat(ids, [False, *map(bool, mask[1:])]) for ids, mask in zip(encoded["input_ids"], masks, strict=True)]


def _by_outline(tokenizer: Any, chats: Sequence[Turns]) -> list[Chat]:
    """Answers are where the outline of the conversation's shape has them."""
    texts = render_all(tokenizer, chats)
    outlines: dict[tuple[str, ...], Outline] = {}
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    found = []
    rows = zip(chats, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for number, (chat, text, ids, offsets) in enumerate(rows):
        shape = tuple(turn["role"] for turn in chat)
        if shape not in outlines:
            outlines[shape] = outline_of(tokenizer, shape)
        spans = outlines[shape].answers(text, [turn["content"] for turn in chat])
        if spans is None:
            raise BadRequest(
                f"The model's chat template rewrites the messages of conversation {number + 1}; its answers cannot "
                "be marked off. Change them (reasoning, for one, is often taken out), or the template."
            )
        found.append(Chat(ids, _mask(offsets, spans)))
    return found


@dataclass(frozen=True, slots=True)
class Outline:
    """What a template writes around the messages of one shape: literal, message, literal, message, ..., literal."""

    literals: list[str]
    order: list[int]
    """Message numbers as they come in the text."""
    learned: dict[int, Span]
    """By answer: how many characters before and behind its content are learned with it."""

    def answers(self, text: str, contents: Sequence[str]) -> list[Span] | None:
        """What is learned of the text; None when it is not made like this outline."""
        spans, position = [], len(self.literals[0])
        if not text.startswith(self.literals[0]):
            return None
        for number, literal in zip(self.order, self.literals[1:], strict=True):
            start = position
            content = next((c for c in _spellings(contents[number]) if text.startswith(c + literal, start)), None)
            if content is None:
                return None
            position += len(content)
            if number in self.learned:
                before, behind = self.learned[number]
                spans.append((start - before, position + behind))
            position += len(literal)
        return spans if position == len(text) else None


def outline_of(tokenizer: Any, shape: Sequence[str]) -> Outline:
    """Ask the template; BadRequest when it hides an answer, or prompts for it other than it writes it."""
    turns = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(shape)]
    pieces = MARK.split(render(tokenizer, turns, add_generation_prompt=False))
    literals, order = pieces[::2], [int(number) for number in pieces[1::2]]
    learned: dict[int, Span] = {}
    last = max(number for number, role in enumerate(shape) if role == "assistant")
    for number in (number for number, role in enumerate(shape) if role == "assistant"):
        if order.count(number) != 1:
            raise BadRequest("The model's chat template leaves answers out or repeats them; it cannot be trained on.")
        place = order.index(number)
        prompt = _prompt_before(tokenizer, turns[:number])
        prompted = prompt is not None and literals[place].startswith(prompt)
        if number == last and prompt is not None and not prompted:
            raise BadRequest(
                f"The model's chat template asks for an answer with {prompt!r} but writes {literals[place]!r} before "
                "one: what is trained would not be what is served."
            )
        end = first_end(tokenizer, literals[place + 1])
        before = len(literals[place]) - len(prompt) if prompt is not None and prompted else 0
        learned[number] = (before, 0 if end is None else end[1])
    return Outline(literals, order, learned)


def _prompt_before(tokenizer: Any, turns: Turns) -> str | None:
    """What stands between the last message and a new answer, as a server would prompt; None at the very start."""
    if not turns:
        return None
    return str(MARK.split(render(tokenizer, turns, add_generation_prompt=True))[-1])


def _spellings(content: str) -> Iterator[str]:
    """How templates write a message: as it is, or without the white space around it."""
    yield content
    yield content.strip()
    yield content.rstrip()
    yield content.lstrip()
    yield content.lstrip("\n")


def _mask(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Tokens with a character in a span. One that also reaches back before it counts: its word would be lost."""
    learned = [False] * len(offsets)
    for start, stop in spans:
        first = bisect_left(offsets, True, key=lambda span: span[0] >= start or span[1] > start)
        behind = bisect_left(offsets, stop, key=lambda span: span[0])
        learned[first:behind] = [True] * (behind - first)
    learned[:1] = [False] * len(learned[:1])
    return learned


def _cut(chat: Chat, max_length: int) -> Chat | None:
    cut = Chat(chat.ids[:max_length], chat.learned[:max_length])
    return cut if any(cut.learned) else None


def _answered(prompt: Turns, answer: str) -> Turns:
    return [*prompt, {"role": "assistant", "content": answer}]


def _as_pair(chosen: Chat, rejected: Chat) -> Pair:
    (start, stop), (other_start, other_stop) = _last_answer(chosen), _last_answer(rejected)
    split = min(start, other_start, len(os.path.commonprefix([chosen.ids, rejected.ids])))
    return Pair(chosen.ids[:split], chosen.ids[split:stop], rejected.ids[split:other_stop])


def _last_answer(chat: Chat) -> Span:
    stop = len(chat.learned) - chat.learned[::-1].index(True) if True in chat.learned else len(chat.ids)
    start = stop
    while start > 1 and chat.learned[start - 1]:
        start -= 1
    return start, stop


def _cut_pair(pair: Pair, max_length: int) -> Pair | None:
    room = max_length - len(pair.prefix)
    return Pair(pair.prefix, pair.chosen[:room], pair.rejected[:room]) if room > 0 else None


def _texts(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    end = tokenizer.eos_token_id
    for ids in tokenizer(list(texts))["input_ids"] if texts else []:
        yield ids if ids[-1:] == [end] or end is None else [*ids, end]
