"""A tiny model of every network that llama.cpp knows, with its tokenizer, whose every array matters to the result."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chat_tokenizers import like_llama, like_llama3, like_qwen, like_starcoder, with_added

from wizard_jax.convert.new_folder import new_folder
from wizard_jax.convert.tensors import Array, Place, Read, at
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.rope import LinearScaling, Llama3Scaling, YarnScaling
from wizard_jax.tokenizer import Tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 424,
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "d_ff": 96,
    "max_positions": 256,
    "initializer_range": 0.2,
}
STRETCHED = {"factor": 4.0, "original_positions": 64}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    config: ModelConfig
    like: Callable[[pathlib.Path], pathlib.Path]
    chat_format: str

    def tokenizer(self, folder: pathlib.Path) -> Tokenizer:
        return Tokenizer(self.like(folder))

    @functools.cached_property
    def params(self) -> decoder.Params:
        """Norms and biases are random too, so that leaving one out shows."""
        leaves, tree = jax.tree.flatten(decoder.init_params(self.config, key=jax.random.key(0)))
        random = np.random.default_rng(0)
        params: decoder.Params = tree.unflatten(
            [leaf + 0.1 * random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
        )
        return params

    def read(self, place: Place) -> Array:
        array = at(self.params, place.path)
        return np.asarray(array if place.layer is None else array[place.layer])

    def logprobs(self, tokens: Sequence[int]) -> Array:
        """Of every next token after each: float32 [L, V]."""
        row = jnp.asarray([tokens], jnp.int32)
        return np.asarray(_logprobs(self.params, row, config=self.config))[0]


@functools.partial(jax.jit, static_argnames="config")
def _logprobs(params: decoder.Params, tokens: jax.Array, *, config: ModelConfig) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.hidden_states(
        params, tokens=tokens, positions=positions, segment_ids=jnp.ones_like(tokens), config=config
    )
    return jax.nn.log_softmax(decoder.logits(params, hidden, config=config), axis=-1)


def written(tiny: Tiny, folder: pathlib.Path, quantisation: Any = "F16", *, read: Read | None = None) -> pathlib.Path:
    """The GGUF file of a tiny model, in `folder`."""
    from wizard_jax.convert.gguf.export import file_name, write_folder  # the package gguf may not be installed

    told: dict[str, Any] = {"name": "tiny", "chat_format": tiny.chat_format, "quantisation": quantisation}
    with new_folder(folder / "out") as out:
        write_folder(out, tiny.config, tiny.tokenizer(folder), read or tiny.read, **told)
    return folder / "out" / file_name("tiny", quantisation)


def _llama(like: Callable[[pathlib.Path], pathlib.Path] = like_llama, chat: str = "vicuna", **changes: Any) -> Tiny:
    return Tiny(config=ModelConfig(**SIZES | changes), like=like, chat_format=chat)


def _qwen(family: str, **changes: Any) -> Tiny:
    return Tiny(config=ModelConfig(family=family, **SIZES | changes), like=like_qwen, chat_format="chatml")


LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=64)


def like_llama_with_turns(folder: pathlib.Path) -> pathlib.Path:
    return with_added(like_llama(folder), **{"<|im_start|>": True, "<|im_end|>": True, "<think>": False})


MODELS: dict[str, Tiny] = {
    "llama": _llama(),
    "llama with added tokens": _llama(like_llama_with_turns, "chatml"),
    "llama with biases": _llama(biases=("q", "k", "v", "o", "gate", "up", "down")),
    "llama 3.1": _llama(like_llama3, "llama3", rope_scaling=LLAMA3, tied_embeddings=True),
    "linear": _llama(rope_scaling=LinearScaling(factor=4.0)),
    "yarn": _llama(rope_scaling=YarnScaling(**STRETCHED, attention_factor=1.3, beta_fast=16.0)),
    "mistral": _llama(family="mistral", chat="llama2_chat", sliding_window=128),
    "qwen2": _qwen("qwen2", biases=("q", "k", "v"), tied_embeddings=True, rope_scaling=YarnScaling(**STRETCHED)),
    "qwen3": _qwen("qwen3", qk_norm=True, head_dim=32),
    "starcoder": Tiny(
        config=ModelConfig(
            family="gpt_bigcode",
            norm="layer",
            positions="learned",
            mlp="gelu_tanh",
            biases=("q", "k", "v", "o", "up", "down"),
            tied_embeddings=True,
            **SIZES | {"n_kv_heads": 1},
        ),
        like=like_starcoder,
        chat_format="alpaca",
    ),
}
