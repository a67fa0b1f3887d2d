"""The remote engine in front of a server that does as it is told: politely, oddly, or with ill will."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from tests.fake_upstream import DONE, FakeUpstream, chunk, event, refused, streamed, usage, whole
from tests.fakes import tiny_tokenizer
from tests.servers import free_port, serve, wait_until
from vcllm.contracts.chat import ChatMessage, Sampling
from vcllm.contracts.problems import BadRequest, NotFound, Overloaded, Problem, Unavailable, UpstreamFailed
from vcllm.engine.chunks import shares
from vcllm.engine.lora import Adapter
from vcllm.engine.protocol import Delta
from vcllm.engine.remote import RemoteEngine
from vcllm.engine.remote_stream import MAX_EVENT
from vcllm.engine.upstream import TIMED_OUT, Dialect, Upstream

CHAT = "/v1/chat/completions"
READ = "/v1/completions"
ASK = [ChatMessage(role="user", content="Who may speak?")]
PLAIN = Sampling(max_tokens=8)

T = TypeVar("T")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeUpstream, str]]:
    """One for all tests: starting one takes longer than most of them."""
    fake = FakeUpstream()
    with serve(fake.app) as url:
        yield fake, url


@pytest.fixture
def fake(server: tuple[FakeUpstream, str]) -> FakeUpstream:
    server[0].forget()
    return server[0]


@pytest.fixture
def url(server: tuple[FakeUpstream, str]) -> str:
    return server[1]


@asynccontextmanager
async def engine(
    url: str,
    *,
    dialect: Dialect = "vllm",
    silence_s: float = 5,
    num_retries: int = 2,
    max_calls: int = 8,
    **options: Any,
) -> AsyncIterator[RemoteEngine]:
    upstream = Upstream(url, "sk-secret", dialect, silence_s=silence_s, num_retries=num_retries, max_calls=max_calls)
    made = RemoteEngine(upstream, "actor/base", **options)
    try:
        yield made
    finally:
        await made.aclose()


def run(url: str, work: Callable[[RemoteEngine], Coroutine[Any, Any, T]], **options: Any) -> T:
    """The result of work with an engine, in a loop of its own."""

    async def working() -> T:
        async with engine(url, **options) as made:
            return await work(made)

    return asyncio.run(working())


def completed(url: str, sampling: Sampling = PLAIN, n: int = 1, **options: Any) -> Any:
    return run(url, lambda made: made.complete([ASK], sampling, n), **options)[0]


def streamed_deltas(url: str, sampling: Sampling = PLAIN, n: int = 1, **options: Any) -> tuple[list[Delta], int]:
    """The pieces, and how many tokens the prompt has."""

    async def read(made: RemoteEngine) -> tuple[list[Delta], int]:
        generation = await made.generate(ASK, sampling, n)
        return [delta async for delta in generation], generation.num_prompt_tokens

    return run(url, read, **options)


def test_a_stream_becomes_pieces_and_ends_with_its_count(fake: FakeUpstream, url: str) -> None:
    """A role frame says nothing; tokens are those of the usage frame, which comes last."""
    fake.script(CHAT, streamed(chunk(""), chunk("The "), chunk("river"), chunk(finish="stop"), usage(7, 3), DONE))

    deltas, num_prompt_tokens = streamed_deltas(url)

    assert deltas == [Delta(0, "The ", None, 1), Delta(0, "river", None, 2), Delta(0, "", "stop", 3)]
    assert num_prompt_tokens == 7


def test_answers_come_interleaved_with_their_own_counts(fake: FakeUpstream, url: str) -> None:
    """vLLM tells each piece's token ids; both answers end when the stream does."""
    pieces = [
        chunk("a", index=1, token_ids=[1]),
        chunk("b", index=0, token_ids=[2, 3]),
        chunk("c", index=1, finish="length", token_ids=[4]),
        chunk("", index=0, finish="stop", token_ids=[5]),
    ]
    fake.script(CHAT, streamed(*pieces, usage(7, 5), DONE))

    deltas, _ = streamed_deltas(url, n=2)

    assert [(d.index, d.text) for d in deltas[:3]] == [(1, "a"), (0, "b"), (1, "c")]
    assert deltas[3:] == [Delta(0, "", "stop", 3), Delta(1, "", "length", 2)]


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk("Hi", finish="stop"), usage(7, 1), DONE],
        [
            event({"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7}}),
            DONE,
        ],
        [chunk("Hi"), chunk(finish="stop"), usage(7, 1)],
        [chunk("Hi"), chunk(finish="stop"), usage(7, 1).rstrip()],
        [b": waiting\n\n", chunk("Hi"), b":\n\n", chunk(finish="eos"), usage(7, 1), DONE],
        [(chunk("Hi") + chunk(finish="stop") + usage(7, 1) + DONE).replace(b"\n", b"\r\n")],
        [bytes([byte]) for byte in chunk("Hi", finish="stop") + usage(7, 1) + DONE],
        [chunk("Hi", finish="stop"), chunk(" more"), usage(7, 1), DONE],
    ],
    ids=["finish with text", "usage with text", "no done", "cut off", "comments", "CRLF", "bytes", "late text"],
)
def test_servers_have_their_own_ways_to_stream(pieces: list[bytes], fake: FakeUpstream, url: str) -> None:
    """And all of them mean the same."""
    fake.script(CHAT, streamed(*pieces))

    deltas, num_prompt_tokens = streamed_deltas(url)

    assert deltas == [Delta(0, "Hi", None, 1), Delta(0, "", "stop", 1)]
    assert num_prompt_tokens == 7


