"""Several gateways hold one limit together: how exactly, and what happens while Redis is away. Time is made up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.quotas.limits import Limits
from gateway.quotas.sharing import EVERY_S, MAX_ACCOUNTS, Sharing
from tests.unit.test_gateway_limits import Clock, a_key
from vcllm.contracts.keys import Budget, KeyRecord, Period
from vcllm.contracts.problems import Overloaded, QuotaExceeded
from vcllm.stores.connect import GATEWAYS
from vcllm.stores.limits import LimitStore, Shared

STEP_S = 0.05


class UnsteadyStore(LimitStore):
    """Redis that can be away, or lose its answer after it has done the work."""

    away = False
    answer_lost = False

    def exchange(self, *args, **options) -> Shared:
        if self.away:
            raise RedisConnectionError("away")
        shared = super().exchange(*args, **options)
        if self.answer_lost:
            raise RedisConnectionError("lost")
        return shared


@dataclass
class Fleet:
    """Gateways on one Redis, each in touch with it once a second unless a test says otherwise."""

    clock: Clock
    members: list[Sharing]
    admitted: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, client: Redis, size: int) -> Fleet:
        clock = Clock()
        stores = [UnsteadyStore(client, clock) for _ in range(size)]
        return cls(clock, [Sharing(Limits(clock=clock, wall=clock), store, {}) for store in stores], [0] * size)

    def ask(self, member: int, key: KeyRecord, tokens: int = 0) -> bool:
        """Whether the gateway admits it; the answer is over at once and used what was expected."""
        try:
            self.members[member].limits.admit(key, tokens).release()
        except (Overloaded, QuotaExceeded):
            return False
        self.admitted[member] += 1
        return True

    async def in_touch(self) -> None:
        for member in self.members:
            await member.exchange()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())


@dataclass
class Ideal:
    """The one bucket that the gateways together pretend to be."""

    capacity: float
    level: float
    when: float
    overshoot: float = 0.0

    def take(self, cost: float, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.when) * self.capacity / 60) - cost
        self.when = now
        self.overshoot = max(self.overshoot, -self.level)


def overshoot(client: Redis, size: int, per_minute: int, seed: int, *, asks: bool = True) -> tuple[float, int]:
    """By how many requests more than one bucket would have let in, at the worst moment, and how many got in.

    Three minutes of bursts and pauses at random, for each gateway its own: among them pauses after which it knows
    nothing any more. asks: an exchange that a gateway asks for is made a step later, as `Sharing.run` does.
    """
    fleet, key, draw = Fleet.of(client, size), a_key(requests_per_minute=per_minute), random.Random(seed)
    ideal = Ideal(per_minute, per_minute, fleet.clock())

    async def work() -> None:
        await fleet.in_touch()
        await fleet.in_touch()
        phases = [draw.uniform(0, EVERY_S) for _ in range(size)]
        rates = [0.0] * size
        for step in range(int(180 / STEP_S)):
            fleet.clock.now += STEP_S
            for member in range(size):
                if draw.random() < STEP_S / 5:
                    rates[member] = draw.choice([0, 0, per_minute / 60, per_minute / 6, per_minute])
                if asks and fleet.members[member].is_wanted:
                    await fleet.members[member].exchange()
                wanted = rates[member] * STEP_S
                for _ in range(int(wanted) + (draw.random() < wanted % 1)):
                    if fleet.ask(member, key):
                        ideal.take(1, fleet.clock())
                if (step * STEP_S + phases[member]) % EVERY_S < STEP_S:
                    await fleet.members[member].exchange()

    run(work)
    return ideal.overshoot, sum(fleet.admitted)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "per_minute"), [(2, 6), (2, 60), (4, 60)])
def test_gateways_hold_a_limit_together(client: Redis, size: int, per_minute: int, seed: int):
    """At most a tenth of the limit and one request for each gateway too many, at the worst moment of three minutes."""
    too_many, admitted = overshoot(client, size, per_minute, seed)

    assert too_many <= per_minute / 10 + size
    assert admitted <= 4 * per_minute + size


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_bounded_without_asking(client: Redis, seed: int):
    """With nothing but an exchange a second: what one gateway may hold, and one request for each, never more."""
    too_many, _ = overshoot(client, 2, 60, seed, asks=False)

    assert too_many <= 60 / 2 + 2


@pytest.mark.parametrize("busy", [[0], [0, 1]])
def test_nobody_gets_less_than_the_limit(client: Redis, busy: list[int]):
    """Also when one of two gateways has all the traffic."""
    fleet, key = Fleet.of(client, 2), a_key(requests_per_minute=60)

    async def work() -> None:
        await fleet.in_touch()
        for _ in range(120):
            for member in busy:
                while fleet.ask(member, key):
                    pass
            await fleet.in_touch()
            fleet.clock.now += EVERY_S

    run(work)

    assert 175 <= sum(fleet.admitted) <= 182, "60 at once, then one a second for two minutes"


def test_tokens_are_shared_and_given_back(client: Redis):
    """An estimate that was too high comes back to all gateways, what was used beyond it is paid by all."""
    fleet, key = Fleet.of(client, 2), a_key(tokens_per_minute=1000)
    first, second = (member.limits for member in fleet.members)

    async def work() -> None:
        await fleet.in_touch()
        grant = first.admit(key, tokens=900)
        await fleet.in_touch()
        with pytest.raises(Overloaded):
            first.admit(key, tokens=200)
        grant.settle(100)
        grant.release()
        second.admit(key, tokens=0).release()
        await fleet.in_touch()
        await fleet.in_touch()
        assert second.accounts["k1"].tokens.remaining == 900
        first.admit(key, tokens=10).settle(1400)
        await fleet.in_touch()
        second.admit(a_key("other")).release()
        with pytest.raises(Overloaded):
            first.admit(key, tokens=1)

    run(work)


def test_chats_at_once_are_counted_across_gateways(client: Redis):
    """Those of a gateway that died count no more after ten seconds."""
    fleet, key = Fleet.of(client, 2), a_key(concurrent_chats=2)
    first, second = (member.limits for member in fleet.members)

    async def work() -> None:
        await fleet.in_touch()
        first.admit(key)
        held = second.admit(key)
        await fleet.in_touch()
        await fleet.in_touch()
        with pytest.raises(Overloaded, match="2 chats at once"):
            second.admit(key)
        held.release()
        second.admit(key).release()
        for _ in range(11):
            fleet.clock.now += 1
            await fleet.members[1].exchange()
            second.admit(key).release()
        await fleet.members[1].exchange()
        grants = [second.admit(key) for _ in range(2)]
        assert len(grants) == 2

    run(work)


def test_a_refused_client_hears_when_chats_elsewhere_have_ended(client: Redis):
    """A refusal is nothing to tell, so its gateway did not ask either, and refused for as long as it was asked."""
    fleet, key = Fleet.of(client, 2), a_key(concurrent_chats=1)
    first, second = (member.limits for member in fleet.members)

    async def work() -> None:
        await fleet.in_touch()
        held = first.admit(key)
        second.count(key)
        await fleet.in_touch()
        held.release()
        fleet.clock.now += EVERY_S
        assert not fleet.ask(1, key)
        await fleet.in_touch()

    run(work)

    assert fleet.ask(1, key)


def test_a_budget_is_spent_by_all(client: Redis):
    """What one gateway has used the other knows a second later; the next day it is whole again."""
    fleet, key = Fleet.of(client, 2), a_key(budget=Budget(tokens=100, period=Period.DAY))
    first, second = (member.limits for member in fleet.members)

    async def work() -> None:
        first.admit(key, tokens=10).settle(100)
        second.admit(key, tokens=1).settle(1)
        await fleet.in_touch()
        await fleet.in_touch()
        with pytest.raises(QuotaExceeded):
            second.admit(key, tokens=1)
        fleet.clock.now += 86400
        second.admit(key, tokens=1).release()

    run(work)


def test_a_lost_answer_counts_once(client: Redis):
    """The trip is made again under its number: Redis has counted it, and what came meanwhile is told by the next."""
    fleet, key = Fleet.of(client, 1), a_key(requests_per_minute=60)
    member = fleet.members[0]

    async def work() -> None:
        member.limits.admit(key, tokens=5).settle(7)
        member.store.answer_lost = True
        assert not await member.exchange()
        member.limits.admit(key, tokens=5).settle(3)
        member.store.answer_lost = False
        assert await member.exchange()
        assert await member.exchange()

    run(work)

    (day,) = member.store.usage_of(key, days=1).data
    assert (day.requests, day.tokens) == (2, 10)
    assert member.limits.accounts["k1"].requests.remaining == 58


def test_without_redis_each_gateway_holds_its_part(client: Redis):
    """Chat goes on, the limit holds for all together, and what was used is told when Redis is back."""
    fleet, key = Fleet.of(client, 2), a_key(requests_per_minute=60)

    async def work() -> None:
        await fleet.in_touch()
        await fleet.in_touch()
        for member in fleet.members:
            member.store.away = True
        for _ in range(60):
            for number in range(2):
                while fleet.ask(number, key):
                    pass
            await fleet.in_touch()
            fleet.clock.now += EVERY_S
        for member in fleet.members:
            member.store.away = False
            assert await member.exchange()
            assert await member.exchange()

    run(work)

    assert 115 <= sum(fleet.admitted) <= 122
    (day,) = fleet.members[0].store.usage_of(key, days=1).data
    assert day.requests == sum(fleet.admitted)


def test_last_use_is_told_with_the_rest(client: Redis):
    """One trip for all keys, none for each request."""
    fleet = Fleet.of(client, 1)
    fleet.members[0].used.update({"k1": 5.0, "k2": 6.5})

    run(fleet.in_touch)

    assert client.hgetall("vcllm:keys:used") == {"k1": "5.0", "k2": "6.5"}
    assert fleet.members[0].used == {}


def test_a_gateway_that_stops_tells_everything(client: Redis):
    """And the others may use its part at once."""
    fleet, key = Fleet.of(client, 2), a_key()

    async def work() -> None:
        await fleet.in_touch()
        loop = asyncio.create_task(fleet.members[0].run())
        await asyncio.sleep(0.02)
        fleet.members[0].limits.admit(key, tokens=5).settle(7)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
        await fleet.members[1].exchange()

    run(work)

    (day,) = fleet.members[1].store.usage_of(key, days=1).data
    assert (day.requests, day.tokens) == (1, 7)
    assert fleet.members[1].limits.share == 1


def use_many(member: Sharing) -> list[KeyRecord]:
    """More accounts than one trip takes, each with a chat that is over and one under way."""
    keys = [a_key(f"k{number}") for number in range(MAX_ACCOUNTS + 100)]
    for key in keys:
        member.limits.admit(key, tokens=10).release()
        member.limits.admit(key, tokens=10)
    return keys


def num_unbooked(member: Sharing, keys: list[KeyRecord]) -> int:
    """Of which Redis' books say nothing."""
    return sum(not member.store.usage_of(key, days=1).data for key in keys)


