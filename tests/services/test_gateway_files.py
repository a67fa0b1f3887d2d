"""Uploaded files at the gateway: received piece by piece, checked line by line, kept whole or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fastapi import Response

from gateway.fine_tuning.checking import MOST_AT_ONCE, Turn, check_file
from gateway.routes.files import delete_file
from gateway.routes.fine_tuning import create_job
from gateway.settings import GatewaySettings
from tests.fake_actor import FakeActor
from tests.gateway_world import Gateway, add_version, error_of, gateway_on, queued_messages, sdk
from tests.servers import wait_until
from vcllm.contracts.fine_tuning import FineTuningCreate
from vcllm.contracts.jobs import JobRecord, JobState
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.problems import Conflict, NotFound
from vcllm.stores.files import FileStore, Incoming
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore

CHAT = {"messages": [{"role": "user", "content": "Who may speak?"}, {"role": "assistant", "content": "Everyone."}]}
PREFERENCE = {
    "input": {"messages": [{"role": "user", "content": "谁可以发言？"}]},
    "preferred_output": [{"role": "assistant", "content": "每个人都可以。"}],
    "non_preferred_output": [{"role": "assistant", "content": "没有人。"}],
}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def chats(count: int) -> bytes:
    return jsonl(
        *(
            {"messages": [{"role": "user", "content": f"Who is {n}?"}, {"role": "assistant", "content": "Somebody."}]}
            for n in range(count)
        )
    )


@pytest.fixture
def files(gateway: Gateway) -> Iterator[openai.resources.Files]:
    """The SDK's files of an empty store, as somebody who writes jobs."""
    shutil.rmtree(gateway.settings.home / "files", ignore_errors=True)
    with sdk(gateway, Scope.ADMIN) as client:
        yield client.files


def upload(gateway: Gateway, content: bytes, scope: Scope = Scope.JOBS_WRITE, **parts: Any) -> httpx.Response:
    form = {"files": {"file": ("rows.jsonl", content)}, "data": {"purpose": "fine-tune"}, **parts}
    return gateway[scope].post("/v1/files", timeout=60, **form)


def test_a_file_is_uploaded_listed_read_and_deleted(files: openai.resources.Files):
    """With the `openai` SDK as it is."""
    content = jsonl(CHAT, PREFERENCE)
    made = files.create(file=("../行.jsonl", jsonl(CHAT)), purpose="fine-tune")
    other = files.create(file=("prefs.jsonl", jsonl(PREFERENCE)), purpose="fine-tune")

    assert (made.object, made.purpose, made.status, made.filename) == ("file", "fine-tune", "processed", "行.jsonl")
    assert made.bytes == len(jsonl(CHAT)) < len(content)
    assert made.vc_check["use"] == "sft"
    assert other.vc_check["use"] == "preference"
    assert [one.id for one in files.list()] == [other.id, made.id]
    assert [one.id for one in files.list(order="asc", limit=1)] == [made.id, other.id], "page by page"
    assert files.list(purpose="batch").data == []
    assert files.retrieve(made.id) == made
    assert files.wait_for_processing(made.id, poll_interval=0.1).status == "processed"
    assert files.content(made.id).content == jsonl(CHAT)
    assert files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        files.delete(made.id)


