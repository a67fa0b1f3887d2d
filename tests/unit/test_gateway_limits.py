"""Limits and budgets of one gateway, by a clock that only a test moves."""

from __future__ import annotations

import timeit
from contextlib import suppress

import pytest

from gateway.quotas.accounts import Defaults
from gateway.quotas.buckets import told_duration
from gateway.quotas.limits import Limits, RawHeaders
from vcllm.contracts.keys import Budget, KeyLimits, KeyRecord, Period, Scope
from vcllm.contracts.problems import Overloaded, QuotaExceeded
from vcllm.stores.limits import Left
from vcllm.web.replies import problem_reply


class Clock:
    """Seconds that pass when a test says so; they begin at midnight UTC of the first of a month."""

    def __init__(self) -> None:
        self.now = 1_793_491_200.0  # 2026-11-01

    def __call__(self) -> float:
        return self.now


def a_key(name: str = "k1", budget: Budget | None = None, **limits: int) -> KeyRecord:
    return KeyRecord(
        id=name,
        name="test",
        scopes=[Scope.CHAT],
        created=0.0,
        hint="vck_",
        limits=KeyLimits(**limits),
        budget=budget,
    )


def limits(**defaults: int) -> Limits:
    clock = Clock()
    return Limits(Defaults(**defaults), clock=clock, wall=clock)


def tick(limits: Limits, seconds: float) -> None:
    limits.clock.now += seconds


def num_admitted(gate: Limits, key: KeyRecord, tokens: int = 0) -> int:
    """Of a hundred chats, one after the other, each of which uses what was expected."""
    num = 0
    for _ in range(100):
        with suppress(Overloaded, QuotaExceeded):
            gate.admit(key, tokens).release()
            num += 1
    return num


def in_touch(gate: Limits, *, requests: float = 0, tokens: float = 0, elsewhere: int = 0, used: int = 0) -> None:
    """Tell what account k1 spent, and hear that so much is left and so much was used."""
    account = gate.accounts["k1"]
    account.end_exchange(account.begin_exchange(), Left(requests, tokens, elsewhere, used, used), 1.0, gate.clock())


def told(headers: RawHeaders) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in headers}


def test_requests_come_back_at_their_rate():
    """As many as the minute has at once, then one whenever its time has passed; the wait said is the wait needed."""
    gate, key = limits(), a_key(requests_per_minute=60)
    for _ in range(60):
        gate.admit(key).release()

    with pytest.raises(Overloaded) as refused:
        gate.admit(key)

    assert refused.value.status == 429
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.retry_after_s == pytest.approx(1)
    tick(gate, 0.99)
    with pytest.raises(Overloaded):
        gate.admit(key)
    tick(gate, 0.01)
    gate.admit(key)


def test_headers_are_those_of_openai():
    """Limit, what is left, and how long until all of it is back; they are the refusal's, too."""
    gate, key = limits(), a_key(requests_per_minute=60, tokens_per_minute=1000)

    first = gate.admit(key, tokens=600)
    with pytest.raises(Overloaded) as refused:
        gate.admit(key, tokens=600)

    assert told(first.headers) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1s",
        "limit-tokens": "1000",
        "remaining-tokens": "400",
        "reset-tokens": "36s",
    }
    assert refused.value.headers == {f"x-ratelimit-{name}": value for name, value in told(first.headers).items()}
    assert problem_reply(refused.value).headers["x-ratelimit-remaining-tokens"] == "400"
    assert problem_reply(refused.value).headers["retry-after"] == "12"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0001, "1ms"), (0.02, "20ms"), (1, "1s"), (8.64, "8.64s"), (59.9999, "1m0s"), (360, "6m0s")],
)
def test_durations_are_told_as_openai_tells_them(seconds: float, text: str):
    """Rounded up to the millisecond, so that whoever waits as told is not early."""
    assert told_duration(seconds) == text


def test_settling_gives_back_or_takes_more():
    """Once: the real use counts, whatever was expected, also below nothing."""
    gate, key = limits(), a_key(tokens_per_minute=1000)
    grant = gate.admit(key, tokens=800)
    grant.settle(300)
    grant.settle(0)
    grant.release()
    assert told(grant.headers)["remaining-tokens"] == "700"

    gate.admit(key, tokens=100).settle(2700)

    assert told(grant.headers)["remaining-tokens"] == "0"
    with pytest.raises(Overloaded) as refused:
        gate.admit(key, tokens=0)
    assert refused.value.retry_after_s == pytest.approx(120)