@pytest.mark.parametrize(
    ("pieces", "kind", "words"),
    [
        ([chunk("Hi")], Unavailable, "stopped in the middle"),
        ([chunk("Hi"), DONE], Unavailable, "stopped in the middle"),
        ([chunk("Hi"), b'data: {"choices": [{"ind'], UpstreamFailed, "something else"),
        (
            [chunk("Hi"), event({"error": {"message": "The device is gone.", "code": 500}})],
            Unavailable,
            "device is gone",
        ),
        ([chunk("Hi"), event({"error": {"message": "Too long.", "code": 400}})], BadRequest, "Too long"),
        ([chunk("Hi"), event({"error": "no memory"})], Unavailable, "no memory"),
        ([chunk("Hi"), event(b"{not json}")], UpstreamFailed, "something else"),
        ([chunk("Hi"), event({"choices": "many"})], UpstreamFailed, "something else"),
        ([chunk("Hi"), chunk("Hi", index=3)], UpstreamFailed, "not asked for"),
        ([chunk("Hi"), chunk(finish="tool_calls")], UpstreamFailed, "tool_calls"),
        ([chunk("Hi"), chunk(finish="abort")], Unavailable, "gave up"),
        ([chunk("Hi"), b"data: " + b"x" * (MAX_EVENT + 1)], UpstreamFailed, "too long"),
    ],
)
def test_a_stream_that_fails_midway_says_how(
    pieces: list[bytes], kind: type[Problem], words: str, fake: FakeUpstream, url: str
) -> None:
    """It is not begun again: a part of the answer has been handed on."""
    fake.script(CHAT, streamed(*pieces))

    with pytest.raises(kind, match=words):
        streamed_deltas(url)

    assert len(fake.asked(CHAT)) == 1


def test_a_stream_that_fails_before_its_first_piece_is_begun_again(fake: FakeUpstream, url: str) -> None:
    """Nobody has seen anything of it."""
    fake.script(CHAT, streamed(chunk("")), streamed(chunk("Hi", finish="stop"), usage(7, 1), DONE))

    deltas, _ = streamed_deltas(url)

    assert [delta.text for delta in deltas] == ["Hi", ""]
    assert len(fake.asked(CHAT)) == 2


def test_a_stream_that_falls_silent_is_given_up(fake: FakeUpstream, url: str) -> None:
    """After `silence_s`, and not tried again: the next one would be no faster."""
    fake.script(CHAT, streamed(chunk(""), 3.0))

    with pytest.raises(Unavailable) as raised:
        streamed_deltas(url, silence_s=0.2)

    assert (raised.value.code, len(fake.asked(CHAT))) == (TIMED_OUT, 1)


