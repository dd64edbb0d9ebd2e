"""SentencePiece tokenizers: LLaMA's own `tokenizer.model`, or one trained here that is built like it."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Literal

import sentencepiece

from configs.errors import UserError

# Protobuf messages merge when concatenated: ModelProto.normalizer_spec (3) .add_dummy_prefix (3).
_WITHOUT_LEADING_SPACE = b"\x1a\x02\x18\x00"
_WITH_LEADING_SPACE = b"\x1a\x02\x18\x01"


class TokenizerError(UserError):
    """A tokenizer file cannot be used, or a tokenizer cannot be trained as asked."""


class Tokenizer:
    """A trained SentencePiece model.

    Text never turns into control ids: "</s>" in a text is five characters, not the end of the sequence.
    As LLaMA does, `encode` puts a space before the text, so that the first word is encoded as any other.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises TokenizerError: no such file, no SentencePiece model, or one without BOS and EOS."""
        file = pathlib.Path(path)
        if not file.is_file():
            raise TokenizerError(f"there is no tokenizer file {file}: give the path of a tokenizer.model")
        self.model_bytes = file.read_bytes()
        self._processor = _load(self.model_bytes, name=str(file))
        self.bos_id = int(self._processor.bos_id())
        self.eos_id = int(self._processor.eos_id())
        if self.bos_id < 0 or self.eos_id < 0:
            raise TokenizerError(f"{file} has no BOS or no EOS token (LLaMA tokenizers have both): use another")

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    @property
    def pad_id(self) -> int:
        """What fills arrays. It trains nothing: loss weights, not ids, say what is trained."""
        pad = int(self._processor.pad_id())
        return pad if pad >= 0 else self.eos_id

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.model_bytes).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS."""
        return list(self._processor.encode(_unicode(text)))

    def encode_continuation(self, text: str) -> list[int]:
        """The ids of a text that goes on where another ended: as `encode`, without the space before it."""
        return list(self._continuing.encode(_unicode(text)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control ids have none, bytes that are no UTF-8 become U+FFFD."""
        return str(self._processor.decode([int(token) for token in ids]))

    def piece(self, token: int) -> str:
        """The piece that an id stands for, for showing to people."""
        return str(self._processor.id_to_piece(token))

    @functools.cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        return _load(self.model_bytes + _WITHOUT_LEADING_SPACE, name="tokenizer without a leading space")


def train_tokenizer(
    texts: Iterable[str],
    out_path: str | os.PathLike[str],
    *,
    vocab_size: int,
    digits: Literal["split", "whole"] = "split",
) -> Tokenizer:
    """Train byte-pair encoding on texts and write the model file; the same texts give the same bytes.

    Built like LLaMA's: ids unk 0, bos 1, eos 2, then 256 bytes that spell what no piece covers; text is
    not normalised; pieces do not span words, lines or, with digits='split', digits. Words that are
    frequent enough become one piece. Stops below `vocab_size` when there is nothing left to merge.

    Raises:
      TokenizerError: no text, a vocabulary too small for the characters in it, or another file at `out_path`.
    """
    if vocab_size < 1:
        raise TokenizerError(f"vocab_size is {vocab_size}: give the number of pieces that there may be, such as 32000")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # `_lines` puts it where `encode` will see it
            split_digits=digits == "split",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            input_sentence_size=0,  # all of them
            shuffle_input_sentence=False,
            max_sentence_length=1 << 30,  # longer lines would be left out without a word
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            # What SentencePiece advises after the comma are options of its own command.
            f"cannot train a tokenizer with vocab_size={vocab_size}: "
            f"{str(error).rpartition('] ')[2].partition(' or decrease')[0]}"
        ) from error
    out = pathlib.Path(out_path)
    model_bytes = model.getvalue() + _WITH_LEADING_SPACE
    if out.is_file() and out.read_bytes() != model_bytes:
        raise TokenizerError(
            f"{out} holds another tokenizer, and runs that point to it would not go on with this one: choose another "
            "--out, or remove it if nothing needs it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_bytes(model_bytes)
    partial.replace(out)
    return Tokenizer(out)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines, so that no piece holds a newline (it is spelled as a byte, as in LLaMA).

    Only the first line of a text has a space before it, as `encode` puts it there.
    """
    some = False
    for text in texts:
        for line in f" {_unicode(text)}".split("\n"):
            if line.strip(" \0"):
                some = True
                yield line
    if not some:
        raise TokenizerError("cannot train a tokenizer on no text: give it at least one line")


def _unicode(text: str) -> str:
    """The text itself; lone surrogates, which have no UTF-8 form, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _load(model: bytes, *, name: str) -> sentencepiece.SentencePieceProcessor:
    try:
        processor = sentencepiece.SentencePieceProcessor()
        loaded = bool(model) and processor.LoadFromSerializedProto(model)
    except RuntimeError:
        loaded = False
    if not loaded:
        raise TokenizerError(f"{name} is not a SentencePiece model: give the path of a tokenizer.model")
    return processor
