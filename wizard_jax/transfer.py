"""`wizard import` and `wizard export`: a model into this project, and out of it."""

from __future__ import annotations

from pathlib import Path

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, open_stage, read_complete, read_identity
from configs.loader import dump
from data_gen.config import EvolveConfig
from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.convert import importing
from wizard_jax.convert.export import Dtype, export_hf
from wizard_jax.convert.peft import export_adapter
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import count_params
from wizard_jax.model.lora import needs_qwix
from wizard_jax.runs import ImportConfig, OpenedModel, check_fits, open_model
from wizard_jax.tokenizer import Tokenizer, tokenizer_file
from wizard_jax.train.checkpoint import PARAMS, CheckpointStore
from wizard_jax.train.config import FromCheckpoint, TrainConfig
from wizard_jax.train.source import CHECKPOINTS, restore_adapter


def import_model(source: Path, out: Path, *, chat_format: str = "") -> ModelConfig:
    """Reads a Hugging Face LLaMA folder into `out`, which `init=@FromCheckpoint` and `wizard eval` take.

    Raises:
      UserError: not a LLaMA folder, an unknown chat format, pickled weights, a tokenizer with more tokens than the
        model, or tensors that do not fit the config (all listed).
    """
    model = importing.read_model_config(source)
    tokenizer = Tokenizer(tokenizer_file(source))
    check_fits(tokenizer, model, folder=source)
    chat_format = chat_format or importing.read_chat_format(source)
    if chat_format:
        check_tokenizer(get_format(chat_format), tokenizer)
    config = ImportConfig(source=str(source), model=model, chat_format=chat_format)
    with open_stage(out, config, stage="import") as folder:
        if not folder.is_complete:
            params = importing.load_hf_params(source, model)
            with CheckpointStore(out / CHECKPOINTS) as store:
                store.save(0, {PARAMS: params})
            for name, content in tokenizer.files.items():
                (out / name).write_bytes(content)
            folder.complete({"parameters": count_params(model)})
    return model


def export_model(
    run: Path, out: Path, *, step: int | None = None, dtype: Dtype = "bfloat16", chat_format: str = ""
) -> None:
    """Writes a run or an imported model as a Hugging Face folder. A finished folder of the same is left as it is.

    Raises:
      UserError: no such model or step, no chat format known, or `out` holds something else.
    """
    model = open_model(run, step=step)
    chat_format = chat_format or model.chat_format
    if not chat_format:
        raise UserError(f"{run} names no chat format: say which it was trained with by --chat-format")
    card = model_card(model, dtype=dtype, chat_format=chat_format)
    if (out / "README.md").exists() and (out / "README.md").read_text(encoding="utf-8") == card:
        return
    export_hf(model.params, model.config, tokenizer_file(run), out, chat_format=chat_format, card=card, dtype=dtype)


def export_peft(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: Dtype = "float32",
    chat_format: str = "",
    base_model: str = "",
) -> None:
    """Writes the adapter of a run alone, as `peft` loads it beside its base. A finished folder is left as it is.

    `base_model` is where a reader finds the base; by default the folder that it was imported from.

    Raises:
      UserError: not a run with an adapter, no such step, no name for the base, or `out` holds something else.
    """
    is_run = (run / IDENTITY).exists() and read_identity(run).stage == "train"
    config = load_config(TrainConfig, run) if is_run else None
    if config is None or config.adapter is None or not isinstance(config.init, FromCheckpoint):
        raise UserError(f"{run} is not a run with an adapter, and peft loads nothing else: leave --format out")
    restored = restore_adapter(run, model=config.model, adapter=config.adapter, step=step)
    base = base_model or _imported_from(config.init)
    chat_format = chat_format or config.data.chat_format
    card = _adapter_card(run, config, step=restored.step, base=base, chat_format=chat_format, dtype=dtype)
    if (out / "README.md").exists() and (out / "README.md").read_text(encoding="utf-8") == card:
        return
    export_adapter(
        restored.trees[PARAMS],
        config.model,
        config.adapter,
        tokenizer_file(run),
        out,
        base_model=base,
        chat_format=chat_format,
        card=card,
        dtype=dtype,
    )


def _imported_from(init: FromCheckpoint) -> str:
    path = Path(init.path)
    if (path / IDENTITY).exists() and read_identity(path).stage == "import":
        return load_config(ImportConfig, path).source
    raise UserError(
        f"{path}, which the adapter was trained beside, was not imported from a Hugging Face folder: name that of its "
        "export by --base-model, or leave --format out, which writes base and adapter in one"
    )


def _adapter_card(run: Path, config: TrainConfig, *, step: int, base: str, chat_format: str, dtype: str) -> str:
    adapter = config.adapter
    assert adapter is not None
    lines = [
        *("---", "library_name: peft", f"base_model: {base}", "pipeline_tag: text-generation", "---", ""),
        *(f"# {run.name}", ""),
        f"A LoRA adapter of rank {adapter.rank} for `{base}`, written in {dtype} by wizard_jax.",
        f"It was trained with the chat format `{chat_format}`.",
    ]
    if needs_qwix(adapter):
        lines += ["", f"Its base was kept in {adapter.base} while it was trained: beside whole weights it answers a"]
        lines += ["little differently. The merged export of the same run is exactly what was trained."]
    lines += ["", f"Checkpoint {step}.", "", "## Settings", "", "```", dump(config).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def model_card(model: OpenedModel, *, dtype: str, chat_format: str) -> str:
    """The README.md of an exported model: what it is, what it was trained on, by which settings."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {model.path.name}",
        "",
    ]
    lines.append(f"A LLaMA with {model.config.n_layers} layers, written in {dtype} by wizard_jax.")
    lines.append(f"It was trained with the chat format `{chat_format}`.")
    stage = read_identity(model.path).stage
    if stage == "train":
        run = load_config(TrainConfig, model.path)
        length = f"{run.epochs:g} epochs" if run.steps is None else f"{run.steps} steps"
        lines += ["", f"Checkpoint {model.step} of {length}.", "", "## Data"]
        lines += [line for dataset in model.trained_on for line in _data_lines(Path(dataset))]
        lines += ["", "## Settings", "", "```", dump(run).rstrip(), "```"]
    else:
        lines += ["", f"It was imported from {load_config(ImportConfig, model.path).source}, and not trained since."]
    return "\n".join(lines) + "\n"


def _data_lines(dataset: Path) -> list[str]:
    """What is known of a data set: how many records, and which model wrote them."""
    dataset = dataset.parent if (dataset.parent / "identity.json").exists() else dataset  # its shards were named
    if not (dataset / "identity.json").exists():
        return ["", f"Conversations of {dataset}."]
    summary = read_complete(dataset)
    config = load_config(EvolveConfig, dataset)
    models = ", ".join(summary["models"])
    lines = ["", f"{summary['records']:,} conversations, evolved in up to {config.rounds} rounds."]
    lines.append(f"Instructions were rewritten and answered by: {models}.")
    if "simulated-llm" in models:
        lines += ["", "That model is a simulation: this checkpoint shows that the pipeline works, and nothing else."]
    return lines
