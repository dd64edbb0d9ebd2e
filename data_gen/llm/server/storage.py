"""Cloud Storage, as far as its client library needs it to upload, list and download: the JSON API, in memory.

Any bucket is taken to exist. Uploads come whole, in a multipart body with their metadata, or in pieces to a session.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from data_gen.llm.server.batch_faults import BatchFaults, BatchTrouble
from data_gen.llm.server.fields import read_json
from data_gen.llm.server.gemini_wire import refusal
from data_gen.llm.server.http import Handler, HttpAnswer, HttpRequest, Refused, Route

_MOST_OBJECT_BYTES = 1_100_000_000  # what Vertex AI takes as one input file, and some room
_PAGE = 1000
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True)
class Stored:
    data: bytes
    generation: int
    content_type: str


@dataclass
class _Session:
    """A resumable upload under way."""

    bucket: str
    name: str
    content_type: str
    query: Mapping[str, str]
    data: bytes = b""


class Store:
    """The objects of all buckets, by (bucket, name)."""

    def __init__(self, trouble: BatchTrouble | None = None) -> None:
        self.objects: dict[tuple[str, str], Stored] = {}
        self.trouble = trouble or BatchTrouble(BatchFaults())
        self.sessions: dict[str, _Session] = {}
        self._generations = itertools.count(1)

    def put(self, bucket: str, name: str, data: bytes, *, content_type: str = "application/octet-stream") -> Stored:
        stored = Stored(data, next(self._generations), content_type)
        self.objects[bucket, name] = stored
        return stored

    def get(self, bucket: str, name: str) -> Stored:
        """Raises `Refused` if there is no such object."""
        try:
            return self.objects[bucket, name]
        except KeyError:
            raise Refused(404, f"No such object: {bucket}/{name}") from None


def routes(store: Store) -> tuple[Route, ...]:
    async def upload(http: HttpRequest) -> HttpAnswer:
        bucket, kind = http.parameters["bucket"], http.query.get("uploadType")
        if kind == "multipart":
            metadata, content_type, data = _two_parts(http)
            name = metadata.get("name") or http.query.get("name")
            return _uploaded(store, http.query, bucket, name, data, content_type=content_type)
        if kind == "media":
            kind_of_content = http.headers.get("content-type", "")
            return _uploaded(store, http.query, bucket, http.query.get("name"), http.body, content_type=kind_of_content)
        if kind == "resumable":
            return _begun(store, http)
        raise Refused(400, f"uploadType {kind!r} is not supported; use multipart, media or resumable")

    async def proceed(http: HttpRequest) -> HttpAnswer:
        return _continued(store, http)

    async def listed(http: HttpRequest) -> HttpAnswer:
        return _listed(store, http)

    async def one(http: HttpRequest) -> HttpAnswer | None:
        bucket, name = http.parameters["bucket"], http.parameters["object"]
        stored = store.get(bucket, name)
        _check_generation(http.query, stored)
        if http.query.get("alt") != "media":
            return HttpAnswer(body=json.dumps(_metadata(bucket, name, stored)).encode())
        if store.trouble.download_breaks():
            return None
        checksums = f"crc32c={_crc32c(stored.data)},md5={_md5(stored.data)}"
        headers = {
            "content-type": stored.content_type,
            "x-goog-hash": checksums,
            "x-goog-generation": str(stored.generation),
        }
        return HttpAnswer(body=stored.data, headers=headers)

    async def delete(http: HttpRequest) -> HttpAnswer:
        bucket, name = http.parameters["bucket"], http.parameters["object"]
        _check_generation(http.query, store.get(bucket, name))
        del store.objects[bucket, name]
        return HttpAnswer(status=204)

    def route(method: str, path: str, handler: Handler, *, most: int = 2**16) -> Route:
        return Route(method, path, handler, refusal=refusal, most_body_bytes=most)

    return (
        route("POST", "/upload/storage/v1/b/{bucket}/o", upload, most=_MOST_OBJECT_BYTES),
        route("PUT", "/upload/storage/v1/b/{bucket}/o", proceed, most=_MOST_OBJECT_BYTES),
        route("GET", "/storage/v1/b/{bucket}/o", listed),
        route("GET", "/storage/v1/b/{bucket}/o/{object}", one),
        route("GET", "/download/storage/v1/b/{bucket}/o/{object}", one),
        route("DELETE", "/storage/v1/b/{bucket}/o/{object}", delete),
    )


# --- uploads


def _uploaded(
    store: Store, query: Mapping[str, str], bucket: str, name: object, data: bytes, *, content_type: str
) -> HttpAnswer:
    if not isinstance(name, str) or not name:
        raise Refused(400, "the object has no name")
    _check_generation(query, store.objects.get((bucket, name)))
    stored = store.put(bucket, name, data, content_type=content_type)
    return HttpAnswer(body=json.dumps(_metadata(bucket, name, stored)).encode())


def _two_parts(http: HttpRequest) -> tuple[dict[str, Any], str, bytes]:
    """(metadata, content type, data) of a multipart/related body."""
    boundary = re.search(r'boundary="?([^";]+)', http.headers.get("content-type", ""))
    parts = http.body.split(b"--" + boundary[1].strip("'").encode()) if boundary else []
    if len(parts) != 4 or parts[3].strip() != b"--":
        raise Refused(400, "the body is no multipart/related of two parts")
    metadata, _ = _part(parts[1])
    data, head = _part(parts[2])
    told = re.search(rb"content-type:\s*([^\r\n]+)", head, re.IGNORECASE)
    read = read_json(metadata)
    return read if isinstance(read, dict) else {}, told[1].decode("latin-1") if told else "", data


def _part(part: bytes) -> tuple[bytes, bytes]:
    """(content, head) of one part, without the line breaks that frame it."""
    head, _, content = part.partition(b"\r\n\r\n")
    return content.removesuffix(b"\r\n"), head


def _begun(store: Store, http: HttpRequest) -> HttpAnswer:
    metadata = read_json(http.body) if http.body else {}
    name = metadata.get("name") or http.query.get("name")
    if not isinstance(name, str) or not name:
        raise Refused(400, "the object has no name")
    bucket, content_type = http.parameters["bucket"], http.headers.get("x-upload-content-type", "")
    upload_id = f"upload-{len(store.sessions) + 1}"
    store.sessions[upload_id] = _Session(bucket, name, content_type, http.query)
    where = f"http://{http.headers.get('host', '127.0.0.1')}/upload/storage/v1/b/{quote(bucket)}/o"
    return HttpAnswer(headers={"location": f"{where}?uploadType=resumable&upload_id={upload_id}"})


def _continued(store: Store, http: HttpRequest) -> HttpAnswer:
    session = store.sessions.get(http.query.get("upload_id", ""))
    if session is None:
        raise Refused(404, "there is no such upload")
    where = _RANGE.fullmatch(http.headers.get("content-range", f"bytes *{'' if http.body else '/*'}"))
    first, last, total = where.groups() if where else (None, None, str(len(http.body)))
    if first is not None:
        if int(first) != len(session.data) or int(last or 0) - int(first) + 1 != len(http.body):
            raise Refused(400, f"{len(session.data)} bytes are here, and the piece begins at {first}")
        session.data += http.body
    elif where is None:
        session.data = http.body
    if total != str(len(session.data)):
        known = {"range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}
        return HttpAnswer(status=308, headers=known)
    answer = _uploaded(
        store, session.query, session.bucket, session.name, session.data, content_type=session.content_type
    )
    del store.sessions[http.query["upload_id"]]
    return answer


# --- what an object is known by


def _listed(store: Store, http: HttpRequest) -> HttpAnswer:
    bucket, query = http.parameters["bucket"], http.query
    names = sorted(name for held, name in store.objects if held == bucket and name.startswith(query.get("prefix", "")))
    after = query.get("pageToken", "")
    page = [name for name in names if name > after][: int(query.get("maxResults", _PAGE))]
    body: dict[str, Any] = {
        "kind": "storage#objects",
        "items": [_metadata(bucket, name, store.objects[bucket, name]) for name in page],
    }
    if page and page[-1] != names[-1]:
        body["nextPageToken"] = page[-1]
    return HttpAnswer(body=json.dumps(body).encode())


def _metadata(bucket: str, name: str, stored: Stored) -> dict[str, str]:
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "bucket": bucket,
        "name": name,
        "generation": str(stored.generation),
        "metageneration": "1",
        "contentType": stored.content_type,
        "size": str(len(stored.data)),
        "md5Hash": _md5(stored.data),
        "crc32c": _crc32c(stored.data),
    }


def _check_generation(query: Mapping[str, str], stored: Stored | None) -> None:
    """Raises `Refused` unless the object is of the generation that the client means; 0 means that there is none."""
    wanted = query.get("ifGenerationMatch")
    if wanted is not None and wanted != str(stored.generation if stored else 0):
        raise Refused(412, "At least one of the pre-conditions you specified did not hold.")


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _crc32c(data: bytes) -> str:
    import google_crc32c

    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()
