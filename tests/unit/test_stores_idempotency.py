"""One key, one job: whoever asks how often, at the same time, or after the first one died."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from redis import Redis

from tests.unit.test_stores_jobs import together
from vcllm.contracts.problems import Conflict, Unprocessable
from vcllm.stores.idempotency import Claim, IdempotencyStore


@pytest.fixture
def claims(client: Redis) -> IdempotencyStore:
    return IdempotencyStore(client, busy_s=0.2)


def ask(claims: IdempotencyStore, job: str = "job-1", *, owner: str = "k", request: str = "a") -> Claim:
    return claims.claim(owner, "once", request, job)


def test_one_of_sixteen_claims_a_key(claims: IdempotencyStore):
    """The others are told that it is being worked on."""
    found = together(lambda number: ask(claims, f"job-{number}").job)

    assert Counter(name for name in found if name == "Conflict")["Conflict"] == 15


def test_a_finished_request_leads_to_its_job(claims: IdempotencyStore):
    """For whoever asks the same again."""
    claims.finish(ask(claims))

    again = ask(claims, "job-2")

    assert (again.job, again.is_done) == ("job-1", True)


@pytest.mark.parametrize("finished", [True, False])
def test_a_key_is_bound_to_its_request(claims: IdempotencyStore, finished: bool):
    """Another one is refused at once, also while the first is being worked on."""
    claim = ask(claims)
    if finished:
        claims.finish(claim)

    with pytest.raises(Unprocessable) as refused:
        ask(claims, request="b")
    assert (refused.value.status, refused.value.code) == (422, "idempotency_conflict")


def test_what_was_refused_leaves_no_trace(claims: IdempotencyStore, client: Redis):
    """The key may be used again, for a corrected request."""
    claims.abandon(ask(claims))

    assert client.keys() == []
    assert ask(claims, "job-2", request="b").job == "job-2"


def test_the_work_of_one_that_died_is_taken_over_with_its_job(claims: IdempotencyStore):
    """It may have stored that job before it died; a second one is not made."""
    ask(claims)
    with pytest.raises(Conflict):
        ask(claims, "job-2")
    time.sleep(0.25)

    taken_over = ask(claims, "job-2")

    assert (taken_over.job, taken_over.is_done) == ("job-1", False)


def test_one_that_says_that_it_is_at_work_is_not_taken_over(claims: IdempotencyStore):
    """For as long as it does."""
    claim = ask(claims)
    for _ in range(4):
        time.sleep(0.1)
        claims.renew(claim)

    with pytest.raises(Conflict):
        ask(claims)


def test_one_that_wakes_up_late_undoes_nothing(claims: IdempotencyStore):
    """Its claim was taken over: it can neither forget the key nor free it, and its job is the same."""
    late = ask(claims)
    time.sleep(0.25)
    now = ask(claims)

    claims.renew(late)
    claims.abandon(late)
    with pytest.raises(Conflict):
        ask(claims)
    claims.finish(now)

    assert ask(claims).is_done


def test_keys_of_different_owners_do_not_meet(claims: IdempotencyStore):
    """The same key from two owners makes two jobs."""
    assert ask(claims).job != ask(claims, "job-2", owner="other").job
