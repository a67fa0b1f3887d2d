"""The first stage of `vcllm eval`: asks one model every row that it has not answered yet.

Each answer is written the moment it is complete; a run that was killed, or whose server went away, goes on where it
stopped when it is started again. Knows rows and servers, nothing of judging.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from vcllm.charter import LoadedCharter
from vcllm.contracts.answers import NOT_TAKEN, Answer, Decoding, answer_key
from vcllm.contracts.base import Language, digest
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import Problem
from vcllm.evaluation.endpoint import Endpoint, Refusal, Reply
from vcllm.evaluation.files import Appender

Progress = Callable[[int, int], None]
"""Called with what is done and how much there is."""
LETTERS = "ABCDEFGHIJ"
CHOOSE = {
    "zh": "请只回答正确选项的字母。",
    "en": "Reply with the letter of the correct option only.",
}
NOT_THIS_ONE = frozenset({400, 413, 422})
"""Statuses by which a server refuses this question, such as one longer than its context, but not every other."""
T = TypeVar("T")


async def generate(
    rows: Sequence[Row],
    endpoint: Endpoint,
    file: Path,
    *,
    model: str,
    decoding: Decoding,
    charter: LoadedCharter,
    concurrency: int = 16,
    progress: Progress = lambda done, total: None,
) -> list[Answer]:
    """Answers to all rows, in their order, those of earlier runs among them; raises Problem when the server fails.

    A question that the server refuses, and only that, is kept as refused: nobody judges it, and the next run asks it
    again.

    model: the name the answers are kept and shown under.
    """
    keys = [answer_key(row, model, decoding) for row in rows]
    with Appender(file, Answer) as answers:
        missing = [(key, row) for key, row in zip(keys, rows, strict=True) if not _is_there(answers.rows.get(key))]
        done = len(rows) - len(missing)
        progress(done, len(rows))

        async def one(place: tuple[str, Row]) -> None:
            nonlocal done
            key, row = place
            answers.append(await _ask(key, row, endpoint, model, decoding, charter), again=True)
            done += 1
            progress(done, len(rows))

        try:
            await in_parallel(one, missing, concurrency)
        except Problem as problem:
            told = problem.message.rstrip(".")
            problem.message = f"{told}. {done} of {len(rows)} answers are kept; run the same again to go on."
            raise
        return [answers.rows[key] for key in keys]


def _is_there(answer: Answer | None) -> bool:
    return answer is not None and not answer.is_missing


async def in_parallel(work: Callable[[T], Awaitable[None]], tasks: Iterable[T], concurrency: int) -> None:
    """Do the tasks, so many at a time; the first failure stops the others."""
    waiting = iter(tasks)

    async def worker() -> None:
        for task in waiting:
            await work(task)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, concurrency)):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _ask(
    key: str, row: Row, endpoint: Endpoint, model: str, decoding: Decoding, charter: LoadedCharter
) -> Answer:
    """The whole conversation of a row: the user's turns stand, the model's own answers go between them."""
    messages = opening(row.lang, decoding, charter)
    replies: list[Reply] = []
    turns, fault = user_turns(row), ""
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        try:
            reply = await endpoint.chat(messages, **_sampling(row, decoding))
        except Refusal as refusal:
            if refusal.upstream_status not in NOT_THIS_ONE:
                raise
            fault = refusal.message
            break
        messages.append({"role": "assistant", "content": reply.text})
        replies.append(reply)
    untaken = len(turns) - len(replies)
    return Answer(
        key=key,
        item=row.id,
        model=model,
        model_version=replies[-1].version if replies else "",
        texts=[*(reply.text for reply in replies), *[""] * untaken],
        finish=[*(reply.finish for reply in replies), *[NOT_TAKEN] * untaken],
        fault=fault,
        latency_s=round(sum(reply.seconds for reply in replies), 4),
        created=datetime.now(UTC),
    )


def opening(language: Language, decoding: Decoding, charter: LoadedCharter) -> list[dict[str, str]]:
    """The system message, or none."""
    system = charter.system_prompt(language) if decoding.charter_prompt else decoding.system
    return [{"role": "system", "content": system}] if system else []


def user_turns(row: Row) -> list[str]:
    """What the user says; choices are listed and the letter asked for."""
    if not row.choices:
        return row.prompt
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row.choices, strict=False))
    return [*row.prompt[:-1], f"{row.prompt[-1]}\n{listed}\n{CHOOSE[row.lang]}"]


def _sampling(row: Row, decoding: Decoding) -> dict[str, Any]:
    """Each question has a seed of its own: with one for all, whole sets would fall on the same side of a chance."""
    sampling: dict[str, Any] = {"temperature": decoding.temperature, "max_tokens": decoding.max_tokens}
    if decoding.top_p < 1:
        sampling["top_p"] = decoding.top_p
    if decoding.seed is not None:
        sampling["seed"] = int(digest([decoding.seed, row.id])[:7], 16)
    return sampling
