"""The local engine seen by asyncio tasks: streams, whole answers, cancellation, failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import score_ids, tiny_causal, tiny_tokenizer
from tests.servers import wait_until
from vcllm.contracts.chat import ChatMessage, ChosenLogprob, Completion, Sampling
from vcllm.contracts.problems import BadRequest, Unavailable
from vcllm.engine import local, scoring
from vcllm.engine.engine import Batch
from vcllm.engine.load import Loaded
from vcllm.engine.local import LocalEngine
from vcllm.engine.prefill import Limits
from vcllm.engine.prompts import encode, prompt_text, stop_ids
from vcllm.engine.protocol import Delta
from vcllm.engine.scoring import Scoring, Scorings
from vcllm.engine.sequence import new_request

CHAT = [ChatMessage(role="user", content="Who may speak? 谁可以发言？")]
OTHER = [ChatMessage(role="user", content="Tell me.")]
NEVER_ENDING = {4: -100.0}
"""Keeps out the token that ends an answer."""
LARGE = [[ChatMessage(role="user", content=f"{i} Who may speak?")] for i in range(100)], [["Everyone.", "No."]] * 100
"""To be scored, in two passes or more for each where a pass is small."""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    tokenizer = tiny_tokenizer()
    return Loaded(tiny_causal(tokenizer), tokenizer, context=512)


@pytest.fixture
def engine(loaded: Loaded) -> Iterator[LocalEngine]:
    engine = LocalEngine(loaded, Limits(max_rows=8))
    yield engine
    engine.close()


class Watching:
    """A forward that counts its passes."""

    def __init__(self, engine: LocalEngine) -> None:
        self.forward = engine.batch.forward
        self.num_passes = 0

    def __call__(self, *args: Any) -> Tensor:
        self.num_passes += 1
        return self.forward(*args)


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
    for delta in await deltas_of(engine, sampling, n):
        texts[delta.index] += delta.text
    return texts


async def deltas_of(engine: LocalEngine, sampling: Sampling, n: int = 1) -> list[Delta]:
    return [delta async for delta in await engine.generate(CHAT, sampling, n)]


async def whole(engine: LocalEngine, sampling: Sampling) -> Completion:
    [answers] = await engine.complete([CHAT], sampling)
    return answers.completions[0]


def tokens_of(loaded: Loaded, sampling: Sampling) -> tuple[list[int], list[int]]:
    """Of the prompt, and of what the model writes for this seed."""
    [prompt] = encode(loaded.tokenizer, [prompt_text(loaded.tokenizer, CHAT)])
    assert sampling.seed is not None and sampling.max_tokens is not None
    request = new_request(prompt, sampling.max_tokens, seed=sampling.seed)
    batch = Batch(loaded.model, stop_ids(loaded.model, loaded.tokenizer))
    batch.add(request)
    while not batch.idle:
        batch.step()
    return prompt, request.sequences[0].tokens


@torch.inference_mode()
def logprobs_of(loaded: Loaded, prompt: list[int], written: list[int]) -> Tensor:
    """Of every token in every place of what was written, from one plain forward pass."""
    logits: Tensor = loaded.model(torch.tensor([prompt + written]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def items_of(loaded: Loaded, conversations: list[list[ChatMessage]], words: list[list[str]]) -> list[Any]:
    """What `score` reads."""
    heads = encode(loaded.tokenizer, [prompt_text(loaded.tokenizer, conversation) for conversation in conversations])
    return [(head, tail) for head, own in zip(heads, words, strict=True) for tail in encode(loaded.tokenizer, own)]


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


def test_weights_may_be_the_engines_own(loaded: Loaded, engine: LocalEngine) -> None:
    """In the layout it likes best, it says the same."""
    tokenizer = loaded.tokenizer
    owner = LocalEngine(Loaded(tiny_causal(tokenizer), tokenizer, context=512), own=True)
    sampling = Sampling(temperature=0, max_tokens=20)

    owned = asyncio.run(streamed(owner, sampling))
    owner.close()

    assert owned == asyncio.run(streamed(engine, sampling))


def test_logprobs_are_those_of_a_plain_forward_pass(engine: LocalEngine, loaded: Loaded) -> None:
    """Natural log, at temperature 1 whatever the tokens were drawn with, with the likeliest in order."""
    sampling = Sampling(seed=4, max_tokens=12, logprobs=3)
    prompt, written = tokens_of(loaded, sampling)
    expected_TV = logprobs_of(loaded, prompt, written)

    told = asyncio.run(whole(engine, sampling)).logprobs

    assert told is not None
    assert [each.token for each in told] == [loaded.tokenizer.decode([token]) for token in written]
    chosen = expected_TV[range(len(written)), written].tolist()
    assert [each.logprob for each in told] == pytest.approx(chosen, abs=1e-4)
    best = expected_TV.topk(3)
    for each, values, tokens in zip(told, best.values.tolist(), best.indices.tolist(), strict=True):
        assert [other.logprob for other in each.top_logprobs] == pytest.approx(values, abs=1e-4)
        assert [other.token for other in each.top_logprobs] == [loaded.tokenizer.decode([token]) for token in tokens]


@pytest.mark.parametrize("seed", range(4))
def test_streamed_and_whole_logprobs_agree(engine: LocalEngine, seed: int) -> None:
    """One for every token, also for halves of characters and for special tokens, which no text shows."""
    sampling = Sampling(seed=seed, max_tokens=60, logprobs=1)

    async def both() -> tuple[list[ChosenLogprob], Completion]:
        pieces = await deltas_of(engine, sampling)
        return [entry for delta in pieces for entry in delta.logprobs], await whole(engine, sampling)

    streamed_logprobs, completion = asyncio.run(both())

    assert completion.logprobs is not None
    assert [entry.token for entry in streamed_logprobs] == [entry.token for entry in completion.logprobs]
    assert len(completion.logprobs) == completion.num_tokens


def test_logprobs_come_with_the_text_they_are_for(engine: LocalEngine) -> None:
    """Not behind it: after each piece, the tokens told have at least the text told."""

    async def stream() -> list[Delta]:
        async with slow_steps(engine, 0.002):
            return await deltas_of(engine, Sampling(seed=3, max_tokens=40, logprobs=0))

    pieces = asyncio.run(stream())

    assert pieces[0].text
    assert all(delta.logprobs for delta in pieces if delta.text)


@pytest.mark.parametrize("logprobs", [None, 0, 5, 20])
def test_as_many_alternatives_as_were_asked_for(engine: LocalEngine, logprobs: int | None) -> None:
    """Best first; none and nothing are different answers."""
    told = asyncio.run(whole(engine, Sampling(seed=1, max_tokens=5, logprobs=logprobs))).logprobs

    if logprobs is None:
        assert told is None
        return
    assert told is not None
    for each in told:
        values = [other.logprob for other in each.top_logprobs]
        assert len(values) == logprobs
        assert values == sorted(values, reverse=True)


def test_tokens_behind_a_stop_string_are_not_told(engine: LocalEngine, loaded: Loaded) -> None:
    """Streamed and whole alike: those whose text begins before the cut, and no others."""
    uncut = Sampling(seed=3, max_tokens=40, logprobs=0)

    async def ask() -> tuple[Completion, Completion, list[Delta]]:
        everything = await whole(engine, uncut)
        cut = uncut.model_copy(update={"stop": [everything.text[3:5]]})
        async with slow_steps(engine, 0.002):
            return everything, await whole(engine, cut), await deltas_of(engine, cut)

    everything, completion, pieces = asyncio.run(ask())

    assert everything.logprobs and completion.logprobs
    told = [entry.token for entry in completion.logprobs]
    assert told == [entry.token for entry in everything.logprobs][: len(told)]
    assert told == [entry.token for delta in pieces for entry in delta.logprobs]
    visible = [token for token in told if token not in loaded.tokenizer.all_special_tokens]
    assert len("".join(visible[:-1])) < len(completion.text) <= len("".join(visible))


def test_the_best_of_one_is_greedy(engine: LocalEngine) -> None:
    """top_k = 1 at any temperature."""

    async def both() -> tuple[list[str], list[str]]:
        greedy = await streamed(engine, Sampling(temperature=0, max_tokens=20))
        return greedy, await streamed(engine, Sampling(temperature=2, top_k=1, max_tokens=20))

    greedy, best = asyncio.run(both())

    assert best == greedy


def test_a_bias_forces_and_forbids_tokens(engine: LocalEngine, loaded: Loaded) -> None:
    """100 writes one token again and again; -100 keeps out the one that would have been next."""
    [[number]] = encode(loaded.tokenizer, ["a"])
    drawn = Sampling(seed=3, max_tokens=1)
    [favourite] = tokens_of(loaded, drawn)[1]

    async def ask(sampling: Sampling, bias: dict[int, float]) -> str:
        return (await whole(engine, sampling.model_copy(update={"logit_bias": bias}))).text

    forced = asyncio.run(ask(Sampling(temperature=0, max_tokens=6), {number: 100.0}))
    free, kept_out = asyncio.run(ask(drawn, {})), asyncio.run(ask(drawn, {favourite: -100.0}))

    assert forced == "aaaaaa"
    assert free == loaded.tokenizer.decode([favourite])
    assert kept_out != free


@pytest.mark.parametrize("token", [400, 10**6])
def test_a_bias_for_a_token_the_model_lacks_is_refused(engine: LocalEngine, loaded: Loaded, token: int) -> None:
    """In a sentence that names the token and says which there are."""
    assert loaded.model.config.vocab_size == 400

    with pytest.raises(BadRequest, match=f"token {token}, but this model's tokens are 0 to 399") as refused:
        asyncio.run(engine.complete([CHAT], Sampling(logit_bias={5: 1.0, token: 1.0})))

    assert refused.value.param == "logit_bias"


def test_streams_go_on_while_texts_are_scored(
    engine: LocalEngine, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token between two passes, and the scores are those of an engine that does nothing else."""
    monkeypatch.setattr(scoring, "SCORED_PER_PASS", 8)
    conversations = [[ChatMessage(role="user", content=f"{i} Who may speak?")] for i in range(12)]
    words = [["Everyone may.", "Everyone else.", "No."]] * 12
    items = items_of(loaded, conversations, words)
    count = Watching(engine)
    expected = score_ids(loaded.model, items)
    num_passes = sum(1 for _ in Scoring(items).passes(count, loaded.model.device, 400))

    async def both() -> tuple[list[list[float]], int]:
        async with slow_steps(engine, 0.005):
            generation = await engine.generate(CHAT, Sampling(seed=1, max_tokens=400, logit_bias=NEVER_ENDING))
            await anext(aiter(generation))
            before = engine.batch.num_tokens
            scores = await engine.score(conversations, words)
            written = engine.batch.num_tokens - before
            generation.cancel()
        return scores, written

    scores, written = asyncio.run(both())

    assert [score for own in scores for score in own] == pytest.approx(expected, abs=1e-3)
    assert num_passes > 10
    assert written >= num_passes - 1


