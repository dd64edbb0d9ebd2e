"""Models come from the Hub and go there by its own client: at a commit, only what is read, and nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_tokenizers import like_opt
from fake_hub import FakeHub, Repo, fake_hub
from task_files import VICUNA, write_rows
from tiny_flow import Flow

from configs.folder import load_config, read_complete
from wizard_jax.convert.imported import ImportConfig
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.transfer import export_model

ROOT = Path(__file__).parents[1]
RUN = """
import contextlib, io, json, sys
from wizard_jax.cli import main
for line in sys.stdin:
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            code = main(json.loads(line))
        except BaseException as error:
            code = repr(error)
    print(json.dumps([code, said.getvalue(), errors.getvalue()]), flush=True)
"""


class Wizard:
    """Commands in one process that has the hub's address in its environment: the client reads it once."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        told = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **told, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-c", RUN]
        self.process = subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes)

    def __call__(self, *command: object) -> tuple[int, str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        self.process.stdin.flush()
        code, said, errors = json.loads(self.process.stdout.readline())
        return code, said, errors


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def wizard(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wizard]:
    wizard = Wizard(hub, tmp_path_factory.mktemp("home"))
    yield wizard
    wizard.process.kill()
    wizard.process.communicate()


@pytest.fixture(scope="module")
def hf(flow: Flow, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, and the repository org/tiny that holds it beside things that nobody should fetch."""
    out = tmp_path_factory.mktemp("exported") / "hf"
    export_model(flow.run, out, verify="nothing")
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    others = {"modeling_tiny.py": b"raise SystemExit", "pytorch_model.bin": b"x" * 1000, "original/a.safetensors": b"x"}
    hub.repos["org/tiny"] = Repo(files={**files, **others})
    return out


def test_a_model_is_fetched_at_the_commit_that_its_branch_is_of_and_only_what_is_read(
    wizard: Wizard, hub: FakeHub, hf: Path, tmp_path: Path
) -> None:
    commit = hub.repos["org/tiny"].commit
    code, _, errors = wizard("import", "hf://org/tiny@main", tmp_path / "out")
    assert code == 0, errors
    assert load_config(ImportConfig, tmp_path / "out").source == f"hf://org/tiny@{commit}"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
    fetched = [path for path in hub.asked if "/resolve/" in path]
    assert fetched
    assert all(f"/resolve/{commit}/" in path for path in fetched)
    assert not [path for path in fetched if path.endswith((".py", ".bin", "original/a.safetensors"))]
    assert hub.tokens == {"Bearer hf_secret"}
    kept = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert b"hf_secret" not in kept
    before = len(hub.asked)
    assert wizard("import", f"hf://org/tiny@{commit}", tmp_path / "again")[0] == 0
    assert not [path for path in hub.asked[before:] if path.startswith("GET") and "/resolve/" in path], "it is cached"
    exported = tmp_path / "hf"
    assert wizard("export", tmp_path / "again", exported, "--no-verify")[0] == 0
    assert 'base_model: "org/tiny"' in (exported / "README.md").read_text()


def test_a_model_whose_tokenizer_is_gpt2s_two_files_is_fetched_with_both(
    wizard: Wizard, hub: FakeHub, hf: Path, tmp_path: Path
) -> None:
    files = {name: (hf / name).read_bytes() for name in ("config.json", "model.safetensors")}
    like_opt(tmp_path)
    hub.repos["org/two"] = Repo(files=files | {file.name: file.read_bytes() for file in tmp_path.iterdir()})
    code, _, errors = wizard("import", "hf://org/two", tmp_path / "out")
    assert code == 0, errors
    assert Tokenizer(tmp_path / "out" / "tokenizer.json").sha256 == Tokenizer(tmp_path / "vocab.json").sha256


REFUSED = {
    "hf://org/gone": "there is no such repository, or it is private: check the name, and HF_TOKEN",
    "hf://org/gated": "it is gated: ask for access on its page, and set HF_TOKEN",
    "hf://org/tiny@v2": "it has no such revision: give a commit, a branch or a tag of it",
    "hf://org/pickled": "pickled weights (*.bin, *.pt) are never fetched",
    "hf://org/tiny@0123456789012345678901234567890123456789": "hf://org/tiny@0123456789",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_fetched_is_said_in_one_message(
    name: str, wizard: Wizard, hub: FakeHub, hf: Path, tmp_path: Path
) -> None:
    del hf
    hub.repos["org/gated"] = Repo(gated=True)
    hub.repos["org/pickled"] = Repo(files={"config.json": b"{}", "pytorch_model.bin": b"x"})
    code, _, errors = wizard("import", name, tmp_path / "out")
    assert code == 2, errors
    assert errors.count("wizard: ") == 1
    assert REFUSED[name] in errors
    assert "hf_secret" not in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_task_s_file_is_read_from_a_data_set(wizard: Wizard, hub: FakeHub, tmp_path: Path) -> None:
    path, sha256 = write_rows(tmp_path / "question.jsonl", VICUNA)
    hub.repos["org/bench"] = Repo(files={"data/question.jsonl": Path(path).read_bytes()})
    config = tmp_path / "vicuna.gin"
    config.write_text("task = @VicunaBench\nmodels.teacher = @Simulated\n")
    task = ("task.path=hf://org/bench/data/question.jsonl", f"task.sha256={sha256}")
    code, _, errors = wizard("eval", config, "--out", tmp_path / "eval", *task)
    assert code == 0, errors
    assert read_complete(tmp_path / "eval")["task"]["source"] == "hf://org/bench/data/question.jsonl"
    for name, told in (
        ("hf://org/bench/gone.jsonl", "the repository holds no such file"),
        ("hf://org/gone/question.jsonl", "there is no such repository"),
        ("hf://org/bench", "write it as hf://owner/name/FILE"),
    ):
        code, _, errors = wizard("eval", config, "--out", tmp_path / "other", f"task.path={name}")
        assert (code, errors.count("wizard: ")) == (2, 1)
        assert told in errors


def test_an_export_is_pushed_in_one_commit_and_pushed_again_nothing_changes(
    wizard: Wizard, hub: FakeHub, flow: Flow, tmp_path: Path
) -> None:
    command = ("export", flow.run, tmp_path / "hf", "--no-verify", "--push", "me/mine")
    code, said, errors = wizard(*command)
    assert code == 0, errors
    repo = hub.repos["me/mine"]
    assert f"https://huggingface.co/me/mine holds it, at commit {repo.commit}" in said
    assert repo.private
    assert repo.commits == 1
    assert repo.files == {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    code, said, _ = wizard(*command)
    assert code == 0
    assert repo.commit in said
    assert repo.commits == 1
    hub.repos["me/gated"] = Repo(gated=True)
    code, _, errors = wizard(*command[:-1], "me/gated")
    assert code == 2
    assert "hf://me/gated can not be written: " in errors
