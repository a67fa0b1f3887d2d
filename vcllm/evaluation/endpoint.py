"""Asks an OpenAI-compatible server, ours or another's, and keeps asking through the moments when it cannot answer.

Knows the wire and its faults. What is asked, and what an answer means, is the business of its callers.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from vcllm.contracts.problems import Problem, UpstreamFailed

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may pass."""
TOP_LOGPROBS = 20
PATIENCE_S = 120.0
"""How long one request is asked again."""


@dataclass(frozen=True)
class Token:
    """A token the model wrote, with what else it might have written there."""

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()
    """Text and log-probability of the likeliest tokens, the one written among them."""


@dataclass(frozen=True)
class Reply:
    """One completion."""

    text: str
    finish: str
    version: str
    """From the version header, else the model the server names."""
    seconds: float
    tokens: tuple[Token, ...] = ()
    """Empty where no probabilities were asked for or given."""


@dataclass(frozen=True)
class Target:
    """A model behind a server."""

    url: str
    """With or without `/v1`."""
    model: str
    key: SecretStr = SecretStr("")
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Sent along in every body, such as `chat_template_kwargs`."""

    @property
    def base(self) -> str:
        bare = self.url.rstrip("/")
        return bare if bare.endswith("/v1") else f"{bare}/v1"


class Endpoint:
    """One target and the connections to it."""

    def __init__(
        self,
        target: Target,
        *,
        patience_s: float = PATIENCE_S,
        timeout_s: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.target = target
        self.patience_s = patience_s
        key = target.key.get_secret_value()
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=256),
            trust_env=not _is_local(target.url),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def chat(self, messages: Sequence[Mapping[str, str]], *, logprobs: bool = False, **sampling: Any) -> Reply:
        """One completion; raises Problem when there is none to be had."""
        body: dict[str, Any] = {**self.target.extra, "model": self.target.model, "messages": list(messages), **sampling}
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        started = time.monotonic()
        reply = await self._post("/chat/completions", body)
        return _read(reply, time.monotonic() - started, self.target)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Any other route below `/v1`; raises Problem."""
        reply = await self._post(path, body)
        try:
            return reply.json()
        except ValueError:
            raise UpstreamFailed(f"{self.target.url} answered with something that is not JSON.") from None

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        give_up = time.monotonic() + self.patience_s
        for attempt in range(1_000_000):
            wait, fault = 0.0, ""
            try:
                reply = await self._client.post(self.target.base + path, json=body)
                if reply.status_code == 200:
                    return reply
                fault = f"status {reply.status_code}: {_message(reply)}"
                if reply.status_code not in BUSY:
                    raise Refusal(f"{self.target.url} refuses to answer ({fault})", reply.status_code)
                wait = _retry_after(reply)
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}".rstrip(": ")
            wait = max(wait, min(10.0, 0.25 * 2 ** min(attempt, 8))) * random.uniform(0.8, 1.2)
            if time.monotonic() + wait > give_up:
                raise UpstreamFailed(f"{self.target.url} has not answered for {self.patience_s:.0f} s ({fault}).")
            await asyncio.sleep(wait)
        raise AssertionError("patience ends before attempts do")


class Refusal(Problem):
    """The server will not answer this request, however often it is asked."""

    def __init__(self, message: str, upstream_status: int) -> None:
        super().__init__(message)
        self.upstream_status = upstream_status


def _is_local(url: str) -> bool:
    """What runs on this machine is not reached through a proxy that the environment may name."""
    return (httpx.URL(url).host or "") in ("127.0.0.1", "localhost", "::1")


def _message(reply: httpx.Response) -> str:
    try:
        error = reply.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return reply.text[:200].strip() or "no reason given"


def _retry_after(reply: httpx.Response) -> float:
    try:
        seconds = float(reply.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(60.0, seconds) if math.isfinite(seconds) and seconds > 0 else 0.0


def _read(reply: httpx.Response, seconds: float, target: Target) -> Reply:
    try:
        body = reply.json()
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        told = (choice.get("logprobs") or {}).get("content") or []
        tokens = tuple(_token(one) for one in told)
        version = reply.headers.get("x-vc-version") or body.get("model") or ""
        return Reply(str(text), str(choice.get("finish_reason") or ""), str(version), seconds, tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UpstreamFailed(f"{target.url} answered with something that is no chat completion.") from None


def _token(told: Mapping[str, Any]) -> Token:
    alternatives = tuple((str(one["token"]), float(one["logprob"])) for one in told.get("top_logprobs") or [])
    return Token(str(told["token"]), float(told["logprob"]), alternatives)
