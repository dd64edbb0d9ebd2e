"""A headless Chromium that a test steers: opens a file, presses keys, takes pictures (DevTools protocol)."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
_SWITCHES = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-dev-shm-usage remote-debugging-port=0"
)
_KEYS = {"Enter": 13, "Backspace": 8, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Tab:
    """One page of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._sent = 0
        self.told: list[dict[str, Any]] = []
        """Events that came meanwhile, such as exceptions and requests."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        self._connection.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            reply: dict[str, Any] = json.loads(self._connection.recv(timeout=60))
            if reply.get("id") == self._sent:
                assert "error" not in reply, reply
                return reply["result"]
            self.told.append(reply)

    def open(self, target: Path) -> None:
        self.ask("Page.navigate", url=target.as_uri())
        self.until("document.readyState === 'complete'")

    def reload(self) -> None:
        self.run("globalThis.beforeReload = true")
        self.ask("Page.reload")
        self.until("!globalThis.beforeReload && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        done = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, condition: str) -> None:
        for _ in range(600):
            with contextlib.suppress(AssertionError):  # while one page makes way for another
                if self.run(condition):
                    return
            time.sleep(0.05)
        raise AssertionError(f"never came: {condition}")

    def press(self, *keys: str) -> None:
        for key in keys:
            code = _KEYS.get(key, ord(key[0]))
            named = {"key": key, "windowsVirtualKeyCode": code}
            text = {"text": key} if len(key) == 1 else {}
            self.ask("Input.dispatchKeyEvent", type="keyDown", **named, **text)
            self.ask("Input.dispatchKeyEvent", type="keyUp", **named)

    def resize(self, width: int, height: int) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def picture(self, target: Path) -> None:
        target.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def downloads_to(self, folder: Path) -> None:
        self.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def problems(self) -> list[dict[str, Any]]:
        """Exceptions, errors and warnings of the page, and requests that it made beyond its own file."""
        return [
            told
            for told in self.told
            if told["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
            or (
                told["method"] == "Network.requestWillBeSent"
                and not told["params"]["request"]["url"].startswith(("file:", "blob:"))
            )
        ]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own."""
    assert CHROMIUM
    command = [CHROMIUM, *(f"--{one}" for one in _SWITCHES.split()), f"--user-data-dir={profile}", "about:blank"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(profile, running)
        with _first_tab(port) as connection:
            yield Tab(connection)
    finally:
        running.terminate()
        running.wait(timeout=30)


def _port(profile: Path, running: subprocess.Popen[bytes]) -> int:
    file = profile / "DevToolsActivePort"
    for _ in range(600):
        assert running.poll() is None, "the browser did not start"
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("the browser does not listen")


def _first_tab(port: int) -> ClientConnection:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
        tabs = [one for one in json.load(reply) if one["type"] == "page"]
    return connect(tabs[0]["webSocketDebuggerUrl"], max_size=None, proxy=None)
