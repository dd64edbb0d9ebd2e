"""`wizard import` and `wizard export`: a model into this project, and out of it."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, open_stage, read_identity
from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.convert import hub, imported, importing
from wizard_jax.convert.export import Dtype, Places, Weights, from_layers, from_tensors, put_array, write_model
from wizard_jax.convert.imported import ImportConfig
from wizard_jax.convert.inventory import INDEX, check_own, read_tensors
from wizard_jax.convert.new_folder import new_folder, write_bytes
from wizard_jax.convert.peft import write_adapter
from wizard_jax.convert.resizing import grown_config, grown_index, padded_size, vocabulary_growth
from wizard_jax.convert.safetensors_file import Written
from wizard_jax.convert.verify import verify_logits, verify_tensors, verify_written
from wizard_jax.exported import Exported, finish, finished, made_from
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params, count_params
from wizard_jax.model_card import model_card
from wizard_jax.progress import Progress, nobody
from wizard_jax.runs import FoundModel, check_fits, check_imported, find_model, known_format, open_model
from wizard_jax.tokenizer import Tokenizer, tokenizer_file
from wizard_jax.train.checkpoint import PARAMS, CheckpointStore
from wizard_jax.train.config import FromCheckpoint
from wizard_jax.train.source import CHECKPOINTS, abstract_on, merged_params, restore_adapter

_log = logging.getLogger(__name__)

Verify = Literal["tensors and logits", "tensors", "nothing"]
_SMALL = (INDEX, "generation_config.json")


def import_model(
    source: str | Path,
    out: Path,
    *,
    chat_format: str = "",
    add_tokens: Sequence[str] = (),
    pad_vocabulary_to: int = 1,
    progress: Progress = nobody,
) -> ModelConfig:
    """Copies a Hugging Face folder (or hf://owner/name) into `out`, which `init=@FromCheckpoint` and others take.

    Every tensor is checked, and every byte read back, with no more than a part of one in memory. `add_tokens` are new
    special tokens; the vocabulary grows to hold them, and on to a multiple of `pad_vocabulary_to` (see resizing.py).

    Raises:
      UserError: no folder of a known model, an unknown chat format, pickled weights, a tokenizer with more tokens than
        the model, tokens that can not be added, tensors that do not fit the config (all listed) or hold NaN or
        infinity, or `out` is taken.
    """
    named = hub.find(str(source)) if str(source).startswith(hub.SCHEME) else None
    if named is None and "://" in str(source):
        raise UserError(
            f"{source}: is no local folder: copy it here first, or name a model of the hub ({hub.SCHEME}...)"
        )
    folder = epath.Path(source) if named is None else epath.Path(hub.fetch(named))
    if Path(folder).resolve() == out.resolve():
        raise UserError(f"{source}: is source and --out in one: choose another --out")
    stored_model = importing.read_model_config(folder)
    known = Tokenizer(tokenizer_file(Path(folder)))
    check_own(folder, [*_SMALL, *known.files])
    check_fits(known, stored_model, folder=Path(folder))
    tokenizer = known.with_added(add_tokens)
    rows = padded_size(max(stored_model.vocab_size, tokenizer.vocab_size), multiple=pad_vocabulary_to)
    chat_format = chat_format or importing.read_chat_format(folder)
    if chat_format:
        check_tokenizer(get_format(chat_format), tokenizer)
    stored = read_tensors(folder, stored_model)
    grows = rows > stored_model.vocab_size
    growth = vocabulary_growth(stored, stored_model, rows=rows, averaged=known.vocab_size) if grows else None
    config = ImportConfig(
        source=str(named or source),
        model=dataclasses.replace(stored_model, vocab_size=rows),
        chat_format=chat_format,
        added_tokens=tuple(add_tokens),
        grown_from=stored_model.vocab_size if grows else 0,
    )
    with open_stage(out, config, stage="import") as stage:
        if stage.is_complete:
            return config.model
        try:
            imported.copy_weights(stored, out, growth=growth, progress=progress)
        except UserError as error:
            if isinstance(error, imported.NotFinite) or not any(out.glob("*.safetensors")):
                shutil.rmtree(out)  # otherwise there is something to go on from
            raise
        contents = {name: (folder / name).read_bytes() for name in (*_SMALL, "config.json") if (folder / name).exists()}
        if growth is not None:
            contents["config.json"] = grown_config(contents["config.json"], config.model)
            contents |= {INDEX: grown_index(contents[INDEX], stored, growth)} if INDEX in contents else {}
        contents = {imported.SETTINGS: imported.model_settings(config).encode(), **tokenizer.files, **contents}
        for name, content in contents.items():  # config.json last: no other program loads half a model
            write_bytes(out / name, content)
        stage.complete({"parameters": count_params(config.model)})
    return config.model


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """The weights of a model at a checkpoint, ready to be read."""

    weights: Weights
    step: int | None
    sha256: str
    """Of the files of an imported model; '' of a run, whose checkpoints have files of other names each time."""


def export_model(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: Dtype = "bfloat16",
    chat_format: str = "",
    verify: Verify = "tensors and logits",
) -> Exported:
    """Writes a run or an imported model as a Hugging Face folder. A finished folder of the same is left as it is.

    One layer's tensor is in memory at a time; of a run with an adapter, one array of all layers.

    Raises:
      UserError: no such model or step, no chat format known, or `out` holds something else.
      VerificationError: what was written is not the model; there is no folder then.
    """
    found = find_model(run, step=step)
    chat_format = known_format(found, chat_format)
    check_tokenizer(get_format(chat_format), found.tokenizer)
    opened = _open_weights(found, step=step)
    mark = made_from(
        found,
        step=opened.step,
        weights_sha256=opened.sha256,
        dtype=dtype,
        chat_format=chat_format,
        kind="merged",
    )
    if (done := finished(out, mark)) is not None:
        return done
    with new_folder(out) as folder:
        written = write_model(
            folder,
            opened.weights,
            found.config,
            found.tokenizer,
            chat_format=chat_format,
            dtype=dtype,
            read_back=verify != "nothing",
        )
        checks = [] if verify == "nothing" else [verify_tensors(folder, written, found.config)]
        if verify == "tensors and logits":

            def reference(mesh: jax.sharding.Mesh) -> Params:
                return open_model(run, step=opened.step if found.run is not None else None, mesh=mesh).params

            checks.append(verify_logits(folder, found.config, reference, dtype=dtype))
        card = model_card(found, step=opened.step, dtype=dtype, chat_format=chat_format, checks=checks)
        finish(folder, card=card, mark=mark, checks=checks)
    return Exported(folder=out, checks=tuple(checks))


def _open_weights(found: FoundModel, *, step: int | None) -> _Opened:
    """Checks the files that hold the weights, and opens them."""
    path, model = found.path, found.config
    if found.run is None:
        if found.stage == "import":
            check_imported(path)
        stored = read_tensors(path, model)
        sha256 = imported.weights_sha256(path) if found.stage == "import" else ""
        return _Opened(weights=from_tensors(stored), step=None, sha256=sha256)
    with CheckpointStore(path / CHECKPOINTS) as store:
        at, _, notes = store.restore({}, step=step)
        for note in notes:
            _log.warning(note)
        if found.adapter is None:
            weights = from_layers(store.read_layers(at, abstract_on(None, model)))
        else:
            weights = _merged(found, step=at)
    return _Opened(weights=weights, step=at, sha256="")


def _merged(found: FoundModel, *, step: int) -> Weights:
    """Base and update in one, an array of all layers at a time: an update is of an array as it was trained."""
    assert found.adapter is not None
    adapter, init = found.adapter

    def put(places: Places, written: Written) -> None:
        def take(path: tuple[str, ...], array: jax.Array) -> None:
            put_array(path, np.asarray(array), places=places, written=written)

        merged_params(found.path, init, model=found.config, adapter=adapter, step=step, convert=take)

    return put


def export_peft(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: Dtype = "float32",
    chat_format: str = "",
    base_model: str = "",
    verify: Verify = "tensors and logits",
) -> Exported:
    """Writes the adapter of a run alone, as `peft` loads it beside its base. A finished folder is left as it is.

    `base_model` is where a reader finds the base; by default the folder that it was imported from. Its tensors are
    read back; the logits of base and adapter are compared in the export of both in one.

    Raises:
      UserError: not a run with an adapter, no such step, no name for the base, or `out` holds something else.
      VerificationError: what was written is not the adapter; there is no folder then.
    """
    found = find_model(run, step=step) if _is_run(run) else None
    if found is None or found.adapter is None:
        raise UserError(f"{run} is not a run with an adapter, and peft loads nothing else: leave --format out")
    adapter, init = found.adapter
    with CheckpointStore(run / CHECKPOINTS) as store:
        at, _, notes = store.restore({}, step=step)
    for note in notes:
        _log.warning(note)
    trained = restore_adapter(run, model=found.config, adapter=adapter, step=at).trees[PARAMS]
    base = base_model or _imported_from(init)
    chat_format = known_format(found, chat_format)
    mark = made_from(found, step=at, weights_sha256="", dtype=dtype, chat_format=chat_format, kind="peft", base=base)
    if (done := finished(out, mark)) is not None:
        return done
    told: dict[str, Any] = {"base_model": base, "chat_format": chat_format, "dtype": dtype}
    with new_folder(out) as folder:
        written = write_adapter(folder, trained, found.config, adapter, found.tokenizer, **told)
        checks = [] if verify == "nothing" else [verify_written(written)]
        card = model_card(found, step=at, dtype=dtype, chat_format=chat_format, checks=checks, peft_base=base)
        finish(folder, card=card, mark=mark, checks=checks)
    return Exported(folder=out, checks=tuple(checks))


def _is_run(path: Path) -> bool:
    return (path / IDENTITY).exists() and read_identity(path).stage == "train"


def _imported_from(init: FromCheckpoint) -> str:
    path = Path(init.path)
    if (path / IDENTITY).exists() and read_identity(path).stage == "import":
        told = load_config(ImportConfig, path)
        if told.added_tokens or told.grown_from:
            raise UserError(
                f"{path}, which the adapter was trained beside, has tokens or rows that {told.source} has not: export "
                f"it (wizard export {path} BASE) and name that by --base-model, or leave --format out, which writes "
                "base and adapter in one"
            )
        return told.source
    raise UserError(
        f"{path}, which the adapter was trained beside, was not imported from a Hugging Face folder: name that of its "
        "export by --base-model, or leave --format out, which writes base and adapter in one"
    )