def test_more_accounts_than_one_trip_takes_are_all_told(client: Redis):
    """The first five hundred with chats under way filled every trip, and of the rest Redis heard nothing."""
    fleet = Fleet.of(client, 1)
    keys = use_many(fleet.members[0])

    async def work() -> None:
        await fleet.in_touch()
        assert num_unbooked(fleet.members[0], keys) == 100
        await fleet.in_touch()

    run(work)

    assert num_unbooked(fleet.members[0], keys) == 0


def test_a_gateway_that_stops_tells_of_all_accounts(client: Redis):
    """In as many trips as it takes; after the last one the gateway is gone."""
    fleet = Fleet.of(client, 1)
    keys: list[KeyRecord] = []

    async def work() -> None:
        loop = asyncio.create_task(fleet.members[0].run())
        await asyncio.sleep(0.02)
        keys.extend(use_many(fleet.members[0]))
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop

    run(work)

    assert num_unbooked(fleet.members[0], keys) == 0
    assert client.zcard(GATEWAYS) == 0


def test_all_gateways_count_time_before_a_change_at_the_old_rate(client: Redis):
    """What one gateway worked out for itself, the next exchange filled up at the new rate."""
    fleet = Fleet.of(client, 1)

    async def work() -> None:
        for _ in range(6):
            assert fleet.ask(0, a_key(requests_per_minute=6))
        await fleet.in_touch()
        fleet.clock.now += 5
        assert not fleet.ask(0, a_key(requests_per_minute=6000))
        fleet.ask(0, a_key())  # without the limit it is let in, so there is something to tell
        assert not fleet.ask(0, a_key(requests_per_minute=6000))
        await fleet.in_touch()

    run(work)

    assert not fleet.ask(0, a_key(requests_per_minute=6000))


