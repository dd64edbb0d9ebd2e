"""Eight fake devices, strict dtypes and no network, set before JAX starts."""

import os

from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["MPLBACKEND"] = "agg"

# A shared machine is slow at times; a test that hangs is found by the whole suite's time.
settings.register_profile("wizard", deadline=None)
settings.load_profile("wizard")
