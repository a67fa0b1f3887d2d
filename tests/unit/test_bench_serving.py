"""The serving benchmark's load and arithmetic: what counts as text, as a whole answer, as the 99 % figure."""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks.budget import Budget
from benchmarks.rows import lonely_row, paired_row
from benchmarks.serving import FIGURES, load_table, quantile
from benchmarks.serving_load import Load, run

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def frame(**choice):
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}, separators=(",", ":")).encode() + b"\n\n"


ROLE = frame(delta={"role": "assistant", "content": ""}, finish_reason=None)
ONE = frame(delta={"content": 'say "one"'}, finish_reason=None)
TWO = frame(delta={"content": " two"}, finish_reason=None)
END = frame(delta={}, finish_reason="length")
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\ndata: [DONE]\n\n'


def chunk(content):
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def ask(*writes, requests=1, concurrency=1):
    """What the load makes of a server that sends these bytes, with a moment between them."""
    most = [0, 0]

    async def reply(reader, writer):
        most[0] += 1
        most[1] = max(most)
        await reader.readuntil(b"\r\n\r\n")
        for content in writes:
            writer.write(content)
            await writer.drain()
            await asyncio.sleep(0.02)
        most[0] -= 1
        writer.close()

    async def both():
        async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await run(Load(port, [{"number": number} for number in range(requests)], concurrency))

    return asyncio.run(both())["answers"], most[1]


def test_the_first_token_is_the_first_text():
    """The frame that only names the role comes at once and says nothing about the model's speed."""
    [found], _ = ask(HEAD + chunk(ROLE), chunk(ONE), chunk(TWO), chunk(END + USAGE) + b"0\r\n\r\n")

    assert found["error"] is None
    assert (found["text"], found["num_tokens"], found["num_prompt_tokens"]) == ('say "one" two', 2, 7)
    assert found["first_s"] >= 0.02
    assert len(found["gaps_s"]) == 1 and found["gaps_s"][0] >= 0.01


def test_a_piece_that_arrives_in_halves_is_one_piece():
    """The spelling by which text is found may be cut anywhere."""
    cut = ONE.index(b"content") + 4

    [found], _ = ask(HEAD + chunk(ROLE + ONE)[: -len(ONE) - 2 + cut], ONE[cut:] + b"\r\n" + chunk(END + USAGE))

    assert found["error"] is None
    assert (found["text"], found["gaps_s"]) == ('say "one"', [])


@pytest.mark.parametrize(
    "writes",
    [
        [b'HTTP/1.1 429 Too Many Requests\r\n\r\n{"error": {}}'],
        [HEAD + chunk(ROLE + ONE)],
        [HEAD + chunk(ROLE + ONE + END) + b"0\r\n\r\n"],
        [],
    ],
    ids=["refused", "broken off", "no count of tokens", "nothing"],
)
def test_what_is_no_whole_answer_is_an_error(writes):
    """A benchmark that counted these as answers would praise a server that fails fast."""
    [found], _ = ask(*writes)

    assert found["error"] is not None


def test_no_more_requests_are_in_flight_than_asked_for():
    """The next one is sent when one is answered, until all are."""
    answers, most = ask(HEAD + chunk(ROLE + ONE + END + USAGE), requests=6, concurrency=3)

    assert sorted(each["at"] for each in answers) == list(range(6))
    assert most == 3


def test_the_99_percent_figure_is_one_that_was_measured():
    """With few values it is the largest."""
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert quantile([float(value) for value in range(1, 201)], 0.99) == 198.0


def test_a_budget_that_is_spent_still_gives_one_pair():
    """A row without a single measurement would say nothing."""
    going_on = Budget(0.0).pairs(1.0, most=5)

    assert [going_on(0), going_on(1)] == [True, False]


def test_without_a_budget_all_pairs_are_run():
    """And not one more."""
    going_on = Budget(None).pairs(0.5, most=2)

    assert [going_on(0), going_on(1), going_on(2)] == [True, True, False]


def test_the_table_shows_a_missing_peer_with_its_reason():
    """A line per load and peer; the ratio is that of tokens a second."""
    rows = []
    for _, title, unit, better in FIGURES:
        rows.append(paired_row(f"4M, 8 at once: {title}", unit, [300.0], [200.0], "transformers serve", better))
        rows.append(lonely_row(f"4M, 8 at once: {title}", unit, [300.0], "vllm", "not installed"))

    _, _, peer, missing = load_table(rows).splitlines()

    assert "300 / 200" in peer and "**1.50**" in peer
    assert "300 / –" in missing and "vllm: not installed" in missing