def test_a_cancelled_scoring_stops(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the pass under way; nothing of it is left in the engine."""
    monkeypatch.setattr(scoring, "SCORED_PER_PASS", 8)
    watching = Watching(engine)
    engine.batch.scorings = Scorings(watching, engine.batch.device, 400)

    async def give_up() -> None:
        async with slow_steps(engine):
            task = asyncio.create_task(engine.score(*LARGE))
            await asyncio.to_thread(wait_until, lambda: watching.num_passes, 5)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(wait_until, lambda: engine.batch.idle, 5)

    asyncio.run(give_up())

    assert watching.num_passes < 100
    assert asyncio.run(streamed(engine, Sampling(seed=1, max_tokens=5)))


def test_a_failing_pass_fails_the_scoring_and_no_later_one(engine: LocalEngine, caplog: Any) -> None:
    """The caller gets a sentence, the log the traceback."""
    working = engine.batch.scorings

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")

    async def ask() -> list[list[float]]:
        engine.batch.scorings = Scorings(broken, engine.batch.device, 400)
        with pytest.raises(Unavailable, match="failed on this request"):
            await engine.score([CHAT], [["Everyone."]])
        engine.batch.scorings = working
        return await engine.score([CHAT], [["Everyone.", ""]])

    [[score, nothing]] = asyncio.run(ask())

    assert score < nothing == 0.0
    assert "out of memory" in caplog.text


def test_closing_fails_a_scoring_too(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr(scoring, "SCORED_PER_PASS", 8)
    engine = LocalEngine(loaded)

    async def close_under_way() -> None:
        async with slow_steps(engine):
            task = asyncio.create_task(engine.score(*LARGE))
            await asyncio.to_thread(wait_until, lambda: not engine.batch.idle, 5)
            await asyncio.to_thread(engine.close)
            with pytest.raises(Unavailable, match="unloaded"):
                await task

    asyncio.run(close_under_way())


def test_a_text_that_is_too_long_to_be_scored_is_refused(engine: LocalEngine) -> None:
    """As the OpenAI API says it."""
    with pytest.raises(BadRequest, match="Shorten it") as refused:
        asyncio.run(engine.score([CHAT], [["speak " * 600, "fine"]]))

    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


def test_what_came_while_nobody_looked_is_told_in_one_piece(engine: LocalEngine) -> None:
    """A busy event loop does less work per token; the text and its logprobs are the same."""
    sampling = Sampling(seed=3, max_tokens=30, logprobs=0)

    async def late() -> tuple[list[Delta], Any]:
        generation = await engine.generate(CHAT, sampling, 2)
        [answers] = await engine.complete([CHAT], sampling, 2)
        return [delta async for delta in generation], answers.completions

    pieces, completions = asyncio.run(late())

    assert sorted(delta.index for delta in pieces) == [0, 1]
    for delta in pieces:
        completion = completions[delta.index]
        assert (delta.text, delta.finish_reason) == (completion.text, completion.finish_reason)
        assert completion.logprobs is not None
        assert [entry.token for entry in delta.logprobs] == [entry.token for entry in completion.logprobs]
        assert delta.num_tokens == completion.num_tokens == len(delta.logprobs)


def test_what_was_written_before_a_failure_is_told_before_it(loaded: Loaded) -> None:
    """The stream then ends with the reason."""
    engine, told = LocalEngine(loaded), []

    async def look_late() -> None:
        async with slow_steps(engine, 0.005):
            generation = await engine.generate(CHAT, Sampling(seed=3, max_tokens=400, logit_bias=NEVER_ENDING))
            await asyncio.to_thread(wait_until, lambda: engine.batch.num_tokens > 10, 5)
            await asyncio.to_thread(engine.close)
            with pytest.raises(Unavailable, match="unloaded"):
                async for delta in generation:
                    told.append(delta)

    asyncio.run(look_late())

    assert len(told) == 1
    assert told[0].num_tokens > 10
