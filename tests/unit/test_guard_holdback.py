"""Holding answers back: for any cutting and any verdicts, nothing is shown that a passed check did not cover."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from gateway.guarding.checks import Checks
from gateway.guarding.critics import Deadline
from gateway.guarding.frames import Counted, End, Piece, Tail, frames_of, read_frames
from gateway.guarding.holdback import HoldBack, Span
from gateway.guarding.opinions import Look
from gateway.guarding.rules import Rule
from gateway.guarding.stream import GuardedStream
from services.actor.frames import FrameWriter, Head
from vcllm.contracts.base import Bilingual
from vcllm.contracts.chat import ChatMessage, ChatRequest, ChosenLogprob
from vcllm.contracts.critiques import Critique, CritiqueItem, Outcome
from vcllm.contracts.guard import GuardMode, GuardPolicy, GuardStage, GuardVerdict
from vcllm.contracts.problems import UpstreamFailed
from vcllm.web.sse import DONE
from vcllm.web.usage import usage_comment

REFUSAL = "☒"
"""No text of the Actor has it."""
LETTERS = "abcde 你好。.!?\n🙂"
HEAD = Head("chat-1", 1, "actor-1", None)


# One answer, without any Critic


def fed(hold: Literal["whole"] | int, *pieces: str) -> HoldBack:
    held = HoldBack(hold)
    for piece in pieces:
        held.take(piece.encode(), piece)
    return held


def test_a_whole_answer_is_due_at_its_end():
    """And not before."""
    held = fed("whole", "One. ", "Two. ")
    assert held.due is None

    held.take(b"end", "", finished=True)

    assert held.due == Span(10, True)


@pytest.mark.parametrize(
    ("pieces", "end"),
    [
        (("Long enough it is. ", "And on"), 19),
        (("这句话说得够长了吧。", "然后", "再说下去就够二十个字了。"), 24),
        (("Too short. ",), None),
        (("It costs 3.50 and", " no more than it"), None),
        (("A point at the end.", " Then more"), 29),
        (("no end of a sentence " * 3,), 63),
    ],
)
def test_a_chunk_is_due_where_a_sentence_ends(pieces: Sequence[str], end: int | None):
    """In either language; without sentences, once there are three times as many characters."""
    due = fed(20 if end != 19 else 15, *pieces).due

    assert (due and due.end) == end


def test_the_finish_frame_waits_for_the_whole():
    """A client that got it would take what it has for the whole answer."""
    held = fed(20, "A sentence that is long. ")
    held.take(b"end", "", finished=True)
    held.cover(Span(25, False))

    assert held.release() == b"A sentence that is long. "
    assert held.release(complete=True) == b"end"


def test_what_tells_of_tokens_to_come_waits_for_them():
    """Log-probabilities of a part of a character are as good as its text."""
    held = HoldBack(20)
    held.take(b"role", "")
    held.take(b"part", "", tells=True)

    assert held.release() == b"role"
    held.take(b"text", "A sentence that is long. ")
    held.cover(Span(25, False))
    assert held.release() == b"parttext"


def test_what_is_dropped_is_gone():
    """It is not shown later, and not kept."""
    held = fed(20, "A sentence that is long. ")
    held.drop()
    held.cover(Span(25, False))

    assert (held.release(complete=True), held.text) == (b"", "")


# Frames


WRITE = FrameWriter(HEAD, 1, True)


def test_frames_are_read_as_the_actor_writes_them():
    """Comments are left out, but for the gateway's own."""
    written = WRITE.role(0) + b": keep-alive\n\n" + WRITE.text(0, "Hi\n\n", None) + WRITE.finish(0, "stop")

    role, text, finish, *rest = read_frames(written + WRITE.usage(1, 2) + usage_comment(1, 2) + DONE)

    counted, *rest = [role, text, finish, *rest]
    assert counted == Counted(3)
    assert [(each.text, each.finished) for each in rest[:3] if isinstance(each, Piece)] == [
        ("", False),
        ("Hi\n\n", False),
        ("", True),
    ]
    assert isinstance(rest[3], Tail) and isinstance(rest[4], End)


