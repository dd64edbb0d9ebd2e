"""Imports go one way, and what needs no accelerator imports none of what does."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "data_gen", "launch", "wizard_jax")
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow", "grain"}

ALLOWED = {
    "configs": {"configs"},
    "data_gen": {"data_gen", "configs"},
    "launch": {"launch", "configs"},
    "wizard_jax": {"wizard_jax", "data_gen", "launch", "configs"},
}
"""Package -> the packages of this project that it may import."""

LEVELS = (
    {"tokenizer_files", "sentencepiece_model", "progress", "doctor", "hosts"},
    {"tokenizer_engines", "tokenizer_json", "tokenizer_added"},
    {"tokenizer", "chat_formats"},
    {"chat"},
    {"data", "model"},
    {"convert"},
    {"train", "generate"},
    {"runs", "plan"},
    {"model_card", "exported"},
    {"evaluate", "transfer", "serve"},
    {"report", "deployment"},
    {"quickstart", "data_verbs"},
    {"train_verbs", "convert_verbs", "model_verbs", "eval_verbs"},
    {"cli"},
    {"__main__"},
)
"""The parts of wizard_jax from the ground up: a part imports only parts of lower levels, and itself."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of a file, wherever it stands; the name is '' for `import module`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield from ((node.module, alias.name) for alias in node.names)


def part_of(module: str, name: str) -> str:
    """The part of wizard_jax that an import is of, also as in `from wizard_jax import chat`."""
    return [*module.split("."), name][1]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_those_below_them(package: str) -> None:
    assert sources(package)
    for file in sources(package):
        roots = {module.split(".")[0] for module, _ in imported(file)}
        assert roots & set(PACKAGES) <= ALLOWED[package], file
        assert "tests" not in roots, file


@pytest.mark.parametrize("package", ["configs", "data_gen", "launch"])
def test_what_runs_without_an_accelerator_names_no_library_for_one(package: str) -> None:
    for file in sources(package):
        assert not {module.split(".")[0] for module, _ in imported(file)} & HEAVY, file


def test_nothing_imports_torch_or_tensorflow_but_what_compares_an_export_where_they_are_installed() -> None:
    asking = [file.name for file in sources("wizard_jax") if '_quietly("t' in file.read_text(encoding="utf-8")]
    assert asking == ["peer.py"]
    for file in sources("wizard_jax"):
        assert not {module.split(".")[0] for module, _ in imported(file)} & {"torch", "tensorflow", "transformers"}, (
            file
        )


def test_inside_wizard_jax_a_part_imports_only_parts_below_it() -> None:
    level = {part: number for number, parts in enumerate(LEVELS) for part in parts}
    for file in sources("wizard_jax"):
        own = file.relative_to(ROOT / "wizard_jax").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in level, f"{own} has no place in LEVELS yet"
        for module, name in imported(file):
            if module.split(".")[0] == "wizard_jax":
                other = part_of(module, name)
                assert other == own or level[other] < level[own], f"{file}: imports {other}"


def test_the_model_knows_no_data_no_config_files_and_no_checkpoints() -> None:
    for file in sources("wizard_jax/model"):
        for module, name in imported(file):
            assert module.split(".")[0] not in ("data_gen", "launch", "orbax", "grain", "safetensors"), file
            if module.startswith("configs"):
                assert (module, name) in {("configs.errors", "UserError"), ("configs.loader", "setting")}, file


def test_opening_a_model_or_training_one_does_not_load_torch(tmp_path: Path) -> None:
    modules = "wizard_jax.runs, wizard_jax.report.comparison, wizard_jax.train.watching.metrics as metrics"
    code = f"import sys, {modules}; metrics.MetricsLog({str(tmp_path)!r}, step=0).close(); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()


def test_package_folders_import_nothing_by_themselves() -> None:
    for package in PACKAGES:
        for file in (ROOT / package).rglob("__init__.py"):
            if file == ROOT / "data_gen/llm/server/__init__.py":  # names what a caller needs of its one package
                assert {module for module, _ in imported(file)} == {"data_gen.llm.server.serving"}
            else:
                body = ast.parse(file.read_text(encoding="utf-8")).body
                assert not body or (len(body) == 1 and ast.get_docstring(ast.Module(body, [])) is not None), file


@pytest.mark.parametrize("package", ["configs", "data_gen", "launch"])
def test_all_of_its_modules_together_load_no_library_for_accelerators(package: str) -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in sources(package)
        if file.name != "__init__.py"
    ]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & HEAVY
