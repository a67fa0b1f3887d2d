"""The gateway's benchmark against a planted truth: its load counts what comes, and misses nothing that is missing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from benchmarks.gateway import GAP, OURS, PEER, make_row
from benchmarks.gateway_load import Task, paced_streams, quantile, whole_answers
from benchmarks.gateway_mock import Connection, Mock
from benchmarks.gateway_soak import make_rows, sentence
from benchmarks.scale import row

BODY: dict[str, Any] = {"model": "vc-llm", "messages": [{"role": "user", "content": "hello"}]}
FRAMES = 8


@asynccontextmanager
async def serving(mock: Mock) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(partial(Connection, mock), "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def measured(mock: Mock, measure: Callable[[Task], Awaitable[dict[str, Any]]], **options: Any) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        async with serving(mock) as port:
            body = {**BODY, "stream": measure is paced_streams}
            return await measure(Task(port, body, frames=FRAMES, **options))

    return asyncio.run(main())


def mock_of(delay_s: float = 0.01, slots: int = 0) -> Mock:
    return Mock(delay_s, slots, FRAMES, 0.002, "mock-1")


def test_whole_answers_are_counted_and_timed():
    """Two at a time, 10 ms each: somewhat below 200 a second."""
    found = measured(mock_of(), whole_answers, concurrency=2, seconds=0.5, warm_s=0.1)

    assert found["failed"] == 0
    assert 50 < found["per_s"] <= 200
    assert found["p99_ms"] >= found["p50_ms"] >= 10


def test_slots_bound_what_a_replica_answers():
    """Eight ask at once, two are answered at a time."""
    found = measured(mock_of(slots=2), whole_answers, concurrency=8, seconds=0.5, warm_s=0.1)

    assert found["failed"] == 0
    assert found["per_s"] <= 200
    assert found["p50_ms"] >= 30


def test_answers_that_fail_are_not_counted():
    """A refusal is quick, and would look like a good rate."""
    mock = mock_of()
    mock.whole = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    found = measured(mock, whole_answers, concurrency=2, seconds=0.2, warm_s=0.0)

    assert found["answers"] == 0
    assert found["failed"] > 0


def test_streams_that_are_whole_have_lost_nothing():
    """Each frame, in order, with its end."""
    found = measured(mock_of(), paced_streams, streams=5, ramp_s=0.0)

    assert (found["broken"], found["lost_frames"]) == (0, 0)


@pytest.mark.parametrize("missing", [1, 4, FRAMES - 2])
def test_a_frame_that_is_missing_is_found(missing: int):
    """Whichever it is; the first one has no text."""
    mock = mock_of()
    mock.frames[missing] = b""
    found = measured(mock, paced_streams, streams=3, ramp_s=0.0)

    assert found["lost_frames"] == 3


def test_frames_out_of_order_are_found():
    """All are there, and the text is wrong."""
    mock = mock_of()
    mock.frames[2], mock.frames[3] = mock.frames[3], mock.frames[2]
    found = measured(mock, paced_streams, streams=1, ramp_s=0.0)

    assert found["lost_frames"] > 0


def test_a_stream_without_its_end_is_broken():
    """The last chunk came, `[DONE]` did not."""
    mock = mock_of()
    mock.frames[-1] = b"0\r\n\r\n"
    found = measured(mock, paced_streams, streams=1, ramp_s=0.0)

    assert found["broken"] == 1


def test_quantiles_are_of_what_was_seen():
    """The 99th of a hundred is the last but one, or the last."""
    assert quantile([float(n) for n in range(100)], 0.5) == 50
    assert quantile([float(n) for n in range(100)], 0.99) == 99
    assert quantile([1.0], 0.99) == 1.0


def test_a_row_is_a_ratio_in_which_more_is_better_for_us():
    """Fewer milliseconds, more answers; a side that held no stream counts as one."""
    rows = {
        name: next(make_row(name, {OURS: ours, PEER: peer}))
        for name, ours, peer in (
            ("added p50 at 1, ms", [1.0, 2.0], [10.0, 10.0]),
            ("answers at 64, 1/s", [200.0], [100.0]),
            ("paced streams held, streams", [600], [0]),
            ("added p99 at 16, ms", [-0.1], [5.0]),
            (f"{GAP}, ms", [20.0], [30.0]),
        )
    }

    assert rows["added p50 at 1, ms"]["ratio"] == 7.5
    assert rows["answers at 64, 1/s"]["ratio"] == 2
    assert rows["paced streams held, streams"]["ratio"] == 600
    assert rows["added p99 at 16, ms"]["peer"] is rows[f"{GAP}, ms"]["peer"] is None


def test_scaling_is_held_against_what_the_replicas_and_the_gateway_can_do():
    """Up to the gateway's own limit, by the number of replicas."""
    assert row(4, [90.0], ideal=100.0, limit=1000.0)["ratio"] == 0.9
    assert row(64, [950.0], ideal=2000.0, limit=1000.0)["ratio"] == 0.95


def test_growth_is_that_of_the_second_half():
    """A gateway that warms up for half an hour, and then keeps 2 MB more every hour."""
    samples = [(minute / 60, 90.0 + minute / 3) for minute in range(0, 30)]
    samples += [(minute / 60, 100.0 + 2 * (minute - 30) / 60) for minute in range(30, 61)]

    found = sentence(make_rows(samples, Counter(answered=5, streamed=4, left=3, refused=2)))

    assert "60 minutes, 5 answered, 4 streamed, 3 left, 2 refused" in found
    assert "90.0 MB after the first round, 100.0 MB at half time, 101.0 MB at the end" in found
    assert "+2.00 MB an hour in the second half" in found