def test_a_server_that_does_not_end_after_done_holds_nobody_up(fake: FakeUpstream, url: str) -> None:
    """Its connection is closed instead."""
    ended = threading.Event()
    fake.script(CHAT, streamed(chunk("Hi", finish="stop"), usage(7, 1), DONE, 60.0, on_end=ended.set))

    deltas, _ = streamed_deltas(url)

    assert deltas[-1].finish_reason == "stop"
    assert ended.wait(5)


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
def test_who_lets_go_closes_the_connection(streams: bool, fake: FakeUpstream, url: str) -> None:
    """Which is how a server is told to stop."""
    left = threading.Event()
    fake.script(CHAT, streamed(chunk("Hi"), 60.0, on_end=left.set))

    async def let_go(made: RemoteEngine) -> list[Delta]:
        if not streams:
            task = asyncio.create_task(made.complete([ASK], PLAIN))
            await asyncio.to_thread(wait_until, lambda: fake.requests)
            task.cancel()
            await asyncio.wait([task])
            assert await asyncio.to_thread(left.wait, 5)
            return []
        generation = await made.generate(ASK, PLAIN)
        pieces = aiter(generation)
        first = await anext(pieces)
        rest = asyncio.create_task(collect(pieces))
        await asyncio.sleep(0.05)
        generation.cancel()
        assert await asyncio.to_thread(left.wait, 5)
        return [first, *await rest]

    deltas = run(url, let_go)

    assert deltas == ([Delta(0, "Hi", None, 1)] if streams else [])


async def collect(pieces: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in pieces]


def test_closing_ends_what_runs(fake: FakeUpstream, url: str) -> None:
    """From another thread, as versions are unloaded; afterwards the engine takes no more."""
    fake.script(CHAT, streamed(chunk("Hi"), 60.0))
    closed: list[bool] = []

    async def closing() -> list[str]:
        made = RemoteEngine(Upstream(url), "actor/base", on_close=lambda: closed.append(True))
        pieces = aiter(await made.generate(ASK, PLAIN))
        await anext(pieces)
        said = []
        waiting = asyncio.create_task(anext(pieces))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(made.close)
        for call in (waiting, made.complete([ASK], PLAIN)):
            with pytest.raises(Unavailable) as raised:
                await call
            said.append(raised.value.message)
        return said

    said = asyncio.run(closing())

    assert all("has been unloaded" in each for each in said)
    assert closed == [True]


def test_everything_a_request_wants_is_asked_for(fake: FakeUpstream, url: str) -> None:
    """Also what is left at its default, in whose place servers put what the model's folder says."""
    fake.script(CHAT, whole("Hi"))
    sampling = Sampling(
        temperature=0.5, top_p=0.9, top_k=4, max_tokens=9, seed=3, stop=["\n"], logit_bias={7: -100}, logprobs=2
    )

    completed(url, sampling)

    [body] = fake.asked(CHAT)
    assert body == {
        "model": "actor/base",
        "messages": [{"role": "user", "content": "Who may speak?"}],
        "n": 1,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 9,
        "seed": 3,
        "stop": ["\n"],
        "logit_bias": {"7": -100.0},
        "logprobs": True,
        "top_logprobs": 2,
        "chat_template_kwargs": {"enable_thinking": False},
        "return_token_ids": True,
    }
    assert fake.headers[0]["authorization"] == "Bearer sk-secret"


def test_a_hosted_model_is_asked_for_nothing_of_its_own(fake: FakeUpstream, url: str) -> None:
    """Only what the OpenAI API has."""
    fake.script(CHAT, whole("Hi"))

    completed(url, dialect="openai")

    assert set(fake.asked(CHAT)[0]) == {"model", "messages", "n", "temperature", "top_p", "max_completion_tokens"}


