"""The gateway as the commands see it: requests with a key, events that survive a lost connection, chat."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from vcllm.commands.errors import CommandError, Refused
from vcllm.contracts.jobs import FINISHED, Event
from vcllm.launch.credentials import DEMO_KEY, read_secret
from vcllm.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8080"
BUSY = (429, 502, 503, 504)
"""Statuses that pass."""
PATIENCE_S = 90.0
"""How long a gateway that does not answer is asked again while a job is followed."""


class Api:
    """One gateway, one key."""

    def __init__(self, url: str, key: str, *, patience_s: float = PATIENCE_S) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self.patience_s = patience_s
        headers = {"Authorization": f"Bearer {key}"}
        # A gateway on loopback is not reached through a proxy that the environment may name.
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=30.0, trust_env=False)

    def __enter__(self) -> Api:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._call("GET", path, params={name: value for name, value in params.items() if value is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Any:
        return self._call("POST", path, json=body, headers=headers)

    def events(self, job_id: str, after: str | None = None) -> Iterator[Event]:
        """The job's events until it has finished; a lost connection is taken up where it was."""
        silent_since = time.monotonic()
        while True:
            try:
                for event in self._stream_events(job_id, after):
                    after, silent_since = event.id or after, time.monotonic()
                    yield event
                    if event.type == "state" and event.data.get("state") in FINISHED and self._is_over(job_id):
                        return
                if self._is_over(job_id):
                    yield self._final_state(job_id)
                    return
            except (httpx.TransportError, _NotNow) as error:
                if time.monotonic() - silent_since > self.patience_s:
                    raise CommandError(
                        f"The gateway at {self.url} has not answered for {self.patience_s:.0f} s; the job may"
                        f" still run. `vcllm jobs watch {job_id}` takes up its events."
                    ) from error
            time.sleep(1)

    def chat(self, messages: list[dict[str, str]], model: str, **sampling: Any) -> Iterator[str]:
        """The reply's text as it comes."""
        body = {"model": model, "messages": messages, "stream": True, **sampling}
        with self._open("POST", "/v1/chat/completions", json=body, timeout=httpx.Timeout(30.0, read=300.0)) as reply:
            for fields in _frames(reply):
                if fields["data"] == "[DONE]":
                    return
                chunk = json.loads(fields["data"])
                if "error" in chunk:
                    raise CommandError(chunk["error"]["message"])
                for choice in chunk.get("choices", []):
                    yield choice.get("delta", {}).get("content") or ""

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            reply = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if reply.is_error:
            raise _refusal(reply)
        return reply.json() if reply.content else None

    def _is_over(self, job_id: str) -> bool:
        """A job that failed may have been resumed since: its record decides, not an event of the past."""
        return self._record(job_id)["state"] in FINISHED

    def _final_state(self, job_id: str) -> Event:
        """For a job whose last event is no longer kept."""
        record = self._record(job_id)
        return Event(
            id="",
            type="state",
            time=time.time(),
            data={"state": record["state"], "error": record.get("error")},
        )

    def _record(self, job_id: str) -> dict[str, Any]:
        reply = self._client.get(f"/v1/jobs/{job_id}")
        if reply.status_code in BUSY:
            raise _NotNow
        if reply.is_error:
            raise _refusal(reply)
        return dict(reply.json())

    def _stream_events(self, job_id: str, after: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(10.0, read=45.0)  # the gateway breaks its silence every 15 s
        path = f"/v1/jobs/{job_id}/events"
        with self._client.stream("GET", path, headers=headers, timeout=timeout) as reply:
            if reply.is_error:
                reply.read()
                if reply.status_code in BUSY:
                    raise _NotNow
                raise _refusal(reply)
            for fields in _frames(reply):
                if event := _event(fields):
                    yield event

    @contextmanager
    def _open(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A streamed reply; a refused one and a lost connection become sentences."""
        started = False
        try:
            with self._client.stream(method, path, **options) as reply:
                if reply.is_error:
                    reply.read()
                    raise _refusal(reply)
                started = True
                yield reply
        except httpx.TransportError as error:
            if started:
                raise CommandError(f"The connection to {self.url} was lost in the middle of the reply.") from error
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> CommandError:
        return CommandError(
            f"The gateway at {self.url} does not answer ({error}). Start it with `vcllm up`, or say where it"
            " is with --url."
        )


class _NotNow(Exception):
    """Refused for the moment; worth another try."""


def find_url(url: str | None, home: Path) -> str:
    """The address given, that of the fleet running here, or the default."""
    return url or str(read_fleet(home).get("gateway", DEFAULT_URL))


def find_key(key: str | None, home: Path) -> str:
    """The key given (option or VCLLM_API_KEY), or the one the launcher made on this machine."""
    found = key or os.environ.get("VCLLM_API_KEY") or read_secret(home, DEMO_KEY)
    if not found:
        raise CommandError("No API key. Give one with --key or VCLLM_API_KEY; `vcllm keys create` makes one.")
    return found


def open_api(url: str | None, key: str | None) -> Api:
    home = Settings().home
    return Api(find_url(url, home), find_key(key, home))


def read_fleet(home: Path) -> dict[str, Any]:
    """Addresses of the fleet that runs on this folder; empty where none does."""
    try:
        return dict(json.loads((home / "run" / "fleet.json").read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _refusal(reply: httpx.Response) -> Refused:
    try:
        message = str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{reply.request.url} answered {reply.status_code} {reply.reason_phrase}."
    return Refused(message, reply.status_code)


def _frames(reply: httpx.Response) -> Iterator[dict[str, str]]:
    """Server-sent events as `{"event", "id", "data"}`; comments are left out."""
    fields: dict[str, str] = {}
    for line in reply.iter_lines():
        if not line:
            if "data" in fields:
                yield fields
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value


def _event(fields: dict[str, str]) -> Event | None:
    """From a frame whose data is the whole event or only its own data; _NotNow from the error that ends a stream."""
    try:
        data = json.loads(fields["data"])
    except ValueError:
        return None  # `[DONE]` and the like: nothing happened to the job
    if not isinstance(data, dict):
        return None
    if "event" not in fields and "error" in data:  # the gateway's own trouble, such as a Redis that starts again
        raise _NotNow
    whole: dict[str, Any] = data if {"type", "data"} <= data.keys() else {"data": data}
    return Event(
        id=fields.get("id") or str(whole.get("id", "")),
        type=str(whole.get("type") or fields.get("event", "log")),
        time=float(whole.get("time", time.time())),
        data=whole["data"],
    )
