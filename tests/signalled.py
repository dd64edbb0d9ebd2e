"""A run in a process of its own that is sent a signal while it is under way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from configs.loader import dump
from data_gen.config import EvolveConfig
from data_gen.llm.server import SimulatedServer

CHILD = """
import sys
from pathlib import Path
from configs.interrupt import Interrupted
from configs.loader import load
from data_gen.config import EvolveConfig
from data_gen.generate import generate

try:
    generate(load(EvolveConfig, [sys.argv[1]]), Path(sys.argv[2]), progress=lambda done, total, facts: None)
except Interrupted as stopped:
    sys.exit(stopped.exit_code)
"""


def child(config: EvolveConfig, out: Path) -> subprocess.Popen[bytes]:
    file = out.with_suffix(".gin")
    file.write_text(dump(config))
    return subprocess.Popen([sys.executable, "-c", CHILD, str(file), str(out)], env=os.environ)


def stop_after(server: SimulatedServer, requests: int, process: subprocess.Popen[bytes], number: int) -> int:
    """Sends the signal once the server has seen so many requests; returns how the process ended."""
    deadline = time.monotonic() + 60
    while server.requests < requests and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(60)