def test_all_faults_of_a_file_are_told_at_once(gateway: Gateway, files: openai.resources.Files):
    """By line, pointer and code, the first hundred of them and their number; and so is a job refused."""
    bad = [b"not json\n", jsonl({"messages": "none"}), jsonl({"messages": [{"role": "king", "content": 5}]}), b"\xff\n"]
    content = jsonl(CHAT) + b"".join(bad) + jsonl({"text": "no chat"}) * 120
    made = files.create(file=("rows.jsonl", content), purpose="fine-tune")

    check = made.vc_check
    assert made.status == "error"
    assert "line 2: not JSON" in made.status_details
    assert (check["num_rows"], check["num_faults"], len(check["faults"])) == (125, 125, 100)
    told = [(fault["line"], fault["pointer"], fault["code"]) for fault in check["faults"][:7]]
    assert told == [
        (2, "", "invalid_json"),
        (3, "/messages", "invalid_value"),
        (4, "/messages/0/role", "invalid_value"),
        (4, "/messages/0/content", "invalid_value"),
        (5, "", "invalid_json"),
        (6, "", "invalid_value"),
        (7, "", "invalid_value"),
    ]

    add_version(gateway.settings, "line-sft")
    with sdk(gateway, Scope.JOBS_WRITE) as client, pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="line-sft", training_file=made.id)
    assert isinstance(refused.value.body, dict)
    assert (refused.value.code, refused.value.param) == ("invalid_training_file", "training_file")
    assert (len(refused.value.body["faults"]), refused.value.body["num_faults"]) == (100, 125)
    assert gateway.jobs.recent() == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (jsonl({"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": ""}]}), "1 empty"),
        ("你好".encode("utf-16"), "UTF-16"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN"),
    ],
    ids=["nothing", "blank lines", "empty turns", "utf-16", "deep", "nan"],
)
def test_a_file_without_a_usable_row_is_kept_with_the_reason(gateway: Gateway, content: bytes, says: str):
    """Its status is `error`; nothing of it is a 5xx."""
    reply = upload(gateway, content)

    assert reply.status_code == 200
    assert reply.json()["status"] == "error"
    assert says in reply.json()["status_details"]


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ({"data": {"purpose": "assistants"}}, "purpose"),
        ({"data": {}}, "purpose"),
        ({"files": {"other": ("rows.jsonl", jsonl(CHAT))}}, "file"),
        ({"data": {"purpose": "fine-tune", "expires_after[anchor]": "created_at"}}, "expires_after[anchor]"),
        ({"data": {"purpose": "x" * 5000}}, "purpose"),
        ({"files": [("file", ("a", b"{}")), ("file", ("b", b"{}"))]}, "file"),
        ({"files": [(f"part-{n}", ("a", b"{}")) for n in range(20)]}, None),
    ],
    ids=["purpose", "no purpose", "no file", "expiry", "long field", "two files", "many parts"],
)
def test_a_form_that_is_not_understood_is_refused(gateway: Gateway, parts: dict[str, Any], param: str | None):
    """By the name of the part; nothing is kept of it."""
    shutil.rmtree(gateway.settings.home / "files", ignore_errors=True)

    assert error_of(upload(gateway, jsonl(CHAT), **parts), 400)["param"] == param
    assert kept_in(gateway) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no form at all"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 20_000 + b": y\r\n\r\n"),
    ],
    ids=["json", "no boundary", "no form", "cut off", "long header"],
)
def test_what_is_no_form_is_refused(gateway: Gateway, kind: str, body: bytes):
    """400, and nothing is kept of it."""
    shutil.rmtree(gateway.settings.home / "files", ignore_errors=True)
    reply = gateway[Scope.JOBS_WRITE].post("/v1/files", content=body, headers={"content-type": kind})

    error_of(reply, 400)
    assert kept_in(gateway) == []


def kept_in(gateway: Gateway) -> list[str]:
    folder = gateway.settings.home / "files"
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.mark.parametrize("file_id", ["file-0", "..%2F..%2Fsecrets", "file-" + "0" * 24, "file-%00", "FILE-" + "a" * 24])
def test_an_id_is_no_path(gateway: Gateway, file_id: str):
    """Whatever it looks like, it is a file of the store or it is 404."""
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        error_of(gateway[Scope.ADMIN].request(method, f"/v1/files/{file_id}{path}"), 404)


def test_the_scopes_of_files(gateway: Gateway):
    """Who may read jobs reads files, who may write jobs writes them; a chat key sees nothing."""
    made = upload(gateway, jsonl(CHAT)).json()["id"]

    assert gateway[Scope.JOBS_READ].get(f"/v1/files/{made}").status_code == 200
    for scope in (Scope.JOBS_READ, Scope.CHAT):
        error_of(upload(gateway, jsonl(CHAT), scope), 403)
        error_of(gateway[scope].delete(f"/v1/files/{made}"), 403)
    for path in ("", f"/{made}", f"/{made}/content"):
        error_of(gateway[Scope.CHAT].get(f"/v1/files{path}"), 403)


