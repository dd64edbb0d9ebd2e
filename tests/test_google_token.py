"""google-auth itself against a token server on loopback: one fetch for all, in good time, beside the event loop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import GoogleAuthError

from configs.errors import UserError
from data_gen.llm.chat import NotSent, Permanent
from data_gen.llm.google_token import GoogleToken, application_default, refused


class TokenServer:
    """Speaks OAuth 2 as far as a service account needs it; runs in the test's own event loop."""

    def __init__(self, *, lives_seconds: int = 3600, status: int = 200) -> None:
        self.fetches = 0
        self._lives_seconds = lives_seconds
        self._status = status

    async def __aenter__(self) -> TokenServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/token"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
        self.fetches += 1
        token = {"access_token": f"token-{self.fetches}", "expires_in": self._lives_seconds, "token_type": "Bearer"}
        body = json.dumps(token if self._status == 200 else {"error": "invalid_grant"}).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n" % self._status)
        writer.write(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        writer.close()
        await writer.wait_closed()


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*pem).decode()


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_key: str) -> Path:
    """The file of a service account, which the environment names; `tell` completes it."""
    file = tmp_path / "account.json"
    file.write_text(json.dumps({"private_key": private_key}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    return file


def tell(account: Path, token_uri: str) -> None:
    known = {"type": "service_account", "project_id": "a-project", "client_email": "a@b.example", "private_key_id": "1"}
    known |= json.loads(account.read_text()) | {"token_uri": token_uri}
    account.write_text(json.dumps(known))


def test_a_thousand_requests_at_once_fetch_one_token_and_the_event_loop_goes_on_meanwhile(account: Path) -> None:
    async def run() -> tuple[set[str], int, str]:
        async with TokenServer() as server:
            tell(account, server.url)
            found = application_default()
            token = GoogleToken(found.credentials)
            # The server answers from this loop: a fetch that blocked it would never end.
            tokens = set(await asyncio.gather(*(token() for _ in range(1000))))
            return tokens, server.fetches, found.project

    assert asyncio.run(run()) == ({"token-1"}, 1, "a-project")


def test_a_token_that_is_about_to_expire_is_renewed_before_it_does(account: Path) -> None:
    async def run() -> list[str]:
        async with TokenServer(lives_seconds=120) as server:
            tell(account, server.url)
            token = GoogleToken(application_default().credentials)
            return [await token(), await token()]

    assert asyncio.run(run()) == ["token-1", "token-2"]


def test_an_account_that_is_refused_ends_the_run_and_a_server_that_is_not_there_does_not(account: Path) -> None:
    async def failure() -> GoogleAuthError:
        with pytest.raises(GoogleAuthError) as failed:
            await GoogleToken(application_default().credentials)()
        return failed.value

    async def refuse() -> GoogleAuthError:
        async with TokenServer(status=400) as server:
            tell(account, server.url)
            return await failure()

    verdict = refused(asyncio.run(refuse()))
    assert isinstance(verdict, Permanent)
    assert verdict.scope == "run"
    assert "invalid_grant" in str(verdict)
    tell(account, "http://127.0.0.1:1/token")
    assert isinstance(refused(asyncio.run(failure())), NotSent)


def test_no_credentials_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(UserError, match=r"gcloud auth application-default login.*absent\.json"):
        application_default()
    (tmp_path / "absent.json").write_text("{}")
    with pytest.raises(UserError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        application_default()
