"""The part of the Hugging Face Hub that `huggingface_hub` needs to read and write models, on loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    commits: int = 1

    @property
    def commit(self) -> str:
        """A hash of what it holds, as a commit's."""
        told = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.files.items())}
        return hashlib.sha1(json.dumps(told).encode()).hexdigest()


@dataclass
class FakeHub:
    repos: dict[str, Repo] = field(default_factory=dict)
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    tokens: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded as a large file, by its SHA-256."""


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, told: Any) -> None:
        self._answer(200, json.dumps(told).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self) -> None:
        path = urlsplit(self.path).path
        body = self._body()
        self.hub.asked.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            self.hub.blobs[path.removeprefix("/lfs/")] = body
            return self._answer(200)
        found = re.match(r"(?:/api/models|/datasets)?/([\w.-]+/[\w.-]+?)(\.git/info/lfs/objects/batch|/.*|)$", path)
        repo = self.hub.repos.get(found[1]) if found else None
        if found is None or repo is None:
            return self._answer(404, b"", X_Error_Code="RepoNotFound")
        if repo.gated:
            return self._answer(403, b"", X_Error_Code="GatedRepo")
        return self._of_repo(found[1], repo, found[2], body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _create(self, told: dict[str, Any]) -> None:
        name = f"{told['organization']}/{told['name']}" if told.get("organization") else f"me/{told['name']}"
        if name in self.hub.repos:
            return self._answer(409, json.dumps({"error": "exists", "url": f"{self.hub.endpoint}/{name}"}).encode())
        self.hub.repos[name] = Repo(private=told.get("visibility") == "private", commits=0)
        return self._json({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _of_repo(self, name: str, repo: Repo, rest: str, body: bytes) -> None:
        if rest.endswith("/objects/batch"):
            asked = json.loads(body)["objects"]
            links = {"upload": {"href": f"{self.hub.endpoint}/lfs/"}}
            objects = []
            for one in asked:
                href = {"upload": {"href": links["upload"]["href"] + one["oid"]}}
                objects.append({**one, **({} if one["oid"] in self.hub.blobs else {"actions": href})})
            return self._json({"transfer": "basic", "objects": objects})
        _, kind, *more = rest.split("/") if rest else ("", "")
        if kind in ("", "revision", "tree") and more[:1] not in ([], ["main"], [repo.commit]):
            return self._answer(404, b"", X_Error_Code="RevisionNotFound")
        if kind in ("", "revision"):
            siblings = [{"rfilename": file} for file in repo.files]
            return self._json({"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "tags": []})
        if kind == "tree":
            rows = [
                {"type": "file", "path": file, "size": len(content), "oid": oid(content)}
                for file, content in repo.files.items()
            ]
            return self._json(rows)
        if kind == "preupload":
            return self._preupload(repo, json.loads(body))
        if kind == "commit":
            return self._commit(name, repo, body)
        if kind == "resolve":
            return self._file(repo, "/".join(more[1:]))
        return self._answer(404)

    def _file(self, repo: Repo, file: str) -> None:
        if file not in repo.files:
            return self._answer(404, b"", X_Error_Code="EntryNotFound")
        content = repo.files[file]
        headers = {"ETag": f'"{oid(content)}"', "X_Repo_Commit": repo.commit, "Accept_Ranges": "bytes"}
        return self._answer(200, content, **headers)

    def _preupload(self, repo: Repo, told: dict[str, Any]) -> None:
        files = []
        for one in told["files"]:
            name = one["path"]
            there = repo.files.get(name)
            large = name.endswith(".safetensors")
            held = None if there is None else hashlib.sha256(there).hexdigest() if large else oid(there)
            mode = "lfs" if large else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": held})
        self._json({"files": files})

    def _commit(self, name: str, repo: Repo, body: bytes) -> None:
        for line in body.decode().splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.blobs[value["oid"]]
        repo.commits += 1
        url = f"{self.hub.endpoint}/{name}/commit/{repo.commit}"
        self._json({"success": True, "commitOid": repo.commit, "commitUrl": url, "hookOutput": ""})
