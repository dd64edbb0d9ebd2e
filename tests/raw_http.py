"""Raw HTTP/1.1 to a simulated server, and what it answers, byte for byte: no client library stands in between."""

from __future__ import annotations

import asyncio
import json

from data_gen.config import Faults, Simulated
from data_gen.llm.server import SimulatedServer
from data_gen.llm.server.service import Conduct

Answer = tuple[int, dict[str, str], bytes]


async def exchange(server: SimulatedServer, raw: bytes) -> list[Answer]:
    """Sends raw bytes on one connection and reads answers until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answers = []
    try:
        writer.write(raw)
        writer.write_eof()
        while head := await reader.read(1):
            try:
                head += await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            status, *lines = head.decode().split("\r\n")[:-2]
            headers = dict(line.split(": ", 1) for line in lines)
            body = await reader.readexactly(int(headers["content-length"]))
            answers.append((int(status.split()[1]), headers, body))
    except ConnectionResetError:
        pass  # the server closed with our bytes unread
    finally:
        writer.close()
    return answers


def post(body: object, *, path: str = "/v1/chat/completions", close: bool = False) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + content


def served(raw: bytes, *, faults: Faults | None = None) -> tuple[list[Answer], SimulatedServer]:
    """What a server of its own answers, and that server, with its counts."""

    async def run() -> tuple[list[Answer], SimulatedServer]:
        async with SimulatedServer(
            Simulated(faults=faults or Faults()), conduct=Conduct(latency_seconds=0.0)
        ) as server:
            return await exchange(server, raw), server

    return asyncio.run(run())
