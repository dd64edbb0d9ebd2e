"""Opening whatever holds a model: a run, an imported model, or a Hugging Face folder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, read_complete, read_identity
from wizard_jax.convert import importing
from wizard_jax.convert.imported import ImportConfig, damage
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.lora import LoRA
from wizard_jax.tokenizer import Tokenizer, tokenizer_file
from wizard_jax.train.checkpoint import PARAMS, CheckpointStore
from wizard_jax.train.config import FromCheckpoint, TrainConfig
from wizard_jax.train.source import CHECKPOINTS, abstract_on, load_folder, merged_params

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A folder that holds a model, and what is known of how it came about; its weights are not read yet."""

    path: Path
    stage: str
    """The verb that made it; '' for a Hugging Face folder."""
    config: ModelConfig
    tokenizer: Tokenizer
    chat_format: str
    """'' where the folder names none."""
    trained_on: tuple[str, ...]
    """The data sets' folders: the run's own, then those of the runs that its weights come from."""
    untraced: str
    """The imported weights that it comes from, whose training data nobody wrote down; '' where there are none."""
    run: TrainConfig | None = None

    @property
    def adapter(self) -> tuple[LoRA, FromCheckpoint] | None:
        """What a run has trained beside weights, and which; None where its checkpoints hold the whole model."""
        if self.run is None or self.run.adapter is None or not isinstance(self.run.init, FromCheckpoint):
            return None
        return self.run.adapter, self.run.init


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model that is ready to answer, and what is known of how it came about: see `FoundModel`."""

    path: Path
    params: decoder.Params
    config: ModelConfig
    tokenizer: Tokenizer
    chat_format: str
    trained_on: tuple[str, ...]
    step: int | None
    """Of the checkpoint; None for a Hugging Face folder and an imported model."""
    untraced: str = ""
    notes: tuple[str, ...] = ()
    """What was passed over to open it, such as a damaged newer checkpoint."""


def find_model(path: Path, *, step: int | None = None) -> FoundModel:
    """What a folder holds. Raises UserError: no such folder, or no model in it; or it has no steps to choose from."""
    if not (path / IDENTITY).exists() and not (path / "config.json").exists():
        known = "a run of wizard train, a model of wizard import, or a Hugging Face folder"
        raise UserError(
            f"{path} holds no model: give {known}" if path.exists() else f"{path} does not exist: give {known}"
        )
    stage = read_identity(path).stage if (path / IDENTITY).exists() else ""
    if stage not in ("train", "import", ""):
        raise UserError(f"{path} was made by wizard {stage} and holds no model: give the folder of a run")
    if stage != "train" and step is not None:
        kind = "an imported model" if stage else "an exported folder"
        raise UserError(f"{path} is {kind}, which has no step {step}: leave step out, or name the run")
    run = load_config(TrainConfig, path) if stage == "train" else None
    trained_on, untraced = _origin(run) if run is not None else ((), os.fspath(path))
    if run is not None:
        model, chat_format = run.model, run.data.chat_format
    elif stage == "import":
        read_complete(path, stage="import")
        imported = load_config(ImportConfig, path)
        model, chat_format = imported.model, imported.chat_format
    else:
        model, chat_format = importing.read_model_config(path), importing.read_chat_format(path)
    tokenizer = Tokenizer(tokenizer_file(path))
    check_fits(tokenizer, model, folder=path)
    return FoundModel(
        path=path,
        stage=stage,
        config=model,
        tokenizer=tokenizer,
        chat_format=chat_format,
        trained_on=trained_on,
        untraced=untraced,
        run=run,
    )


def open_model(path: Path, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> OpenedModel:
    """Opens a model's folder, with the parameters split over `mesh` if one is given.

    Raises:
      UserError: no such folder, no model in it, no such step, or weights that are damaged.
    """
    found = find_model(path, step=step)
    abstract = abstract_on(mesh, found.config)
    if found.adapter is not None:
        adapter, init = found.adapter
        restored = merged_params(path, init, model=found.config, adapter=adapter, step=step, mesh=mesh)
    elif found.run is not None:
        with CheckpointStore(path / CHECKPOINTS) as store:
            restored = store.restore({PARAMS: abstract}, step=step)
    else:
        restored = None
    for note in restored.notes if restored else ():
        _log.warning(note)
    return OpenedModel(
        path=path,
        params=_folder_params(found, abstract=abstract) if restored is None else restored.trees[PARAMS],
        config=found.config,
        tokenizer=found.tokenizer,
        chat_format=found.chat_format,
        trained_on=found.trained_on,
        step=None if restored is None else restored.step,
        untraced=found.untraced,
        notes=() if restored is None else restored.notes,
    )


def _folder_params(found: FoundModel, *, abstract: decoder.Params) -> decoder.Params:
    if found.stage == "import":
        check_imported(found.path)
    return load_folder(found.path, found.config, abstract=abstract)


def check_imported(path: Path) -> None:
    """Raises UserError: the weights of an imported model are not what was imported."""
    if (problem := damage(path)) is not None:
        raise UserError(f"{path}: {problem}; put the file back, or import the model into a new folder")


def _origin(run: TrainConfig) -> tuple[tuple[str, ...], str]:
    """`trained_on` and `untraced` of a run."""
    own = tuple(member.dataset for member in run.data.members)
    if not isinstance(run.init, FromCheckpoint):
        return own, ""
    source = run.init.path
    if not (epath.Path(source) / IDENTITY).exists() or read_identity(source).stage != "train":
        return own, source
    earlier, untraced = _origin(load_config(TrainConfig, source))
    return own + earlier, untraced


def check_fits(tokenizer: Tokenizer, model: ModelConfig, *, folder: Path) -> None:
    """Raises UserError: the model has no row for some tokens (JAX would take another one without a word)."""
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, the model only {model.vocab_size}: "
            "put the tokenizer there that it was trained with"
        )


def known_format(found: FoundModel, given: str) -> str:
    """Raises UserError: no format is given, and the model's folder names none."""
    chat_format = given or found.chat_format
    if not chat_format:
        raise UserError(f"{found.path} names no chat format: say which it was trained with by --chat-format")
    return chat_format
