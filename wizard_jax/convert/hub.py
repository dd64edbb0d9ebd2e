"""Models of the Hugging Face Hub, by `huggingface_hub`: fetched at a commit, and only the files that are read here.

Whatever the client reads of its environment holds: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HOME and the like.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError

SCHEME = "hf://"
FETCHED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""No code, no pickles; by their names, only at the top of the repository."""

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?/(?P<file>[\w./-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(UserError):
    """A name that is none, or a repository that can not be read or written."""


@dataclass(frozen=True)
class HubModel:
    """A repository at a commit."""

    repo: str
    commit: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.commit}"


def find(name: str) -> HubModel:
    """`hf://owner/name@revision` at the commit that the revision (a branch, a tag, none: main) is of now.

    Raises HubError. Of a commit nothing is asked.
    """
    told = _NAME.fullmatch(name.removeprefix(SCHEME))
    if told is None:
        raise HubError(f"{name}: write it as {SCHEME}owner/name, or {SCHEME}owner/name@revision")
    repo, revision = told["repo"], told["revision"] or "main"
    if _COMMIT.fullmatch(revision):
        return HubModel(repo, revision)
    from huggingface_hub import HfApi

    with _explained(name, "read"):
        commit = HfApi().model_info(repo, revision=revision).sha
    if commit is None:
        raise HubError(f"{name}: the hub names no commit of it: give one, as {SCHEME}{repo}@<40 hexadecimal digits>")
    return HubModel(repo, commit)


def fetch(model: HubModel) -> Path:
    """The folder of the model in the client's own cache; what is there is not fetched again. Raises HubError."""
    from huggingface_hub import snapshot_download

    with _explained(str(model), "read"):
        folder = Path(
            snapshot_download(model.repo, revision=model.commit, allow_patterns=list(FETCHED), ignore_patterns=["*/*"])
        )
    if not any(folder.glob("*.safetensors")):
        raise HubError(
            f"{model}: holds no model*.safetensors; pickled weights (*.bin, *.pt) are never fetched, since they run "
            "code when they are opened: look for a revision with safetensors, or convert it where you trust it "
            "(transformers: model.save_pretrained(folder)) and import that folder"
        )
    return folder


def fetch_file(name: str) -> Path:
    """A file of a data set, `hf://owner/name/FILE` or `hf://owner/name@revision/FILE`, in the client's own cache.

    Raises HubError.
    """
    told = _FILE.fullmatch(name.removeprefix(SCHEME))
    if told is None:
        raise HubError(
            f"{name}: write it as {SCHEME}owner/name/FILE, or {SCHEME}owner/name@revision/FILE, of a data set"
        )
    from huggingface_hub import hf_hub_download

    with _explained(name, "read"):
        return Path(hf_hub_download(told["repo"], told["file"], repo_type="dataset", revision=told["revision"]))


def push(folder: Path, repo: str) -> str:
    """Makes the repository hold the files of a folder, in one commit; where it does, nothing changes.

    A repository that is not there yet is made, private. Returns the commit. Raises HubError.
    """
    from huggingface_hub import HfApi

    with _explained(f"{SCHEME}{repo}", "written"):
        api = HfApi()
        api.create_repo(repo, exist_ok=True, private=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export by wizard_jax").oid)


def check_repo(name: str) -> None:
    """Raises HubError: it is no name of a repository."""
    told = _NAME.fullmatch(name)
    if told is None or told["revision"]:
        raise HubError(f"--push {name}: write it as owner/name")


@contextmanager
def _explained(name: str, done: str) -> Iterator[None]:
    """Raises HubError for what the client raises, without its requests' headers."""
    errors: Any = importlib.import_module("huggingface_hub.errors")  # its HTTPError is that of its client
    known = (
        (errors.GatedRepoError, "it is gated: ask for access on its page, and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "there is no such repository, or it is private: check the name, and HF_TOKEN"),
        (errors.RevisionNotFoundError, "it has no such revision: give a commit, a branch or a tag of it"),
        (errors.RemoteEntryNotFoundError, "the repository holds no such file: see what its page lists"),
        (errors.LocalEntryNotFoundError, "the hub can not be reached, and the cache has no whole copy: try again"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set, and the cache has no whole copy: unset it"),
    )
    try:
        yield
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        advice = next((text for kind, text in known if isinstance(error, kind)), None)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(f"{name} can not be {done}: {advice or first}") from error
    except (RuntimeError, ValueError) as error:  # an upload that failed; a name or an answer that is malformed
        raise HubError(f"{name} can not be {done}: {error}") from error
    except errors.HTTPError as error:
        raise HubError(
            f"{name} can not be {done}: {error or type(error).__name__}; check the network, try again"
        ) from error
