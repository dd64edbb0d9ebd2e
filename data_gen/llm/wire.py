"""What providers over HTTP have in common: addresses, keys, failures, waits, counts of tokens, and text."""

from __future__ import annotations

import email.utils
import ipaddress
import math
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from configs.errors import UserError
from data_gen.llm.chat import Ambiguous, NotSent, Permanent

LONGEST_WAIT_SECONDS = 600.0
"""What a provider may say and be believed."""

_MOST_TOKENS = 10**8  # of one reply; ten times the longest context on offer, and beyond it a count is nonsense
_MESSAGE_CHARS = 300

_NEVER_CONNECTED = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_TAKES_NOBODY = (429, 503, 529)  # of which 429 is a limit of rate
_MAY_BE_DONE = (408, 409, 499)  # and 500 to 599: it was begun
_ABOUT_THE_REQUEST = (400, 422)


def is_loopback(address: str, *, setting: str) -> bool:
    """Whether the address that `setting` gives is on this machine; raises `UserError` if it is none."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        bad = parts.scheme not in ("http", "https") or not host or parts.port == 0
    except ValueError:
        bad, host = True, ""
    if bad:
        raise UserError(f"{setting} = {address!r} is no address; write one such as http://127.0.0.1:8000/v1")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_here(address: str, *, setting: str) -> bool:
    """`is_loopback`, of "" too, the provider's own; raises `UserError` where credentials would go in the open."""
    if not address:
        return False
    if not (here := is_loopback(address, setting=setting)) and not address.startswith("https://"):
        raise UserError(f"{setting} = {address!r}: only a server on this machine is spoken to over http://")
    return here


def key_from_environment(variable: str, *, where: str, setting: str) -> str:
    """The key for `where` that the environment variable holds, which `setting` names.

    Raises:
      UserError: it is not set, or holds what no header can carry.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"no key for {where}: the environment variable {variable} is not set; "
            f"export {variable}=..., or name another variable in {setting}"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{variable} holds characters that no key has, such as a line break inside or a letter with "
            f"an accent; export {variable}=... anew"
        )
    return key


def readable(message: str, *, secrets: Sequence[str]) -> str:
    """One line of at most 300 characters, without the secrets."""
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    return " ".join(well_formed(message).split())[:_MESSAGE_CHARS]


def without(body: bytes, *, secrets: Sequence[str]) -> bytes:
    """A body in which a server, or a proxy before it, may have thrown back what it was sent."""
    for secret in filter(None, secrets):
        body = body.replace(secret.encode(), b"***")
    return body


def unanswered(kind: str, message: str) -> NotSent | Ambiguous:
    """A failure of a library's HTTP client, by the name of its class, for the client is httpx or httpx2."""
    return NotSent(message) if kind in _NEVER_CONNECTED else Ambiguous(message)


def refusal(status: int, message: str, *, retry_after: float | None = None) -> NotSent | Ambiguous | Permanent:
    """What a status says by itself, whoever answers with it."""
    if status in _TAKES_NOBODY:
        return NotSent(message, retry_after=retry_after, rate_limited=status == 429)
    if status in _MAY_BE_DONE or status >= 500:
        return Ambiguous(message)
    if status == 413:
        return Permanent(message, scope="request")
    return Permanent(message, scope="unclear" if status in _ABOUT_THE_REQUEST else "run")


def retry_after(header: str | None, *, now: float) -> float | None:
    """Seconds to wait, from seconds or an HTTP date; None for anything else, at most ten minutes."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
        except (ValueError, OverflowError):
            return None
    return min(seconds, LONGEST_WAIT_SECONDS) if seconds >= 0 and math.isfinite(seconds) else None


def token_count(value: object) -> int:
    """A count as a provider gives it; 0 for what is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return value if 0 <= value <= _MOST_TOKENS else 0


def well_formed(text: str) -> str:
    """JSON allows lone surrogates, UTF-8 and so every file does not."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
