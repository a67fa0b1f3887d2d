"""Synchronous clients of the role servers, for the trainer: large batches in order, through restarts.

A batch is cut into chunks that go to the least busy replicas side by side. A chunk is asked again while its
server is down, full or starting, for as long as the client's patience lasts. One version answers a batch.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from operator import attrgetter
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakSet

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from vcllm.contracts.attacks import AttackReply, AttackRequest
from vcllm.contracts.chat import ChatBatchReply, ChatBatchRequest, ChatMessage, ModelList, Sampling
from vcllm.contracts.critiques import (
    ComparisonReply,
    ComparisonRequest,
    CritiqueReply,
    CritiqueRequest,
    EmbeddingReply,
    EmbeddingRequest,
)
from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Conflict, Overloaded, Unavailable, UpstreamFailed
from vcllm.web.addresses import KEEP_ALIVE_S, RESOLVE_EVERY_S, Address, checked, look_up
from vcllm.web.problems import problem_of
from vcllm.web.tokens import Signer
from vcllm.web.tracing import outgoing_headers, span

CHUNK_TEXTS = 64
"""Conversations or goals of one call: what is written token by token."""
CHUNK_ITEMS = 256
"""Items of one call that are only judged."""
CALLS_PER_REPLICA = 2
"""Side by side: one is answered, one waits."""
MAX_CALLS = 32
PATIENCE_S = 120.0

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")


class RoleClient:
    """What the three clients share. Thread-safe; `close` ends calls that wait in other threads, too."""

    role: Role

    def __init__(
        self, urls: list[str], secret: SecretStr, timeout_s: float = 120, *, patience_s: float = PATIENCE_S
    ) -> None:
        """secret: the internal token, by which calls are signed.

        patience_s: how long after its first failure a chunk is asked again before it is given up.
        """
        self.urls = checked(urls)
        self.patience_s = patience_s
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=5),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            verify=any(url.startswith("https:") for url in self.urls),
            trust_env=False,
        )
        self._signer = Signer(secret, "trainer")
        self._replicas = _Replicas(self.urls)
        self._connections: WeakSet[socket.socket] = WeakSet()
        self._closed = threading.Event()
        self._chance = random.Random()
        self._pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix=f"{self.role}-client")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closed.set()
        for connection in list(self._connections):
            _hang_up(connection)
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _ask_all(
        self,
        path: str,
        requests: list[BaseModel],
        reply: type[R],
        version: Callable[[R], str],
        trace: str | None,
    ) -> list[R]:
        """The replies in order, all of one version: after a swap midway, the older ones are asked again."""

        def ask(request: BaseModel) -> R:
            return self._ask("POST", path, reply, request, trace)

        replies = self._side_by_side(ask, requests)
        if len({version(each) for each in replies}) > 1:
            newest = version(replies[-1])
            older = [index for index, each in enumerate(replies) if version(each) != newest]
            again = [requests[index].model_copy(update={"model": newest}) for index in older]
            for index, answer in zip(older, self._side_by_side(ask, again), strict=True):
                replies[index] = answer
        if len({version(each) for each in replies}) > 1:
            raise Conflict(f"The {self.role} changed its version during a batch. Name the version to ask.")
        return replies

    def _side_by_side(self, ask: Callable[[BaseModel], R], requests: list[BaseModel]) -> list[R]:
        if self._closed.is_set():
            raise self._was_closed()
        futures = [self._pool.submit(copy_context().run, ask, request) for request in requests]
        try:
            return [future.result() for future in futures]
        except CancelledError as error:
            raise self._was_closed() from error
        finally:
            for future in futures:
                future.cancel()

    def _ask(
        self, method: str, path: str, reply: type[R], body: BaseModel | None = None, trace: str | None = None
    ) -> R:
        """One call, repeated while its server is down, full or starting."""
        content = None if body is None else body.model_dump_json().encode()
        named = {} if trace is None else {"x-request-id": trace}
        pause_s, deadline = 0.1, None
        while True:
            try:
                with span(f"{method} {path}", {"peer.service": self.role}, kind="client"):
                    headers = {"content-type": "application/json", **outgoing_headers(), **named}
                    return self._ask_once(method, path, reply, content, headers)
            except (Overloaded, Unavailable) as problem:
                deadline = deadline or time.monotonic() + self.patience_s
                wait_s = problem.retry_after_s or pause_s * self._chance.uniform(0.5, 1.0)
                if self._closed.is_set() or time.monotonic() + wait_s > deadline:
                    raise
                self._closed.wait(wait_s)
                pause_s = min(2 * pause_s, 5.0)

    def _ask_once(self, method: str, path: str, reply: type[R], content: bytes | None, headers: dict[str, str]) -> R:
        if self._closed.is_set():
            raise self._was_closed()
        with self._replicas.least_busy() as address:
            named = headers | self._signer.headers(self.role) | ({} if address.host is None else {"host": address.host})
            try:
                response = self._http.request(
                    method,
                    address.url + path,
                    content=content,
                    headers=named,
                    extensions={"trace": self._note_connection},
                )
            except httpx.TransportError as error:
                self._replicas.blame(address)
                raise Unavailable(
                    f"The {self.role} does not answer at {', '.join(self.urls)}: {type(error).__name__}."
                ) from error
            except RuntimeError as error:  # httpx: the client was closed by another thread
                raise self._was_closed() from error
        if response.status_code >= 400:
            if response.status_code == 503:
                self._replicas.blame(address)
            raise problem_of(response.status_code, response.content, response.headers)
        try:
            return reply.model_validate_json(response.content)
        except ValidationError as error:
            raise UpstreamFailed(f"The {self.role} sent a reply that is no {reply.__name__}.") from error

    def _note_connection(self, event: str, info: dict[str, Any]) -> None:
        """Closing a socket does not wake a thread that reads from it, so `close` has to know the sockets."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            connection = info["return_value"].get_extra_info("socket")
            self._connections.add(connection)
            if self._closed.is_set():
                _hang_up(connection)

    def _was_closed(self) -> Unavailable:
        return Unavailable(f"The client of the {self.role} was closed.")