@pytest.mark.parametrize(
    "change",
    [
        {"choices": [{"index": 0, "delta": {"reasoning_content": "secret"}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": []}}]},
        {"choices": [{"index": 0, "delta": {"refusal": "secret"}}]},
        {"choices": [{"index": 0, "delta": {}, "text": "secret"}]},
        {"choices": [{"index": 0, "delta": {"content": ["secret"]}}]},
        {"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {}}]},
        {"choices": [{"index": None, "delta": {}}]},
        {"choices": ["secret"]},
        {"secret": "secret"},
        {"choices": None},
    ],
)
def test_a_frame_with_room_for_unread_text_is_refused(change: dict[str, Any]):
    """The guard must not let pass what it does not look at."""
    frame = {"id": "1", "choices": [{"index": 0, "delta": {"content": "Hi"}}], **change}

    with pytest.raises(UpstreamFailed):
        list(read_frames(b"data: " + json.dumps(frame).encode() + b"\n\n"))


@pytest.mark.parametrize("raw", [b"secret\n\n", b"data: secret\n\n", b"data: []\n\n", b"event: x\ndata: {}\n\n"])
def test_what_is_no_frame_is_refused(raw: bytes):
    """Whatever it says."""
    with pytest.raises(UpstreamFailed):
        list(read_frames(raw))


# Whole streams, by chance


class Chance:
    """A Critic that takes its time, and finds an answer violating from a place on; remembers what it let pass."""

    def __init__(self, chance: random.Random, texts: Sequence[str]) -> None:
        self.chance = chance
        self.violating = {
            text[: chance.randrange(1, len(text) + 1)] for text in texts if len(text) and chance.random() < 0.5
        }
        """Beginnings with which an answer has become violating."""
        self.passed: list[str] = []

    async def look(self, stage: GuardStage, items: Sequence[CritiqueItem], deadline: Deadline) -> Look:
        [item] = items
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)
        bad = any(item.response.startswith(each) for each in self.violating)
        share = 0.9 if bad else 0.0
        if not bad:
            self.passed.append(item.response)
        outcome = Outcome.VIOLATING if bad else self.chance.choice((Outcome.CONSISTENT, Outcome.BROKEN))
        return Look([Critique(outcome=outcome, score=0.5, probabilities={Outcome.VIOLATING: share, outcome: 0.9})])


class Chunks:
    """An Actor's stream, cut anywhere."""

    def __init__(self, chance: random.Random, content: bytes) -> None:
        self.chance = chance
        self.content = content

    async def chunks(self) -> AsyncIterator[bytes]:
        while self.content:
            size = self.chance.choice((1, 7, 60, 400, 3000))
            chunk, self.content = self.content[:size], self.content[size:]
            await asyncio.sleep(0)
            yield chunk


def written(chance: random.Random, texts: Sequence[str], logprobs: bool) -> bytes:
    """The answers' frames, interleaved and cut by chance."""
    write = FrameWriter(HEAD, len(texts), True)
    left = dict(enumerate(texts))
    frames = [write.role(index) for index in left]
    while left:
        index = chance.choice(list(left))
        size = chance.choice((0, 1, 2, 5, 40))
        piece, left[index] = left[index][:size], left[index][size:]
        told = [ChosenLogprob(token=piece + left[index][:1], logprob=-1.0)] if logprobs else None
        if piece or told:
            frames.append(write.text(index, piece, told))
        if not left[index] and chance.random() < 0.5:
            frames.append(write.finish(index, "stop"))
            del left[index]
    return b"".join([*frames, write.usage(1, 2), usage_comment(1, 2), DONE])


def shown_of(frames: bytes, num: int) -> list[tuple[str, str]]:
    """By answer: its text, and every token that is told of beside it."""
    texts, tokens = [""] * num, [""] * num
    for frame in frames.split(b"\n\n")[:-1]:
        chunk = {"choices": []} if frame == DONE.strip() else json.loads(frame.removeprefix(b"data: "))
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            for told in (choice.get("logprobs") or {"content": []})["content"]:
                tokens[choice["index"]] += told["token"]
    return list(zip(texts, tokens, strict=True))


@pytest.mark.parametrize("seed", range(150))
def test_no_character_is_shown_that_no_passed_check_has_covered(seed: int):
    """For any cutting into frames and packets, any pace of the Critic, any place where an answer becomes violating."""
    asyncio.run(play(random.Random(seed)))


async def play(chance: random.Random) -> None:
    num = chance.choice((1, 1, 2, 3))
    texts = [f"{index}" + "".join(chance.choices(LETTERS, k=chance.choice((0, 5, 80, 300)))) for index in range(num)]
    hold = chance.choice(("whole", 20, 50))
    policy = GuardPolicy(mode=GuardMode.ENFORCE, hold_back=hold, refusal=Bilingual(zh=REFUSAL, en=REFUSAL))
    critic = Chance(chance, texts)
    rule = Rule(GuardMode.ENFORCE, policy, "p")
    checks = Checks(rule, critic, [ChatMessage(role="user", content="?")], Deadline(None))
    beside = asyncio.ensure_future(cleared(chance)) if chance.random() < 0.3 else None
    verdicts: list[GuardVerdict] = []
    logprobs = chance.random() < 0.3
    stream = GuardedStream(
        checks,
        ChatRequest(messages=[{"role": "user", "content": "?"}], n=num, logprobs=logprobs),
        frames_of(Chunks(chance, written(chance, texts, logprobs))),
        SimpleNamespace(settle=lambda _: None, close=lambda: None, num_frames=0),
        1,
        AsyncExitStack(),
        beside=beside,
        done=verdicts.append,
    )

    out = b""
    async for frames in stream:
        out += frames
        for text, (shown, tokens) in zip(texts, shown_of(out, num), strict=True):
            before, _, _ = shown.partition(REFUSAL)
            before = before.removesuffix("\n\n") if REFUSAL in shown else before
            assert text.startswith(before)
            covered = max((len(passed) for passed in critic.passed if text.startswith(passed)), default=0)
            assert len(before) <= covered or not before.strip()
            assert not tokens or text in critic.passed
            if before:
                assert beside is None or (beside.done() and not beside.result().blocks)
    await stream.aclose()

    assert out.endswith(DONE)
    for text, (shown, _) in zip(texts, shown_of(out, num), strict=True):
        bad = any(text.startswith(each) for each in critic.violating)
        blocked = bad or (beside is not None and beside.result().blocks)
        assert (REFUSAL in shown) is blocked
        assert blocked or shown == text
    assert len(verdicts) == 1


async def cleared(chance: random.Random) -> GuardVerdict:
    for _ in range(chance.randrange(60)):
        await asyncio.sleep(0)
    return chance.choice((GuardVerdict.PASS, GuardVerdict.PASS, GuardVerdict.BLOCK))
