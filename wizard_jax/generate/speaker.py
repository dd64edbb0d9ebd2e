"""A model that is ready to answer, and what it is spoken to in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import UserError
from data_gen.records import Turn
from wizard_jax.chat import ChatFormat, encode_prompt, end_id
from wizard_jax.generate.engine import Tokens
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """Weights, prepared for decoding, with the tokenizer and the chat format that they go with."""

    name: str
    params: decoder.Params
    config: ModelConfig
    tokenizer: Tokenizer
    chat_format: ChatFormat | None

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer: the chat format's, and the end of the text."""
        ends = [self.tokenizer.eos_id]
        if self.chat_format is not None:
            ends.append(end_id(self.chat_format, self.tokenizer))
        return tuple(dict.fromkeys(ends))

    def check_format(self) -> ChatFormat:
        """The chat format. Raises UserError: the model has none."""
        if self.chat_format is None:
            raise UserError(f"{self.name} names no chat format: give --chat-format NAME")
        return self.chat_format

    def prompt_of_turns(self, turns: Sequence[Turn]) -> Tokens:
        """Raises UserError: the model has no chat format; ChatError: turns that it can not write."""
        return encode_prompt(turns, chat_format=self.check_format(), tokenizer=self.tokenizer)

    def prompt_of_text(self, text: str) -> Tokens:
        """The ids of a text that the model is to go on with, from its beginning (BOS, where there is one)."""
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return np.array([*begin, *self.tokenizer.encode(text)], np.int32)