def test_what_is_not_settled_is_charged_as_expected():
    """Whoever hangs up early does not get answers for nothing."""
    gate, key = limits(), a_key(tokens_per_minute=1000, budget=Budget(tokens=500))
    grant = gate.admit(key, tokens=500)

    grant.release()
    grant.release()

    assert gate.accounts["k1"].num_tokens == 500
    assert gate.accounts["k1"].chats == 0
    with pytest.raises(QuotaExceeded):
        gate.admit(key)


def test_a_request_larger_than_the_limit_needs_a_full_bucket():
    """It is not refused for ever; the rest of it is paid off by waiting."""
    gate, key = limits(), a_key(tokens_per_minute=1000)
    gate.admit(key, tokens=3000).release()

    with pytest.raises(Overloaded) as refused:
        gate.admit(key, tokens=3000)

    assert refused.value.retry_after_s == pytest.approx(180)


def test_a_refused_request_costs_nothing():
    """Neither requests nor tokens nor a place are taken."""
    gate, key = limits(), a_key(requests_per_minute=60, tokens_per_minute=1000, concurrent_chats=1)
    grant = gate.admit(key, tokens=10)
    before = told(grant.headers)

    with pytest.raises(Overloaded, match="1 chats at once"):
        gate.admit(key, tokens=10)
    with pytest.raises(Overloaded, match="tokens a minute"):
        gate.admit(key, tokens=995)

    assert told(grant.headers) == before
    grant.release()
    gate.admit(key, tokens=10)
    assert gate.refused == {"chats": 1, "tokens": 1}


