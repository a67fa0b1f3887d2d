"""A streamed answer on its way from an Actor to a client, byte for byte."""

from __future__ import annotations

from contextlib import AsyncExitStack

from gateway.asking import BROKE_OFF
from gateway.quotas.billing import Bill
from vcllm.contracts.problems import UpstreamFailed
from vcllm.web.http_reply import BrokeOff
from vcllm.web.replicas import Exchange
from vcllm.web.sse import DONE
from vcllm.web.usage import BEGINNING, take_usage


class Relay:
    """The bytes of a streamed answer, cut where frames end, so that a break cannot leave half a frame."""

    def __init__(self, exchange: Exchange, bill: Bill, held: AsyncExitStack) -> None:
        self._chunks = exchange.chunks()
        self._bill = bill
        self._held = held
        self._tail = b""

    def __aiter__(self) -> Relay:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                chunk = await anext(self._chunks)
            except (BrokeOff, TimeoutError) as error:
                raise UpstreamFailed(BROKE_OFF) from error
            frames, end, self._tail = (self._tail + chunk).rpartition(b"\n\n")
            if end and (noted := self._note(frames + end)):
                return noted

    def _note(self, frames: bytes) -> bytes:
        """The frames for the client; the bill learns what they tell."""
        self._bill.num_frames += frames.count(b"\n\n")
        ends = frames.endswith(DONE)
        if BEGINNING in frames:
            frames, tokens = take_usage(frames)
            self._bill.settle(tokens)
        if ends:
            self._bill.close()  # before the last byte goes out: whoever has it may ask again at once
        return frames

    async def aclose(self) -> None:
        await self._held.aclose()
