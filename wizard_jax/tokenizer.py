"""Tokenizers: a SentencePiece `tokenizer.model`, LLaMA's or one trained here, a `tokenizer.json`, or GPT-2's files."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import sentencepiece

from wizard_jax.tokenizer_added import with_special
from wizard_jax.tokenizer_engines import WITH_LEADING_SPACE, Engine, JsonEngine, SentencePieceEngine
from wizard_jax.tokenizer_files import JSON, PIECES, SENTENCEPIECE, AddedToken, TokenizerError, read_files

__all__ = ["JSON", "SENTENCEPIECE", "Tokenizer", "TokenizerError", "tokenizer_file", "train_tokenizer"]


def tokenizer_file(folder: pathlib.Path) -> pathlib.Path:
    """The tokenizer of a model's folder: its SentencePiece file, which is the original, before its JSON, and that
    before the two files of GPT-2.

    Raises TokenizerError: it holds none of them.
    """
    found = [folder / name for name in (SENTENCEPIECE, JSON, PIECES) if (folder / name).is_file()]
    if not found:
        raise TokenizerError(f"{folder} holds no {SENTENCEPIECE} and no {JSON}: put the one of this model there")
    return found[0]


class Tokenizer:
    """A trained tokenizer of either kind.

    Text never turns into control ids: "</s>" in a text is four characters, not the end of the sequence.
    As LLaMA does, a SentencePiece tokenizer puts a space before the text that `encode` is given, so that the
    first word is encoded as any other. A `tokenizer.json` says itself whether there is one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises TokenizerError: no such file, no tokenizer, or one without EOS."""
        file = pathlib.Path(path)
        files = read_files(file)
        self._engine = _engine(files, name=str(file))

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_files, (dict(self._engine.files),)

    @property
    def files(self) -> Mapping[str, bytes]:
        """All that it is made from, by file name: written into a folder, they give the same tokenizer."""
        return self._engine.files

    @property
    def bos_id(self) -> int | None:
        """None: it has none, as Qwen's."""
        return self._engine.bos_id

    @property
    def eos_id(self) -> int:
        return self._engine.eos_id

    @property
    def pad_id(self) -> int:
        """What fills arrays. It trains nothing: loss weights, not ids, say what is trained."""
        return self._engine.pad_id

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._engine.vocab_size

    @property
    def added(self) -> Mapping[int, AddedToken]:
        """Tokens that are not put together from pieces, by id; of SentencePiece those alone that were added to it."""
        return self._engine.added

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(b"".join(self.files.values())).hexdigest()

    def with_added(self, contents: Sequence[str]) -> Tokenizer:
        """This tokenizer and new special tokens, which have the next ids in the order given.

        Raises TokenizerError: one that is empty, given twice, or there already.
        """
        if not contents:
            return self
        wrong = [f"{one!r} is given twice" for one in dict.fromkeys(contents) if contents.count(one) > 1]
        for content in dict.fromkeys(contents):
            if not content.strip() or _unicode(content) != content:
                wrong.append(f"{content!r} is no text")
            elif (token := self._engine.id_of(content)) is not None:
                wrong.append(f"{content!r} is there already, with the id {token}")
        if wrong:
            raise TokenizerError(f"these special tokens can not be added, leave them out: {'; '.join(wrong)}")
        return _from_files(with_special(self.files, contents, first=self.vocab_size))

    def special_id(self, name: str) -> int | None:
        """The id of a special token, such as <|eot_id|>, which no text turns into; None if there is none."""
        return self._engine.special_id(name)

    def encode(self, text: str) -> list[int]:
        """The ids of a text that follows a special token, such as BOS, which is not among them."""
        return self._engine.encode(_unicode(text))

    def encode_continuation(self, text: str) -> list[int]:
        """The ids of a text that goes on where another ended: as `encode`, without a space before it."""
        return self._engine.encode_continuation(_unicode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control ids have none, nor has what pads a model's vocabulary; bytes that are no UTF-8
        become U+FFFD."""
        return self._engine.decode([int(token) for token in ids])

    def piece(self, token: int) -> str:
        """The piece that an id stands for, for showing to people; "" if it stands for none."""
        return self._engine.piece(token)


def _engine(files: Mapping[str, bytes], *, name: str) -> Engine:
    return JsonEngine(files, name=name) if JSON in files else SentencePieceEngine(files, name=name)


def _from_files(files: Mapping[str, bytes]) -> Tokenizer:
    """Unpickles: the libraries' own pickles forget settings, and "<|eot_id|>" in a text would end a turn."""
    tokenizer = Tokenizer.__new__(Tokenizer)
    tokenizer._engine = _engine(files, name=next(iter(files)))
    return tokenizer


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
    model_bytes = model.getvalue() + WITH_LEADING_SPACE
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
