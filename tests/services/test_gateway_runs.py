"""What a job's runs leave on the disk, its long history of events, and aliases moved by hand: at the gateway."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_world import Gateway, add_version, create_job, error_of
from tests.services.test_gateway import frames
from vcllm.contracts.jobs import JobState
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import GateVerdict
from vcllm.contracts.recipes import Base, ImportStage, StageOrder
from vcllm.contracts.runs import LOG
from vcllm.stores.events import EventLog
from vcllm.stores.gates import GateRecords

HELD = GateVerdict(passed=False, checks=[], decision="hold")
REJECTED = GateVerdict(passed=False, checks=[], decision="reject")
PASSED = GateVerdict(passed=True, checks=[], decision="promote")


def begin_run(gateway: Gateway, pipeline: str, version: str) -> tuple[str, Path]:
    """A stage of a pipeline that a worker has begun; its id and folder."""
    order = StageOrder(
        stage=ImportStage(), role="actor", version=version, lineage="line", seed=0, base=Base(model="m"),
        dataset="", recipe="r", recipe_hash="", charter="",
    )  # fmt: skip
    record, _ = gateway.jobs.create(order, queue="training", parent=pipeline)
    gateway.jobs.take(record.id)
    folder = gateway.settings.jobs / "actor" / version
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return record.id, folder


def test_checkpoints_of_a_pipeline_are_those_of_its_runs(gateway: Gateway):
    """States on disk first, then the versions that came of them; half-written ones are not shown."""
    pipeline = create_job(gateway).json()["id"]
    assert gateway[Scope.JOBS_READ].get(f"/v1/jobs/{pipeline}/checkpoints").json() == {"data": []}
    add_version(gateway.settings, "line-sft", created=time.time() - 60)
    done, _ = begin_run(gateway, pipeline, "line-sft")
    running, folder = begin_run(gateway, pipeline, "line-r1")
    for name in ("step-00000040", "step-00000080", ".step-00000090.tmp-1"):
        (folder / "checkpoints" / name).mkdir()
        (folder / "checkpoints" / name / "state.json").write_text(json.dumps({"step": 40, "loss": 0.5}))

    found = gateway[Scope.JOBS_READ].get(f"/v1/jobs/{pipeline}/checkpoints").json()["data"]
    own = gateway[Scope.JOBS_READ].get(f"/v1/jobs/{running}/checkpoints").json()["data"]

    told = [(one["id"], one["job"], one["step"], one["committed"], one["loss"]) for one in found]
    assert told == [
        ("line-sft", done, None, True, None),
        ("step-00000040", running, 40, False, 0.5),
        ("step-00000080", running, 80, False, 0.5),
    ]
    assert own == found[1:]


def test_the_end_of_a_log_is_given(gateway: Gateway):
    """Of the newest run that has begun, or of the one that is named; bounded, and plain text whatever is in it."""
    pipeline = create_job(gateway).json()["id"]
    reader, url = gateway[Scope.JOBS_READ], f"/v1/jobs/{pipeline}/logs"
    error_of(reader.get(url), 404)
    _, first = begin_run(gateway, pipeline, "line-sft")
    _, second = begin_run(gateway, pipeline, "line-r1")
    (first / LOG).write_text("<script>alert(1)</script>\n你好\n")
    (second / LOG).write_text("".join(f"line {number}\n" for number in range(200_000)))

    newest, named = reader.get(url, params={"lines": 3}), reader.get(url, params={"version": "line-sft"})

    assert newest.text == "line 199997\nline 199998\nline 199999\n"
    assert newest.headers["content-type"] == "text/plain; charset=utf-8"
    assert newest.headers["x-content-type-options"] == "nosniff"
    assert named.text == "<script>alert(1)</script>\n你好\n"
    for wrong in ("lines=0", "lines=5001", "version=..%2Fx"):
        error_of(reader.get(f"{url}?{wrong}"), 400)
    assert "line-sft" in error_of(reader.get(f"{url}?version=line-r9"), 404)["message"]
    error_of(gateway[Scope.CHAT].get(url), 403)


def test_a_run_that_has_written_nothing_has_an_empty_log(gateway: Gateway):
    """It may just have begun."""
    run, _ = begin_run(gateway, create_job(gateway).json()["id"], "line-x")

    assert gateway[Scope.JOBS_READ].get(f"/v1/jobs/{run}/logs").text == ""


def test_a_log_is_followed_to_the_end_of_its_run(gateway: Gateway):
    """Whole lines as they come, also when the log is put aside for a new file meanwhile."""
    run, folder = begin_run(gateway, create_job(gateway).json()["id"], "line-r2")
    (folder / LOG).write_text("one\ntwo\n")

    def work() -> None:
        time.sleep(0.6)
        with (folder / LOG).open("a") as log:
            log.write("three\nfo")
            log.flush()
            time.sleep(0.7)
            log.write("ur\n")
        time.sleep(0.7)
        (folder / LOG).rename(folder / "log.previous.txt")
        (folder / LOG).write_text("five\n")
        gateway.jobs.move(run, JobState.SUCCEEDED)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        reply = gateway[Scope.JOBS_READ].get(f"/v1/jobs/{run}/logs", params={"stream": True, "lines": 1}, timeout=20)
        working.result()

    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines == ["two", "three", "four", "five"]


# Events.


def test_thousands_of_events_are_followed_from_any_id(gateway: Gateway):
    """While more are appended: every follower gets exactly what comes after its place, in order, to the end."""
    job = create_job(gateway).json()["id"]
    log = EventLog(gateway.redis)
    ids = [log.append(job, "progress", step=step) for step in range(2000)]
    token = gateway.jobs.take(job).token
    reading = threading.Event()

    def write() -> None:
        reading.wait(10)
        for step in range(2000, 3000):
            log.append(job, "progress", step=step)
        gateway.jobs.move(job, JobState.SUCCEEDED, holder=token)
        log.append(job, "state", state="succeeded")

    reader = gateway[Scope.JOBS_READ]

    def follow(place: int) -> list[int]:
        reading.set()
        url = f"/v1/jobs/{job}/events?stream=true"
        live = frames(reader.get(url, headers={"last-event-id": ids[place]}, timeout=60).text)
        assert live[-1]["event"] == "state"
        return [json.loads(frame["data"])["data"]["step"] for frame in live[:-1]]

    places = [0, 777, 1234, 1999]
    with ThreadPoolExecutor(5) as pool:
        writing = pool.submit(write)
        followed = list(pool.map(follow, places))
        writing.result()

    assert followed == [list(range(place + 1, 3000)) for place in places]


def test_what_is_no_longer_kept_is_told(gateway: Gateway):
    """By a field of the list, by an event of the stream; who has seen the last that is gone misses nothing."""
    job = create_job(gateway).json()["id"]
    log = EventLog(gateway.redis, kept=100, dropped_at_once=10)
    ids = [log.append(job, "progress", step=step) for step in range(300)]
    gateway.jobs.ask_cancel(job)
    log.append(job, "state", state="cancelled")
    reader, url = gateway[Scope.JOBS_READ], f"/v1/jobs/{job}/events"

    listed = reader.get(url).json()
    until = listed["gap"]["until"]
    live = frames(reader.get(url, params={"stream": True, "after": ids[3]}).text)
    from_there = reader.get(url, params={"after": until}).json()

    gone = listed["gap"]["num_gone"]
    assert gone == ids.index(until) + 2, "that the job is queued was its first event"
    assert [event["id"] for event in listed["data"]][:-1] == ids[gone - 1 :]
    assert (live[0]["event"], live[0]["id"]) == ("gap", until)
    assert json.loads(live[0]["data"]) == listed["gap"]
    assert [frame["id"] for frame in live[1:]] == [event["id"] for event in listed["data"]]
    assert (from_there["gap"], from_there["data"]) == (None, listed["data"])


# Versions and aliases.


def put(gateway: Gateway, version: str, scope: Scope = Scope.PROMOTE, **fields: Any) -> Any:
    return gateway[scope].put("/v1/aliases/actor/current", json={"version": version, **fields})


def test_a_person_puts_an_ungated_version_into_service(gateway: Gateway):
    """Only when it is said that no gate has seen it; who did it and why is kept."""
    add_version(gateway.settings, "line-sft", created=1)
    add_version(gateway.settings, "line-ft-1-sft", "actor/line-sft", created=2)

    assert error_of(put(gateway, "line-sft"), 409)["code"] == "ungated"
    assert put(gateway, "line-sft", ungated=True).json()["data"]["actor"] == {"current": "line-sft"}
    reply = put(gateway, "line-ft-1-sft", ungated=True, note="asked for by the town", replaces="line-sft")

    assert reply.json()["data"]["actor"] == {"current": "line-ft-1-sft", "previous": "line-sft"}
    assert gateway[Scope.JOBS_READ].get("/v1/aliases").json() == reply.json()
    history = gateway[Scope.JOBS_READ].get("/v1/aliases/actor/history").json()["data"]
    assert [(move["version"], move["before"], move["note"]) for move in history] == [
        ("line-ft-1-sft", "line-sft", "asked for by the town"),
        ("line-sft", None, ""),
    ]
    assert len({move["by"] for move in history}) == 1
    assert history[0]["by"] != "trainer"


def test_what_the_gate_said_is_not_passed_over(gateway: Gateway):
    """A held version is decided elsewhere, a rejected one is not served; one that passed needs no word."""
    records = GateRecords(gateway.redis, "line")
    for name, verdict in (("line-r1", PASSED), ("line-r2", HELD), ("line-r3", REJECTED)):
        add_version(gateway.settings, name)
        records.enter(name, "line-sft", verdict)

    assert error_of(put(gateway, "line-r2", ungated=True), 409)["code"] == "held"
    assert error_of(put(gateway, "line-r3", ungated=True), 409)["code"] == "rejected"
    assert put(gateway, "line-r1").status_code == 200
    assert put(gateway, "line-r1", replaces="line-r9").status_code == 409


def test_a_damaged_version_is_not_put_into_service(gateway: Gateway):
    """Every file is read and compared before the alias moves."""
    add_version(gateway.settings, "line-sft")
    (gateway.settings.models / "actor" / "line-sft" / "model.safetensors").write_bytes(b"other")

    assert error_of(put(gateway, "line-sft", ungated=True), 409)["code"] == "damaged"
    assert gateway[Scope.JOBS_READ].get("/v1/aliases").json()["data"]["actor"] == {}


def test_versions_are_listed_with_what_became_of_them(gateway: Gateway):
    """Newest first, page by page, with aliases and the gate's word."""
    for number, name in enumerate(("line-sft", "line-r1", "line-r2")):
        add_version(gateway.settings, name, created=float(number))
    GateRecords(gateway.redis, "line").enter("line-r1", "line-sft", PASSED)
    GateRecords(gateway.redis, "line").enter("line-r2", "line-r1", HELD)
    put(gateway, "line-r1")
    reader = gateway[Scope.JOBS_READ]

    first = reader.get("/v1/versions", params={"limit": 2}).json()
    second = reader.get("/v1/versions", params={"limit": 2, "after": "actor/line-r1"}).json()

    told = [(one["name"], one["aliases"], one["gate"]) for one in first["data"] + second["data"]]
    assert told == [("line-r2", [], "hold"), ("line-r1", ["current"], "promote"), ("line-sft", [], None)]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert reader.get("/v1/versions", params={"role": "critic"}).json()["data"] == []
    error_of(reader.get("/v1/versions?after=actor/nobody"), 404)
    error_of(gateway[Scope.CHAT].get("/v1/versions"), 403)


@pytest.mark.parametrize("scope", [Scope.JOBS_WRITE, Scope.REVIEW, Scope.CHAT])
def test_aliases_are_moved_by_promoters_only(gateway: Gateway, scope: Scope):
    """Who may train may not serve."""
    error_of(put(gateway, "line-sft", scope, ungated=True), 403)
