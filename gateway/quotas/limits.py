"""Limits and budgets of keys, decided here and now: what several gateways spend is brought together beside it.

For one event loop, not for threads; nothing here waits. `gateway.quotas.sharing` keeps gateways in step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

from gateway.quotas.accounts import Account, Defaults
from gateway.quotas.buckets import Bucket, told_duration
from vcllm.contracts.keys import KeyRecord, Period
from vcllm.contracts.problems import Overloaded, Problem, QuotaExceeded

STALE_S = 2.0
"""An account last heard of longer ago is asked for at once when it is used again."""
IDLE_S = 600.0
"""An account without use for so long is forgotten here; Redis keeps its books."""

RawHeaders = list[tuple[bytes, bytes]]


class Limits:
    """Admits requests of keys, or says when to come back."""

    def __init__(
        self,
        defaults: Defaults | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """wall: Unix seconds, for budgets. wake: asks for an exchange soon."""
        self.defaults = defaults or Defaults()
        self.accounts: dict[str, Account] = {}
        self.share = 1.0
        """Of each limit that is this gateway's: one over the number of gateways."""
        self.refused: Counter[str] = Counter()
        """Refusals since the start, by reason: requests, tokens, chats or budget."""
        self.wake = wake
        self.clock = clock
        self._wall = wall

    def admit(self, record: KeyRecord, tokens: int = 0) -> Grant:
        """Let a chat in that is expected to use so many tokens, prompt and answer.

        Overloaded (429) when a limit is reached, QuotaExceeded (429) when the budget is; nothing is taken then.
        """
        now = self.clock()
        account = self._account(record, now)
        self._check(account, now, tokens, chat=True)
        if account.requests:
            account.requests.take(1)
        if account.tokens:
            account.tokens.take(tokens)
        if account.slots:
            account.slots.take(1)
        account.chats += 1
        account.num_requests += 1
        account.expected += tokens
        return Grant(account, tokens)

    def count(self, record: KeyRecord) -> RawHeaders:
        """Let in a request that uses no model; the headers of its reply. Overloaded when there were too many."""
        now = self.clock()
        account = self._account(record, now)
        self._check(account, now, 0, chat=False)
        if account.requests:
            account.requests.take(1)
        account.num_requests += 1
        return headers_of(account)

    def forget_idle(self) -> None:
        """Let go of accounts that nobody asked for in a while and that have nothing left to tell.

        A budget that is used up is remembered until it is renewed, else whoever comes back had a burst for nothing.
        """
        now, wall = self.clock(), self._wall()
        for name, account in list(self.accounts.items()):
            is_idle = not account.has_news and now - max(account.used_at, account.known_at) > IDLE_S
            if is_idle and account.budget_left(wall):
                del self.accounts[name]

    def _account(self, record: KeyRecord, now: float) -> Account:
        account = self.accounts.get(record.counted_as)
        if account is None:
            account = Account(record, self.defaults, now, self.share)
            account.budget_left(self._wall())  # its day begins now, not after it has heard what was used
            self.accounts[account.name] = account
        elif account.terms != (record.limits, record.budget):
            account.hold_to(record, self.defaults, now, self.share)
        account.used_at = now
        if now - account.known_at > STALE_S:
            self.wake()
        return account

    def _check(self, account: Account, now: float, tokens: int, *, chat: bool) -> None:
        if account.requests and (wait_s := account.requests.wait_s(1, now)):
            self._refuse("requests", _too_many(account, account.requests, wait_s))
        if not chat:
            return
        if not account.budget_left(self._wall()):
            self._refuse("budget", _used_up(account))
        if account.tokens and (wait_s := account.tokens.wait_s(tokens, now)):
            self._refuse("tokens", _too_much(account, account.tokens, tokens, wait_s))
        if account.slots and (wait_s := account.slots.wait_s(1, now)):
            self._refuse("chats", _too_many_at_once(account, account.slots, wait_s))

    def _refuse(self, reason: str, problem: Problem) -> NoReturn:
        self.refused[reason] += 1
        if self.share < 1:
            self.wake()  # the others may have left more than is known here
        raise problem


class Grant:
    """A chat that was let in: settle it once with what it used, and release it when it is over."""

    __slots__ = ("_account", "_bucket", "_held", "_settled", "_tokens")

    def __init__(self, account: Account, tokens: int) -> None:
        self._account = account
        self._bucket = account.tokens
        """Which the tokens were taken from: what was not taken cannot be given back."""
        self._tokens = tokens
        self._settled = False
        self._held = True

    @property
    def headers(self) -> RawHeaders:
        """`x-ratelimit-*` as they stand now; none for limits the key does not have."""
        return headers_of(self._account)

    def settle(self, tokens: int) -> None:
        """What was really used, prompt and answer; the difference to the estimate is given back, or taken as well."""
        if self._settled:
            return
        self._settled = True
        account = self._account
        account.expected -= self._tokens
        account.num_tokens += tokens
        if self._bucket:
            self._bucket.take(tokens - self._tokens)

    def release(self) -> None:
        """The answer is over, however it ended. What was not settled is charged as it was estimated."""
        if not self._held:
            return
        self._held = False
        self.settle(self._tokens)
        self._account.chats -= 1
        if self._account.slots:
            self._account.slots.take(-1)


def headers_of(account: Account) -> RawHeaders:
    """OpenAI's `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; reset: until the bucket is full again."""
    headers: RawHeaders = []
    if account.requests:
        headers += _headers(b"requests", account.requests)
    if account.tokens:
        headers += _headers(b"tokens", account.tokens)
    return headers


def _headers(what: bytes, bucket: Bucket) -> RawHeaders:
    return [
        (b"x-ratelimit-limit-" + what, b"%d" % bucket.capacity),
        (b"x-ratelimit-remaining-" + what, b"%d" % bucket.remaining),
        (b"x-ratelimit-reset-" + what, told_duration(bucket.full_in_s).encode()),
    ]


def _told(account: Account) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers_of(account)}


def _too_many(account: Account, bucket: Bucket, wait_s: float) -> Problem:
    return Overloaded(
        f"This key may send {bucket.capacity:,.0f} requests a minute. The next is free in {told_duration(wait_s)}.",
        retry_after_s=wait_s,
        headers=_told(account),
    )


def _too_much(account: Account, bucket: Bucket, tokens: int, wait_s: float) -> Problem:
    return Overloaded(
        f"This key may use {bucket.capacity:,.0f} tokens a minute, of which {bucket.remaining:,} are left; this request"
        f" may take {tokens:,}. Come back in {told_duration(wait_s)}, or lower max_tokens.",
        retry_after_s=wait_s,
        headers=_told(account),
    )


def _too_many_at_once(account: Account, bucket: Bucket, wait_s: float) -> Problem:
    return Overloaded(
        f"This key may have {bucket.capacity:.0f} chats at once, and has them. Come back when one has ended.",
        retry_after_s=wait_s,
        headers=_told(account),
    )


def _used_up(account: Account) -> Problem:
    budget = account.budget
    assert budget is not None, "a budget that is not there cannot be used up"
    ends = account.day_ends if budget.period is Period.DAY else account.month_ends
    renewed = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d")
    return QuotaExceeded(
        f"This key has used its budget of {budget.tokens:,} tokens a {budget.period}. It is renewed on {renewed} UTC.",
        headers=_told(account),
    )
