"""Who asks Gemini, and where: keys, Google's credentials, addresses, and what of them shows."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import Scripted, certificate, http
from test_gemini import GOOD, Platform, ask, asking, error

from configs.errors import UserError
from data_gen.config import Gemini
from data_gen.llm.chat import ChatReply, Permanent
from data_gen.llm.gemini import GeminiChat


def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WIZARD_TEST_KEY", raising=False)
    with pytest.raises(UserError, match="WIZARD_TEST_KEY is not set"):
        GeminiChat(Gemini(model="m", platform="ai_studio", api_key_env="WIZARD_TEST_KEY"))


def test_missing_google_credentials_are_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")
    with pytest.raises(UserError, match="gcloud auth application-default login"):
        GeminiChat(Gemini(model="m"))


def test_credentials_without_a_project_need_one_in_the_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "user.json").write_text(json.dumps({**user, "quota_project_id": "q"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "user.json"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no gcloud, which would be asked for its project
    for variable in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=r"write llm\.project="):
        GeminiChat(Gemini(model="m"))

    async def open_and_close() -> None:
        async with GeminiChat(Gemini(model="m", project="a-project")):
            pass

    asyncio.run(open_and_close())


@pytest.mark.parametrize("platform", ["vertex", "ai_studio"])
def test_a_server_on_this_machine_gets_nothing_from_the_environment(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.setenv(variable, "CANARY-19c")
    reply, server = ask(http(200, GOOD), platform=platform)
    assert isinstance(reply, ChatReply)
    assert "CANARY" not in server.heads[0]


@pytest.mark.parametrize("base_url", ["llm.example", "ftp://llm.example", "http://llm.example", "http://[::1"])
def test_an_address_that_is_none_or_in_the_clear_is_refused(base_url: str) -> None:
    with pytest.raises(UserError, match="base_url"):
        GeminiChat(Gemini(model="m", base_url=base_url))


@pytest.mark.parametrize(
    "names",
    [
        {"model": ""},
        {"model": "m?alt=sse"},
        {"model": "../secrets"},
        {"model": "a b"},
        {"location": "evil.example/#"},
        {"location": ""},
        {"project": "p/../q"},
    ],
)
def test_a_name_that_would_change_the_address_is_refused(names: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"llm.{next(iter(names))} = "):
        GeminiChat(Gemini(**{"model": "m", "base_url": "http://127.0.0.1:9", **names}))


def test_the_key_goes_to_the_server_over_tls_and_into_no_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = certificate("llm.example", tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(file)
    monkeypatch.setenv("WIZARD_TEST_KEY", "CANARY-19c")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    async def run() -> tuple[Exception, list[str]]:
        async with Scripted(http(401, error("bad key CANARY-19c")), tls=tls) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.base_url)
            config = Gemini(
                model="m", platform="ai_studio", api_key_env="WIZARD_TEST_KEY", base_url="https://llm.example"
            )
            async with GeminiChat(config) as chat:
                with pytest.raises(Permanent) as failed:
                    await chat.complete(asking())
            return failed.value, proxy.heads

    failure, heads = asyncio.run(run())
    assert len(heads) == 1
    assert "x-goog-api-key: CANARY-19c" in heads[0]
    assert "CANARY" not in repr(failure)
    assert "***" in str(failure)


def test_the_client_library_is_imported_only_by_those_who_use_it() -> None:
    program = "import sys, data_gen.llm.gemini; sys.exit('google.genai' in sys.modules or 'google.auth' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
