"""The local engine seen by asyncio tasks: streams, whole answers, cancellation, failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes import tiny_causal, tiny_tokenizer
from tests.servers import wait_until
from vcllm.contracts.chat import ChatMessage, Sampling
from vcllm.contracts.problems import BadRequest, Unavailable
from vcllm.engine import local
from vcllm.engine.load import Loaded
from vcllm.engine.local import LocalEngine
from vcllm.engine.prefill import Limits

CHAT = [ChatMessage(role="user", content="Who may speak? 谁可以发言？")]
OTHER = [ChatMessage(role="user", content="Tell me.")]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    tokenizer = tiny_tokenizer()
    return Loaded(tiny_causal(tokenizer), tokenizer, context=512)


@pytest.fixture
def engine(loaded: Loaded) -> Iterator[LocalEngine]:
    engine = LocalEngine(loaded, Limits(max_rows=8))
    yield engine
    engine.close()


@asynccontextmanager
async def slow_steps(engine: LocalEngine, seconds: float = 0.02) -> AsyncIterator[None]:
    """Every step takes at least so long, as with a larger model."""
    step = engine.batch.step

    def slow() -> Any:
        time.sleep(seconds)
        return step()

    engine.batch.step = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.batch.step = step  # type: ignore[method-assign]


async def streamed(engine: LocalEngine, sampling: Sampling, n: int = 1) -> list[str]:
    texts = [""] * n
    generation = await engine.generate(CHAT, sampling, n)
    async for delta in generation:
        texts[delta.index] += delta.text
    return texts


def test_a_stream_adds_up_to_the_whole_answer(engine: LocalEngine) -> None:
    """Same seed: the pieces of both samples, and the whole answers, are the same text."""

    async def both() -> tuple[list[str], list[str]]:
        sampling = Sampling(seed=3, max_tokens=30)
        [answers] = await engine.complete([CHAT], sampling, n=2)
        return await streamed(engine, sampling, n=2), [c.text for c in answers.completions]

    pieces, whole = asyncio.run(both())

    assert pieces == whole
    assert whole[0] != whole[1]


def test_a_batch_of_conversations_equals_one_at_a_time(engine: LocalEngine) -> None:
    """Conversation i is answered as if asked alone with seed + i."""

    async def both() -> tuple[list[str], list[str]]:
        together = await engine.complete([CHAT, OTHER, CHAT], Sampling(seed=5, max_tokens=12))
        one_by_one = [
            (await engine.complete([chat], Sampling(seed=5 + i, max_tokens=12)))[0]
            for i, chat in enumerate([CHAT, OTHER, CHAT])
        ]
        return [a.completions[0].text for a in together], [a.completions[0].text for a in one_by_one]

    together, one_by_one = asyncio.run(both())

    assert together == one_by_one


def test_unseeded_answers_differ(engine: LocalEngine) -> None:
    """No two requests share their random numbers by accident."""

    async def twice() -> list[str]:
        return [
            *await streamed(engine, Sampling(max_tokens=20)),
            *await streamed(engine, Sampling(max_tokens=20)),
        ]

    first, second = asyncio.run(twice())

    assert first != second


def test_counts_and_reasons_are_told(engine: LocalEngine) -> None:
    """Prompt tokens, written tokens, and that the limit ended it."""

    async def ask() -> Any:
        return (await engine.complete([CHAT], Sampling(seed=1, max_tokens=7)))[0]

    answers = asyncio.run(ask())

    assert answers.num_prompt_tokens == len(engine.loaded.tokenizer("<|user|>" + CHAT[0].content)["input_ids"]) + 2
    assert (answers.completions[0].finish_reason, answers.completions[0].num_tokens) == ("length", 7)


def test_a_stop_string_ends_the_answer_and_frees_its_row(engine: LocalEngine) -> None:
    """Streamed and whole alike; the rest is not written."""

    async def ask() -> tuple[str, str, Any]:
        [whole] = await streamed(engine, Sampling(seed=3, max_tokens=40))
        stop = whole[8:10]
        sampling = Sampling(seed=3, max_tokens=40, stop=[stop])
        async with slow_steps(engine, 0.005):
            [cut] = await streamed(engine, sampling)
            answers = (await engine.complete([CHAT], sampling))[0]
        return whole[: whole.index(stop)], cut, answers.completions[0]

    expected, cut, completion = asyncio.run(ask())

    assert cut == completion.text == expected
    assert completion.finish_reason == "stop"
    assert completion.num_tokens < 40
    wait_until(lambda: not engine.batch.rows, 1)


def test_a_cancelled_task_frees_its_rows(engine: LocalEngine) -> None:
    """Within a second, in the middle of an answer, for streams and for whole answers."""

    async def cancel(work: Any) -> None:
        task = asyncio.create_task(work)
        await asyncio.sleep(0.1)
        assert engine.batch.rows
        task.cancel()
        await asyncio.wait([task])

    async def stream_closed() -> None:
        generation = await engine.generate(CHAT, Sampling(max_tokens=400, seed=1), 2)
        await anext(aiter(generation))
        assert engine.batch.rows
        generation.cancel()

    async def all_ways() -> None:
        async with slow_steps(engine):
            await cancel(engine.complete([CHAT, OTHER], Sampling(max_tokens=400, seed=1), 2))
            await asyncio.to_thread(wait_until, lambda: engine.batch.idle, 1)
            await stream_closed()
            await asyncio.to_thread(wait_until, lambda: engine.batch.idle, 1)

    asyncio.run(all_ways())

    assert engine.batch.num_tokens < 100


def test_a_closed_event_loop_does_not_stop_the_engine(engine: LocalEngine) -> None:
    """Whoever waited is gone; the next one is served."""

    async def leave() -> None:
        async with slow_steps(engine):
            await engine.generate(CHAT, Sampling(max_tokens=50))
            await asyncio.sleep(0.05)

    asyncio.run(leave())
    wait_until(lambda: engine.batch.idle, 5)

    assert asyncio.run(streamed(engine, Sampling(seed=1, max_tokens=5)))


def test_what_cannot_fit_is_refused_in_a_sentence(engine: LocalEngine) -> None:
    """A prompt that fills the context; an answer that would leave it; more answers than rows."""
    long = [ChatMessage(role="user", content="speak " * 600)]

    for conversation, sampling, n, words in [
        (long, Sampling(), 1, "Shorten the messages"),
        (CHAT, Sampling(max_tokens=510), 1, "lower max_tokens"),
        (CHAT, Sampling(), 9, "At most 8"),
    ]:
        with pytest.raises(BadRequest, match=words):
            asyncio.run(engine.generate(conversation, sampling, n))


def test_the_default_limit_is_cut_to_what_fits(loaded: Loaded) -> None:
    """Who names no limit gets an answer all the same."""
    engine = LocalEngine(Loaded(loaded.model, loaded.tokenizer, context=40), default_max_tokens=1000)

    async def ask() -> Any:
        return (await engine.complete([OTHER], Sampling(seed=1)))[0]

    answers = asyncio.run(ask())
    engine.close()

    assert answers.num_prompt_tokens + answers.completions[0].num_tokens == 40


def test_a_failed_step_fails_its_requests_and_no_others(engine: LocalEngine, caplog: Any) -> None:
    """The caller gets a sentence, the log the traceback, the next request an answer."""

    async def fail_once() -> None:
        step = engine.batch.step

        def broken() -> Any:
            engine.batch.step = step  # type: ignore[method-assign]
            raise RuntimeError("out of memory")

        engine.batch.step = broken  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="failed on this request"):
            await engine.complete([CHAT], Sampling(max_tokens=5))
        assert (await streamed(engine, Sampling(seed=1, max_tokens=5)))[0]

    asyncio.run(fail_once())

    assert "out of memory" in caplog.text


def test_closing_fails_what_still_runs(loaded: Loaded) -> None:
    """Nobody waits for ever; a later request is told the same."""
    engine = LocalEngine(loaded)

    async def close_under_way() -> None:
        async with slow_steps(engine):
            generation = await engine.generate(CHAT, Sampling(max_tokens=400))
            await asyncio.to_thread(engine.close)
            with pytest.raises(Unavailable, match="unloaded"):
                async for _ in generation:
                    pass
        with pytest.raises(Unavailable, match="unloaded"):
            await engine.complete([CHAT], Sampling())

    asyncio.run(close_under_way())


def test_an_idle_engine_gives_its_cache_back(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes new memory for the next request."""
    monkeypatch.setattr(local, "REST_AFTER_S", 0.05)
    engine = LocalEngine(loaded)

    first = asyncio.run(streamed(engine, Sampling(seed=1, max_tokens=5)))
    wait_until(lambda: not engine.batch.cache.layers, 2)
    second = asyncio.run(streamed(engine, Sampling(seed=1, max_tokens=5)))
    engine.close()

    assert first == second


def test_the_score_of_greedy_words_is_the_highest(engine: LocalEngine) -> None:
    """Longer or other words are less likely."""

    async def ask() -> tuple[str, list[float]]:
        answers = (await engine.complete([CHAT], Sampling(temperature=0, max_tokens=3)))[0]
        text = answers.completions[0].text
        return text, (await engine.score([CHAT], [[text, "zebra", text + "zebra", ""]]))[0]

    text, scores = asyncio.run(ask())

    assert text
    assert scores[3] == 0.0
    assert scores[0] > scores[1] and scores[0] > scores[2]


def test_many_loops_may_wait_on_one_engine(engine: LocalEngine) -> None:
    """Each gets its own answers."""
    expected = asyncio.run(streamed(engine, Sampling(seed=2, max_tokens=15)))
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(asyncio.run(streamed(engine, Sampling(seed=2, max_tokens=15)))))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [expected] * 4
