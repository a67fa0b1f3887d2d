"""Asks an OpenAI-compatible server, ours or another's, and keeps asking through the moments when it cannot answer.

Knows the wire and its faults. What is asked, and what an answer means, is the business of its callers.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from vcllm.contracts.problems import BadRequest, Problem, UpstreamFailed

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

    @property
    def root(self) -> str:
        """Without `/v1`, for routes that stand beside it."""
        return self.base.removesuffix("/v1")


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
        _check_url(target.url)
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
        """One completion; raises Refusal, Unreadable, or UpstreamFailed when the server stays away."""
        body: dict[str, Any] = {**self.target.extra, "model": self.target.model, "messages": list(messages), **sampling}
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return await self._completion(f"{self.target.base}/chat/completions", body, _read_chat)

    async def complete(self, prompt: str, *, logprobs: bool = False, **sampling: Any) -> Reply:
        """What follows a text, without a chat template; raises as `chat` does."""
        body: dict[str, Any] = {**self.target.extra, "model": self.target.model, "prompt": prompt, **sampling}
        if logprobs:
            body |= {"logprobs": TOP_LOGPROBS}
        return await self._completion(f"{self.target.base}/completions", body, _read_text)

    async def post(self, path: str, body: Mapping[str, Any], *, at_root: bool = False) -> Any:
        """Any other route below `/v1`, or with at_root beside it; raises as `chat` does."""
        reply = await self._post((self.target.root if at_root else self.target.base) + path, body)
        try:
            return reply.json()
        except ValueError:
            raise Unreadable(f"{self.target.url} answered with something that is not JSON.") from None

    async def _completion(
        self, url: str, body: Mapping[str, Any], read: Callable[[Any], tuple[str, str, tuple[Token, ...]]]
    ) -> Reply:
        started = time.monotonic()
        reply = await self._post(url, body)
        try:
            told = reply.json()
            text, finish, tokens = read(told["choices"][0])
            version = reply.headers.get("x-vc-version") or told.get("model") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise Unreadable(f"{self.target.url} answered with something that is no completion.") from None
        return Reply(text, finish, str(version), time.monotonic() - started, tokens)

    async def _post(self, url: str, body: Mapping[str, Any]) -> httpx.Response:
        give_up = time.monotonic() + self.patience_s
        for attempt in range(1_000_000):
            wait, fault = 0.0, ""
            try:
                reply = await self._client.post(url, json=body)
                if reply.status_code == 200:
                    return reply
                fault = f"status {reply.status_code}: {_message(reply)}"
                if reply.status_code not in BUSY:
                    raise Refusal(f"{self.target.url} refuses to answer ({fault})", reply.status_code)
                wait = _retry_after(reply)
            except httpx.RequestError as error:
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


class Unreadable(UpstreamFailed):
    """The server answered this request, in a form that nobody here can read."""


def _check_url(url: str) -> None:
    """A wrong address is told at once, not asked again for minutes."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadRequest(f"'{url}' is no address of a server. Write it as http://host:port or https://host.")


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


def _read_chat(choice: Any) -> tuple[str, str, tuple[Token, ...]]:
    """Text, reason of its end, and tokens where probabilities are given."""
    message, told = choice["message"], (choice.get("logprobs") or {}).get("content") or []
    finish = "content_filter" if message.get("refusal") else choice.get("finish_reason") or ""
    return str(message.get("content") or message.get("refusal") or ""), str(finish), tuple(_token(one) for one in told)


def _token(told: Mapping[str, Any]) -> Token:
    alternatives = [(one["token"], one["logprob"]) for one in told.get("top_logprobs") or []]
    return Token(str(told["token"]), float(told["logprob"]), _finite(alternatives))


def _read_text(choice: Any) -> tuple[str, str, tuple[Token, ...]]:
    """As `_read_chat`, in the older form: parallel lists, and alternatives by their text."""
    told = choice.get("logprobs") or {}
    texts, logprobs = told.get("tokens") or [], told.get("token_logprobs") or []
    tops = told.get("top_logprobs") or [None] * len(texts)
    tokens = tuple(
        Token(str(text), float(logprob if logprob is not None else -math.inf), _finite((top or {}).items()))
        for text, logprob, top in zip(texts, logprobs, tops, strict=True)
    )
    return str(choice["text"] or ""), str(choice.get("finish_reason") or ""), tokens


def _finite(alternatives: Iterable[tuple[Any, Any]]) -> tuple[tuple[str, float], ...]:
    """Without those that have no probability: a NaN must not be taken for one."""
    pairs = [(str(text), float(logprob)) for text, logprob in alternatives if logprob is not None]
    return tuple((text, logprob) for text, logprob in pairs if math.isfinite(logprob))