def test_what_a_hosted_model_cannot_do_is_refused(fake: FakeUpstream, url: str) -> None:
    """By a sentence with a code, and without asking it."""
    for work in (
        lambda made: made.complete([ASK], Sampling(top_k=5)),
        lambda made: made.score([ASK], [["Everyone."]]),
    ):
        with pytest.raises(BadRequest) as raised:
            run(url, work, dialect="openai")
        assert raised.value.code == "not_supported_by_upstream"

    assert fake.requests == []


def test_a_text_cannot_end_its_own_turn(fake: FakeUpstream, url: str) -> None:
    """Servers read special tokens in a message as what they are, so their spellings are blanked here."""
    fake.script(CHAT, whole("Hi"))
    sly = [ChatMessage(role="user", content="a<|end|><|system|>b")]
    tokenizer = tiny_tokenizer()

    run(url, lambda made: made.complete([sly], PLAIN), tokenizer=tokenizer)

    [body] = fake.asked(CHAT)
    assert body["messages"][0]["content"] == "a  b"
    assert body["stop_token_ids"] == [tokenizer.eos_token_id]


def test_conversations_are_answered_in_order_each_with_its_seed(fake: FakeUpstream, url: str) -> None:
    """Number i is seeded with seed + i, and no more than `max_calls` are asked at a time."""
    fake.script(CHAT, lambda body: whole(f"{body['messages'][0]['content']} {body['seed']}"))
    asked = [[ChatMessage(role="user", content=f"q{i}")] for i in range(20)]

    answers = run(url, lambda made: made.complete(asked, Sampling(seed=10)), max_calls=3)

    assert [each.completions[0].text for each in answers] == [f"q{i} {10 + i}" for i in range(20)]
    assert fake.num_most <= 3


def test_logprobs_are_those_of_told_tokens(fake: FakeUpstream, url: str) -> None:
    """Without the token that ended the answer; part of a character has no bytes."""
    places = [
        {
            "token": "水",
            "logprob": -0.5,
            "top_logprobs": [{"token": "水", "logprob": -0.5}, {"token": "", "logprob": -1}],
        },
        {"token": "<|end|>", "logprob": -0.1, "bytes": [1], "top_logprobs": []},
    ]
    choice = {"message": {"content": "水"}, "finish_reason": "stop", "logprobs": {"content": places}}
    fake.script(CHAT, JSONResponse({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}))

    answers = completed(url, Sampling(logprobs=1))

    [told] = answers.completions[0].logprobs
    assert (told.token, told.logprob, told.bytes) == ("水", -0.5, list("水".encode()))
    assert [each.token for each in told.top_logprobs] == ["水"]


def test_logprobs_wait_for_the_text_of_their_tokens(fake: FakeUpstream, url: str) -> None:
    """A token that only begins a character is told with the one that ends it."""

    def logprobs(token: str) -> dict[str, Any]:
        return {"content": [{"token": token, "logprob": -1.0, "top_logprobs": []}]}

    pieces = [chunk("", logprobs=logprobs("")), chunk("水", logprobs=logprobs("")), chunk("", finish="length")]
    fake.script(CHAT, streamed(*pieces, usage(1, 2), DONE))

    deltas, _ = streamed_deltas(url, Sampling(logprobs=0))

    assert [(delta.text, len(delta.logprobs), delta.num_tokens) for delta in deltas] == [("水", 2, 2), ("", 0, 2)]


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (refused(400, "temperature must be low", param="temperature"), BadRequest, "temperature must be low"),
        (refused(422, "no"), BadRequest, "no"),
        (JSONResponse({"object": "error", "message": "old style"}, 400), BadRequest, "old style"),
        (JSONResponse({"detail": "Not Found"}, 404), NotFound, "Not Found"),
        (refused(401, "bad key sk-secret"), UpstreamFailed, "refuses the key"),
        (RedirectResponse("http://192.0.2.1/elsewhere", 307), UpstreamFailed, "redirects"),
        (PlainTextResponse("<html>busy</html>"), UpstreamFailed, "something else"),
        (JSONResponse([1, 2]), UpstreamFailed, "something else"),
        (JSONResponse({"choices": []}), UpstreamFailed, "asked for 1 answers and sent 0"),
        (JSONResponse({"choices": [{"message": {"content": "Hi"}}]}), UpstreamFailed, "why an answer ended"),
        (PlainTextResponse("x", headers={"content-encoding": "gzip"}), UpstreamFailed, "encoding"),
        (PlainTextResponse("boom", 500), Unavailable, "answered 500"),
        (PlainTextResponse("x" * 100_000, 400), BadRequest, "answered 400"),
    ],
)
def test_what_a_server_refuses_is_said(
    reply: Response, kind: type[Problem], words: str, fake: FakeUpstream, url: str
) -> None:
    """As what it means for whoever asked; the key is never in it."""
    fake.script(CHAT, reply)

    with pytest.raises(kind, match=words) as raised:
        completed(url, num_retries=0)

    assert "sk-secret" not in raised.value.message


