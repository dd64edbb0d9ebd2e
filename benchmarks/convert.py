"""Import and export of a large model against a copy of its files: time and memory, side by side.

    python benchmarks/convert.py                          about 2.6 GB, of the shapes of LLaMA-2 7B in 6 layers
    python benchmarks/convert.py --layers 32 --repeats 1  the whole 13.5 GB; 28 GB of disk

A model of random bfloat16 weights is written tensor by tensor. Then, in turns: `cp` of its folder with `sync` of the
copy; `wizard import`; `wizard export` of what was imported, with every tensor read back, and no logits compared (which
is no part of converting, and takes as long as the model is large). Each starts in a process of its own with the source
out of the system's cache. Memory is the process's peak, with what it maps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from wizard_jax.convert.architectures import places, write_config
from wizard_jax.convert.safetensors_file import Written
from wizard_jax.convert.tensors import stored_shape
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import train_tokenizer

FILE_BYTES = 5 << 30
EXPORT = """
import sys
from pathlib import Path
from wizard_jax.transfer import export_model
export_model(Path(sys.argv[1]), Path(sys.argv[2]), chat_format="vicuna", verify="tensors")
"""


class Turn(NamedTuple):
    """What one process took."""

    seconds: float
    peak_bytes: int


def llama2_7b(*, layers: int) -> ModelConfig:
    """LLaMA-2 7B's shapes."""
    sizes = {"vocab_size": 32_000, "d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "head_dim": 128, "d_ff": 11_008}
    return ModelConfig(n_layers=layers, max_positions=4096, **sizes)


def write_model(folder: Path, model: ModelConfig) -> int:
    """A Hugging Face folder of random bfloat16 weights of either sign between 2^-9 and 2^-5; its bytes."""
    shapes = {name: stored_shape(rows) for name, rows in places(model).items()}
    files: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(map(np.prod, files[-1].values())) * 2 > FILE_BYTES:
            files.append({})
        files[-1][name] = shape
    named = {f"model-{i:05d}-of-{len(files):05d}.safetensors": tensors for i, tensors in enumerate(files, 1)}
    random = np.random.default_rng(0)
    folder.mkdir()
    with Written(folder, named, dtype="bfloat16") as written:
        for name, shape in shapes.items():
            bits = random.integers(0, 1 << 16, shape, np.uint16)
            bits = (bits & 0x81FF) | 0x3B00
            written.put(name, bits.view(ml_dtypes.bfloat16))
    weight_map = {name: file for file, tensors in named.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(write_config(model)))
    train_tokenizer(["sort the words and reverse them"] * 3, folder / "tokenizer.model", vocab_size=300)
    return sum(file.stat().st_size for file in folder.iterdir())


def forget(folder: Path) -> None:
    """Takes a folder's files out of the system's cache."""
    for file in folder.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def turn(command: list[str], *, source: Path, out: Path) -> Turn:
    """Runs a command that reads `source` and writes `out`."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    forget(source)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return Turn(time.monotonic() - began, used.ru_maxrss * 1024)


def measure(folder: Path, *, layers: int, repeats: int) -> dict[str, float]:
    """Medians of seconds, and largest peaks in bytes."""
    hf, copy, imported, exported = (folder / name for name in ("hf", "copy", "imported", "exported"))
    size = write_model(hf, llama2_7b(layers=layers))
    wizard = [sys.executable, "-m", "wizard_jax"]
    export = [sys.executable, "-c", EXPORT]
    copying = ["sh", "-c", 'cp -r "$1" "$2" && sync "$2"/*', "sh", str(hf), str(copy)]
    turns: dict[str, list[Turn]] = {"copy": [], "import": [], "export": []}
    for _ in range(repeats):
        turns["copy"].append(turn(copying, source=hf, out=copy))
        shutil.rmtree(copy)
        turns["import"].append(turn([*wizard, "import", str(hf), str(imported)], source=hf, out=imported))
        turns["export"].append(turn([*export, str(imported), str(exported)], source=imported, out=exported))
        shutil.rmtree(exported)
    seconds = {name: statistics.median(one.seconds for one in taken) for name, taken in turns.items()}
    return {
        "gigabytes": size / 1e9,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **{f"{name}_ratio": seconds[name] / seconds["copy"] for name in ("import", "export")},
        **{f"{name}_peak_gib": max(one.peak_bytes for one in turns[name]) / 2**30 for name in ("import", "export")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room (default: the system's temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), layers=arguments.layers, repeats=arguments.repeats)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
