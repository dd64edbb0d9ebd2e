"""What `wizard doctor` looks at: versions, devices, credentials, folders, extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from configs.errors import UserError

PACKAGES = (
    "wizard-jax",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "sentencepiece",
    "tensorflow-datasets",
    "openai",
    "google-cloud-aiplatform",
)

EXTRAS = MappingProxyType(
    {
        "tpu": "libtpu",
        "plan": "libtpu",
        "cuda": "jax_cuda12_plugin",
        "beam": "apache_beam",
        "qlora": "qwix",
        "wandb": "wandb",
        "gguf": "gguf",
    }
)
"""Extra -> the module that shows that it is installed. Those of devices are also names of JAX platforms."""

Finding = tuple[str, str, str]


def findings(folders: Sequence[Path]) -> list[Finding]:
    """(what, what was found, what to do) for everything that a run may need; no secret is ever shown."""
    found = [("python", platform.python_version(), _python_advice())]
    found += [_package(name) for name in PACKAGES]
    found.append(_devices())
    found += [_extra(name, module) for name, module in EXTRAS.items()]
    found += _credentials()
    found += [_folder(folder) for folder in (folders or [Path()])]
    return found


def extra_for(error: ImportError) -> str | None:
    """The extra that brings the module whose import failed, or None if none does."""
    missing = (error.name or "").split(".")[0]
    return next((extra for extra, module in EXTRAS.items() if module == missing), None)


def check_platforms() -> None:
    """Raises UserError where JAX_PLATFORMS asks for devices whose extra is not installed."""
    for platform_name in os.environ.get("JAX_PLATFORMS", "").lower().split(","):
        extra = {"gpu": "cuda"}.get(platform_name, platform_name)
        if extra in EXTRAS and not importlib.util.find_spec(EXTRAS[extra]):
            raise UserError(
                f"JAX_PLATFORMS asks for {platform_name}, and {EXTRAS[extra]} is not installed. "
                f"It comes with an extra: pip install 'wizard-jax[{extra}]', or set JAX_PLATFORMS=cpu"
            )


def check_extra(name: str, *, asks: str) -> None:
    """Raises UserError where what `asks` for needs an extra that is not installed."""
    if not importlib.util.find_spec(EXTRAS[name]):
        raise UserError(
            f"{asks} needs {EXTRAS[name]}, which is not installed. It comes with an extra: "
            f"pip install 'wizard-jax[{name}]'"
        )


def _python_advice() -> str:
    return "" if platform.python_version_tuple()[:2] == ("3", "11") else "3.11 is what is tested"


def _package(name: str) -> Finding:
    try:
        return name, importlib.metadata.version(name), ""
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed", "pip install wizard-jax"


def _devices() -> Finding:
    import jax

    try:
        check_platforms()
        devices = jax.devices()
    except UserError as error:
        return "devices", "none", str(error)
    except RuntimeError as error:
        return "devices", str(error).splitlines()[0], "set JAX_PLATFORMS to what is here, or to cpu"
    kinds = sorted({device.device_kind for device in devices})
    advice = "fine for the quickstart; a TPU or GPU for more" if devices[0].platform == "cpu" else ""
    return "devices", f"{len(devices)} x {', '.join(kinds)}", advice


def _extra(name: str, module: str) -> Finding:
    if importlib.util.find_spec(module):
        return f"extra [{name}]", "installed", ""
    return f"extra [{name}]", "not installed", f"pip install 'wizard-jax[{name}]' if you need it"


def _credentials() -> list[Finding]:
    key = "OPENAI_API_KEY"
    openai = "found" if os.environ.get(key) else "not found"
    default = Path.home() / ".config/gcloud/application_default_credentials.json"
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    google = "found" if (Path(named).exists() if named else default.exists()) else "not found"
    return [
        ("OpenAI key", openai, "" if openai == "found" else f"export {key}=..., for hosted models only"),
        (
            "Google credentials",
            google,
            "" if google == "found" else "gcloud auth application-default login, for Google Cloud only",
        ),
    ]


def _folder(folder: Path) -> Finding:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return f"folder {folder}", "writable", ""
    except OSError as error:
        return f"folder {folder}", f"not writable: {error.strerror}", "choose another --out"
