"""What goes into the audit log: every request that changes something or shows texts, and who was refused.

A layer around the app and one call in `gateway.auth` do it, so no route has to think of it. A request that may change
something is entered before its route runs, and is refused when that is impossible; its end is entered before the reply.
Refusals are entered beside the way, a few a minute for each key: who is refused must not be able to fill the log.
Chat is not entered: it changes nothing, and its rate and cost are in the metrics and the key's usage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.contracts.audit import Deed, Outcome, as_target
from vcllm.contracts.problems import Problem, Unavailable
from vcllm.stores.audit import AuditLog
from vcllm.web.tracing import request_id, trace_id

log = logging.getLogger(__name__)

READ_ONLY = frozenset({"GET", "HEAD", "OPTIONS"})
NOT_ENTERED = frozenset({"/v1/chat/completions"})
READS_ENTERED = frozenset(
    {
        "/v1/audit",
        "/v1/campaigns/{lineage}/archive",
        "/v1/files/{file_id}/content",
        "/v1/jobs/{job_id}/logs",
        "/v1/lineage/pairs/{lineage}/{pair}",
        "/v1/reviews",
        "/v1/reviews/{review}",
    }
)
"""They show texts of others, or the log itself."""

REFUSALS_A_MINUTE = 10
"""Of one key, or of all who have none."""
MOST_NAMES = 1000
LONGEST_REPLY = 1 << 16
"""Bytes of a reply in which the id of what was made is looked for."""

_MARK = "vc_audit"


@dataclass
class Mark:
    """What is known of a request so far."""

    actor: str | None = None
    """Id of its key."""
    begun: int | None = None
    """Number of its first entry; None: it has none."""


class Auditor:
    """Enters deeds, without anybody on the event loop waiting for Redis."""

    def __init__(self, store: AuditLog) -> None:
        self.store = store
        self._writers = CapacityLimiter(4)
        self._refusals = CapacityLimiter(1)
        self._thin = Thinning(REFUSALS_A_MINUTE)
        self._open: set[asyncio.Task[None]] = set()

    async def begin(self, scope: Scope, actor: str) -> None:
        """Called once the key is known to have the right. Unavailable when it cannot be entered: nothing is done."""
        mark = scope.get(_MARK)
        if mark is None or mark.begun is not None or not is_entered(scope):
            return
        try:
            mark.begun = await self._append(deed_of(scope, actor, Outcome.BEGUN))
        except (RedisError, OSError) as error:
            raise Unavailable(
                "The audit log cannot be written, so nothing was done. Try again in a moment.", retry_after_s=5
            ) from error

    async def end(self, scope: Scope, mark: Mark, status: int, made: str | None) -> None:
        """made: id of what the reply says was made. The deed is on record already, so a lost end only is logged."""
        outcome = Outcome.DONE if status < 400 else Outcome.REFUSED if status < 500 else Outcome.FAILED
        deed = deed_of(scope, mark.actor, outcome, status=status, of=mark.begun, made=made)
        try:
            await self._append(deed)
        except (RedisError, OSError, Problem) as error:
            log.error("The end of audit entry %s (%s) was not entered: %s.", mark.begun, outcome, type(error).__name__)

    def refuse(self, scope: Scope, actor: str | None, status: int) -> None:
        """Beside the way; those that are too many are only counted."""
        withheld = self._thin.admit(actor or "")
        if withheld is None:
            return
        task = asyncio.create_task(
            self._enter_refusal(deed_of(scope, actor, Outcome.REFUSED, status=status, withheld=withheld))
        )
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self) -> None:
        """Wait for what is being entered."""
        await asyncio.gather(*self._open)

    async def _append(self, deed: Deed) -> int:
        entry = await to_thread.run_sync(self.store.append, deed, limiter=self._writers)
        return entry.seq

    async def _enter_refusal(self, deed: Deed) -> None:
        try:
            await to_thread.run_sync(self.store.append, deed, limiter=self._refusals)
        except (RedisError, OSError, Problem) as error:
            log.warning("A refusal was not entered into the audit log: %s.", type(error).__name__)


class Thinning:
    """So many a minute for each name; what is withheld is counted for the next one that is not."""

    def __init__(self, a_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.a_minute = a_minute
        self._clock = clock
        self._seen: dict[str, tuple[int, int]] = {}
        """Name to how many came in its minute, and which minute that was."""
        self._withheld: dict[str, int] = {}

    def admit(self, name: str) -> int | None:
        """How many of this name were withheld since the last that was not; None: this one is, too."""
        minute = int(self._clock() // 60)
        if len(self._seen) > MOST_NAMES:
            self._seen.clear()
        number, when = self._seen.get(name, (0, minute))
        number = number + 1 if when == minute else 1
        self._seen[name] = number, minute
        if number > self.a_minute:
            self._withheld[name] = self._withheld.get(name, 0) + 1
            return None
        return self._withheld.pop(name, 0)


class AuditLayer:
    """Around the app: sees every reply, and holds back that of an entered request until its end is entered."""

    def __init__(self, app: ASGIApp, auditor: Callable[[], Auditor | None]) -> None:
        """auditor: None before the start and after the end, when nothing is served."""
        self.app = app
        self.auditor = auditor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        auditor = self.auditor()
        if scope["type"] != "http" or auditor is None:
            await self.app(scope, receive, send)
            return
        mark = scope[_MARK] = Mark()
        held: Message | None = None

        async def pass_on(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                if mark.begun is not None:
                    held = message
                    return
                if message["status"] in (401, 403):
                    auditor.refuse(scope, mark.actor, message["status"])
            elif held is not None:
                start, held = held, None
                await auditor.end(scope, mark, start["status"], made_by(start["status"], message))
                await send(start)
            await send(message)

        await self.app(scope, receive, pass_on)


def note_key(scope: Scope, key_id: str) -> None:
    """Whose request this is, also should it be refused."""
    if (mark := scope.get(_MARK)) is not None:
        mark.actor = key_id


def is_entered(scope: Scope) -> bool:
    if scope["method"] in READ_ONLY:
        return route_of(scope) in READS_ENTERED
    return scope["path"] not in NOT_ENTERED


def route_of(scope: Scope) -> str:
    """The template, never the path: that may hold anything."""
    return str(getattr(scope.get("route"), "path", "other"))


def deed_of(
    scope: Scope,
    actor: str | None,
    outcome: Outcome,
    *,
    status: int | None = None,
    made: str | None = None,
    **more: Any,
) -> Deed:
    """made: the target, where the address names none."""
    named = [as_target(value) or "?" for value in scope.get("path_params", {}).values()]
    return Deed(
        actor=actor,
        action=f"{scope['method']} {route_of(scope)}",
        target="/".join(named) or made,
        outcome=outcome,
        status=status,
        request=request_id.get(),
        trace=trace_id(),
        **more,
    )


def made_by(status: int, message: Message) -> str | None:
    """The id in the reply of a route that makes something; nothing else of the reply is looked at."""
    body = message.get("body", b"")
    if status >= 300 or message.get("more_body") or not 0 < len(body) <= LONGEST_REPLY:
        return None
    try:
        reply = json.loads(body)
    except ValueError:
        return None
    if not isinstance(reply, dict):
        return None
    return next((as_target(reply[name]) for name in ("id", "lineage", "current") if reply.get(name)), None)
