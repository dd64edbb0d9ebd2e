"""New special tokens for a trained tokenizer, written into the files that it is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import tokenizers

from wizard_jax.tokenizer_files import JSON, JSON_CONFIG, AddedToken, TokenizerError, as_decoder, config_of


def with_special(files: Mapping[str, bytes], contents: Sequence[str], *, first: int) -> dict[str, bytes]:
    """The files with special tokens of the ids from `first` on: in a tokenizer.json, or beside a SentencePiece model.

    Raises TokenizerError: a tokenizer.json whose ids have gaps, where the library that reads it gives out others.
    """
    if JSON in files:
        return {**files, JSON: _in_json(files[JSON], contents, first=first)}
    config = config_of(files, name="the tokenizer")
    added = {first + i: AddedToken(content=content, special=True) for i, content in enumerate(contents)}
    config["added_tokens_decoder"] = {**config.get("added_tokens_decoder", {}), **as_decoder(added)}
    return {**files, JSON_CONFIG: json.dumps(config, ensure_ascii=False).encode()}


def _in_json(content: bytes, contents: Sequence[str], *, first: int) -> bytes:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # it raises nothing narrower
        raise TokenizerError(f"this {JSON} can not be read whole, and is to be written again: {error}") from error
    tokenizer.add_special_tokens([tokenizers.AddedToken(one, special=True, normalized=False) for one in contents])
    given = [tokenizer.token_to_id(one) for one in contents]
    if given != list(range(first, first + len(contents))):
        raise TokenizerError(
            f"tokens can not be added to this {JSON}: its largest id is {first - 1}, and the new ones would get "
            f"{given}, as there are ids that no token has; name those in its added_tokens first"
        )
    return (tokenizer.to_str(pretty=True) + "\n").encode()
