"""The trainer's clients: any batch in order, the same in chunks as in one piece, and through restarts."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request
from pydantic import SecretStr

from tests.servers import free_port, serve
from vcllm.contracts.attacks import Attack, AttackGoal, AttackReply, AttackRequest, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatBatchReply, ChatBatchRequest, ChatMessage, Completion, Sampling
from vcllm.contracts.critiques import (
    Comparison,
    ComparisonItem,
    ComparisonReply,
    ComparisonRequest,
    Critique,
    CritiqueItem,
    CritiqueReply,
    CritiqueRequest,
    Outcome,
)
from vcllm.contracts.problems import (
    BadRequest,
    Conflict,
    Overloaded,
    Problem,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
)
from vcllm.web import addresses, clients
from vcllm.web.addresses import Address, checked, look_up
from vcllm.web.app import create_service
from vcllm.web.auth import services_only
from vcllm.web.clients import ActorClient, AttackerClient, CriticClient

TOKEN = SecretStr("token")


class Roles:
    """All three roles in one server; an answer tells the question and the seed it was made with."""

    def __init__(self, before: Callable[[], None] = lambda: None, version: str = "v1") -> None:
        self.before = before
        self.version = version
        self.calls: list[tuple[int, str | None]] = []
        """(items, request id) of each call."""

    def app(self) -> FastAPI:
        app = create_service("roles", lifespan=None)

        @app.post("/v1/chat/completions/batch", dependencies=[Depends(services_only(TOKEN, "actor"))])
        def chat(body: ChatBatchRequest, request: Request) -> ChatBatchReply:
            self.note(body.conversations, request)
            seed = body.sampling.seed
            return ChatBatchReply(
                model=self.version if body.model == "vc-llm" else body.model,
                completions=[
                    [
                        Completion(
                            text=f"{turns[-1].content}/{seeded(seed, at)}/{n}",
                            finish_reason="stop",
                            num_tokens=1,
                        )
                        for n in range(body.n)
                    ]
                    for at, turns in enumerate(body.conversations)
                ],
            )

        @app.post("/v1/attacks", dependencies=[Depends(services_only(TOKEN, "attacker"))])
        def attacks(body: AttackRequest, request: Request) -> AttackReply:
            self.note(body.goals, request)
            written = [
                Attack(goal=goal, query=f"{goal.text}/{seeded(body.seed, at)}") for at, goal in enumerate(body.goals)
            ]
            return AttackReply(attacks=written, attacker_version=body.model or self.version)

        @app.post("/v1/critiques", dependencies=[Depends(services_only(TOKEN, "critic"))])
        def critiques(body: CritiqueRequest, request: Request) -> CritiqueReply:
            self.note(body.items, request)
            found = [Critique(outcome=Outcome.CONSISTENT, reason=item.query) for item in body.items]
            return CritiqueReply(critiques=found, critic_version=body.model or self.version)

        @app.post("/v1/comparisons", dependencies=[Depends(services_only(TOKEN, "critic"))])
        def comparisons(body: ComparisonRequest, request: Request) -> ComparisonReply:
            self.note(body.items, request)
            found = [Comparison(preferred="first", margin=len(item.first) / 100) for item in body.items]
            return ComparisonReply(comparisons=found, critic_version=body.model or self.version)

        return app

    def note(self, items: list[Any], request: Request) -> None:
        self.calls.append((len(items), request.headers.get("x-request-id")))
        self.before()


def seeded(seed: int | None, position: int) -> int | None:
    return None if seed is None else seed + position


def conversations(number: int) -> list[list[ChatMessage]]:
    return [[ChatMessage(role="user", content=f"q{index}")] for index in range(number)]


def goals(number: int) -> list[AttackGoal]:
    cell = Cell(subdomain="pol.rights", tactic="direct", language=Language.ZH)
    return [AttackGoal(cell=cell, card="card", goal=0, text=f"claim {index}") for index in range(number)]


@pytest.fixture
def roles() -> Iterator[tuple[Roles, str]]:
    made = Roles()
    with serve(made.app()) as url:
        yield made, url


def test_a_batch_is_cut_and_put_together_in_order(roles: tuple[Roles, str]):
    """Chunks of 64, answers where their questions were, n answers each."""
    with ActorClient([roles[1]], TOKEN) as actor:
        reply = actor.chat_batch("vc-llm", conversations(150), Sampling(), 2, trace="trace-1")

    assert [row[1].text for row in reply.completions] == [f"q{index}/None/1" for index in range(150)]
    assert reply.model == "v1"
    assert sorted(roles[0].calls) == [(22, "trace-1"), (64, "trace-1"), (64, "trace-1")]


def test_chunks_change_no_seed(roles: tuple[Roles, str], monkeypatch: pytest.MonkeyPatch):
    """The answer to each question is the one it would get in one piece."""
    with ActorClient([roles[1]], TOKEN) as actor, AttackerClient([roles[1]], TOKEN) as attacker:
        request = AttackRequest(goals=goals(100), seed=7)
        in_chunks = actor.chat_batch("v1", conversations(100), Sampling(seed=7), 1), attacker.attacks(request)
        monkeypatch.setattr(clients, "CHUNK_TEXTS", 1000)
        at_once = actor.chat_batch("v1", conversations(100), Sampling(seed=7), 1), attacker.attacks(request)

    assert in_chunks == at_once
    assert in_chunks[0].completions[99][0].text == "q99/106/0"
    assert in_chunks[1].attacks[99].query == "claim 99/106"


def test_the_critic_judges_in_order(roles: tuple[Roles, str]):
    """Critiques and comparisons, in chunks of 256."""
    items = [CritiqueItem(query=f"q{n}", response="", language=Language.EN) for n in range(300)]
    pairs = [ComparisonItem(query="q", first="a" * n, second="", language=Language.EN) for n in range(100)]
    with CriticClient([roles[1]], TOKEN) as critic:
        critiques = critic.critiques(CritiqueRequest(items=items))
        comparisons = critic.comparisons(ComparisonRequest(items=pairs))

    assert [critique.reason for critique in critiques.critiques] == [item.query for item in items]
    assert [comparison.margin for comparison in comparisons.comparisons] == [n / 100 for n in range(100)]
    assert sorted(size for size, _ in roles[0].calls) == [44, 100, 256]


def test_an_empty_batch_asks_nobody(roles: tuple[Roles, str]):
    """It has an empty answer."""
    with ActorClient([roles[1]], TOKEN) as actor:
        assert actor.chat_batch("v1", [], Sampling(), 1).completions == []
    assert roles[0].calls == []


def test_replicas_share_the_work():
    """Chunks that take a while go to both of two servers, two at a time to each."""
    inside, most = [0, 0], [0, 0]

    def busy(number: int) -> Callable[[], None]:
        def work() -> None:
            inside[number] += 1
            most[number] = max(most[number], inside[number])
            time.sleep(0.05)
            inside[number] -= 1

        return work

    one, two = Roles(busy(0)), Roles(busy(1))
    with serve(one.app()) as first, serve(two.app()) as second, ActorClient([first, second], TOKEN) as actor:
        actor.chat_batch("v1", conversations(64 * 8), Sampling(), 1)

    assert len(one.calls) == len(two.calls) == 4
    assert max(most) <= clients.CALLS_PER_REPLICA


def test_a_dead_replica_costs_nothing(roles: tuple[Roles, str]):
    """Its chunks go to the one that lives."""
    dead = f"http://127.0.0.1:{free_port()}"
    with ActorClient([dead, roles[1]], TOKEN) as actor:
        reply = actor.chat_batch("v1", conversations(300), Sampling(), 1)

    assert len(reply.completions) == 300


def test_a_restart_loses_nothing():
    """The server is away when the batch begins, and comes up while the client waits."""
    port, made = free_port(), Roles()
    answers: list[ChatBatchReply] = []

    def ask() -> None:
        with ActorClient([f"http://127.0.0.1:{port}"], TOKEN, patience_s=10) as actor:
            answers.append(actor.chat_batch("v1", conversations(130), Sampling(), 1))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    with serve(made.app(), port):
        asking.join(10)

    assert [row[0].text for row in answers[0].completions] == [f"q{n}/None/0" for n in range(130)]


@pytest.mark.parametrize(
    "problem", [Overloaded("Full.", retry_after_s=0.2), Unavailable("Loading.", retry_after_s=0.2)]
)
def test_a_full_server_is_asked_again_when_it_says(problem: Problem):
    """Not before."""
    times: list[float] = []

    def refuse_twice() -> None:
        times.append(time.monotonic())
        if len(times) <= 2:
            raise problem

    with serve(Roles(refuse_twice).app()) as url, ActorClient([url], TOKEN) as actor:
        reply = actor.chat_batch("v1", conversations(1), Sampling(), 1)

    assert len(reply.completions) == 1
    assert times[1] - times[0] >= 0.2
    assert times[2] - times[1] >= 0.2


def test_patience_ends(roles: tuple[Roles, str]):
    """After it, the problem says who does not answer where; a refusal keeps its own words."""
    dead = f"http://127.0.0.1:{free_port()}"
    begun = time.monotonic()
    with ActorClient([dead], TOKEN, patience_s=0.3) as actor, pytest.raises(Unavailable, match=dead):
        actor.chat_batch("v1", conversations(1), Sampling(), 1)
    assert time.monotonic() - begun < 3

    def full() -> None:
        raise Overloaded("Full.", retry_after_s=5)

    roles[0].before = full
    with ActorClient([roles[1]], TOKEN, patience_s=0.3) as actor, pytest.raises(Overloaded, match="Full"):
        actor.chat_batch("v1", conversations(1), Sampling(), 1)


@pytest.mark.parametrize("problem", [BadRequest("Too long.", param="messages"), Conflict("Not now.")])
def test_a_refusal_is_raised_as_it_was(roles: tuple[Roles, str], problem: Problem):
    """Once: asking again would change nothing."""

    def refuse() -> None:
        raise problem

    roles[0].before = refuse
    with ActorClient([roles[1]], TOKEN) as actor, pytest.raises(type(problem)) as raised:
        actor.chat_batch("v1", conversations(1), Sampling(), 1)
    assert raised.value.body() == problem.body()
    assert len(roles[0].calls) == 1


def test_a_wrong_token_is_not_tried_again(roles: tuple[Roles, str]):
    """It will not become right."""
    with ActorClient([roles[1]], SecretStr("other")) as actor, pytest.raises(Unauthenticated):
        actor.chat_batch("v1", conversations(1), Sampling(), 1)
    assert roles[0].calls == []


def test_one_version_answers_a_batch(roles: tuple[Roles, str]):
    """The server swaps its version midway: the old one's chunks are asked again by the new name."""
    turn = threading.Lock()

    def swap() -> None:
        with turn:
            roles[0].version = f"v{min(len(roles[0].calls), 3)}"
            time.sleep(0.05)

    roles[0].before = swap
    with ActorClient([roles[1]], TOKEN) as actor:
        reply = actor.chat_batch("vc-llm", conversations(64 * 4), Sampling(seed=1), 1)

    assert [row[0].text for row in reply.completions] == [f"q{n}/{n + 1}/0" for n in range(64 * 4)]
    assert len(roles[0].calls) > 4


