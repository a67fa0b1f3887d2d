"""Chat while things are killed: asked at a steady pace, whole and streamed in turn, and what came of each."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass

import httpx

ASK_EVERY_S = 0.5
QUESTION = "Where is the Teal Party office?"
CLEAN = (502, 503)
"""Statuses of an error that passes; with them comes when to ask again."""


@dataclass(frozen=True)
class Reply:
    """One request for a chat and what its client saw."""

    asked: float
    """Unix seconds, as the next."""
    ended: float
    status: int
    """0: the gateway could not be reached, or hung up."""
    streamed: bool
    text: str
    """What the model said."""
    version: str = ""
    """Of the `x-vc-version` header."""
    retry_after: str | None = None
    finished: bool = False
    """It has a `finish_reason`; a stream also its `[DONE]`."""
    error: str = ""
    """What the gateway said instead, or in the middle of a stream."""
    gateway_was_killed: bool = False
    """Around that time: then a connection may break, and nothing else is excused."""

    @property
    def is_answer(self) -> bool:
        return self.status == 200 and self.finished and not self.error

    def fault(self) -> str | None:
        """None: a whole answer, or an error that a client can act on."""
        if self.status == 0:
            return None if self.gateway_was_killed else f"the gateway broke off: {self.error}"
        if self.status != 200:
            if self.status not in CLEAN:
                return f"status {self.status}: {self.error[:200]}"
            return None if self.retry_after else f"status {self.status} does not say when to come back"
        if not self.finished:
            told = bool(self.error) or self.gateway_was_killed
            return None if told and self.streamed else "an answer ends without saying so"
        if not self.text:
            return "an answer is empty"
        return None if self.version else "an answer names no version"


class Chatter:
    """A client in a thread of its own. Use as a context; `replies` may be read after it."""

    def __init__(self, url: str, key: str) -> None:
        self.replies: list[Reply] = []
        self.gateway_killed_at: list[float] = []
        """To be told by whoever kills the gateway; Unix seconds."""
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chat", daemon=True)

    def __enter__(self) -> Chatter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=60, trust_env=False) as http:
            while not self._ended.wait(ASK_EVERY_S):
                self.replies.append(self._ask(http, streamed=len(self.replies) % 2 == 1))

    def _ask(self, http: httpx.Client, streamed: bool) -> Reply:
        asked = time.time()
        body = {"model": "vc-llm", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
        told: dict[str, str] = {}
        status, raw = 0, b""
        try:
            with http.stream("POST", "/v1/chat/completions", json={**body, "stream": streamed}) as reply:
                status, told = reply.status_code, dict(reply.headers)
                for chunk in reply.iter_bytes():
                    raw += chunk
            broke = ""
        except httpx.TransportError as error:
            broke = type(error).__name__
        if status == 200 and not streamed and broke:
            status = 0  # nothing that could be taken for an answer came
        text, finished, error_text = read_answer(raw, streamed) if status == 200 else ("", False, raw.decode()[:500])
        return Reply(
            asked,
            time.time(),
            status,
            streamed,
            text,
            told.get("x-vc-version", ""),
            told.get("retry-after"),
            finished,
            error_text or (broke if status == 0 else ""),
            self._gateway_was_killed(asked),
        )

    def _gateway_was_killed(self, asked: float) -> bool:
        """It may take some seconds to be there again."""
        return any(asked - 30 < killed < time.time() for killed in self.gateway_killed_at)


def read_answer(raw: bytes, streamed: bool) -> tuple[str, bool, str]:
    """The text, whether the answer is finished, and the error it tells, if any; ValueError never: what cannot be read
    is not finished."""
    if not streamed:
        return _read_whole(raw)
    text, reason, error = "", False, ""
    done = raw.endswith(b"data: [DONE]\n\n")
    for frame in raw.split(b"\n\n"):
        data = b"".join(line[6:] for line in frame.split(b"\n") if line.startswith(b"data: "))
        if not data or data == b"[DONE]":
            continue
        try:
            chunk = json.loads(data)
        except ValueError:
            return text, False, error
        if "error" in chunk:
            error = str(chunk["error"].get("message", chunk["error"]))
        for choice in chunk.get("choices", []):
            text += choice.get("delta", {}).get("content") or ""
            reason = reason or bool(choice.get("finish_reason"))
    return text, done and reason, error


def _read_whole(raw: bytes) -> tuple[str, bool, str]:
    try:
        choice = json.loads(raw)["choices"][0]
        return choice["message"]["content"] or "", bool(choice["finish_reason"]), ""
    except (ValueError, KeyError, IndexError, TypeError):
        return "", False, ""