def test_a_file_that_a_job_needs_stays(gateway: Gateway, files: openai.resources.Files):
    """409 until the job has finished; the file is whole afterwards."""
    add_version(gateway.settings, "line-sft")
    made = files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    with sdk(gateway, Scope.JOBS_WRITE) as client:
        job = client.fine_tuning.jobs.create(model="line-sft", training_file=made.id)

    with pytest.raises(openai.ConflictError, match=job.id):
        files.delete(made.id)
    assert files.content(made.id).content == jsonl(CHAT)
    gateway.jobs.ask_cancel(job.id)
    assert files.delete(made.id).deleted


def test_a_job_finds_out_that_its_file_is_being_deleted(gateway: Gateway, files: openai.resources.Files):
    """Deleted between the check and the record: 404, and the job that was made of it does not run."""
    add_version(gateway.settings, "line-sft")
    made = files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    store = FileStore(gateway.settings.home / "files")

    class Deleting(JobStore):
        def create(self, *args: Any, **options: Any) -> tuple[JobRecord, bool]:
            with store.deleting(made.id):
                pass
            return super().create(*args, **options)

    state: Any = SimpleNamespace(
        settings=gateway.settings,
        redis=gateway.redis,
        jobs=Deleting(gateway.redis),
        files=store,
        models=ModelStore(gateway.settings.models),
    )
    body = FineTuningCreate(model="line-sft", training_file=made.id)
    with pytest.raises(NotFound):
        create_job(body, KeyRecord(id="k", name="n", scopes=[Scope.JOBS_WRITE], created=0, hint=""), state, Response())

    (record,) = gateway.jobs.recent()
    assert (record.state, record.error) == (JobState.FAILED, "Its training file was deleted.")
    assert queued_messages(gateway.redis) == []


# Deleting.


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files")


def kept_since_yesterday(store: FileStore) -> str:
    with store.receive() as incoming:
        incoming.write(jsonl(CHAT))
        file = incoming.keep("rows.jsonl", "k").id
    os.utime(store.root / file, (time.time() - 25 * 3600,) * 2)
    return file


def asked_to_delete(store: FileStore, file: str, users: Callable[[str], list[str]]) -> None:
    """The route, where `users` is asked which jobs need the file."""
    state: Any = SimpleNamespace(files=store, jobs=SimpleNamespace(unfinished_of_file=users))
    delete_file(file, KeyRecord(id="k", name="n", scopes=[Scope.JOBS_WRITE], created=0, hint=""), state)


def test_an_upload_does_not_clear_away_a_file_whose_deletion_is_decided(store: FileStore):
    """A file of yesterday once looked like the rest of a deletion, went with it, and the job that needed it failed."""
    file = kept_since_yesterday(store)

    def upload_another(_: str) -> list[str]:
        with store.receive() as other:
            other.write(b"x")
        return ["job-1"]

    with pytest.raises(Conflict, match="job-1"):
        asked_to_delete(store, file, upload_another)

    assert store.content(file).read_bytes() == jsonl(CHAT)


def test_a_gateway_that_dies_while_it_decides_takes_no_file_along(store: FileStore):
    """The file stays in its place until nobody is known to need it; it was once hidden for as long as that took."""
    file, seen = kept_since_yesterday(store), []

    def look(file: str) -> list[str]:
        seen.append(store.get(file).id)
        return []

    asked_to_delete(store, file, look)

    assert seen == [file]
    assert os.listdir(store.root) == []