def test_too_few_answers_are_a_failure(roles: tuple[Roles, str]):
    """Nothing is paired with the wrong question."""
    with AttackerClient([roles[1]], TOKEN) as attacker, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Roles, "note", lambda self, items, request: items.pop())
        with pytest.raises(UpstreamFailed, match="asked 3 things and answered 2"):
            attacker.attacks(AttackRequest(goals=goals(3)))


def test_closing_ends_whoever_waits():
    """A cancelled job does not wait for a server that will not come back."""
    actor = ActorClient([f"http://127.0.0.1:{free_port()}"], TOKEN, patience_s=60)
    raised: list[Exception] = []

    def ask() -> None:
        try:
            actor.chat_batch("v1", conversations(1), Sampling(), 1)
        except Unavailable as problem:
            raised.append(problem)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    actor.close()
    asking.join(2)

    assert not asking.is_alive()
    assert raised


def test_closing_ends_a_call_under_way(roles: tuple[Roles, str]):
    """The server is at work; the client does not wait for it."""
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(5)

    roles[0].before = work
    actor = ActorClient([roles[1]], TOKEN)
    raised: list[Exception] = []

    def ask() -> None:
        try:
            actor.chat_batch("v1", conversations(1), Sampling(), 1)
        except Unavailable as problem:
            raised.append(problem)

    asking = threading.Thread(target=ask)
    asking.start()
    begun.wait(5)
    actor.close()
    asking.join(2)
    release.set()

    assert not asking.is_alive()
    assert raised


@pytest.mark.parametrize("urls", [[], ["actor:8201"], [""], ["ftp://actor"]])
def test_what_is_no_address_is_refused_at_once(urls: list[str]):
    """And not after two minutes of patience."""
    with pytest.raises(ValueError, match="http://host:port"):
        checked(urls)


def test_a_name_is_as_many_replicas_as_it_has_addresses(monkeypatch: pytest.MonkeyPatch):
    """One family only, and the name stays in the Host header."""

    def found(host: str, port: int, **_: Any) -> list[Any]:
        rows = [(socket.AF_INET, f"10.0.0.{n}") for n in (2, 1)] + [(socket.AF_INET6, "fd00::1")]
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in rows]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", found)

    assert look_up("http://actor:8201") == [
        Address("http://10.0.0.1:8201", "actor:8201"),
        Address("http://10.0.0.2:8201", "actor:8201"),
    ]
    assert look_up("https://actor:8201") == [Address("https://actor:8201")]


def test_an_address_stays_as_it_is():
    """Nothing to look up, no Host header to add."""
    assert look_up("http://127.0.0.1:8201") == [Address("http://127.0.0.1:8201")]
    assert look_up("http://[::1]:8201") == [Address("http://[::1]:8201")]
