"""Dataset rows to encoded rows, a few hundred at a time, for each kind of stage.

How text becomes tokens and what is learned of it stands in `chats`; this module knows the shapes of rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from vcllm.contracts.critiques import SCORED
from vcllm.contracts.problems import BadRequest
from vcllm.engine.classes import critic_text
from vcllm.engine.prompts import encode
from vcllm.training.chats import ALL_CUT, Chat, encode_chats, encode_documents, encode_preferences, learns_end
from vcllm.training.corpus import Counts, Encoded

Row = dict[str, Any]
Encoder = Callable[[Any, Iterable[Row], int, Counts], Iterator[Encoded | None]]
"""(tokenizer, rows, max_length, counts to fill) to encoded rows; None for one with nothing left to learn."""

AT_ONCE = 256
UNCUT = 1 << 30
MAX_CRITERIA = 64
CHINESE = re.compile("[\u4e00-\u9fff]")


def documents(tokenizer: Any, rows: Iterable[Row], max_length: int, counts: Counts) -> Iterator[Encoded | None]:
    """Everything is learned. A longer document becomes rows that each begin with the last token before."""
    for line, part in _parts(rows, counts):
        for number, chat in enumerate(encode_documents(tokenizer, part, UNCUT).rows):
            if chat is None:
                yield None
                continue
            counts.cut += len(chat.ids) > max_length
            for start in range(0, max(1, len(chat.ids) - 1), max_length - 1):
                window = slice(start, start + max_length)
                yield Encoded(chat.ids[window], [False, *chat.learned[window][1:]], line + number)


def answers(tokenizer: Any, rows: Iterable[Row], max_length: int, counts: Counts) -> Iterator[Encoded | None]:
    """Conversations, all answers learned; and preferences, which fork at the answer where there is a rejected one.

    Rows: `{"messages", "weight"?}`, `{"prompt": [messages], "chosen", "rejected" | None, "weight"?}`.
    """
    taught = False
    for line, part in _parts(rows, counts):
        pairs = [number for number, row in enumerate(part) if row.get("rejected")]
        singles = [number for number, row in enumerate(part) if not row.get("rejected")]
        found = _chats(tokenizer, part, singles, max_length, line, counts)
        found |= _pairs(tokenizer, part, pairs, max_length, line, counts)
        taught = taught or learns_end(tokenizer, [Chat(row.ids, row.learned) for row in found.values() if row])
        yield from (found[number] for number in range(len(part)))
    if counts.rows and not taught:
        raise BadRequest(ALL_CUT)


def labelled(
    tokenizer: Any, rows: Iterable[Row], max_length: int, counts: Counts, criteria: Sequence[str] = ()
) -> Iterator[Encoded | None]:
    """Exchanges as a critic reads them, with the class of each and its scores by `criteria`.

    Too long ones are dropped: their end decides.
    """
    label_of = {outcome.value: index for index, outcome in enumerate(SCORED)}
    for line, part in _parts(rows, counts):
        texts = [critic_text(tokenizer, *(turn["content"] for turn in row["messages"])) for row in part]
        for number, (row, ids) in enumerate(zip(part, encode(tokenizer, texts), strict=True)):
            if len(ids) > max_length:
                counts.cut += 1
                yield None
                continue
            language = 0 if CHINESE.search(row["messages"][-1]["content"]) else 1
            weight, label = float(row.get("weight", 1.0)), label_of[row["label"]]
            known = row.get("scores", {})
            scores = tuple(float(known.get(criterion, math.nan)) for criterion in criteria)
            learned = [False] * len(ids)
            yield Encoded(ids, learned, line + number, weight=weight, label=label, language=language, scores=scores)


def turns_of(row: Row) -> list[dict[str, str]]:
    """A row's conversation, its chosen answer included."""
    if "messages" in row:
        return list(row["messages"])
    return [*row["prompt"], {"role": "assistant", "content": row["chosen"]}]


def _parts(rows: Iterable[Row], counts: Counts) -> Iterator[tuple[int, list[Row]]]:
    iterator, line = iter(rows), 1
    while part := list(islice(iterator, AT_ONCE)):
        yield line, part
        counts.rows += len(part)
        line += len(part)


def _chats(
    tokenizer: Any, part: Sequence[Row], numbers: Sequence[int], max_length: int, line: int, counts: Counts
) -> dict[int, Encoded | None]:
    if not numbers:
        return {}
    encoded = encode_chats(tokenizer, [turns_of(part[number]) for number in numbers], max_length, insist=False)
    counts.cut += encoded.num_cut
    return {
        number: chat and Encoded(chat.ids, chat.learned, line + number, weight=float(part[number].get("weight", 1.0)))
        for number, chat in zip(numbers, encoded.rows, strict=True)
    }


def _pairs(
    tokenizer: Any, part: Sequence[Row], numbers: Sequence[int], max_length: int, line: int, counts: Counts
) -> dict[int, Encoded | None]:
    if not numbers:
        return {}
    triples = [(part[number]["prompt"], part[number]["chosen"], part[number]["rejected"]) for number in numbers]
    encoded = encode_preferences(tokenizer, triples, max_length, insist=False)
    counts.cut += encoded.num_cut
    found: dict[int, Encoded | None] = {}
    for number, pair in zip(numbers, encoded.rows, strict=True):
        if pair is None or pair.chosen == pair.rejected or not pair.prefix:
            found[number] = None  # nothing to prefer, or no token to predict the answers from
            continue
        prefix, fork = len(pair.prefix), len(pair.prefix) + len(pair.chosen)
        ids = [*pair.prefix, *pair.chosen, *pair.rejected]
        learned = [False] * prefix + [True] * (len(ids) - prefix)
        weight = float(part[number].get("weight", 1.0))
        found[number] = Encoded(ids, learned, line + number, prefix, fork, weight)
    return found


def check_labels(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of a critic as they come; BadRequest at the first without a known label."""
    known = {outcome.value for outcome in SCORED}
    for number, row in enumerate(rows, start=1):
        if row.get("label") not in known or len(row.get("messages", [])) != 2:
            raise BadRequest(
                f"Row {number} cannot teach a critic: it needs a question, an answer and a 'label', one of "
                f"{', '.join(sorted(known))}."
            )
        if not all(0 <= score <= 1 for score in row.get("scores", {}).values()):
            raise BadRequest(f"Row {number} cannot teach a critic: its 'scores' must be numbers from 0 to 1.")
        yield row


def criteria_of(rows: Iterable[Row]) -> list[str]:
    """The criteria that a critic's rows have scores for, sorted; BadRequest when no head could hold them all."""
    found: set[str] = set()
    for row in rows:
        found.update(row.get("scores", {}))
        if len(found) > MAX_CRITERIA:
            raise BadRequest(
                f"The rows have scores for more than {MAX_CRITERIA} criteria, such as {', '.join(sorted(found)[:3])}. "
                "'scores' holds the id of a criterion and its number: look for ids that differ from row to row."
            )
    return sorted(found)