def test_a_new_user_of_a_file_waits_for_the_decision(store: FileStore):
    """And then knows whether it has the file."""
    stays, goes = kept_since_yesterday(store), kept_since_yesterday(store)
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(KeyError), store.deleting(stays), store.deleting(goes):
            confirmed = [pool.submit(store.confirm, file) for file in (stays, goes)]
            time.sleep(0.2)
            waited = [not one.done() for one in confirmed]
            raise KeyError
        confirmed[0].result(5)
        confirmed[1].result(5)
        with store.deleting(goes):
            late = pool.submit(store.confirm, goes)
            time.sleep(0.2)

        assert waited == [True, True]
        assert isinstance(late.exception(5), NotFound)


# Turns.


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No check of a gateway in this process ends before this is set."""
    go_on, check = threading.Event(), Turn.check

    def wait_first(turn: Turn, *asked: Any) -> Any:
        go_on.wait(30)
        return check(turn, *asked)

    monkeypatch.setattr(Turn, "check", wait_first)
    yield go_on
    go_on.set()


def test_no_plain_route_waits_for_checks(gateway: Gateway, files: openai.resources.Files, held: threading.Event):
    """Sixty uploads once took every thread there is; now a few wait for their turn, and the others are told when."""
    assert gateway[Scope.JOBS_WRITE] and gateway[Scope.ADMIN], "made before the threads ask for them"
    with ThreadPoolExecutor(60) as pool:
        uploads = [pool.submit(upload, gateway, jsonl(CHAT)) for _ in range(60)]
        wait_until(lambda: sum(one.done() for one in uploads) == 60 - MOST_AT_ONCE)
        plain = gateway[Scope.ADMIN].get("/v1/keys")
        held.set()
        replies = [one.result() for one in uploads]

    refused = [reply for reply in replies if reply.status_code != 200]
    assert plain.status_code == 200
    assert len(refused) == 60 - MOST_AT_ONCE
    assert {(error_of(reply, 429)["code"], reply.headers["retry-after"]) for reply in refused} == {
        ("rate_limit_exceeded", "30")
    }
    assert len(kept_in(gateway)) == MOST_AT_ONCE, "nothing is kept of what was refused"


def test_an_upload_that_cannot_be_checked_is_refused_before_it_is_sent(gateway: Gateway, held: threading.Event):
    """Not after its hundred megabytes."""
    url, key = httpx.URL(gateway.url), gateway[Scope.JOBS_WRITE].headers["authorization"]
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 100000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    with ThreadPoolExecutor(MOST_AT_ONCE + 1) as pool:
        uploads = [pool.submit(upload, gateway, jsonl(CHAT)) for _ in range(MOST_AT_ONCE + 1)]
        wait_until(lambda: any(one.done() for one in uploads))
        with socket.create_connection((url.host, url.port), timeout=10) as connection:
            connection.sendall(head.encode())
            reply = connection.recv(1000)
        held.set()

    assert reply.startswith(b"HTTP/1.1 429")


def test_an_upload_touches_the_disk_in_threads_only(gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    """Looking for what others left behind, and clearing away, once held up everybody who chats."""
    beside_the_loop = []

    def note(owner: type, name: str) -> None:
        done = getattr(owner, name)

        def noted(*args: Any) -> Any:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                beside_the_loop.append(name)
            return done(*args)

        monkeypatch.setattr(owner, name, noted)

    for owner, name in ((FileStore, "receive"), (Incoming, "__enter__"), (Incoming, "write"), (Incoming, "__exit__")):
        note(owner, name)
    upload(gateway, jsonl(CHAT))

    assert beside_the_loop == ["receive", "__enter__", "write", "__exit__"]


# Sizes.


@pytest.fixture
def small(redis_url: str, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that takes files of 200 kB, and other bodies of 2 kB."""
    limits = GatewaySettings(max_upload_bytes=200_000, max_body_bytes=2048)
    with gateway_on(redis_url, tmp_path, FakeActor(), limits=limits) as gateway:
        yield gateway


def streamed(body: bytes) -> Iterator[bytes]:
    """Without a declared length."""
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]


