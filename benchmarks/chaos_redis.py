"""Redis hangs, or answers seconds late, for half a minute under a gateway: what its clients see of it.

The same as in the tests, for longer, and with the time that a chat takes for its client.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stalled_redis import SLOW_S, Answer, Kind, Seen, p99, stalled_world

STALL_S = 30.0
UNDISTURBED_S = 20.0
ADDED_S = 0.05
REFUSED_WITHIN_S = 6.0
SIGNALS: dict[Kind, str] = {"stopped": f"SIGSTOP for {STALL_S:.0f} s", "slow": f"answers after {SLOW_S:.0f} s"}


def stalls(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each kind of stall."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="vcllm-chaos-") as folder, stalled_world(Path(folder)) as world:
        for kind, name in SIGNALS.items():
            seen = world.watch(kind, STALL_S, UNDISTURBED_S)
            faults = find_faults(seen)
            detail = "; ".join([*faults, told(seen)])
            say(f"redis {name}: {detail}")
            rows.append({"service": "redis", "phase": "serving", "signal": name, "ok": not faults, "detail": detail})
    return rows


def find_faults(seen: Seen) -> list[str]:
    """What a stall must not do."""
    refused, late = seen.refused, max(answer.seconds for answer in seen.refused)
    checks = {
        f"{sum(not chat.is_chat for chat in seen.chats)} chats were not answered": all(
            chat.is_chat for chat in seen.chats
        ),
        f"chat's p99 grew by {1000 * _added_s(seen):.0f} ms": _added_s(seen) <= ADDED_S,
        "something that needs Redis was not refused with 503 and when to come back": all(
            answer.status == 503 and "retry-after" in answer.headers for answer in refused
        ),
        f"a refusal took {late:.1f} s": late < REFUSED_WITHIN_S,
        "the gateway was not alive, or slow to say so": all(
            answer.status == 200 and answer.seconds < 1 for answer in seen.live
        ),
        "it did not stay ready, or never said what it lacked": all(answer.status == 200 for answer in seen.ready)
        and any("degraded" in answer.body for answer in seen.ready),
        "the job from before is not what it was": seen.after == seen.before,
        "its events are not whole": [event["data"].get("state") for event in seen.events] == ["queued"],
        "no job could be made afterwards": seen.made is not None and seen.made.status == 201,
    }
    return [fault for fault, is_well in checks.items() if not is_well]


def told(seen: Seen) -> str:
    return (
        f"{len(seen.chats)} chats, p99 {_ms(seen.chats)} ms against {_ms(seen.undisturbed)} ms undisturbed;"
        f" {len(seen.refused)} refused within {max(answer.seconds for answer in seen.refused):.1f} s;"
        f" ready again after {seen.recovered_s:.1f} s"
    )


def _added_s(seen: Seen) -> float:
    return p99([chat.seconds for chat in seen.chats]) - p99([chat.seconds for chat in seen.undisturbed])


def _ms(chats: list[Answer]) -> str:
    return f"{1000 * p99([chat.seconds for chat in chats]):.0f}"
