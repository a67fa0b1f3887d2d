"""Calls to one OpenAI-compatible server: where it is comes from the operator alone, and nothing it sends is trusted.

Redirects are not followed, bodies are bounded, and what goes wrong becomes a `Problem`. Knows nothing of chats.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import httpx

from vcllm.contracts.problems import (
    BadRequest,
    NotFound,
    Overloaded,
    Problem,
    Unavailable,
    UpstreamFailed,
    retry_after,
)

Dialect = Literal["vllm", "sglang", "openai"]
"""What a server takes beyond the OpenAI API; `openai`: nothing."""

MAX_REPLY = 64 << 20
MAX_REFUSAL = 64 << 10
"""Bytes of an error's body that are read."""
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
LONGEST_WAIT_S = 30.0
"""A server that asks for more patience than this is not waited for: the caller is told."""
TIMED_OUT = "upstream_timeout"
TOO_LONG = re.compile(r"(context|model) length|max_model_len", re.IGNORECASE)
"""How servers say that a text does not fit into the model."""
NOT_SUPPORTED = "not_supported_by_upstream"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a server is and how it is spoken to."""

    url: str
    """Without `/v1`."""
    key: str = field(default="", repr=False)
    """Sent as a bearer token; empty: none is sent."""
    dialect: Dialect = "vllm"
    connect_s: float = 5.0
    silence_s: float = 300.0
    """How long it may send nothing; of a reply that comes in one piece, the whole answer takes less."""
    max_calls: int = 128
    """Whole replies waited for at the same time."""
    num_retries: int = 2
    """For calls it refused for now, or did not answer; never after a part of the answer has been handed on."""

    @property
    def extended(self) -> bool:
        """Takes the sampling and template options that vLLM and SGLang share."""
        return self.dialect != "openai"


class Connection:
    """Calls from one event loop; `aclose` ends them."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._http = httpx.AsyncClient(
            base_url=upstream.url,
            headers={"accept-encoding": "identity"} | authorization(upstream),
            timeout=httpx.Timeout(upstream.silence_s, connect=upstream.connect_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=upstream.max_calls),
            verify=upstream.url.startswith("https:"),
            follow_redirects=False,
            trust_env=False,
        )
        self.num_asked = 0
        """Answers that the server has been asked for and has not finished."""
        self._room = asyncio.Semaphore(upstream.max_calls)
        self._chance = random.Random()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> bytes:
        return await self.patiently(lambda: self._whole("GET", path, None))

    async def post(self, path: str, body: Mapping[str, Any], *, answers: int = 0) -> bytes:
        """The reply's body, once it is all there; at most `max_calls` are under way. answers: how many it is for."""
        async with self._room:
            self.num_asked += answers
            try:
                return await self.patiently(lambda: self._whole("POST", path, body))
            finally:
                self.num_asked -= answers

    async def stream(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """A reply that has begun well; the caller closes it."""
        return await self.patiently(lambda: self._begin("POST", path, body))

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result; it is made again, a few times, while the server is full or does not answer."""
        for num_failed in range(self.upstream.num_retries):
            try:
                return await call()
            except (Overloaded, Unavailable) as problem:
                await self.pause(problem, num_failed)
        return await call()

    async def pause(self, problem: Problem, num_failed: int) -> None:
        """Wait before the next try: as long as the server asks, else longer each time. Raises what is final."""
        asked_s = problem.retry_after_s or 0.0
        if problem.code == TIMED_OUT or asked_s > LONGEST_WAIT_S:
            raise problem
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**num_failed)
        await asyncio.sleep(asked_s + pause_s * self._chance.uniform(0.5, 1.0))

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        response = await self._begin(method, path, body)
        try:
            with translated(self.upstream):
                return await read(response, MAX_REPLY)
        finally:
            await response.aclose()

    async def _begin(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        request = self._http.build_request(method, path, json=body)
        with translated(self.upstream):
            response = await self._http.send(request, stream=True)
        if response.status_code == HTTPStatus.OK and "content-encoding" not in response.headers:
            return response
        try:
            with translated(self.upstream):
                raise await refusal(response)
        finally:
            await response.aclose()


def authorization(upstream: Upstream) -> dict[str, str]:
    return {"authorization": f"Bearer {upstream.key}"} if upstream.key else {}


@contextmanager
def translated(upstream: Upstream) -> Iterator[None]:
    """What httpx raises within, as the problem it is for whoever asked."""
    try:
        yield
    except httpx.ReadTimeout as error:
        sentence = f"The upstream server sent nothing for {upstream.silence_s:g} s."
        raise Unavailable(sentence, code=TIMED_OUT) from error
    except httpx.TransportError as error:
        raise Unavailable(f"The upstream server does not answer: {type(error).__name__}. Try again.") from error


async def read(response: httpx.Response, max_bytes: int) -> bytes:
    """The body as it was sent; UpstreamFailed when it is larger."""
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise UpstreamFailed(f"The upstream server sent more than {max_bytes} bytes.")
    return bytes(body)


async def refusal(response: httpx.Response) -> Problem:
    """What a reply that is none says."""
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_REFUSAL:
            break
    return problem_of(response.status_code, body, response.headers)


def problem_of(status: int, body: bytes, headers: Mapping[str, str]) -> Problem:
    """An error reply, as it concerns whoever asked us: a key refused up there, for one, is no fault of theirs."""
    if status < 300:
        return UpstreamFailed("The upstream server sent a reply in an encoding that was not asked for.")
    if status < 400:
        return UpstreamFailed("The upstream server redirects, which is never followed. Configure its final address.")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return UpstreamFailed("The upstream server refuses the key it is sent. Configure another.")
    error = error_of(body)
    message, code = said(error) or f"The upstream server answered {status} without saying why.", error.get("code")
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(message, code="model_not_found")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Overloaded(message, retry_after_s=retry_after(headers))
    if status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT:
        return Unavailable(message, retry_after_s=retry_after(headers))
    if TOO_LONG.search(message):
        code = "context_length_exceeded"
    param = error.get("param")
    return BadRequest(
        message, param=param if isinstance(param, str) else None, code=code if isinstance(code, str) else None
    )


def error_of(body: bytes) -> dict[str, Any]:
    """The error object of a body, in the shape of the OpenAI API or in one of those that came before; {}: none."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(value, dict):
        return {}
    error = value.get("error", value)
    return error if isinstance(error, dict) else {"message": error}


def said(error: Mapping[str, Any]) -> str:
    """Its sentence, not longer than a sentence may be."""
    message = error.get("message") or error.get("detail")
    return message[:2000] if isinstance(message, str) else ""
