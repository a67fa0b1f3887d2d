"""HTTP clients for the gateway's way to its upstream: processor time and answers a second of a bare relay with each.

    python -m benchmarks.gateway_clients [--seconds 4] [--core 0]

A relay is the least an ASGI gateway does: read a body, send it on, read the reply, send it back. It runs on one core
under uvicorn with uvloop and httptools, mock upstream and load on another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from benchmarks.gateway_load import Task
from benchmarks.gateway_servers import REQUEST, measure, mock_upstream, process
from vcllm.launch.ports import free_port
from vcllm.web.http_client import Server

CLIENTS = ("httpx", "httpx2", "aiohttp", "ours")
CONCURRENCY = (1, 16, 64)
Relay = Callable[[bytes], Awaitable[tuple[int, bytes]]]
PATH = "/v1/chat/completions"
HEADERS = {"content-type": "application/json"}


def with_httpx(module: Any, url: str) -> Relay:
    client = module.AsyncClient(trust_env=False, verify=False)

    async def relay(body: bytes) -> tuple[int, bytes]:
        async with client.stream("POST", url, content=body, headers=HEADERS) as reply:
            return reply.status_code, await reply.aread()

    return relay


def with_aiohttp(url: str) -> Relay:
    import aiohttp

    client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def relay(body: bytes) -> tuple[int, bytes]:
        async with client.post(url, data=body, headers=HEADERS) as reply:
            return reply.status, await reply.read()

    return relay


def with_ours(url: str) -> Relay:
    server = Server(url.removesuffix(PATH))

    async def relay(body: bytes) -> tuple[int, bytes]:
        reply = await server.request("POST", PATH, headers=HEADERS, content=body)
        try:
            return reply.status, await reply.read()
        finally:
            reply.close()

    return relay


def make(name: str, url: str) -> Relay:
    if name == "ours":
        return with_ours(url)
    if name == "aiohttp":
        return with_aiohttp(url)
    return with_httpx(__import__(name), url)


def app_with(name: str, url: str) -> Any:
    relay: list[Relay] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                relay.append(make(name, url))
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        status, body = 200, b""
        if scope["method"] == "POST":
            status, body = await relay[0]((await receive())["body"])
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--core", type=int, default=0, help="Of the relay; mock and load get the next one.")
    parser.add_argument("--serve", nargs=3, metavar=("CLIENT", "PORT", "URL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        name, port, url = args.serve
        uvicorn.run(app_with(name, url), port=int(port), log_level="critical", access_log=False)
        return
    other = (args.core + 1) % (os.cpu_count() or 1)
    with mock_upstream(other) as upstream:
        url = f"http://127.0.0.1:{upstream}{PATH}"
        for name in CLIENTS:
            port = free_port()
            command = [sys.executable, "-m", "benchmarks.gateway_clients", "--serve", name, str(port), url]
            with process(name, command, {}, args.core, port, "/") as relay:
                for concurrency in CONCURRENCY:
                    begun = relay.cpu_s
                    task = Task(port, REQUEST, concurrency=concurrency, seconds=args.seconds, warm_s=0.0)
                    found = measure(task, other)
                    found["cpu_ms"] = 1000 * (relay.cpu_s - begun) / max(1, found["answers"])
                    rounded = {key: round(value, 2) for key, value in found.items()}
                    print(json.dumps({"client": name, "concurrency": concurrency, **rounded}), flush=True)


if __name__ == "__main__":
    main()