def test_a_gateway_without_the_limit_does_not_stop_its_clock(client: Redis):
    """Its key's record is from before; each of its exchanges took the time that the others' bucket had to fill."""
    fleet, limited = Fleet.of(client, 2), a_key(requests_per_minute=60)

    async def work() -> None:
        await fleet.in_touch()
        while fleet.ask(0, limited):
            pass
        for _ in range(30):
            fleet.clock.now += EVERY_S / 2
            fleet.ask(1, a_key())
            await fleet.members[1].exchange()
            fleet.clock.now += EVERY_S / 2
            fleet.ask(0, limited)
            await fleet.members[0].exchange()

    run(work)

    assert fleet.admitted[0] == pytest.approx(60 + 30, abs=2)


def test_a_limit_that_is_gone_leaves_nothing_behind(client: Redis):
    """Once what was used under it has come back: a larger one set later begins full."""
    fleet = Fleet.of(client, 1)

    async def work() -> None:
        while fleet.ask(0, a_key(requests_per_minute=6)):
            pass
        for _ in range(70):
            await fleet.in_touch()
            fleet.clock.now += EVERY_S
            fleet.ask(0, a_key())
        fleet.ask(0, a_key(requests_per_minute=60))
        await fleet.in_touch()

    run(work)

    assert fleet.members[0].limits.accounts["k1"].requests.remaining == 59


def test_what_is_spent_during_an_exchange_is_not_forgotten(client: Redis):
    """What Redis says is left was true when it was asked; what was spent since comes off it, and is told next."""
    fleet, key = Fleet.of(client, 1), a_key(requests_per_minute=60)
    member = fleet.members[0]
    exchange = member.store.exchange

    def with_traffic(*args) -> Shared:
        shared = exchange(*args)
        for _ in range(10):
            fleet.ask(0, key)
        return shared

    async def work() -> None:
        fleet.ask(0, key)
        member.store.exchange = with_traffic
        await member.exchange()
        assert member.limits.accounts["k1"].requests.remaining == 49
        member.store.exchange = exchange
        await member.exchange()
        assert member.limits.accounts["k1"].requests.remaining == 49

    run(work)
