"""What a scrape is told: which versions are loaded, what happened at the door, how long answers took.

Nothing here has a label that a request could choose.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vcllm.engine.protocol import Answers, Delta, Generation
from vcllm.serving.watcher import AliasWatcher
from vcllm.web.doorkeeper import Doorkeeper
from vcllm.web.metrics import Tally

GAPS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""Between the pieces of a stream."""


class Meter(Collector):
    """How long answers take and how many tokens they have; for one event loop, but for `swap`."""

    def __init__(self) -> None:
        self.queue_wait = Tally("vc_queue_wait_seconds", "From a request's arrival until work on it began.")
        self.ttft = Tally("vc_ttft_seconds", "From a stream's admission to its first text.")
        self.itl = Tally("vc_itl_seconds", "Between the pieces of one streamed answer.", GAPS_S)
        self.swap = Tally("vc_swap_seconds", "From the order to serve another version until it is served.")
        """Observed by whoever swaps, in one thread."""
        self.tokens_in = self.tokens_out = 0

    def answered(self, answers: Iterable[Answers]) -> None:
        """Count whole answers."""
        for each in answers:
            self.queue_wait.observe(each.queue_s)
            self.tokens_in += each.num_prompt_tokens
            self.tokens_out += sum(completion.num_tokens for completion in each.completions)

    def follow(self, generation: Generation, since: float, n: int) -> Generation:
        """The same generation of n answers, counted and timed as it passes; since: by `time.monotonic`."""
        return Followed(generation, self, since, n)

    def collect(self) -> Iterator[Metric]:
        yield from (tally.collect() for tally in (self.queue_wait, self.ttft, self.itl, self.swap))
        tokens = CounterMetricFamily("vc_tokens", "Tokens read (in) and written (out).", labels=("dir",))
        tokens.add_metric(("in",), self.tokens_in)
        tokens.add_metric(("out",), self.tokens_out)
        yield tokens


class Followed:
    """See `Meter.follow`. Its work per piece is a few additions: it is done for every token of every stream."""

    def __init__(self, generation: Generation, meter: Meter, since: float, n: int) -> None:
        self._generation = generation
        self._meter = meter
        self._since = since
        self._last: list[float | None] = [None] * n
        self._num_tokens = [0] * n
        self._num_read = 0
        """Tokens of the prompt that have been counted."""

    @property
    def num_prompt_tokens(self) -> int:
        return self._generation.num_prompt_tokens

    @property
    def queue_s(self) -> float:
        return self._generation.queue_s

    def cancel(self) -> None:
        self._generation.cancel()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        meter, clock, last, num_tokens = self._meter, time.monotonic, self._last, self._num_tokens
        begun = False
        async for delta in self._generation:
            now, index = clock(), delta.index
            if not begun:
                begun = True
                self._begin(now)
            before = last[index]
            if before is not None:
                meter.itl.observe(now - before)
            last[index] = now
            meter.tokens_out += delta.num_tokens - num_tokens[index]
            num_tokens[index] = delta.num_tokens
            yield delta
        meter.tokens_in += self._generation.num_prompt_tokens - self._num_read  # some servers tell at the end

    def _begin(self, now: float) -> None:
        self._meter.ttft.observe(now - self._since)
        self._meter.queue_wait.observe(self._generation.queue_s)
        self._num_read = self._generation.num_prompt_tokens
        self._meter.tokens_in += self._num_read


class DoorCollector(Collector):
    """Who waits, who was turned away and whose work was stopped."""

    def __init__(self, keeper: Doorkeeper) -> None:
        self.keeper = keeper

    def collect(self) -> Iterator[Metric]:
        door = self.keeper.door
        yield GaugeMetricFamily("vc_queue_depth", "Answers let in and not begun.", value=door.waiting)
        yield GaugeMetricFamily("vc_answers_inside", "Answers waiting or running.", value=door.inside)
        rejected = CounterMetricFamily("vc_rejected", "Requests turned away at the door.", labels=("reason",))
        for reason in ("answers", "tokens", "deadline", "draining"):
            rejected.add_metric((reason,), door.refused[reason])
        yield rejected
        cancelled = CounterMetricFamily("vc_cancelled", "Requests stopped before their end.", labels=("where",))
        for where in ("body", "answer", "stream"):
            cancelled.add_metric((where,), self.keeper.cancelled[where])
        yield cancelled


class VersionCollector(Collector):
    """Reads the pool when asked, so nothing here can go stale."""

    def __init__(self, watcher: AliasWatcher) -> None:
        self.watcher = watcher

    def collect(self) -> Iterator[Metric]:
        role, held, current = self.watcher.role, self.watcher.pool.held, self.watcher.pool.current
        labels = ("role", "version")
        loaded = GaugeMetricFamily("vc_loaded_version", "1: the current version; 0: another.", labels=labels)
        info = GaugeMetricFamily("vc_version_info", "1: the version served now.", labels=(*labels, "sha"))
        for each in held:
            loaded.add_metric((role, each.version), float(each.version == current))
            if each.version == current:
                info.add_metric((role, each.version, each.checksum), 1.0)
        yield from (loaded, info)
        yield from self._changes(role)

    def _changes(self, role: str) -> Iterator[Metric]:
        pending, labels = self.watcher.pending, ("role",)
        text = "1: a version was named current and is being loaded, waits for memory, or is refused."
        waiting = GaugeMetricFamily("vc_version_pending", text, labels=("role", "version", "state"))
        if pending is not None:
            state = "refused" if pending.refused else "waiting" if pending.reason else "loading"
            waiting.add_metric((role, pending.version, state), 1.0)
        yield waiting
        refused = CounterMetricFamily("vc_versions_refused", "Failed checks of versions.", labels=labels)
        refused.add_metric((role,), self.watcher.num_refused)
        yield refused