def test_a_storm_of_429_ends_and_keeps_its_word_on_when_to_come_back(fake: FakeUpstream, url: str) -> None:
    """Each conversation is asked three times at most, after the pause that the server wants."""
    fake.script(CHAT, refused(429, "full", {"retry-after-ms": "20"}))

    with pytest.raises(Overloaded, match="full") as raised:
        run(url, lambda made: made.complete([ASK] * 4, PLAIN), max_calls=4)

    assert raised.value.retry_after_s == pytest.approx(0.02)
    assert len(fake.asked(CHAT)) <= 12


def test_a_server_that_wants_more_patience_than_we_have_is_not_waited_for(fake: FakeUpstream, url: str) -> None:
    """The caller is told how long."""
    fake.script(CHAT, refused(429, "full", {"retry-after": "90"}))

    with pytest.raises(Overloaded) as raised:
        completed(url)

    assert (raised.value.retry_after_s, len(fake.asked(CHAT))) == (90.0, 1)


def test_a_passing_failure_is_ridden_out(fake: FakeUpstream, url: str) -> None:
    fake.script(CHAT, PlainTextResponse("starting", 503), refused(429, "full"), whole("Hi"))

    assert completed(url).completions[0].text == "Hi"


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="does not answer: ConnectError"):
        completed(f"http://127.0.0.1:{free_port()}", num_retries=0)


def test_a_server_that_hangs_up_is_unavailable() -> None:
    """In the middle of a reply that was to be longer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unavailable, match="does not answer: (RemoteProtocol|Read)Error"):
            completed(f"http://127.0.0.1:{listener.getsockname()[1]}", num_retries=0)
        thread.join()


def test_our_default_length_is_cut_to_what_fits(fake: FakeUpstream, url: str) -> None:
    """The caller named none, so it cannot be told that theirs does not fit."""
    fake.script(CHAT, refused(400, "maximum context length is 100 tokens"), whole("Hi"))

    answers = completed(url, Sampling(), default_max_tokens=500)

    assert answers.completions[0].text == "Hi"
    assert [body.get("max_tokens") for body in fake.asked(CHAT)] == [500, None]


def test_a_length_that_was_asked_for_must_fit(fake: FakeUpstream, url: str) -> None:
    fake.script(CHAT, refused(400, "maximum context length is 100 tokens"))

    with pytest.raises(BadRequest) as raised:
        completed(url, Sampling(max_tokens=500))

    assert (raised.value.code, len(fake.asked(CHAT))) == ("context_length_exceeded", 1)


def test_an_adapter_that_the_server_forgot_is_loaded_again(fake: FakeUpstream, url: str) -> None:
    """As it does when it is started again."""
    fake.script(CHAT, refused(404, "no such model"), whole("Hi"))

    answers = completed(url, adapter=Adapter("actor/v2", "/models/actor/v2"))

    assert answers.completions[0].text == "Hi"
    assert fake.models["actor/v2"] == "/models/actor/v2"


def test_scores_are_the_sums_behind_the_prompt(fake: FakeUpstream, url: str) -> None:
    """The prompt's own tokens do not count, nor the one that had to be written; nothing scores 0."""

    def echo(body: dict[str, Any]) -> Response:
        choices = [
            {"index": number, "logprobs": {"token_logprobs": [None, *(-token / 8 for token in prompt[1:]), -99.0]}}
            for number, prompt in enumerate(body["prompt"])
        ]
        return JSONResponse({"choices": choices[::-1]})

    fake.script(READ, echo)
    tokenizer = tiny_tokenizer()
    texts = ["Everyone.", "", "No one"]

    [scores] = run(url, lambda made: made.score([ASK], [texts]), tokenizer=tokenizer)

    expected = [-sum(tokenizer(text, add_special_tokens=False)["input_ids"]) / 8 for text in texts]
    assert scores == pytest.approx(expected)
    assert len(fake.asked(READ)) == 1


