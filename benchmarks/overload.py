"""What an Actor does with four times the load it can carry: goodput, refusals, and whether the told wait is true.

    OMP_NUM_THREADS=1 python -m benchmarks.overload

A server of its own with a random model of the starter's shape. First a closed loop finds the peak; then requests arrive
on time, whoever is still being answered, at `--times` the peak. Goodput is answers per second. A wait told to a refused
client is held against the time until somebody who asked later was let in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from bisect import bisect_left
from dataclasses import dataclass, field

from benchmarks.actor_server import ActorProcess, actor_process

SETTLE = 0.3
"""Part of a phase that is not counted: lines fill up, and the first rate is measured."""


@dataclass
class Tallied:
    """What came back, each with the time at which it was asked for or came."""

    answered_at: list[float] = field(default_factory=list)
    let_in_at: list[float] = field(default_factory=list)
    """When requests were sent that were let in."""
    refused: list[tuple[float, float, float]] = field(default_factory=list)
    """(asked at, seconds until the refusal was there, wait told)."""
    failed: int = 0

    async def ask(self, server: ActorProcess, request: bytes) -> None:
        asked = time.perf_counter()
        try:
            status, headers = await exchange(server, request)
        except (OSError, EOFError):
            self.failed += 1
            return
        now = time.perf_counter()
        if status == 200:
            self.answered_at.append(now)
            self.let_in_at.append(asked)
        elif status == 429:
            self.refused.append((asked, now - asked, float(headers["retry-after-ms"]) / 1000))
        else:
            self.failed += 1

    def goodput(self, begin: float, end: float) -> float:
        return sum(begin <= at < end for at in self.answered_at) / (end - begin)

    def ratios(self) -> list[float]:
        """Told wait over the true one, for every refused request that saw somebody let in later."""
        let_in = sorted(self.let_in_at)
        found = []
        for asked, took, told in self.refused:
            i = bisect_left(let_in, asked + took)
            if i < len(let_in):
                found.append((told, let_in[i] - asked - took))
        return [told / true for told, true in found if true >= 0.1 or told >= 0.1]


def chat_request(server: ActorProcess, chance: random.Random, mean_tokens: int) -> bytes:
    """The bytes of a request for half to one and a half times `mean_tokens`."""
    body = {
        "model": "v1",
        "messages": [{"role": "user", "content": "Who may speak in the council? " * chance.randint(1, 3)}],
        "max_tokens": chance.randint(mean_tokens // 2, mean_tokens * 3 // 2),
        "temperature": 0,
    }
    content = json.dumps(body).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: localhost",
        "connection: close",
        "content-type: application/json",
        f"content-length: {len(content)}",
        *(f"{name}: {value}" for name, value in server.headers.items()),
    ]
    return "\r\n".join([*head, "", ""]).encode() + content


async def exchange(server: ActorProcess, request: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of the reply, once it has come to its end.

    By hand, because a client library costs more than the refusals it would be used to time.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        head, _, _ = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first:
        raise EOFError
    return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines)


async def closed_loop(server: ActorProcess, options: argparse.Namespace, seconds: float) -> float:
    """Answers per second when so many clients each ask again as soon as they are answered."""
    tallied, end = Tallied(), time.perf_counter() + seconds

    async def keep_asking(number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() < end:
            await tallied.ask(server, chat_request(server, chance, options.new_tokens))

    await asyncio.gather(*(keep_asking(number) for number in range(options.clients)))
    return tallied.goodput(end - seconds * (1 - SETTLE), end)


async def open_loop(server: ActorProcess, options: argparse.Namespace, rate: float) -> tuple[Tallied, float]:
    """Requests that arrive at `rate`, at random moments; what came back, and the goodput."""
    tallied, chance, tasks = Tallied(), random.Random(0), set[asyncio.Task[None]]()
    begin = due = time.perf_counter()
    while due < begin + options.seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(tallied.ask(server, chat_request(server, chance, options.new_tokens)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += chance.expovariate(rate)
    goodput = tallied.goodput(begin + options.seconds * SETTLE, time.perf_counter())
    await asyncio.gather(*tasks)
    return tallied, goodput


async def measure(server: ActorProcess, options: argparse.Namespace) -> dict[str, float]:
    await closed_loop(server, options, 2)  # warm-up
    peak = await closed_loop(server, options, options.seconds)
    tallied, goodput = await open_loop(server, options, options.times * peak)
    return figures(tallied, peak, goodput)


def figures(tallied: Tallied, peak: float, goodput: float) -> dict[str, float]:
    refusals_ms, ratios = [1000 * took for _, took, _ in tallied.refused], tallied.ratios()
    if not ratios:
        raise SystemExit("Nobody was refused and let in later: offer more for longer (--times, --seconds).")
    return {
        "peak_per_s": round(peak, 1),
        "goodput_per_s": round(goodput, 1),
        "goodput_ratio": round(goodput / peak, 3),
        "num_answered": len(tallied.answered_at),
        "num_refused": len(refusals_ms),
        "num_failed": tallied.failed,
        "refusal_ms_p50": round(statistics.median(refusals_ms), 2),
        "refusal_ms_p99": round(quantile(refusals_ms, 0.99), 2),
        "told_over_true_p10": round(quantile(ratios, 0.1), 2),
        "told_over_true_p50": round(statistics.median(ratios), 2),
        "told_over_true_p90": round(quantile(ratios, 0.9), 2),
        "told_within_half": round(sum(0.5 <= ratio <= 1.5 for ratio in ratios) / len(ratios), 3),
    }


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each phase")
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--clients", type=int, default=128, help="of the closed loop, which must fill the rows")
    parser.add_argument("--new-tokens", type=int, default=96, help="of an answer, on the average")
    parser.add_argument("--max-rows", type=int, default=64)
    parser.add_argument("--max-waiting", type=int, default=192)
    options = parser.parse_args()
    with actor_process(max_rows=options.max_rows, max_waiting=options.max_waiting) as server:
        print(json.dumps(asyncio.run(measure(server, options))))


if __name__ == "__main__":
    main()