class ActorClient(RoleClient):
    """Asks the Actor for answers."""

    role: Role = "actor"

    def chat_batch(
        self,
        model: str,
        conversations: Sequence[list[ChatMessage]],
        sampling: Sampling,
        n: int = 1,
        *,
        trace: str | None = None,
    ) -> ChatBatchReply:
        """n answers to each conversation; a seed is offset by the conversation's position."""
        requests: list[BaseModel] = [
            ChatBatchRequest(
                model=model,
                conversations=part,
                sampling=sampling.model_copy(update={"seed": _offset(sampling.seed, begin)}),
                n=n,
            )
            for begin, part in _chunks(conversations, CHUNK_TEXTS)
        ]
        path = "/v1/chat/completions/batch"
        replies = self._ask_all(path, requests, ChatBatchReply, attrgetter("model"), trace)
        completions = [row for reply in replies for row in reply.completions]
        _expect(len(conversations), len(completions), self.role)
        return ChatBatchReply(model=replies[0].model if replies else model, completions=completions)

    def models(self, *, trace: str | None = None) -> ModelList:
        return self._ask("GET", "/v1/models", ModelList, trace=trace)


class AttackerClient(RoleClient):
    """Asks the Attacker for queries."""

    role: Role = "attacker"

    def attacks(self, request: AttackRequest, *, trace: str | None = None) -> AttackReply:
        """One attack for each goal; a seed is offset by the goal's position."""
        requests: list[BaseModel] = [
            request.model_copy(update={"goals": part, "seed": _offset(request.seed, begin)})
            for begin, part in _chunks(request.goals, CHUNK_TEXTS)
        ]
        version = attrgetter("attacker_version")
        replies = self._ask_all("/v1/attacks", requests, AttackReply, version, trace)
        attacks = [attack for reply in replies for attack in reply.attacks]
        _expect(len(request.goals), len(attacks), self.role)
        return AttackReply(attacks=attacks, attacker_version=replies[0].attacker_version)