def test_without_a_tokenizer_a_vllm_server_tokenizes(fake: FakeUpstream, url: str) -> None:
    """Its own template, and no special tokens before the continuation."""
    fake.script("/tokenize", JSONResponse({"tokens": [1, 2]}), JSONResponse({"tokens": [3]}))
    fake.script(READ, JSONResponse({"choices": [{"logprobs": {"token_logprobs": [None, -1.0, -0.5, -9.0]}}]}))

    [[score]] = run(url, lambda made: made.score([ASK], [["x"]]))

    assert score == -0.5
    assert [body.get("add_special_tokens", True) for body in fake.asked("/tokenize")] == [True, False]
    assert fake.asked(READ)[0]["prompt"] == [[1, 2, 3]]


@pytest.mark.parametrize("sentence", ["maximum context length is 9", "longer than the maximum model length of 9"])
def test_a_text_that_is_too_long_to_score_is_told_apart(sentence: str, fake: FakeUpstream, url: str) -> None:
    """Whoever scores many can then leave this one out, as with our own engine."""
    fake.script(READ, refused(400, sentence))

    with pytest.raises(BadRequest) as raised:
        run(url, lambda made: made.score([ASK], [["x"]]), tokenizer=tiny_tokenizer())

    assert raised.value.code == "context_length_exceeded"


def test_answers_count_as_asked_for_until_they_are_there(fake: FakeUpstream, url: str) -> None:
    """Whole, streamed to the end, and streamed to somebody who leaves."""

    async def counts(made: RemoteEngine) -> list[int]:
        fake.script(CHAT, lambda _: (seen.append(made.num_asked), whole("a", "b"))[1])
        seen: list[int] = []
        await made.complete([ASK], PLAIN, 2)
        fake.script(
            CHAT, streamed(chunk("a"), chunk("b", index=1), chunk(finish="stop"), chunk(finish="stop", index=1), DONE)
        )
        read, left = await made.generate(ASK, PLAIN, 2), await made.generate(ASK, PLAIN, 2)
        seen.append(made.num_asked)
        async for _ in read:
            pass
        seen.append(made.num_asked)
        left.cancel()
        await asyncio.sleep(0)
        return [*seen, made.num_asked]

    assert run(url, counts) == [2, 4, 2, 0]


@pytest.mark.parametrize("logprobs", [None, {"token_logprobs": [-0.5]}], ids=["none", "of its own words only"])
def test_a_server_that_reads_nothing_says_so(logprobs: Any, fake: FakeUpstream, url: str) -> None:
    """Some take `echo` and forget it."""
    fake.script(READ, JSONResponse({"choices": [{"logprobs": logprobs}]}))

    with pytest.raises(BadRequest) as raised:
        run(url, lambda made: made.score([ASK], [["x"]]), tokenizer=tiny_tokenizer())

    assert raised.value.code == "not_supported_by_upstream"


@pytest.mark.parametrize(("total", "weights"), [(10, [1, 1, 1]), (7, [0, 0]), (5, [3, 2]), (0, [4, 4]), (9, [1])])
def test_shares_add_up(total: int, weights: list[int]) -> None:
    """And each is within one of its due."""
    found = shares(total, weights)

    due = [total * weight / sum(weights) if sum(weights) else total / len(weights) for weight in weights]
    assert sum(found) == total
    assert all(math.isclose(one, other, abs_tol=1.0) for one, other in zip(found, due, strict=True))
