"""What providers over HTTP have in common."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from configs.errors import UserError
from data_gen.llm.wire import is_loopback, key_from_environment, readable, retry_after, token_count, well_formed

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("2", 2.0),
        ("0.25", 0.25),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("1e9", 600.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        (formatdate(NOW + 1e7, usegmt=True), 600.0),
    ],
)
def test_every_form_of_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=NOW) == seconds


@pytest.mark.parametrize("value", [None, True, False, -1, 2.5, "7", [], {}, 10**30, float("nan")])
def test_a_count_that_is_none_is_0(value: object) -> None:
    assert token_count(value) == 0
    assert token_count(7) == 7


def test_a_message_is_one_line_without_secrets_that_any_file_can_hold() -> None:
    assert readable("a\nkey\x00 KEY-1 \ud83d", secrets=["KEY-1", ""]) == "a key\x00 *** \ufffd\ufffd\ufffd"
    assert len(readable("x" * 10_000, secrets=())) == 300
    assert well_formed("\ud83d") == "\ufffd\ufffd\ufffd"


@pytest.mark.parametrize(
    ("base_url", "loopback"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost", True),
        ("http://[::1]:8000", True),
        ("https://api.openai.com/v1", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://user@127.0.0.1@evil.example", False),
    ],
)
def test_a_server_of_this_machine_is_known_by_its_host(base_url: str, loopback: bool) -> None:
    assert is_loopback(base_url, setting="llm.base_url") == loopback


def test_a_key_is_stripped_and_a_blank_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIZARD_TEST_KEY", " k-1\n")
    assert key_from_environment("WIZARD_TEST_KEY", where="there", setting="llm.api_key_env") == "k-1"
    monkeypatch.setenv("WIZARD_TEST_KEY", " ")
    with pytest.raises(UserError, match="no key for there"):
        key_from_environment("WIZARD_TEST_KEY", where="there", setting="llm.api_key_env")