class CriticClient(RoleClient):
    """Asks the Critic for its view."""

    role: Role = "critic"

    def critiques(self, request: CritiqueRequest, *, trace: str | None = None) -> CritiqueReply:
        requests: list[BaseModel] = [
            request.model_copy(update={"items": part}) for _, part in _chunks(request.items, CHUNK_ITEMS)
        ]
        version = attrgetter("critic_version")
        replies = self._ask_all("/v1/critiques", requests, CritiqueReply, version, trace)
        critiques = [critique for reply in replies for critique in reply.critiques]
        _expect(len(request.items), len(critiques), self.role)
        return CritiqueReply(critiques=critiques, critic_version=replies[0].critic_version)

    def comparisons(self, request: ComparisonRequest, *, trace: str | None = None) -> ComparisonReply:
        requests: list[BaseModel] = [
            request.model_copy(update={"items": part}) for _, part in _chunks(request.items, CHUNK_ITEMS)
        ]
        version = attrgetter("critic_version")
        replies = self._ask_all("/v1/comparisons", requests, ComparisonReply, version, trace)
        comparisons = [comparison for reply in replies for comparison in reply.comparisons]
        _expect(len(request.items), len(comparisons), self.role)
        return ComparisonReply(comparisons=comparisons, critic_version=replies[0].critic_version)

    def embeddings(self, request: EmbeddingRequest, *, trace: str | None = None) -> EmbeddingReply:
        """BadRequest where this critic's model cannot be looked into. Name a version to compare vectors over rounds."""
        requests: list[BaseModel] = [
            request.model_copy(update={"texts": part}) for _, part in _chunks(request.texts, CHUNK_ITEMS)
        ]
        replies = self._ask_all("/v1/embeddings", requests, EmbeddingReply, attrgetter("critic_version"), trace)
        embeddings = [embedding for reply in replies for embedding in reply.embeddings]
        _expect(len(request.texts), len(embeddings), self.role)
        return EmbeddingReply(embeddings=embeddings, critic_version=replies[0].critic_version)


class _Replicas:
    """Which replica is least busy; names are looked up again at most every two seconds."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self._place = threading.Condition()
        self._busy: dict[Address, int] = {}
        self._blamed: dict[Address, float] = {}
        """When a replica last failed; it comes after all others for two seconds."""
        self._looked_up = -RESOLVE_EVERY_S

    @contextmanager
    def least_busy(self) -> Iterator[Address]:
        """A replica with room for one more call; waits for one."""
        with self._place:
            while (address := self._free()) is None:
                self._place.wait(RESOLVE_EVERY_S)
            self._busy[address] += 1
        try:
            yield address
        finally:
            with self._place:
                if address in self._busy:
                    self._busy[address] -= 1
                self._place.notify()

    def blame(self, address: Address) -> None:
        with self._place:
            self._blamed[address] = time.monotonic()

    def _free(self) -> Address | None:
        self._refresh()
        spared = time.monotonic() - RESOLVE_EVERY_S
        rank = {
            address: (self._blamed.get(address, spared) > spared, busy)
            for address, busy in self._busy.items()
            if busy < CALLS_PER_REPLICA
        }
        return min(rank, key=rank.__getitem__, default=None)

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_up < RESOLVE_EVERY_S:
            return
        self._looked_up = time.monotonic()
        found: list[Address] = []
        for url in self.urls:
            try:
                found.extend(look_up(url))
            except OSError:
                found.append(Address(url))  # the call itself will say what is wrong, and be repeated
        self._busy = {address: self._busy.get(address, 0) for address in dict.fromkeys(found)}
        self._blamed = {address: when for address, when in self._blamed.items() if address in self._busy}


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _chunks(items: Sequence[T], size: int) -> Iterator[tuple[int, list[T]]]:
    for begin in range(0, len(items), size):
        yield begin, list(items[begin : begin + size])


def _offset(seed: int | None, by: int) -> int | None:
    return None if seed is None else seed + by


def _expect(asked: int, answered: int, role: str) -> None:
    if asked != answered:
        raise UpstreamFailed(f"The {role} was asked {asked} things and answered {answered}.")
