"""Vertex AI's metadata store and TensorBoard on loopback, as far as experiments need them, and a token server."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

TOKEN = "ya29.CANARY-token"
STAMP = "2026-01-01T00:00:00Z"
OPERATIONS = {"metadataStores", "tensorboards"}
"""Collections whose members are made by a long-running operation."""


class VertexServer:
    """Resources by name, and the points of every curve. `status` other than 200 is the answer to everything."""

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, Any]] = {}
        self.points: dict[tuple[str, int], float] = {}
        """(name of the curve, step) -> the last value that was written."""
        self.status = 200
        self.tokens: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def do_PATCH(self) -> None:
                self._answer()

            def _answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length)
                status, told = server.answer(self.command, self.path, body, self.headers.get("authorization", ""))
                content = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, dict[str, Any]]:
        url = urlsplit(path)
        if url.path == "/token":
            return 200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
        with self._lock:
            self.tokens.add(authorization)
            if self.status != 200:
                return self.status, {"error": {"code": self.status, "message": f"no, {authorization}", "status": "X"}}
            name, _, verb = url.path.removeprefix("/v1/").partition(":")
            asked = {key: values[0] for key, values in parse_qs(url.query).items()}
            told = json.loads(body) if body else {}
            return self._resource(method, name, verb, asked, told)

    def _resource(
        self, method: str, name: str, verb: str, asked: dict[str, str], told: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        if method == "POST" and verb in ("addContextChildren", "addContextArtifactsAndExecutions"):
            for key, values in told.items():
                self.resources[name].setdefault(key, []).extend(values)
            return 200, {}
        if method == "POST" and verb == "write":
            for series in told["timeSeriesData"]:
                curve = self.resources[f"{name}/timeSeries/{series['tensorboardTimeSeriesId']}"]["displayName"]
                for point in series["values"]:
                    self.points[curve, int(point.get("step", 0))] = float(point["scalar"].get("value", 0.0))
            return 200, {}
        if method == "POST":
            return self._create(name, asked, told)
        if method == "PATCH":
            self.resources[name] |= told
            return 200, self.resources[name]
        if name in self.resources:
            return 200, self.resources[name]
        collection = name.rpartition("/")[2]
        if len(name.split("/")) % 2:  # projects/P/locations/L/tensorboards: a list
            wanted = asked.get("filter", "")
            members = [one for key, one in self.resources.items() if re.fullmatch(rf"{re.escape(name)}/[^/]+", key)]
            if "is_default" in wanted:
                members = [one for one in members if one.get("isDefault")]
            key = "tensorboardTimeSeries" if collection == "timeSeries" else collection
            return 200, {key: members}
        return 404, {"error": {"code": 404, "message": f"{name} not found", "status": "NOT_FOUND"}}

    def _create(self, parent: str, asked: dict[str, str], told: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        collection = parent.rpartition("/")[2]
        chosen = next((value for key, value in asked.items() if key.endswith("Id")), str(len(self.resources) + 1))
        name = f"{parent}/{chosen}"
        if name in self.resources:
            return 409, {"error": {"code": 409, "message": f"{name} exists", "status": "ALREADY_EXISTS"}}
        self.resources[name] = {**told, "name": name, "createTime": STAMP, "updateTime": STAMP}
        if collection in OPERATIONS:
            kind = "Tensorboard" if collection == "tensorboards" else "MetadataStore"
            response = {"@type": f"type.googleapis.com/google.cloud.aiplatform.v1.{kind}", **self.resources[name]}
            return 200, {"name": f"{name}/operations/1", "done": True, "response": response}
        return 200, self.resources[name]


def service_account(folder: Path, *, server: VertexServer) -> Path:
    """The file of an account whose tokens the server gives."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    account = {
        "type": "service_account",
        "project_id": "a-project",
        "client_email": "a@b.example",
        "private_key_id": "1",
        "private_key": key.private_bytes(*pem).decode(),
        "token_uri": f"{server.address}/token",
    }
    file = folder / "account.json"
    file.write_text(json.dumps(account))
    return file
