"""Clients that go away: at any moment of an exchange with an Actor, politely or not."""

from __future__ import annotations

import asyncio
import json
import random

from pydantic import SecretStr

from vcllm.web.tokens import Signer

MOMENTS = ("body", "queue", "whole", "stream")
LONGEST_S = 0.6


async def vanish(port: int, signer: Signer, chance: random.Random) -> None:
    """Ask for a long answer and be gone before it has come."""
    moment = chance.choice(MOMENTS)
    content = json.dumps(
        {
            "model": "v1",
            "messages": [{"role": "user", "content": "Who may speak? " * chance.choice((1, 1, 100))}],
            "max_tokens": 12_000,
            "temperature": 0,
            "stream": moment == "stream",
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: {signer.header('actor')}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + (content[:20] if moment == "body" else content))
        await writer.drain()
        if moment == "stream":
            await asyncio.wait_for(reader.read(200), 60)
        if moment != "queue":
            await asyncio.sleep(chance.uniform(0, LONGEST_S))
    except OSError:
        pass  # refused and closed before we had finished
    finally:
        if chance.random() < 0.5:
            writer.transport.abort()
        writer.close()


async def vanish_all(port: int, secret: str, clients: int, chance: random.Random) -> None:
    """Many of them, side by side. secret: the internal token."""
    signer = Signer(SecretStr(secret), "gateway")
    await asyncio.gather(*(vanish(port, signer, chance) for _ in range(clients)))
