"""A server on this machine that answers with the bytes that it was told, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Scripted:
    """`answer` is all it says, or a function of the request's body, None if it has none; None closes the connection.

    Nothing is answered before `gather` requests have come. Every answer ends its connection, and every connection
    brings one request. `base_url` has no path.
    With `tls`, it is also a proxy to any host that the certificate is for, and answers in that host's name.
    """

    def __init__(
        self,
        answer: bytes | Callable[[Any], bytes | None] | None,
        *,
        delay: float = 0.0,
        gather: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answer = answer
        self.heads: list[str] = []
        self.bodies: list[Any] = []
        self._delay = delay
        self._gather = gather
        self._gathered = asyncio.Event()
        self._tls = tls

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**26, backlog=1024)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if self._tls is not None and head.startswith("CONNECT "):
            writer.write(b"HTTP/1.1 200 X\r\n\r\n")
            await writer.drain()
            await writer.start_tls(self._tls)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        self.heads.append(head)
        body = json.loads(await reader.readexactly(int(lengths[0]))) if lengths else None
        self.bodies.append(body)
        try:
            await asyncio.sleep(self._delay)
            if len(self.heads) >= self._gather:
                self._gathered.set()
            await self._gathered.wait()
            answer = self._answer(body) if callable(self._answer) else self._answer
            if answer is not None:
                writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass  # the client had read enough
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def http(status: int, body: object, **headers: str) -> bytes:
    """A whole answer; `body` is bytes, or becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(content)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def certificate(host: str, folder: Path) -> Path:
    """A file with the host's key and a certificate that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "host.pem").write_bytes(plain + signed.public_bytes(pem))
    return folder / "host.pem"
