"""What is forgotten while it is being looked up must not come back with the lookup."""

from __future__ import annotations

import asyncio
import threading

from gateway.lookups import Lookups


def test_what_is_forgotten_meanwhile_is_not_kept():
    """A key that is revoked just when it is looked up: the old record came too late, the next request asks again."""
    revoked, looked_up = threading.Event(), threading.Event()
    answers = iter(["old", "new"])

    def look_up() -> str:
        answer = next(answers)
        if answer == "old":
            looked_up.set()
            assert revoked.wait(5)
        return answer

    async def work() -> list[str]:
        lookups: Lookups[str] = Lookups(ttl_s=60, grace_s=60)
        early = asyncio.create_task(lookups.get("key", look_up))
        await asyncio.to_thread(looked_up.wait, 5)
        lookups.forget(lambda _: True)
        late = await lookups.get("key", look_up)
        revoked.set()
        return [await early, late, await lookups.get("key", look_up)]

    assert asyncio.run(work()) == ["old", "new", "new"]


def test_what_is_known_can_be_forgotten_from_any_thread():
    """While others are being looked up; nothing is lost and nothing breaks."""

    async def work() -> None:
        lookups: Lookups[int] = Lookups(ttl_s=60, grace_s=60)
        stop = threading.Event()

        def forget() -> None:
            while not stop.is_set():
                lookups.forget(lambda value: value % 2 == 0)

        forgetting = asyncio.create_task(asyncio.to_thread(forget))
        try:
            for number in range(300):
                assert await lookups.get(str(number), lambda number=number: number) == number
        finally:
            stop.set()
            await forgetting

    asyncio.run(work())
