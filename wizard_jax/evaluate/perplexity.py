"""How well a model foresees text that it was never trained on, and the rows by which it is measured."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from wizard_jax.data.config import Part
from wizard_jax.data.packing import PackedFolder, pack
from wizard_jax.data.pipeline import Batch, batches, held_out_batches
from wizard_jax.data.steps import StepRows
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.loss import token_losses

BATCH_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    value: float
    """exp of the mean loss in nats of a trained token."""
    tokens: int


def run_batches(run: Path, config: TrainConfig, tokenizer: Tokenizer, *, part: Part) -> Iterable[Batch]:
    """The packed rows of one side of a run's data, which are packed where they are not yet."""
    packed = _packed(run, config, tokenizer, part=part)
    return (one.batch for one in held_out_batches(packed, batch_rows=BATCH_ROWS))


def training_batches(run: Path, config: TrainConfig, tokenizer: Tokenizer, *, rows: int) -> list[Batch]:
    """The first rows that a run was trained on, in the order of its first epoch: a sample of all its data sets.

    (The packed rows themselves lie by length.) There are fewer where the data has fewer.
    """
    packed = _packed(run, config, tokenizer, part="train")
    wanted = StepRows(Fraction(BATCH_ROWS), BATCH_ROWS, end=min(rows, packed.rows))
    return list(itertools.islice(batches(packed, rows=wanted, seed=config.seed), wanted.steps))


def _packed(run: Path, config: TrainConfig, tokenizer: Tokenizer, *, part: Part) -> PackedFolder:
    cache = Path(config.pack_cache) if config.pack_cache else run.absolute().parent / "packed"
    return pack(config.data, tokenizer, cache_dir=cache, part=part)


def text_batches(texts: Sequence[str], tokenizer: Tokenizer, *, length: int) -> list[Batch]:
    """A row for each text, cut at `length` tokens, all of which but the first count; as long as the longest text."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    encoded = [[*begin, *tokenizer.encode(text)][:length] for text in texts]
    length = max(map(len, encoded))
    found = []
    for start in range(0, len(texts), BATCH_ROWS):
        columns = Batch(*(np.zeros((BATCH_ROWS, length), np.int32) for _ in Batch._fields))
        weights = columns.loss_weights.astype(np.float32)
        for row, ids in enumerate(encoded[start : start + BATCH_ROWS]):
            columns.tokens[row, : len(ids)], columns.segment_ids[row, : len(ids)] = ids, 1
            columns.positions[row, : len(ids)] = np.arange(len(ids))
            columns.targets[row, : len(ids) - 1], weights[row, : len(ids) - 1] = ids[1:], 1.0
        found.append(columns._replace(loss_weights=weights))
    return found


def perplexity(params: decoder.Params, model: ModelConfig, rows: Iterable[Batch]) -> Perplexity:
    """Of the trained tokens in packed rows, each conversation by itself."""
    loss, tokens = 0.0, 0
    for batch in rows:
        loss += float(batch_losses(params, model, batch).sum(dtype=np.float64))
        tokens += int((batch.loss_weights > 0).sum())
    return Perplexity(value=math.exp(loss / tokens), tokens=tokens)


def batch_losses(params: decoder.Params, model: ModelConfig, batch: Batch) -> np.ndarray:
    """Nats of each trained target, 0 of all others: float32 [B, L]."""
    columns = {name: jnp.asarray(column) for name, column in batch._asdict().items()}
    return np.asarray(_losses(params, columns, model=model))


@functools.partial(jax.jit, static_argnames="model")
def _losses(params: decoder.Params, columns: dict[str, jax.Array], *, model: ModelConfig) -> jax.Array:
    hidden = decoder.hidden_states(
        params,
        tokens=columns["tokens"],
        positions=columns["positions"],
        segment_ids=columns["segment_ids"],
        config=model,
    )
    return token_losses(
        hidden,
        unembedding_DxV=decoder.unembedding(params, model),
        targets_BxL=columns["targets"],
        weights_BxL=columns["loss_weights"],
    )
