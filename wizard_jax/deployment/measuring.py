"""The perplexity of a model before and after it was rounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wizard_jax.convert.verify import available_memory
from wizard_jax.data.pipeline import Batch
from wizard_jax.evaluate.perplexity import perplexity, run_batches
from wizard_jax.model.decoder import Params, count_params
from wizard_jax.runs import FoundModel, open_model

_SPARE = 2 << 30  # bytes beside two trees of parameters and a layer's attention scores, for what runs


def held_out(found: FoundModel) -> list[Batch]:
    """What a run holds out of its training; nothing where there is none."""
    if found.run is None or not found.run.data.held_out_share:
        return []
    return list(run_batches(found.path, found.run, found.tokenizer, part="held_out"))


def measured(found: FoundModel, batches: Sequence[Batch], after: Callable[[], Params], *, step: int | None) -> str:
    """A sentence on perplexity before and after; `after` gives the values that were written.

    Both are of whole models, one after the other; where memory does not allow that, the sentence says so.
    """
    if not batches:
        return "perplexity was not measured: nothing is held out of its training (data.held_out_share)"
    rows, length = batches[0].tokens.shape
    scores = 2 * 4 * rows * found.config.n_heads * length * length
    needed = 2 * 4 * count_params(found.config) + scores + _SPARE
    if available_memory() < needed:
        return f"perplexity was not measured: that takes {needed / 1e9:.0f} GB of memory, and there was less"
    before = perplexity(open_model(found.path, step=step).params, found.config, batches)
    rounded_to = perplexity(after(), found.config, batches)
    return (
        f"perplexity on {before.tokens:,} held-out tokens: {before.value:.4f} as it was, {rounded_to.value:.4f} with "
        "the values of this folder"
    )
