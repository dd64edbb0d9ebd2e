"""Application-default credentials of Google Cloud, for those who speak to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.errors import UserError
from data_gen.llm.chat import NotSent, Permanent
from data_gen.llm.wire import readable

if TYPE_CHECKING:
    from google.auth.exceptions import GoogleAuthError

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@dataclass(frozen=True)
class GoogleCredentials:
    """google-auth's credentials object, and the project that they name ("" if none)."""

    credentials: Any
    project: str


def application_default() -> GoogleCredentials:
    """The credentials that Google's tools agree on: a file that the environment names, gcloud's own, or the machine's.

    Raises:
      UserError: there are none, or their file is none.
    """
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    try:
        credentials, project = google.auth.default(scopes=[_SCOPE])
    except GoogleAuthError as error:
        raise UserError(
            "no Google credentials: run `gcloud auth application-default login`, or let GOOGLE_APPLICATION_CREDENTIALS "
            f"name the file of a service account ({readable(str(error), secrets=())})"
        ) from error
    return GoogleCredentials(credentials, project or "")


class GoogleToken:
    """The access token of credentials, renewed some minutes before it expires.

    Waiting for a new one holds up nobody but those who need it: it is fetched in a thread, once for all of them.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self._fetching = asyncio.Lock()

    async def __call__(self) -> str:
        """A token that is good for minutes to come; raises google-auth's errors, which `refused` classes."""
        if not self._credentials.valid:
            async with self._fetching:
                if not self._credentials.valid:
                    await asyncio.to_thread(self._fetch)
        return str(self._credentials.token)

    def _fetch(self) -> None:
        from google.auth.transport.requests import Request

        self._credentials.refresh(Request())


def refused(error: GoogleAuthError, *, secrets: Sequence[str] = ()) -> NotSent | Permanent:
    """What it means for a request that no token was to be had for it."""
    from google.auth.exceptions import TransportError

    message = readable(f"no Google access token: {error}", secrets=secrets)
    return NotSent(message) if error.retryable or isinstance(error, TransportError) else Permanent(message, scope="run")
