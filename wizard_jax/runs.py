"""Opening whatever holds a model: a run, an imported model, or a Hugging Face folder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, read_identity
from configs.loader import setting
from wizard_jax.convert import importing
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.sharding import shardings
from wizard_jax.tokenizer import Tokenizer, tokenizer_file
from wizard_jax.train.checkpoint import PARAMS, CheckpointStore
from wizard_jax.train.config import FromCheckpoint, TrainConfig
from wizard_jax.train.source import CHECKPOINTS, abstract_on, merged_params

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What `wizard import` was told, and the network that it found."""

    source: str = setting(doc="the Hugging Face folder")
    model: ModelConfig = setting(doc="read from its config.json")
    chat_format: str = setting("", doc="the format that the model was trained with; '' if none is known")


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model that is ready to answer, and what is known of how it came about."""

    path: Path
    params: decoder.Params
    config: ModelConfig
    tokenizer: Tokenizer
    chat_format: str
    """'' where the folder names none."""
    trained_on: tuple[str, ...]
    """The data sets' folders: the run's own, then those of the runs that its weights come from."""
    step: int | None
    """Of the checkpoint; None for a Hugging Face folder."""
    untraced: str = ""
    """The imported weights that it comes from, whose training data nobody wrote down; '' where there are none."""
    notes: tuple[str, ...] = ()
    """What was passed over to open it, such as a damaged newer checkpoint."""


def open_model(path: Path, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> OpenedModel:
    """Opens a model's folder, with the parameters split over `mesh` if one is given.

    Raises:
      UserError: no such folder, no model in it, or no such step.
    """
    if (path / IDENTITY).exists():
        return _open_stage(path, step=step, mesh=mesh)
    if (path / "config.json").exists():
        if step is not None:
            raise UserError(f"{path} is an exported folder, which has no step {step}: leave step out, or name the run")
        return _open_hugging_face(path, mesh=mesh)
    known = "a run of wizard train, a model of wizard import, or a Hugging Face folder"
    raise UserError(f"{path} holds no model: give {known}" if path.exists() else f"{path} does not exist: give {known}")


def _open_stage(path: Path, *, step: int | None, mesh: jax.sharding.Mesh | None) -> OpenedModel:
    stage = read_identity(path).stage
    if stage == "train":
        run = load_config(TrainConfig, path)
        model, chat_format = run.model, run.data.chat_format
        trained_on, untraced = _origin(run)
    elif stage == "import":
        imported = load_config(ImportConfig, path)
        model, chat_format = imported.model, imported.chat_format
        trained_on, untraced = (), os.fspath(path)
    else:
        raise UserError(f"{path} was made by wizard {stage} and holds no model: give the folder of a run")
    if stage == "train" and run.adapter is not None and isinstance(run.init, FromCheckpoint):
        restored = merged_params(path, run.init, model=model, adapter=run.adapter, step=step, mesh=mesh)
    else:
        with CheckpointStore(path / CHECKPOINTS) as store:
            restored = store.restore({PARAMS: abstract_on(mesh, model)}, step=step)
    for note in restored.notes:
        _log.warning(note)
    return OpenedModel(
        path=path,
        params=restored.trees[PARAMS],
        config=model,
        tokenizer=Tokenizer(tokenizer_file(path)),
        chat_format=chat_format,
        trained_on=trained_on,
        step=restored.step,
        untraced=untraced,
        notes=restored.notes,
    )


def _origin(run: TrainConfig) -> tuple[tuple[str, ...], str]:
    """`OpenedModel.trained_on` and `untraced` of a run."""
    own = tuple(member.dataset for member in run.data.members)
    if not isinstance(run.init, FromCheckpoint):
        return own, ""
    source = run.init.path
    if not (epath.Path(source) / IDENTITY).exists() or read_identity(source).stage != "train":
        return own, source
    earlier, untraced = _origin(load_config(TrainConfig, source))
    return own + earlier, untraced


def _open_hugging_face(path: Path, *, mesh: jax.sharding.Mesh | None) -> OpenedModel:
    model = importing.read_model_config(path)
    tokenizer = Tokenizer(tokenizer_file(path))
    check_fits(tokenizer, model, folder=path)
    abstract = decoder.abstract_params(model)
    placed = None if mesh is None else shardings(decoder.logical_axes(model), mesh, shapes=abstract)
    return OpenedModel(
        path=path,
        params=importing.load_hf_params(path, model, shardings=placed),
        config=model,
        tokenizer=tokenizer,
        chat_format=importing.read_chat_format(path),
        trained_on=(),
        step=None,
        untraced=os.fspath(path),
    )


def check_fits(tokenizer: Tokenizer, model: ModelConfig, *, folder: Path) -> None:
    """Raises UserError: the model has no row for some tokens (JAX would take another one without a word)."""
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, the model only {model.vocab_size}: "
            "put the tokenizer there that it was trained with"
        )
