"""Jobs: one table of moves, one winner of every race, and no effect of a worker that woke up late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from vcllm.contracts.jobs import FINISHED, MOVES, JobRecord, JobRequest, JobState
from vcllm.contracts.problems import NotFound
from vcllm.stores.connect import lease_key
from vcllm.stores.jobs import IllegalMove, JobStore, StaleToken

REQUEST = JobRequest(recipe="starter")


@pytest.fixture
def jobs(client: Redis) -> JobStore:
    return JobStore(client)


def queued(jobs: JobStore, **options: Any) -> JobRecord:
    return jobs.create(REQUEST, queue="rollouts", **options)[0]


def together(call: Callable[[int], Any], times: int = 16) -> list[Any]:
    """What `times` threads got, an exception counting as a result."""

    def attempt(number: int) -> Any:
        try:
            return call(number)
        except Exception as error:
            return type(error).__name__

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(attempt, range(times)))


def test_every_state_can_be_reached():
    """From `queued`, some chain of moves leads to each state."""
    reached, fresh = {JobState.QUEUED}, [JobState.QUEUED]
    while fresh:
        fresh = [to for state in fresh for to in MOVES[state] if to not in reached]
        reached.update(fresh)

    assert reached == set(JobState)


def test_every_state_leads_to_an_end():
    """No state is a trap: from each, a finished one can be reached."""
    ending = set(FINISHED)
    while more := {state for state in JobState if state not in ending and MOVES[state] & ending}:
        ending |= more

    assert ending == set(JobState)
    assert set(MOVES) == set(JobState)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("to", JobState)
def test_only_the_moves_of_the_table_are_made(jobs: JobStore, state: JobState, to: JobState):
    """A move that is not in the table raises and changes nothing."""
    record = queued(jobs)
    jobs.update(record.id, progress={"step": 1})
    jobs._update(record.id, lambda now: now.model_copy(update={"state": state}), None)

    if to in MOVES[state]:
        assert jobs.move(record.id, to).state is to
    else:
        with pytest.raises(IllegalMove):
            jobs.move(record.id, to, error="never written")
        assert jobs.get(record.id).state is state
        assert jobs.get(record.id).error is None


def test_one_of_sixteen_workers_takes_a_job(jobs: JobStore):
    """The others get None and leave the job alone."""
    record = queued(jobs)

    taken = [found for found in together(lambda _: jobs.take(record.id)) if found is not None]

    assert len(taken) == 1
    assert taken[0].state is JobState.RUNNING
    assert jobs.get(record.id).token == taken[0].token


def test_one_of_sixteen_ends_a_job(jobs: JobStore):
    """Sixteen threads try to fail or to finish it; one move is made."""
    record = jobs.take(queued(jobs).id)
    ends = [JobState.SUCCEEDED, JobState.FAILED]

    outcomes = together(lambda number: jobs.move(record.id, ends[number % 2]).state)

    assert Counter(outcomes)["IllegalMove"] == 15


def test_a_job_is_made_once_under_its_id(jobs: JobStore):
    """Whoever makes it again gets what there is, and the list shows one."""
    made = together(lambda _: jobs.create(REQUEST, queue="rollouts", job_id="job-1"))

    assert {record.id for record, _ in made} == {"job-1"}
    assert len({record.created for record, _ in made}) == 1
    assert sum(new for _, new in made) == 1
    assert len(jobs.recent(limit=50)) == 1


def test_a_lease_is_held_against_others(jobs: JobStore):
    """While the lease runs, a second delivery of the message finds nothing to do."""
    record = jobs.take(queued(jobs).id)

    jobs.renew(record.id, record.token)

    assert jobs.take(record.id) is None
    assert jobs.lapsed() == []


def test_a_lapsed_lease_is_taken_up_again_by_its_holder(jobs: JobStore, client: Redis):
    """After a long stall nobody else came: the holder carries on."""
    record = jobs.take(queued(jobs).id)
    client.delete(lease_key(record.id))
    assert [job.id for job in jobs.lapsed()] == [record.id]

    jobs.renew(record.id, record.token)

    assert jobs.lapsed() == []


def test_a_worker_that_wakes_up_late_changes_nothing(jobs: JobStore, client: Redis):
    """Its lease ran out and the job was given to another: every write with the old token is refused."""
    late = jobs.take(queued(jobs).id)
    client.delete(lease_key(late.id))
    jobs.move(late.id, JobState.QUEUED)
    now = jobs.take(late.id)

    for write in (
        lambda: jobs.renew(late.id, late.token),
        lambda: jobs.move(late.id, JobState.SUCCEEDED, holder=late.token),
        lambda: jobs.update(late.id, holder=late.token, progress={"step": 9}),
        lambda: jobs.check(late.id, late.token),
    ):
        with pytest.raises(StaleToken):
            write()
    jobs.release(late.id, late.token)
    assert jobs.get(late.id) == now
    assert jobs.take(late.id) is None, "the new holder's lease was not touched"


def test_a_job_that_is_queued_again_can_be_taken_at_once(jobs: JobStore):
    """A stalled worker used to win back the lease of a job that waited in the queue, which then never ran."""
    stalled = jobs.take(queued(jobs).id)
    jobs.move(stalled.id, JobState.QUEUED)

    with pytest.raises(StaleToken):
        jobs.renew(stalled.id, stalled.token)
    again = jobs.take(stalled.id)

    assert again is not None
    assert again.token > stalled.token
    assert again.attempt == 2


@pytest.mark.parametrize(
    ("state", "becomes"),
    [
        (JobState.QUEUED, JobState.CANCELLED),
        (JobState.PAUSED, JobState.CANCELLED),
        (JobState.RUNNING, JobState.CANCELLING),
        (JobState.PAUSING, JobState.CANCELLING),
        (JobState.CANCELLING, JobState.CANCELLING),
        (JobState.SUCCEEDED, JobState.SUCCEEDED),
        (JobState.FAILED, JobState.FAILED),
    ],
)
def test_cancelling_depends_on_the_state(jobs: JobStore, state: JobState, becomes: JobState):
    """What waits ends at once, what runs is told, what has ended stays."""
    record = queued(jobs)
    jobs._update(record.id, lambda now: now.model_copy(update={"state": state}), None)

    assert jobs.ask_cancel(record.id).state is becomes


@pytest.mark.parametrize(
    ("state", "becomes"),
    [
        (JobState.QUEUED, JobState.PAUSED),
        (JobState.RUNNING, JobState.PAUSING),
        (JobState.PAUSING, JobState.PAUSING),
        (JobState.PAUSED, JobState.PAUSED),
        (JobState.CANCELLING, JobState.CANCELLING),
        (JobState.SUCCEEDED, JobState.SUCCEEDED),
        (JobState.FAILED, JobState.FAILED),
    ],
)
def test_pausing_depends_on_the_state(jobs: JobStore, state: JobState, becomes: JobState):
    """What waits is paused at once, what runs is told, what has ended or is about to stays."""
    record = queued(jobs)
    jobs._update(record.id, lambda now: now.model_copy(update={"state": state}), None)

    assert jobs.ask_pause(record.id).state is becomes


@pytest.mark.parametrize(
    ("ask", "becomes"),
    [("ask_pause", [JobState.PAUSED, JobState.PAUSING]), ("ask_cancel", [JobState.CANCELLED, JobState.CANCELLING])],
)
def test_stages_are_paused_and_cancelled_with_their_pipeline(jobs: JobStore, ask: str, becomes: list[JobState]):
    """Also when no worker has the pipeline just now; a stage that has ended stays as it is."""
    pipeline = queued(jobs)
    waits, runs, ended = (queued(jobs, parent=pipeline.id) for _ in range(3))
    jobs.take(runs.id)
    jobs.take(ended.id)
    jobs.move(ended.id, JobState.SUCCEEDED)

    getattr(jobs, ask)(pipeline.id)

    assert [jobs.get(stage.id).state for stage in (waits, runs, ended)] == [*becomes, JobState.SUCCEEDED]


def test_pausing_a_failed_pipeline_leaves_its_stages_alone(jobs: JobStore):
    """Nothing was asked that could be done, so nothing is."""
    pipeline = jobs.take(queued(jobs).id)
    stage = jobs.take(queued(jobs, parent=pipeline.id).id)
    jobs.move(pipeline.id, JobState.FAILED)

    jobs.ask_pause(pipeline.id)

    assert jobs.get(stage.id).state is JobState.RUNNING


@pytest.mark.parametrize(
    ("asked", "becomes"),
    [(None, JobState.QUEUED), ("ask_pause", JobState.PAUSED), ("ask_cancel", JobState.CANCELLED)],
)
def test_a_job_that_is_left_becomes_what_was_asked(jobs: JobStore, asked: str | None, becomes: JobState):
    """Queued again unless somebody asked for something else; whoever left it may write no more."""
    record = jobs.take(queued(jobs).id)
    if asked is not None:
        getattr(jobs, asked)(record.id)

    left = jobs.leave(record.id, holder=record.token, attempt=0)

    assert left.state is becomes
    assert left.attempt == (0 if asked is None else 1)
    with pytest.raises(StaleToken):
        jobs.renew(record.id, record.token)


def test_a_worker_that_wakes_up_after_its_job_was_paused_without_it_has_lost_it(jobs: JobStore, client: Redis):
    """Its token used to stay the newest, so it renewed its lease and went on with a job that was paused."""
    late = jobs.take(queued(jobs).id)
    jobs.ask_pause(late.id)
    client.delete(lease_key(late.id))
    jobs.leave(late.id, holder=late.token)

    with pytest.raises(StaleToken):
        jobs.renew(late.id, late.token)
    with pytest.raises(StaleToken):
        jobs.check(late.id, late.token)


def test_cancelling_a_job_while_a_worker_takes_it_ends_in_order(jobs: JobStore):
    """Whichever comes first, no call fails and the job is on its way to an end."""
    for _ in range(5):
        record = queued(jobs)

        outcomes = together(lambda number, id=record.id: jobs.take(id) if number % 2 else jobs.ask_cancel(id), times=4)

        assert not [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert jobs.get(record.id).state in (JobState.CANCELLED, JobState.CANCELLING)


def test_jobs_are_listed_newest_first_page_by_page(jobs: JobStore):
    """The last row of a page leads to the next; stages are found by their pipeline."""
    made = [queued(jobs) for _ in range(3)]
    stage = queued(jobs, parent=made[0].id)

    first = jobs.recent(limit=2)
    second = jobs.recent(limit=2, before=first[-1].created)

    assert [job.id for job in [*first, *second]] == [stage.id, *(job.id for job in reversed(made))]
    assert [job.id for job in jobs.recent(parent=made[0].id)] == [stage.id]


def test_an_unknown_job_is_not_found(jobs: JobStore):
    """Every way to ask for it says so."""
    for ask in (jobs.get, jobs.ask_cancel, lambda id: jobs.move(id, JobState.QUEUED)):
        with pytest.raises(NotFound):
            ask("job-unknown")
    assert jobs.take("job-unknown") is None