def form_of(content: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    return head + content + b"\r\n--b--\r\n"


@pytest.mark.parametrize("declared", [True, False])
def test_a_file_may_be_larger_than_other_bodies_up_to_its_own_limit(small: Gateway, declared: bool):
    """413 beyond it, whether the length is declared or not; nothing is kept then."""

    def send(content: bytes) -> httpx.Response:
        form = form_of(content)
        headers = {"content-type": "multipart/form-data; boundary=b"}
        body = form if declared else streamed(form)
        return small[Scope.JOBS_WRITE].post("/v1/files", content=body, headers=headers, timeout=60)

    fits, too_large, far_too_large = (send(chats(count)) for count in (1500, 1900, 8000))

    assert (fits.status_code, fits.json()["status"]) == (200, "processed")
    assert error_of(too_large, 413)["code"] == error_of(far_too_large, 413)["code"] == "request_too_large"
    assert kept_in(small) == [fits.json()["id"]]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/fine_tuning/jobs", "/v1/files/", "/v1/files/x"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_no_other_route_takes_more_than_before(small: Gateway, method: str, path: str):
    """Uploads have room, nothing else has."""
    body = b'{"recipe": "' + b"x" * 4096 + b'"}'
    reply = small[Scope.ADMIN].request(method, path, content=body, headers={"content-type": "application/json"})

    assert reply.status_code == 413


def test_an_upload_is_not_held_in_memory(gateway: Gateway):
    """7 MB come through a gateway in this very process, which holds some of them at most."""
    content = chats(1000) * 70
    form, writer = form_of(content), gateway[Scope.JOBS_WRITE]
    headers = {"content-type": "multipart/form-data; boundary=b"}
    tracemalloc.start()
    try:
        reply = writer.post("/v1/files", content=streamed(form), headers=headers, timeout=120)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert reply.json()["vc_check"]["num_rows"] == 70_000
    assert len(content) > 6e6
    assert peak < 5e6


def test_an_upload_that_breaks_off_leaves_nothing(gateway: Gateway):
    """The client goes away in the middle of the file."""
    shutil.rmtree(gateway.settings.home / "files", ignore_errors=True)
    form, url = form_of(chats(1000)), httpx.URL(gateway.url)
    key = gateway[Scope.JOBS_WRITE].headers["authorization"]
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: {len(form)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head.encode() + form[: len(form) // 2])
        wait_until(lambda: kept_in(gateway))

    wait_until(lambda: not kept_in(gateway))


def test_a_slow_upload_is_given_up(redis_url: str, tmp_path: Path):
    """408 after its own time, which is not that of other bodies."""
    limits = GatewaySettings(upload_timeout_s=0.3)
    with gateway_on(redis_url, tmp_path, FakeActor(), limits=limits) as gateway:

        def dripping() -> Iterator[bytes]:
            yield form_of(chats(10))[:50]
            time.sleep(1)
            yield b"x"

        headers = {"content-type": "multipart/form-data; boundary=b"}
        reply = gateway[Scope.JOBS_WRITE].post("/v1/files", content=dripping(), headers=headers)

        error_of(reply, 408)
        assert kept_in(gateway) == []


def test_a_disk_that_cannot_be_written_is_told(redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """503, and in the log where the files should go; here something else is there."""
    with gateway_on(redis_url, tmp_path, FakeActor()) as gateway:
        (tmp_path / "files").touch()
        reply = upload(gateway, jsonl(CHAT))

    assert "cannot write where files are kept" in error_of(reply, 503)["message"]
    assert str(tmp_path) not in reply.text
    assert str(tmp_path / "files") in caplog.text


def test_a_check_reads_every_line_whatever_it_is(tmp_path: Path):
    """Counted alike however the faults are spread; tokens are those of usable rows."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(jsonl(CHAT, CHAT) + b"{\n" + jsonl(PREFERENCE))

    for_sft, for_dpo = check_file(file, "sft"), check_file(file, "preference")

    assert (for_sft.num_rows, for_sft.num_usable, for_sft.num_duplicates, for_sft.num_faults) == (4, 1, 1, 2)
    assert (for_dpo.num_usable, for_dpo.num_faults) == (2, 1)
    assert 0 < for_sft.num_tokens < for_dpo.num_tokens
