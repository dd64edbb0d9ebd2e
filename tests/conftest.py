"""Eight fake devices, strict dtypes and no network, set before JAX starts; a tiny run that tests share."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from host_processes import QUICK_TO_COMPILE
from hypothesis import settings

if TYPE_CHECKING:
    from tiny_flow import Flow

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is XLA compiling small programs: without its optimizer it takes less than half of it, and
# without its newer way to fuse less than half of that (a train step of two layers 0.7 s, and 3.7 s with it).
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["MPLBACKEND"] = "agg"

# A shared machine is slow at times; a test that hangs is found by the whole suite's time.
settings.register_profile("wizard", deadline=None)
settings.load_profile("wizard")


def pytest_configure() -> None:
    """A shell starts a job in the background with Ctrl-C ignored, and what that starts inherits it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """A tiny data set, a tokenizer and a run of two steps; not to be changed."""
    from tiny_flow import make_flow

    return make_flow(tmp_path_factory.mktemp("flow"))
