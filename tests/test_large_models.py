"""Models larger than the memory that is used for them come in and go out, about as fast as a copy of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from tiny_flow import Flow

from wizard_jax.convert.safetensors_file import read_header

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
GIB = 1 << 30

SMALL_LLAMA = {
    "vocab_size": 32_000,
    "d_model": 2048,
    "n_layers": 22,
    "n_heads": 32,
    "n_kv_heads": 4,
    "head_dim": 64,
    "d_ff": 5632,
    "scan_unroll": 1,
}
"""TinyLlama's shapes: 1.1 B parameters, 4.4 GB in float32."""

EXPORT = """
import sys
from pathlib import Path
from wizard_jax.transfer import export_model
export_model(Path(sys.argv[1]), Path(sys.argv[2]), verify="tensors")
"""


def peak_of(*command: str) -> int:
    """The peak memory of a process, with what it maps, in bytes."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=ENVIRONMENT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return used.ru_maxrss * 1024


@pytest.mark.slow
def test_a_model_of_7b_is_imported_and_exported_in_4_gib_and_twice_the_time_of_a_copy(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/convert.py", "--layers", "32", "--repeats", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(found)
    assert found["gigabytes"] > 13
    assert max(found["import_peak_gib"], found["export_peak_gib"]) < 4
    assert max(found["import_ratio"], found["export_ratio"]) < 2


@pytest.mark.slow
def test_a_run_is_exported_in_a_small_part_of_its_models_size(flow: Flow, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "hf"
    model = [f"model.{name}={value}" for name, value in SMALL_LLAMA.items()]
    command = flow.train_command(run, *model, "steps=0", "optimizer=@Adafactor")
    peak_of("-m", "wizard_jax", *command)
    peak = peak_of("-c", EXPORT, str(run), str(out))
    size = sum(tensor.nbytes for file in epath.Path(out).glob("*.safetensors") for tensor in read_header(file))
    print(f"a model of {2 * size / GIB:.2f} GiB, exported with a peak of {peak / GIB:.2f} GiB")
    assert 2 * size > 4 * GIB
    assert peak < 1.5 * GIB