def test_a_used_up_budget_is_not_to_be_tried_again():
    """The answer that crosses the line is finished; the SDK is told to leave it at that."""
    gate, key = limits(), a_key(budget=Budget(tokens=100, period=Period.DAY))
    gate.admit(key, tokens=99).settle(99)
    running = gate.admit(key, tokens=50)

    with pytest.raises(QuotaExceeded) as refused:
        gate.admit(key, tokens=1)

    running.settle(50)
    reply = problem_reply(refused.value)
    assert (reply.status_code, reply.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in reply.headers
    assert refused.value.body()["error"]["code"] == "insufficient_quota"
    assert "2026-11-02" in refused.value.message


@pytest.mark.parametrize(("period", "days"), [(Period.DAY, 1), (Period.MONTH, 30)])
def test_a_budget_is_whole_again_when_its_period_is_over(period: Period, days: int):
    """At midnight UTC; a month ends with the month."""
    gate, key = limits(), a_key(budget=Budget(tokens=100, period=period))
    gate.admit(key, tokens=1).settle(100)
    gate.accounts["k1"].begin_exchange()
    tick(gate, days * 86400 - 1)
    with pytest.raises(QuotaExceeded):
        gate.admit(key, tokens=1)

    tick(gate, 1)

    gate.admit(key, tokens=1)


def test_defaults_hold_for_keys_that_say_nothing():
    """None: the default; 0: none, whatever the default is."""
    gate = limits(requests_per_minute=5, tokens_per_minute=100)

    assert told(gate.admit(a_key()).headers)["limit-requests"] == "5"
    assert told(gate.admit(a_key("k2", requests_per_minute=7)).headers)["limit-requests"] == "7"
    assert "limit-requests" not in told(gate.admit(a_key("k3", requests_per_minute=0)).headers)
    assert limits().admit(a_key()).headers == []


def test_a_changed_limit_holds_at_once_and_keeps_what_is_used():
    """Lowered, it leaves no more than it holds; raised, it fills at its new rate; dropped, nothing is held back."""
    gate = limits()
    grants = [gate.admit(a_key(requests_per_minute=60, concurrent_chats=2)) for _ in range(2)]
    with pytest.raises(Overloaded, match="at once"):
        gate.admit(a_key(requests_per_minute=60, concurrent_chats=2))

    grants.append(gate.admit(a_key(requests_per_minute=10, concurrent_chats=3)))
    assert told(grants[-1].headers) == {"limit-requests": "10", "remaining-requests": "9", "reset-requests": "6s"}
    with pytest.raises(Overloaded, match="3 chats at once"):
        gate.admit(a_key(requests_per_minute=10, concurrent_chats=3))
    gate.admit(a_key()).release()
    with pytest.raises(Overloaded, match="3 chats at once"):
        gate.admit(a_key(concurrent_chats=3))
    for grant in grants:
        grant.release()

    kept = [gate.admit(a_key(concurrent_chats=3)) for _ in range(3)]
    assert gate.accounts["k1"].slots.level == 0
    assert len(kept) == 3


def test_a_changed_budget_keeps_what_is_used():
    """A larger one lets in again, a smaller one refuses; none at all asks nothing."""
    gate = limits()
    gate.admit(a_key(budget=Budget(tokens=10)), tokens=10).release()
    with pytest.raises(QuotaExceeded):
        gate.admit(a_key(budget=Budget(tokens=10)))

    gate.admit(a_key(budget=Budget(tokens=20))).release()
    with pytest.raises(QuotaExceeded):
        gate.admit(a_key(budget=Budget(tokens=5)))
    gate.admit(a_key()).release()


def test_a_chat_from_before_a_limit_gives_nothing_back_to_it():
    """Five chats with large estimates were under way when a limit was set, and each credited it with what it took from
    nobody: 6,000 tokens of 1,000 in one second."""
    gate, limited = limits(), a_key(tokens_per_minute=1000)
    running = [gate.admit(a_key(), tokens=33_000) for _ in range(5)]
    assert num_admitted(gate, limited, tokens=100) == 10

    for grant in running:
        grant.settle(10)
        grant.release()

    assert num_admitted(gate, limited, tokens=100) == 0


def test_an_exchange_under_way_leaves_a_new_limit_alone():
    """Redis was not asked about it, and "nothing is left" was what it said; the key was refused for a second."""
    gate, limited = limits(), a_key(requests_per_minute=600, tokens_per_minute=1000)
    gate.admit(a_key(), tokens=1).release()
    account = gate.accounts["k1"]
    asked = account.begin_exchange()
    gate.admit(limited, tokens=10).release()

    account.end_exchange(asked, Left(0.0, 0.0, 0, 0, 0), 1.0, gate.clock())

    assert (account.requests.remaining, account.tokens.remaining) == (599, 990)


def test_an_exchange_under_way_counts_no_chat_twice():
    """Chats that it told of are not also taken from a limit of chats that was set meanwhile."""
    gate = limits()
    running = [gate.admit(a_key()) for _ in range(2)]
    account = gate.accounts["k1"]
    asked = account.begin_exchange()
    running[0].release()
    gate.admit(a_key(concurrent_chats=4))

    account.end_exchange(asked, Left(0.0, 0.0, 1, 0, 0), 1.0, gate.clock())

    assert account.slots.remaining == 1, "of four: one from before, one since, one elsewhere"


@pytest.mark.parametrize("kind", ["requests_per_minute", "tokens_per_minute"])
def test_a_limit_taken_away_and_set_again_keeps_what_is_used(kind: str):
    """Each round made a full bucket."""
    gate, key = limits(), a_key(**{kind: 5})

    rounds = []
    for _ in range(3):
        rounds.append(num_admitted(gate, key, tokens=1))
        gate.admit(a_key(), tokens=1).release()

    assert rounds == [5, 0, 0]


def test_a_stale_record_of_a_successor_empties_no_books():
    """A rotated key has a new limit while its successor's record from before is still cached: it let in everything."""
    gate, limited = limits(), a_key(requests_per_minute=5, concurrent_chats=2)
    stale = a_key("k2").model_copy(update={"account": "k1"})

    grants = []
    for _ in range(100):
        gate.admit(stale).release()
        with suppress(Overloaded):
            grants.append(gate.admit(limited))
    assert len(grants) == 2
    for grant in grants:
        grant.release()
    num = 0
    for _ in range(100):
        gate.admit(stale).release()
        num += num_admitted(gate, limited)

    assert num == 3, "two of the five were used before"


def test_a_limit_set_again_knows_of_chats_elsewhere():
    """Until the next exchange, it had room for as many as there may be in all."""
    gate, limited = limits(), a_key(concurrent_chats=3)
    gate.admit(limited).release()
    in_touch(gate, elsewhere=2)
    gate.admit(a_key()).release()

    gate.admit(limited)

    with pytest.raises(Overloaded, match="3 chats at once"):
        gate.admit(limited)


def test_a_limit_set_again_after_a_while_is_a_new_one():
    """What was used under the old one has come back: a larger one does not begin with what the old one held."""
    gate = limits()
    assert num_admitted(gate, a_key(requests_per_minute=5)) == 5
    gate.admit(a_key()).release()
    tick(gate, 60)

    assert num_admitted(gate, a_key(requests_per_minute=50)) == 50


def test_time_before_a_change_counts_at_the_old_rate():
    """Five seconds at 6 a minute are half a request; they were 500 when the limit was raised to 6,000 a minute."""
    gate = limits()
    assert num_admitted(gate, a_key(requests_per_minute=6)) == 6
    tick(gate, 5)

    assert num_admitted(gate, a_key(requests_per_minute=6000)) == 0
    tick(gate, 0.1)
    assert num_admitted(gate, a_key(requests_per_minute=6000)) == 10


def test_a_limit_changed_again_and_again_gives_no_part_of_another_gateway():
    """Half of what is left is this one's until the next exchange, however often two records of it take turns."""
    gate = limits()
    gate.share = 0.5

    num = sum(num_admitted(gate, a_key(requests_per_minute=limit)) for limit in [40, 60] * 5)

    assert num == 20


def test_a_limit_set_again_is_shared_with_gateways_that_came_meanwhile():
    """Its bucket was put away when this one was alone, and took itself for the only one still."""
    gate, limited = limits(), a_key(requests_per_minute=60)
    gate.admit(limited).release()
    gate.admit(a_key()).release()
    gate.share = 0.5

    assert num_admitted(gate, limited) == 30


def test_what_was_used_counts_also_for_a_key_that_first_asks_for_something_else():
    """Its account was told that the budget is used up before its first chat."""
    gate, key = limits(), a_key(budget=Budget(tokens=10))
    gate.count(key)
    account = gate.accounts["k1"]
    account.end_exchange(account.begin_exchange(), Left(0.0, 0.0, 0, 10, 10), 1.0, gate.clock())

    with pytest.raises(QuotaExceeded):
        gate.admit(key)


def test_rotated_keys_share_an_account():
    """Two keys of which one replaced the other have one limit, not two."""
    gate, old = limits(), a_key(requests_per_minute=1)
    new = old.model_copy(update={"id": "k2", "account": "k1"})
    gate.admit(old)

    with pytest.raises(Overloaded):
        gate.admit(new)


def test_requests_without_a_model_count_as_requests_only():
    """They need no budget and no tokens, but they are not free."""
    gate, key = limits(), a_key(requests_per_minute=2, budget=Budget(tokens=1))
    gate.admit(key, tokens=1).settle(1)
    gate.count(key)

    with pytest.raises(Overloaded):
        gate.count(key)


def test_idle_accounts_are_forgotten_once_they_have_told_everything():
    """What Redis was not told yet is kept."""
    gate, key = limits(), a_key()
    gate.admit(key, tokens=1).release()
    tick(gate, 10_000)
    gate.forget_idle()
    assert "k1" in gate.accounts

    gate.accounts["k1"].begin_exchange()
    gate.forget_idle()

    assert gate.accounts == {}


def test_whoever_keeps_asking_is_not_forgotten():
    """A refused request is nothing to tell; ten minutes later its client was a new one, with full buckets."""
    gate, key = limits(), a_key(tokens_per_minute=1000)
    grant = gate.admit(key, tokens=1)
    grant.settle(99_000)
    grant.release()
    in_touch(gate, tokens=-98_000)

    for _ in range(12):
        tick(gate, 300)
        gate.forget_idle()
        assert num_admitted(gate, key, tokens=1) == 0


def test_a_used_up_budget_is_remembered_until_it_is_renewed():
    """Also when its client was silent: it came back to a burst before this gateway had heard of the rest."""
    gate, key = limits(), a_key(budget=Budget(tokens=100, period=Period.DAY))
    gate.admit(key, tokens=100).release()
    in_touch(gate, used=100)

    tick(gate, 3600)
    gate.forget_idle()
    assert num_admitted(gate, key, tokens=1) == 0
    tick(gate, 23 * 3600)
    gate.forget_idle()

    assert gate.accounts == {}


def test_a_budget_that_is_set_opens_no_other_limit():
    """The account counted as unknown, so as idle, and was forgotten at its limit of requests."""
    gate = limits()
    assert num_admitted(gate, a_key(requests_per_minute=5)) == 5
    in_touch(gate)
    assert num_admitted(gate, a_key(requests_per_minute=5, budget=Budget(tokens=1000))) == 0

    gate.forget_idle()

    assert num_admitted(gate, a_key(requests_per_minute=5, budget=Budget(tokens=1000))) == 0


@pytest.mark.parametrize("before", [None, Budget(tokens=1000, period=Period.MONTH)])
def test_a_new_budget_knows_what_was_used_before(before: Budget | None):
    """Set for the first time or for another period, it was whole until the next exchange."""
    gate = limits()
    gate.admit(a_key(budget=before), tokens=100).release()
    in_touch(gate, used=100)

    assert num_admitted(gate, a_key(budget=Budget(tokens=100, period=Period.DAY)), tokens=1) == 0


def test_admission_is_cheap():
    """Admit, headers, settle and release under every limit there is; the best of five, as the machine may be busy."""
    gate = limits()
    key = a_key(
        requests_per_minute=10**9,
        tokens_per_minute=10**9,
        concurrent_chats=1000,
        budget=Budget(tokens=10**9),
    )

    def serve() -> None:
        grant = gate.admit(key, tokens=100)
        assert len(grant.headers) == 6
        grant.settle(50)
        grant.release()

    best_s = min(timeit.repeat(serve, number=2000, repeat=5)) / 2000

    assert best_s < 100e-6, "some 15 microseconds where nothing else runs"
